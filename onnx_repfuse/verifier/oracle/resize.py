"""The oracle's Resize: along each axis a matrix that every channel is multiplied by.

Coordinates are computed in float32, in the order in which ONNX Runtime computes them, as a position that is rounded
otherwise has other weights. The weights, and what is summed with them, are float64. https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_repfuse.verifier.oracle.tensor import Array, Context, Resized, Tensor, Unsupported

Float = np.float32
# Runtimes compute the weights of a cubic in float32, as polynomials of terms up to 6 that cancel: 24 roundings of 1.
# As errors add up like the square root of their number, each axis counts as so many terms.
_TERMS_OF_WEIGHTS = 600
_HALF = Float(0.5)
_LARGE_RESULT = 1 << 20  # elements, from which on an image is resized only when it has to be


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Attributes:
        size, count: positions before and after.
        scale: float32; not always count / size.
        roi: begin and end of the region of interest, as fractions of the axis.
    """

    size: int
    count: int
    scale: np.float32
    roi: tuple[np.float32, np.float32] = (Float(0), Float(1))

    @property
    def changes(self) -> bool:
        """Whether it is resized at all."""
        return bool(self.scale != 1) or self.count != self.size


def resize(
    context: Context,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """Resize (opset 10 on) and Upsample (7 to 9) in every mode.

    Raises Unsupported where positions outside of the input are given a value (tf_crop_and_resize).
    """
    if scales is None and sizes is None:
        roi, scales = None, roi  # the second input of Upsample and of Resize in opset 10; roi came in 11
    axes = _axes(context, x.value.shape, roi, scales, sizes)
    mode = _text(context, "mode", "nearest")
    if mode == "nearest":
        # neighbours are taken, never computed with
        picks = [_nearest(context, axis) for axis in axes]
        return x.map(lambda a: a[np.ix_(*picks)])
    matrices = {place: _weights(context, mode, axis) for place, axis in enumerate(axes) if axis.changes}
    terms = math.prod(int(np.count_nonzero(m, axis=1).max(initial=1)) for m in matrices.values())
    context.count_terms(terms, x.value)
    if mode == "cubic" or context.attributes.get("antialias", 0):
        context.terms.append(np.array([float(_TERMS_OF_WEIGHTS * len(matrices))]))
    return _resized(x, matrices, context.power)


def _resized(x: Tensor, matrices: Mapping[int, Array], power: int) -> Tensor:
    """A large image that grows along positions alone is resized only when it is read: a Conv may do with less."""
    pairs = {
        axis: (matrix, (np.abs(matrix) ** power).astype(np.float32)) for axis, matrix in matrices.items()
    }
    result = Resized(x, pairs)
    size = math.prod(result.shape)
    if size >= _LARGE_RESULT and size > x.value.size and min(pairs, default=0) > 1:
        return result
    return Tensor(result.value, result.magnitude)


def is_interpolating(context: Context) -> bool:
    """Whether it computes with the neighbours of a position, and does not only take one."""
    return _text(context, "mode", "nearest") != "nearest"


def _text(context: Context, name: str, default: str) -> str:
    return str(context.attributes.get(name, default))


def _axes(
    context: Context, shape: Sequence[int], roi: Tensor | None, scales: Tensor | None, sizes: Tensor | None
) -> list[_Axis]:
    """How each axis is resized; those that `axes` (opset 18) leaves out are not."""
    rank = len(shape)
    named = context.attributes.get("axes")
    where = list(range(rank)) if named is None else [int(axis) % rank for axis in np.atleast_1d(named)]
    result = [_Axis(size, size, Float(1)) for size in shape]
    resized = [shape[axis] for axis in where]
    if sizes is not None and sizes.value.size:  # empty counts as absent
        wanted = _kept_aspect(context, [int(size) for size in sizes.value], resized)
    else:
        given: Any = context.attributes["scales"] if scales is None else scales.value
        factors = [Float(scale) for scale in given]
        pairs = zip(resized, factors, strict=True)
        wanted = [(math.floor(Float(size) * scale), scale) for size, scale in pairs]
    regions = _regions(roi, len(where))
    for axis, (count, scale), region in zip(where, wanted, regions, strict=True):
        result[axis] = _Axis(shape[axis], count, scale, region)
    return result


def _regions(roi: Tensor | None, count: int) -> list[tuple[np.float32, np.float32]]:
    """Begin and end of the region of interest along each axis that is resized; all of it where none is given."""
    if roi is None or not roi.value.size:
        return [(Float(0), Float(1))] * count
    edges = [Float(edge) for edge in roi.value]
    return list(zip(edges[:count], edges[count : 2 * count], strict=True))


def _kept_aspect(
    context: Context, sizes: Sequence[int], shape: Sequence[int]
) -> list[tuple[int, np.float32]]:
    """Positions and scale of each axis that is given a size, by keep_aspect_ratio_policy (opset 18)."""
    ratios = [Float(count) / Float(size) for count, size in zip(sizes, shape, strict=True)]
    policy = _text(context, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(zip(sizes, ratios, strict=True))
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(np.floor(scale * Float(size) + _HALF)), scale) for size in shape]


