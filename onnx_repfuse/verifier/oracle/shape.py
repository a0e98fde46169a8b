"""The oracle's operators that move elements, compute sizes or convert types.

What only moves elements moves their magnitudes alike. ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import is_float
from onnx_repfuse.verifier.oracle.tensor import Context, Joined, Tensor, Unsupported, check_size

_LARGE_CONCAT = 1 << 20  # elements, from which on a Concat of channels is not copied into one tensor at once


def _ints(context: Context, name: str, operand: Tensor | None) -> list[int] | None:
    """A list that newer opsets have as an input and older ones as an attribute; None if the node has neither."""
    if operand is not None:
        return [int(i) for i in operand.value.ravel()]
    attribute = context.attributes.get(name)
    return None if attribute is None else [int(i) for i in np.atleast_1d(attribute)]


def identity(context: Context, x: Tensor) -> Tensor:
    """Identity."""
    return x


def dropout(
    context: Context, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> Tensor:
    """Dropout in inference: its input. Raises Unsupported for training mode (an input since opset 12)."""
    if training is not None and bool(np.any(training.value)):
        raise Unsupported("Dropout in training mode")
    return x


def pad(
    context: Context,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Pad: pads and value are attributes up to opset 10, axes exist since 18. A negative number of elements crops."""
    sizes, rank = _ints(context, "pads", pads) or [], x.value.ndim
    where = list(range(rank)) if axes is None else [int(a) % rank for a in axes.value.ravel()]
    width, crop = [(0, 0)] * rank, [slice(None)] * rank
    # pads = [before of each axis, then after of each axis]
    for axis, before, after in zip(where, sizes[: len(where)], sizes[len(where) :], strict=True):
        width[axis] = max(0, before), max(0, after)
        crop[axis] = slice(max(0, -before), x.value.shape[axis] - max(0, -after))
    cut = x.map(lambda a: a[tuple(crop)])
    check_size([size + sum(more) for size, more in zip(cut.value.shape, width, strict=True)])
    mode = context.attributes.get("mode", "constant")
    if mode == "constant":
        fill = float(context.attributes.get("value", 0.0) if value is None else value.value.ravel()[0])
        magnitude = np.pad(cut.magnitude, width, constant_values=np.float32(abs(fill)))
        return Tensor(np.pad(cut.value, width, constant_values=fill), magnitude)
    if mode not in ("edge", "reflect", "wrap"):
        raise Unsupported(f"Pad mode {mode}")
    return cut.map(lambda a: np.pad(a, width, mode=mode))


