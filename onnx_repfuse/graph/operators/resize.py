"""Resize and Upsample: along each spatial axis a matrix that every channel is multiplied by.

Each row sums to one, in every mode: nearest takes one position, linear and cubic take weighted means, and beyond the
sides they repeat the last position or leave it out. Only tf_crop_and_resize writes a constant of its own there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import KEPT_WHERE_PROVED
from onnx_repfuse.graph.operators.facts import (
    Layout,
    Operator,
    SizeCase,
    SpaceMap,
    SpaceMapSort,
    ViewCase,
)
from onnx_repfuse.graph.scope import Scope, Shape, optional_input

__all__ = ["RESIZE", "resized_axes"]

_CROPS = b"tf_crop_and_resize"
_SIDE = 0.999  # of a region of interest that certainly ends inside the image, however its ends are rounded
# Modes in which a factor of 1 takes each position from itself, by the standard, too.
_EXACT_AT_ONE = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
# What ONNX Runtime takes for an element, in times of moving one: for 2-D, measured with factors of 2 and 4.
_LINEAR_WORK, _CUBIC_WORK = 8, 200


def _layout(case: ViewCase) -> Layout | None:
    return case.before if case.is_spatial and _resizes_space_only(case) else None


def _resizes_space_only(case: ViewCase) -> bool:
    """Whether batch and channels are not resized, and each row of the map sums to one."""
    attrs, rank = case.node.attrs, len(case.shape)
    if len(case.result) != rank or case.result[1] != case.shape[1]:
        return False
    if case.node.op == "Resize" and len(case.node.inputs) > 4:
        return False  # more inputs than the standard knows
    if attrs.get("mode", "nearest") not in ("nearest", "linear", "cubic"):
        return False
    if _mode(case.node) == _CROPS.decode() and not _crops_inside(case):
        return False
    factors = _factor_of_axes(case.scope, case.node, rank)
    # a factor of 1.2 makes four channels of four, and not the same ones
    if any(factors.get(axis, 1.0) != 1.0 for axis in (0, 1)):
        return False
    return _leaves_positions(factors, case.result)


def _mode(node: gs.Node) -> str:
    return str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))


def _crops_inside(case: ViewCase) -> bool:
    """Whether the region of interest is constant and inside the image, so that nothing is extrapolated.

    One that begins inside and ends at the very side may end beyond it, by a rounding.
    """
    rank = len(case.shape)
    const = case.scope.const(optional_input(case.node, 1))
    roi = [] if const is None else [float(edge) for edge in const.read().ravel()]
    axes = resized_axes(case.node, rank)
    if len(roi) != 2 * len(axes):
        return False
    for axis, begin, end in zip(axes, roi[: len(axes)], roi[len(axes) :], strict=True):
        if (begin, end) == (0.0, 1.0):
            continue
        is_inside = 0.0 <= begin <= _SIDE and 0.0 <= end <= _SIDE
        if axis < 2 or not is_inside:
            return False
    return True


def resized_axes(node: gs.Node, rank: int) -> list[int]:
    """The axes that scales, sizes and region of interest are listed for (attribute since opset 18)."""
    return [int(axis) % rank for axis in node.attrs.get("axes") or range(rank)]


def _factor_of_axes(scope: Scope, node: gs.Node, rank: int) -> dict[int, float]:
    """Axis -> factor; none where the node lists sizes."""
    scales: Any = node.attrs.get("scales")
    if scales is None:
        const = scope.const(optional_input(node, _scales_input(len(node.inputs))))
        scales = [] if const is None else const.read().ravel()
    return dict(zip(resized_axes(node, rank), [float(scale) for scale in scales], strict=False))


def _scales_input(inputs: int) -> int:
    # (x, scales) until opset 10, (x, roi, scales, sizes) from 11 on
    return 1 if inputs == 2 else 2


def _leaves_positions(factors: dict[int, float], result: Shape) -> bool:
    """Whether the result is not empty where the operand is not: runtimes refuse to convolve empty tensors."""
    if not factors:
        return 0 not in result
    shrunk = [size for axis, size in enumerate(result) if axis > 1 and factors.get(axis, 1.0) < 1]
    return all(shrunk)  # an unknown size may be 0, too


def _copies(case: ViewCase) -> bool:
    """Whether it resizes nothing: all factors are 1, or the sizes are those that there are."""
    if _mode(case.node) not in _EXACT_AT_ONE:
        return False
    factors = _factor_of_axes(case.scope, case.node, len(case.shape))
    if factors:
        return set(factors.values()) == {1.0}
    sizes, sizes_behind = case.dims()
    return len(sizes) == len(case.shape) and sizes == sizes_behind  # the batch may be resized, too


def _sort(node: gs.Node) -> SpaceMapSort:
    is_nearest = node.attrs.get("mode", "nearest") == "nearest"
    return SpaceMapSort.REPEATS if is_nearest else SpaceMapSort.INTERPOLATES


def _work(node: gs.Node) -> int:
    return {"linear": _LINEAR_WORK, "cubic": _CUBIC_WORK}.get(node.attrs.get("mode", "nearest"), 0)


def _resize_doubts(case: SizeCase) -> Sequence[int]:
    """The axes whose size `floor(size * scale)` may be another one in float32: 10 * 0.7f is 6 or 7."""
    attrs, every = case.attrs, range(len(case.shape))
    named = attrs.get("axes") or every
    if not all(-len(every) <= axis < len(every) for axis in named):
        return every
    axes = [axis % len(every) for axis in named]
    if attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return sorted(axes)
    doubted = set(_cropped(case, axes)) if attrs.get("coordinate_transformation_mode") == _CROPS else set()
    lists_sizes = any(case.names[3:4])
    if lists_sizes:
        return sorted(doubted)
    scales = _known_scales(case)
    if scales is None or len(axes) != len(scales):
        return every
    by_axis = zip(axes, scales, strict=True)
    return sorted(doubted | {axis for axis, scale in by_axis if _rounds_twice(case.shape[axis], scale)})


def _cropped(case: SizeCase, axes: Sequence[int]) -> Sequence[int]:
    """The axes of which not the whole is resized: their sizes follow from the region of interest, too."""
    roi = case.inputs[1] if len(case.inputs) > 1 else None
    if roi is None or len(roi) != 2 * len(axes):
        return axes
    edges = zip(axes, roi[: len(axes)], roi[len(axes) :], strict=True)
    return [axis for axis, *ends in edges if ends != [0, 1]]


def _known_scales(case: SizeCase) -> Sequence[float] | None:
    scales: Sequence[float] | None = case.attrs.get("scales")
    place = _scales_input(len(case.names))
    if scales is None and place < len(case.inputs):
        return case.inputs[place]
    return scales


def _rounds_twice(size: int | None, scale: float) -> bool:
    """Whether `floor(size * scale)` depends on the precision of the product."""
    if size is None:
        return False
    narrow = np.float32(scale)
    return bool(floor(np.float32(size) * narrow) != floor(size * float(narrow)))


_MAP = SpaceMap(_sort, _layout, _copies, work=_work)

RESIZE = (
    Operator("Resize", gain=2.0, channels=KEPT_WHERE_PROVED, space_map=_MAP, doubts=_resize_doubts),
    Operator(
        "Upsample",
        gain=2.0,
        channels=KEPT_WHERE_PROVED,
        space_map=_MAP,
        attributes_are_inputs_since=9,
        doubts=_resize_doubts,
    ),
)
