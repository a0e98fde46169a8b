"""The oracle's data movement: what only places values moves their magnitudes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import is_float
from onnx_repfuse.verifier.oracle.registry import Context, Unsupported, Value, register

__all__: list[str] = []

Array = np.ndarray[Any, np.dtype[Any]]


def _both(x: Value, move: Callable[[Array], Array]) -> Value:
    return Value(move(x.v), move(x.m))


def _ints(context: Context, name: str, operand: Value | None) -> list[int] | None:
    """An operand that older opsets have as an attribute."""
    if operand is not None:
        return [int(i) for i in operand.v.ravel()]
    given = context.attributes.get(name)
    return None if given is None else [int(i) for i in np.atleast_1d(given)]


@register("Pad")
def pad(
    context: Context,
    x: Value,
    pads: Value | None = None,
    value: Value | None = None,
    axes: Value | None = None,
) -> Value:
    sizes = _ints(context, "pads", pads) or []
    where = [int(a) % x.v.ndim for a in axes.v.ravel()] if axes is not None else list(range(x.v.ndim))
    mode = context.attributes.get("mode", "constant")
    fill = float(value.v.ravel()[0]) if value is not None else float(context.attributes.get("value", 0.0))
    width, crop = [(0, 0)] * x.v.ndim, [slice(None)] * x.v.ndim
    for i, axis in enumerate(where):
        before, after = sizes[i], sizes[i + len(where)]
        width[axis] = max(0, before), max(0, after)
        crop[axis] = slice(max(0, -before), x.v.shape[axis] - max(0, -after))
    cut = _both(x, lambda a: a[tuple(crop)])
    if mode == "constant":
        return Value(
            np.pad(cut.v, width, constant_values=fill),
            np.pad(cut.m, width, constant_values=np.float32(abs(fill))),
        )
    if mode not in ("edge", "reflect", "wrap"):
        raise Unsupported(f"Pad mode {mode}")
    return _both(cut, lambda a: np.pad(a, width, mode=mode))


@register("Slice")
def slice_(
    context: Context,
    x: Value,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Value:
    first, last = _ints(context, "starts", starts) or [], _ints(context, "ends", ends) or []
    where = _ints(context, "axes", axes) or list(range(len(first)))
    stride = _ints(context, "steps", steps) or [1] * len(first)
    cut = [slice(None)] * x.v.ndim
    for a, b, axis, step in zip(first, last, where, stride, strict=True):
        size = x.v.shape[axis]
        stop: int | None = b
        if step < 0:
            stop = None if b < -size else b
        cut[axis] = slice(max(a, -size) if step > 0 else a, stop, step)
    return _both(x, lambda array: array[tuple(cut)])


@register("Split")
def split(context: Context, x: Value, sizes: Value | None = None) -> list[Value]:
    axis = context.attributes.get("axis", 0)
    total, parts = x.v.shape[axis], context.outputs
    lengths = _ints(context, "split", sizes)
    if lengths is None:
        chunk = -(-total // parts)
        lengths = [chunk] * (parts - 1) + [total - chunk * (parts - 1)]
    points = np.cumsum(lengths)[:-1]
    return [
        Value(v, m) for v, m in zip(np.split(x.v, points, axis), np.split(x.m, points, axis), strict=True)
    ]


@register("Concat")
def concat(context: Context, *parts: Value) -> Value:
    axis = context.attributes.get("axis", 1)
    return Value(np.concatenate([p.v for p in parts], axis), np.concatenate([p.m for p in parts], axis))


@register("Reshape")
def reshape(context: Context, x: Value, shape: Value | None = None) -> Value:
    wanted = _ints(context, "shape", shape) or []
    if not context.attributes.get("allowzero", 0):
        wanted = [x.v.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return _both(x, lambda a: a.reshape(wanted))


@register("Flatten")
def flatten(context: Context, x: Value) -> Value:
    axis = context.attributes.get("axis", 1)
    axis = axis + x.v.ndim if axis < 0 else axis
    rows = int(np.prod(x.v.shape[:axis], dtype=int))
    return _both(x, lambda a: a.reshape(rows, -1))


@register("Transpose")
def transpose(context: Context, x: Value) -> Value:
    return _both(x, lambda a: a.transpose(context.attributes.get("perm")))


@register("Squeeze")
def squeeze(context: Context, x: Value, axes: Value | None = None) -> Value:
    where = _ints(context, "axes", axes)
    return _both(x, lambda a: np.squeeze(a, None if where is None else tuple(where)))


@register("Unsqueeze")
def unsqueeze(context: Context, x: Value, axes: Value | None = None) -> Value:
    where = _ints(context, "axes", axes) or []
    return _both(x, lambda a: np.expand_dims(a, tuple(where)))


@register("Expand")
def expand(context: Context, x: Value, shape: Value) -> Value:
    wanted = np.broadcast_shapes(x.v.shape, tuple(int(i) for i in shape.v))
    return _both(x, lambda a: np.broadcast_to(a, wanted))


@register("Shape")
def shape_of(context: Context, x: Value) -> Value:
    dims = x.v.shape[context.attributes.get("start", 0) : context.attributes.get("end")]
    return Value.of(np.array(dims, dtype=np.int64))


@register("Gather")
def gather(context: Context, x: Value, indices: Value) -> Value:
    return _both(x, lambda a: np.take(a, indices.v, axis=context.attributes.get("axis", 0)))


@register("ScatterND")
def scatter_nd(context: Context, x: Value, indices: Value, updates: Value) -> Value:
    if context.attributes.get("reduction", "none") != "none":
        raise Unsupported("ScatterND with a reduction")
    where = tuple(np.moveaxis(indices.v, -1, 0))

    def put(data: Array, new: Array) -> Array:
        data = data.copy()
        data[where] = new
        return data

    return Value(put(x.v, updates.v), put(x.m, updates.m))


@register("Cast", "CastLike")
def cast(context: Context, x: Value, like: Value | None = None) -> Value:
    if like is not None:
        kind = np.dtype(np.float64) if like.v.dtype.kind == "f" else like.v.dtype
    else:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(context.attributes["to"]))
    if is_float(kind):
        return x if x.v.dtype.kind == "f" else Value.of(x.v.astype(np.float64))
    return Value.of(x.v.astype(kind))


@register("Constant")
def constant(context: Context) -> Value:
    given = context.attributes
    if "value" in given:
        return Value.of(onnx.numpy_helper.to_array(given["value"]))
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in given:
            kind = np.float64 if "float" in name else np.int64
            return Value.of(np.array(given[name], dtype=kind))
    raise Unsupported("Constant of this kind")


@register("ConstantOfShape")
def constant_of_shape(context: Context, shape: Value) -> Value:
    given = context.attributes.get("value")
    fill = onnx.numpy_helper.to_array(given).ravel()[0] if given is not None else np.float64(0)
    return Value.of(np.full(tuple(int(i) for i in shape.v), fill))


@register("Resize", "Upsample")
def resize(
    context: Context,
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
) -> Value:
    """Nearest neighbour only."""
    given = context.attributes
    if given.get("mode", "nearest") != "nearest" or "axes" in given:
        raise Unsupported("Resize other than nearest")
    if scales is None and sizes is None and roi is not None:  # Upsample, and Resize of opset 10
        scales = roi
    space: Sequence[int] = x.v.shape
    if sizes is not None and sizes.v.size:
        out = [int(i) for i in sizes.v]
        ratio = [o / s for o, s in zip(out, space, strict=True)]
    else:
        ratio = [float(r) for r in (scales.v if scales is not None else given["scales"])]
        out = [int(np.floor(s * r)) for s, r in zip(space, ratio, strict=True)]
    mode = given.get("coordinate_transformation_mode", "half_pixel" if context.opset >= 11 else "asymmetric")
    rounding = given.get("nearest_mode", "round_prefer_floor") if context.opset >= 11 else "floor"

    def index(size: int, count: int, scale: float) -> Array:
        if scale == 1.0:
            return np.arange(size)
        at = np.arange(count, dtype=np.float64)
        if mode == "asymmetric":
            at = at / scale
        elif mode in ("half_pixel", "pytorch_half_pixel"):
            at = (at + 0.5) / scale - 0.5 if count > 1 or mode == "half_pixel" else at * 0
        elif mode == "align_corners":
            at = at * (size - 1) / (count - 1) if count > 1 else at * 0
        else:
            raise Unsupported(f"Resize with {mode}")
        if rounding in ("floor", "ceil"):
            near = np.floor(at) if rounding == "floor" else np.ceil(at)
        else:
            near = np.floor(at + 0.5) if rounding == "round_prefer_ceil" else np.ceil(at - 0.5)
        return np.asarray(np.clip(near, 0, size - 1).astype(np.int64))

    picks = [index(s, o, r) for s, o, r in zip(space, out, ratio, strict=True)]
    return _both(x, lambda a: a[np.ix_(*picks)])