def _coordinates(context: Context, axis: _Axis) -> Array:
    """Where each output position lies in the input, (count,) float32."""
    at = np.arange(axis.count, dtype=np.float32)
    if axis.scale == 1:  # an axis that is not resized, whatever the mode
        return at
    mode = _text(context, "coordinate_transformation_mode", "half_pixel")
    if context.opset < 11:  # which had no modes
        mode = "asymmetric"
    if mode not in _COORDINATES:
        raise Unsupported(f"Resize with {mode}")
    return np.asarray(_COORDINATES[mode](at, axis), np.float32)


def _half_pixel(at: Array, axis: _Axis) -> Array:
    return np.asarray((at + _HALF) / axis.scale - _HALF)


def _align_corners(at: Array, axis: _Axis) -> Array:
    return np.asarray(at * Float(axis.size - 1) / Float(max(1, axis.count - 1)))


def _symmetric(at: Array, axis: _Axis) -> Array:
    adjustment = Float(axis.count) / (axis.scale * Float(axis.size))
    offset = Float(axis.size) / Float(2) * (Float(1) - adjustment)
    return np.asarray(offset + _half_pixel(at, axis))


def _crop(at: Array, axis: _Axis) -> Array:
    """Raises Unsupported where a position lies outside of the input."""
    (begin, end), last = axis.roi, Float(axis.size - 1)
    if axis.count > 1:
        result = begin * last + at * (end - begin) * last / Float(axis.count - 1)
    else:
        result = at * 0 + _HALF * (begin + end) * last
    if ((result < 0) | (result > last)).any():
        raise Unsupported("Resize that extrapolates")
    return np.asarray(result)


_COORDINATES: dict[str, Callable[[Array, _Axis], Array]] = {
    "asymmetric": lambda at, axis: at / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda at, axis: _half_pixel(at, axis) if axis.count > 1 else at * 0,
    "tf_half_pixel_for_nn": lambda at, axis: (at + _HALF) / axis.scale,
    "align_corners": _align_corners,
    "tf_crop_and_resize": _crop,
}
# How a position between two elements is rounded, by nearest_mode.
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_ceil": lambda at: np.floor(at + _HALF),
    "round_prefer_floor": lambda at: np.ceil(at - _HALF),
}


def _nearest(context: Context, axis: _Axis) -> Array:
    """Which element each output position takes: (count,) int64."""
    rounding = _text(context, "nearest_mode", "round_prefer_floor")
    if context.opset < 11:  # Resize 10 rounds up where it shrinks
        rounding = "ceil" if axis.scale < 1 else "floor"
    at = _ROUNDINGS[rounding](_coordinates(context, axis))
    return np.asarray(np.clip(at, 0, axis.size - 1).astype(np.int64))


def _weights(context: Context, mode: str, axis: _Axis) -> Array:
    """The matrix (count, size) of an axis."""
    if mode not in ("linear", "cubic"):
        raise Unsupported(f"Resize with mode {mode}")
    a = float(context.attributes.get("cubic_coeff_a", -0.75))
    at = _coordinates(context, axis)
    if context.attributes.get("antialias", 0):
        taps, weights = _smoothed(mode, at, axis, a)
    elif mode == "linear":
        taps, weights = _linear(np.clip(at, 0, Float(axis.size - 1)))
    else:
        taps, weights = _cubic(at, a)
    if context.attributes.get("exclude_outside", 0):
        is_inside = (taps >= 0) & (taps < axis.size)
        weights = np.where(is_inside, weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.count, axis.size))
    rows = np.broadcast_to(np.arange(axis.count)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, axis.size - 1)), weights)
    return matrix


def _linear(at: Array) -> tuple[Array, Array]:
    """Two taps an output position, and their weights: (count, 2) each."""
    first = np.floor(at)
    ratio = (at - first).astype(np.float64)
    return np.stack([first, first + 1], 1).astype(np.int64), np.stack([1 - ratio, ratio], 1)


def _cubic(at: Array, a: float) -> tuple[Array, Array]:
    """Four taps an output position, and their weights: (count, 4) each."""
    first = np.floor(at)
    ratio = (at - first).astype(np.float64)
    distances = np.stack([1 + ratio, ratio, 1 - ratio, 2 - ratio], 1)
    return first.astype(np.int64)[:, None] + np.arange(-1, 3), _cubic_filter(distances, a)


def _cubic_filter(x: Array, a: float) -> Array:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0.0)))


def _smoothed(mode: str, at: Array, axis: _Axis, a: float) -> tuple[Array, Array]:
    """The taps of a filter at least as wide as the step between output positions (antialias), and their weights."""
    step = max(Float(1), Float(1) / axis.scale)
    support = (Float(1) if mode == "linear" else Float(2)) * step
    center = at + _HALF
    first = np.floor(center - support + _HALF).astype(np.int64)
    last = np.floor(center + support + _HALF).astype(np.int64)
    taps = first[:, None] + np.arange(int((last - first).max(initial=0)))
    x = (taps - center[:, None].astype(np.float64) + 0.5) / float(step)
    weights = np.clip(1 - np.abs(x), 0, None) if mode == "linear" else _cubic_filter(x, a)
    weights = np.where(taps < last[:, None], weights, 0.0)
    return taps, weights / weights.sum(axis=1, keepdims=True)