def slice_(
    context: Context,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Slice: starts, ends and axes are attributes up to opset 9, inputs since 10, where steps came."""
    first, last = _ints(context, "starts", starts) or [], _ints(context, "ends", ends) or []
    where = _ints(context, "axes", axes) or range(len(first))
    strides = _ints(context, "steps", steps) or [1] * len(first)
    cut = [slice(None)] * x.value.ndim
    for start, end, axis, step in zip(first, last, where, strides, strict=True):
        size = x.value.shape[axis]
        # Numpy counts a negative index from the end. Below -size, ONNX clamps it to the first element (exporters write
        # INT64_MIN for "to the start, backwards").
        if step > 0:
            cut[axis] = slice(max(start, -size), end, step)
        else:
            cut[axis] = slice(start, None if end < -size else end, step)
    return x.map(lambda a: a[tuple(cut)])


def split(context: Context, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    """Split: sizes are an attribute up to opset 12, an input since 13; without them, equal parts but for the last."""
    axis = context.attributes.get("axis", 0)
    lengths = _ints(context, "split", sizes)
    if lengths is None:
        lengths = [-(-x.value.shape[axis] // context.outputs)] * context.outputs  # rounded up
    points = np.cumsum(lengths)[:-1]
    parts = zip(np.split(x.value, points, axis), np.split(x.magnitude, points, axis), strict=True)
    return [Tensor(value, magnitude) for value, magnitude in parts]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Raises ValueError where the shapes do not fit."""
    if len({(part.shape[0], part.shape[2:]) for part in parts}) > 1:
        raise ValueError("the parts of a Concat do not fit")
    return Joined(parts, 1)


def concat(context: Context, *parts: Tensor) -> Tensor:
    """Concat; opset 1 to 3 have a default axis, 1."""
    axis = context.attributes.get("axis", 1)
    if axis == 1 and sum(math.prod(part.shape) for part in parts) >= _LARGE_CONCAT:
        return _joined(parts)
    value = np.concatenate([part.value for part in parts], axis)
    return Tensor(value, np.concatenate([part.magnitude for part in parts], axis))


def reshape(context: Context, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Reshape: the shape is an attribute up to opset 4. 0 keeps the input's size, unless allowzero (opset 14)."""
    sizes = _ints(context, "shape", shape) or []
    if not context.attributes.get("allowzero", 0):
        sizes = [x.value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.map(lambda a: a.reshape(sizes))


def flatten(context: Context, x: Tensor) -> Tensor:
    """Flatten: (a, b, c, d) with axis 2 -> (a * b, c * d)."""
    axis = context.attributes.get("axis", 1)
    rows = math.prod(x.value.shape[: axis + x.value.ndim if axis < 0 else axis])
    return x.map(lambda a: a.reshape(rows, -1))


def transpose(context: Context, x: Tensor) -> Tensor:
    """Transpose; without perm it reverses the axes."""
    return x.map(lambda a: a.transpose(context.attributes.get("perm")))


def squeeze(context: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Squeeze: axes are an attribute up to opset 12, an input since 13; without them, all of size 1."""
    where = _ints(context, "axes", axes)
    return x.map(lambda a: np.squeeze(a, None if where is None else tuple(where)))


def unsqueeze(context: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Unsqueeze: axes are an attribute up to opset 12, an input since 13."""
    where = tuple(_ints(context, "axes", axes) or [])
    return x.map(lambda a: np.expand_dims(a, where))


def expand(context: Context, x: Tensor, shape: Tensor) -> Tensor:
    """Expand: broadcasting goes both ways, so a 1 in the shape keeps the input's size."""
    sizes = np.broadcast_shapes(x.value.shape, tuple(int(i) for i in shape.value))
    return x.map(lambda a: np.broadcast_to(a, sizes))


def shape_of(context: Context, x: Tensor) -> Tensor:
    """Shape -> (rank,) int64; start and end since opset 15."""
    given = context.attributes
    return Tensor.of(np.array(x.value.shape[given.get("start", 0) : given.get("end")], dtype=np.int64))


def gather(context: Context, x: Tensor, indices: Tensor) -> Tensor:
    """Gather: (a, b, c) at axis 1 by indices (i, j) -> (a, i, j, c)."""
    return x.map(lambda a: np.take(a, indices.value, axis=context.attributes.get("axis", 0)))


def where(context: Context, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where: x where the condition holds, else y; all broadcast."""
    chosen = condition.value
    return Tensor(np.where(chosen, x.value, y.value), np.where(chosen, x.magnitude, y.magnitude))


def equal(context: Context, a: Tensor, b: Tensor) -> Tensor:
    """Equal, of sizes. Raises Unsupported for floats, which a rounding decides."""
    if is_float(a.value.dtype):
        raise Unsupported("Equal of floats")
    return Tensor.of(a.value == b.value)


def range_(context: Context, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Range: start, start + delta, ... before limit."""
    first, last, step = (operand.value.ravel()[0] for operand in (start, limit, delta))
    count = max(0, math.ceil((last - first) / step))
    return Tensor.of(first + np.arange(count) * step, context.power)


def tile(context: Context, x: Tensor, repeats: Tensor) -> Tensor:
    """Tile, since opset 6."""
    return x.map(lambda a: np.tile(a, [int(count) for count in repeats.value]))


def gather_nd(context: Context, x: Tensor, indices: Tensor) -> Tensor:
    """GatherND: (a, b, c) by indices (k, 2) -> (k, c). Raises Unsupported for batch_dims (opset 12)."""
    if context.attributes.get("batch_dims", 0):
        raise Unsupported("GatherND with batch_dims")
    where = tuple(np.moveaxis(indices.value, -1, 0))  # one array of indices per axis
    return x.map(lambda a: a[where])


def space_to_depth(context: Context, x: Tensor) -> Tensor:
    """SpaceToDepth: (N, C, h*b, w*b) -> (N, b*b*C, h, w), the position in the block before the channel."""
    b = context.attributes["blocksize"]
    n, c, height, width = x.value.shape
    split = x.map(lambda a: a.reshape(n, c, height // b, b, width // b, b))
    return split.map(lambda a: a.transpose(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, height // b, width // b))


def depth_to_space(context: Context, x: Tensor) -> Tensor:
    """DepthToSpace: (N, b*b*C, h, w) -> (N, C, h*b, w*b); mode (opset 11) DCR has the position before the channel."""
    b = context.attributes["blocksize"]
    n, channels, height, width = x.value.shape
    c = channels // (b * b)
    if context.attributes.get("mode", "DCR") == "CRD":
        split = x.map(lambda a: a.reshape(n, c, b, b, height, width).transpose(0, 1, 4, 2, 5, 3))
    else:
        split = x.map(lambda a: a.reshape(n, b, b, c, height, width).transpose(0, 3, 4, 1, 5, 2))
    return split.map(lambda a: a.reshape(n, c, height * b, width * b))


def scatter_nd(context: Context, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """ScatterND: x with x[indices[..., :]] replaced by updates[...]. Raises Unsupported for reductions (opset 16)."""
    if context.attributes.get("reduction", "none") != "none":
        raise Unsupported("ScatterND with a reduction")
    value, magnitude = x.value.copy(), x.magnitude.copy()
    where = tuple(np.moveaxis(indices.value, -1, 0))  # one array of indices per axis
    value[where], magnitude[where] = updates.value, updates.magnitude
    return Tensor(value, magnitude)


def cast(context: Context, x: Tensor, like: Tensor | None = None) -> Tensor:
    """Cast and CastLike. All float types are float64 here: what a shorter one loses is the error bound's matter."""
    if like is None:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(context.attributes["to"]))
    else:
        dtype = like.value.dtype
    if not is_float(dtype):
        return Tensor.of(x.value.astype(dtype))
    return x if is_float(x.value.dtype) else Tensor.of(x.value.astype(np.float64))


def constant(context: Context) -> Tensor:
    """Constant: a tensor, or since opset 12 numbers. Raises Unsupported for sparse tensors and text."""
    given = context.attributes
    if "value" in given:
        return Tensor.of(onnx.numpy_helper.to_array(given["value"]))
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in given:
            return Tensor.of(np.array(given[name], dtype=np.float64 if "float" in name else np.int64))
    raise Unsupported("Constant of this kind")


def constant_of_shape(context: Context, shape: Tensor) -> Tensor:
    """ConstantOfShape: filled with value, a tensor of one element; without it, with float zeros."""
    given = context.attributes.get("value")
    fill = np.float64(0) if given is None else onnx.numpy_helper.to_array(given).ravel()[0]
    return Tensor.of(np.full(tuple(int(i) for i in shape.value), fill))
