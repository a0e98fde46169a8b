"""The noise of a model: what a change of one unit in the last place (ulp) of its inputs or weights does.

Two correct implementations of one network differ by about this much, whatever its depth and scale; a fixed
relative tolerance misfires both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, is_float
from onnx_repfuse.verifier.session import Model, load

__all__ = ["WEIGHTS_LIMIT", "nudge", "nudge_feed", "nudged_weights"]

WEIGHTS_LIMIT = 256 << 20  # bytes; above it the noise of the weights is not measured, to bound memory
_UINT = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_ARITHMETIC = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "Mul",
    "Add",
    "Sub",
    "Div",
    "PRelu",
}


def nudge(values: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Move each float by one ulp up or down at random; zeros, infinities, NaN and the largest value stay.

    Neighbouring floats have neighbouring bit patterns, so a step is +1 or -1 on the bits.

    Args:
        values: floats of 2, 4 or 8 bytes, any shape.
        rng: the source of randomness.
    """
    bits = np.ascontiguousarray(values).view(_UINT[values.dtype.itemsize])
    infinity = np.array(np.inf, values.dtype).view(bits.dtype)
    sign_bit = 1 << (values.dtype.itemsize * 8 - 1)
    magnitude = bits & bits.dtype.type(sign_bit - 1)
    movable = (magnitude > 0) & (magnitude < infinity - 1)
    step = (rng.integers(0, 2, bits.shape, dtype=np.int8) * 2 - 1).astype(bits.dtype)  # -1 wraps around
    moved = np.where(movable, bits + step, bits)
    return np.asarray(moved.view(values.dtype).reshape(values.shape))


def nudge_feed(feed: Mapping[str, Any], seed: int = 77) -> dict[str, Any]:
    """The feed with every float moved by one ulp; other values are passed on."""
    rng = np.random.default_rng(seed)

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        if not isinstance(value, np.ndarray) or not is_float(value.dtype):
            return value
        return nudge(value, rng)

    return {name: move(value) for name, value in feed.items()}


def nudged_weights(model: Model, seed: int = 78) -> onnx.ModelProto | None:
    """A copy of the model with the weights of its arithmetic moved by one ulp.

    Returns:
        None if the model is too large to copy, or has no float weights.
    """
    if isinstance(model, Path | str) and _size(Path(model)) > WEIGHTS_LIMIT:
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(load(model))
    rng = np.random.default_rng(seed)
    used = {name for node in proto.graph.node if node.op_type in _ARITHMETIC for name in node.input}
    tensors = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in used:
            tensors.extend(attribute.t for attribute in node.attribute if attribute.name == "value")
    moved = [_nudge_tensor(tensor, rng) for tensor in tensors if tensor.data_type in FLOAT_FORMATS]
    return proto if any(moved) else None


def _nudge_tensor(tensor: onnx.TensorProto, rng: np.random.Generator) -> bool:
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError):  # malformed, and the runtime did not mind
        return False
    if array.size == 0:
        return False
    raw = nudge(array, rng).tobytes()
    for name in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        tensor.ClearField(name)
    tensor.raw_data = raw
    return True


def _size(path: Path) -> int:
    """Bytes of the file and, roughly, of the external data it may refer to."""
    total = path.stat().st_size
    proto_small = total < WEIGHTS_LIMIT
    if not proto_small:
        return total
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += int(np.prod(tensor.dims, dtype=np.float64) * 4)
    return total
