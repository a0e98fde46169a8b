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

from onnx_repfuse.verifier.runtime import Model, load

__all__ = ["WEIGHTS_LIMIT", "nudge", "nudge_feed", "nudged_weights"]

WEIGHTS_LIMIT = 256 << 20  # bytes; above it the noise of the weights is not measured, to bound memory
_UINT = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOAT_TYPES = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
}
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


def nudge(bits: np.ndarray[Any, Any], rng: np.random.Generator, inf: int) -> np.ndarray[Any, Any]:
    """Move each float, given as its bits, by one ulp up or down at random; zeros, infinities and NaN stay.

    Args:
        bits: unsigned integers, any shape.
        rng: the source of randomness.
        inf: the bits of +infinity in this format.
    """
    size = bits.dtype.itemsize * 8
    magnitude = bits & bits.dtype.type((1 << (size - 1)) - 1)
    movable = (magnitude > 0) & (magnitude < inf - 1)
    step = (rng.integers(0, 2, bits.shape, dtype=np.int8) * 2 - 1).astype(bits.dtype)  # -1 wraps around
    return np.where(movable, bits + step, bits)


def nudge_feed(feed: Mapping[str, Any], seed: int = 77) -> dict[str, Any]:
    """The feed with every float moved by one ulp; other values are passed on."""
    rng = np.random.default_rng(seed)

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(item) for item in value]
        if not isinstance(value, np.ndarray) or not _is_float(value.dtype):
            return value
        kind = _UINT[value.dtype.itemsize]
        bits = np.ascontiguousarray(value).view(kind)
        return nudge(bits, rng, int(_infinity(value.dtype).view(kind))).view(value.dtype).reshape(value.shape)

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
    moved = [_nudge_tensor(tensor, rng) for tensor in tensors if tensor.data_type in _FLOAT_TYPES]
    return proto if any(moved) else None


def _nudge_tensor(tensor: onnx.TensorProto, rng: np.random.Generator) -> bool:
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError):  # malformed, and the runtime did not mind
        return False
    if array.size == 0:
        return False
    width = _FLOAT_TYPES[onnx.TensorProto.DataType.ValueType(tensor.data_type)]
    infinity = {
        onnx.TensorProto.FLOAT: 0x7F800000,
        onnx.TensorProto.DOUBLE: 0x7FF0000000000000,
        onnx.TensorProto.FLOAT16: 0x7C00,
        onnx.TensorProto.BFLOAT16: 0x7F80,
    }[onnx.TensorProto.DataType.ValueType(tensor.data_type)]
    bits = np.ascontiguousarray(array).view(_UINT[width])
    raw = nudge(bits, rng, infinity).tobytes()
    for name in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        tensor.ClearField(name)
    tensor.raw_data = raw
    return True


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _infinity(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.array(np.inf, dtype=dtype)


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
