"""The noise of a model: what a change of one unit in the last place (ulp) of its inputs or weights does.

Two correct implementations of one network differ by about this much, whatever its depth and scale. A fixed relative
tolerance is too small for some networks and too large for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from onnx_repfuse.verifier.arithmetic_weights import weights_of_arithmetic, with_cast_weights
from onnx_repfuse.verifier.distance import is_float_array
from onnx_repfuse.verifier.session import Model, load

__all__ = [
    "WEIGHTS_LIMIT",
    "file_bytes",
    "flush_tolerance",
    "noise_tolerance",
    "nudge_feed",
    "nudged_weights",
]

WEIGHTS_LIMIT = 256 << 20  # bytes; above it the noise of the weights is not measured, to bound memory
_BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes of an element
_NOISE_FACTOR = 4.0  # correct folds measure 0.5 to 2 times the noise; this leaves room for the tail
# By how much nodes may scale, and channels add up, what became zero because it is too small to show; and the most that
# this may be, whatever the planner claims: a weight that should not be zero is seen.
_FLUSH_GAIN = 1e6
_MOST_FLUSHED = 1e-15
_ULPS = 8.0  # for what is exact by luck, and so shows no noise

FloatOrArray = TypeVar("FloatOrArray", float, np.ndarray[Any, Any])


def noise_tolerance(noise: FloatOrArray, ulp_of_largest: FloatOrArray) -> FloatOrArray:
    """4 * noise + 8 ulp(max|y|): what two correct computations of y may differ by."""
    return _NOISE_FACTOR * noise + _ULPS * ulp_of_largest


def flush_tolerance(flushed: float) -> float:
    """What outputs may differ by, for inputs of magnitude 1, because weights became zero that are too small to show.

    `flushed` is the most that this changes where they are read; 0 if there are none.
    """
    return min(flushed * _FLUSH_GAIN, _MOST_FLUSHED)


def nudge_feed(feed: Mapping[str, Any], seed: int = 77) -> dict[str, Any]:
    """The feed with every float moved by one ulp, up or down at random; other values are passed on."""
    rng = np.random.default_rng(seed)

    def move(value: Any) -> Any:
        if isinstance(value, list):  # a sequence of tensors
            return [move(item) for item in value]
        if not is_float_array(value):
            return value
        return _nudge(value, rng)

    return {name: move(value) for name, value in feed.items()}


def nudged_weights(model: Model, seed: int = 78) -> onnx.ModelProto | None:
    """A copy of the model with the weights of its arithmetic moved by one ulp.

    Returns:
        None if the model is too large to copy, or has no float weights.
    """
    if isinstance(model, Path | str) and file_bytes(Path(model)) > WEIGHTS_LIMIT:
        return None
    given = load(model)
    copy = with_cast_weights(given)  # by an ulp of the type in which they are read
    if copy is model:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    rng = np.random.default_rng(seed)
    moved = [_nudge_tensor(tensor, rng) for tensor in weights_of_arithmetic(copy)]
    return copy if any(moved) else None


def _nudge_tensor(tensor: onnx.TensorProto, rng: np.random.Generator) -> bool:
    """Nudge a tensor in place; False if it has no elements, or cannot be read."""
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError):  # malformed, and the runtime did not mind
        return False
    if array.size == 0:
        return False
    raw = _nudge(array, rng).tobytes()
    # With values in a second field the tensor would be invalid.
    for name in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        tensor.ClearField(name)
    tensor.raw_data = raw
    return True


def _nudge(values: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Move each float by one ulp up or down at random; zeros, infinities, NaN and the largest value stay.

    Neighbouring floats have neighbouring bit patterns, so a step is +1 or -1 on the bits. `values` is of any shape,
    with 2, 4 or 8 bytes an element.
    """
    bits = np.ascontiguousarray(values).view(_BITS[values.dtype.itemsize])
    infinity = np.array(np.inf, values.dtype).view(bits.dtype)
    sign_bit = 1 << (values.dtype.itemsize * 8 - 1)
    # Without the sign, bit patterns are ordered as the floats are: zero, ..., the largest, infinity, NaN.
    magnitude = bits & bits.dtype.type(sign_bit - 1)
    magnitude -= bits.dtype.type(1)  # zero wraps around
    movable = (magnitude < infinity - bits.dtype.type(2)).view(np.uint8)
    up = rng.integers(0, 2, bits.shape, dtype=np.int8).view(np.uint8)
    up &= movable
    moved = bits + up  # one step up and another one, less one: +1 or -1, and no array of a larger type
    moved += up
    moved -= movable
    return np.asarray(moved.view(values.dtype).reshape(values.shape))


def file_bytes(path: Path) -> int:
    """Bytes of the file and, roughly, of the external data it refers to."""
    total = path.stat().st_size
    if total >= WEIGHTS_LIMIT:  # reading it would take the memory that the limit saves
        return total
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += int(np.prod(tensor.dims, dtype=np.float64) * 4)
    return total
