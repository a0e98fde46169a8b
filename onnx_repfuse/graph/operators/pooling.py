"""Pools and normalizations of (N, C, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import KEPT_ON_AXIS_1, NORMALIZED
from onnx_repfuse.graph.operators.facts import (
    Attributes,
    Layout,
    Operator,
    Passes,
    SizeCase,
    SpaceMap,
    SpaceMapSort,
    ViewCase,
    all_pads,
    auto_pad,
    per_axis,
)
from onnx_repfuse.graph.scope import Scope

__all__ = ["POOLING"]


def _pool_doubts(case: SizeCase) -> Sequence[int]:
    """The axes on which onnx and ONNX Runtime may count windows differently.

    Of `auto_pad` and `pads`, onnx follows the second, ONNX Runtime the first. With `auto_pad` and dilations, onnx pads
    for the dilated window, ONNX Runtime for the undilated one. With `ceil_mode`, onnx counts a last window that begins
    in the padding, ONNX Runtime does not.
    """
    attrs = case.attrs
    if case.pads_twice:
        return case.space
    if case.pads_automatically and max(attrs.get("dilations", ()), default=1) > 1:
        return case.space
    if not attrs.get("ceil_mode"):
        return ()
    windows = _windows(case)
    if windows is None:
        return case.space
    return [axis for axis, window in zip(case.space, windows, strict=True) if window.may_end_in_padding()]


@dataclass(frozen=True)
class _Window:
    """The window of a pool along one axis; `size` is None where unknown."""

    size: int | None
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]

    def may_end_in_padding(self) -> bool:
        """Whether the last window that `ceil_mode` adds begins behind the input, or none fits at all."""
        if self.size is None:  # then inference does not know the size behind it either
            return False
        rest = self.size + sum(self.pads) - self.dilation * (self.kernel - 1) - 1
        last_begin = -(-rest // self.stride) * self.stride
        if rest < 0:
            return True
        return bool(rest % self.stride) and last_begin >= self.size + self.pads[0]


def _windows(case: SizeCase) -> list[_Window] | None:
    """One window an axis; None where `auto_pad` decides the padding, or the attributes do not fit the rank."""
    rank = len(case.space)
    ones = [1] * rank
    kernel, strides = case.attrs.get("kernel_shape", ones), case.attrs.get("strides", ones)
    dilations, pads = case.attrs.get("dilations", ones), case.attrs.get("pads", [0] * 2 * rank)
    lengths = {len(kernel), len(strides), len(dilations)}
    if case.pads_automatically or lengths != {rank} or len(pads) != 2 * rank:
        return None
    sides = zip(pads[:rank], pads[rank:], strict=True)
    each_axis = zip(case.shape[2:], kernel, strides, dilations, sides, strict=True)
    return [_Window(*facts) for facts in each_axis]


def _global_average(case: ViewCase) -> Layout | None:
    """(N, C, ...) -> (N, C, 1, ...)"""
    return case.before if case.is_spatial else None


def _average(case: ViewCase) -> Layout | None:
    """(N, C, H, W) -> (N, C, h, w)"""
    return case.before if case.is_spatial and len(case.result) == len(case.shape) else None


def _averages_constants(case: ViewCase) -> bool:
    """Whether every window has a real tap, and is divided by the number of its real taps.

    With `count_include_pad` only where there is no padding. A window that `ceil_mode` adds may hang over the end: then
    runtimes divide by more or less. One that is larger than its input may be clipped, where the stride is not 1.
    """
    attrs, rank = case.node.attrs, len(case.shape) - 2
    kernel = list(attrs.get("kernel_shape") or ())
    if len(kernel) != rank or _may_lie_in_padding(attrs, kernel):
        return False
    if not attrs.get("count_include_pad", 0):
        return True
    if _is_padded(attrs) or attrs.get("ceil_mode", 0):
        return False
    return _fits(case, kernel) or max(per_axis(attrs, "strides", rank)) == 1


def _is_padded(attrs: Attributes) -> bool:
    """Whether there may be padding around the tensor."""
    return any(attrs.get("pads") or ()) or auto_pad(attrs) not in ("NOTSET", "VALID")


def _may_lie_in_padding(attrs: Attributes, kernel: list[int]) -> bool:
    """Whether all taps of some window may be padding: of a dilated window, even of a few positions."""
    # dilations came in opset 19 (AveragePool); taps that are far apart may step over a small tensor
    if _is_padded(attrs) and max(per_axis(attrs, "dilations", len(kernel))) > 1:
        return True
    # ONNX Runtime demands smaller pads, the standard does not
    pads = attrs.get("pads") or ()
    return any(pad >= taps for pad, taps in zip(pads, kernel * 2, strict=False))


def _fits(case: ViewCase, kernel: list[int]) -> bool:
    """Whether the window is certainly no larger than the tensor."""
    dilations = per_axis(case.node.attrs, "dilations", len(kernel))
    extents = [(taps - 1) * step + 1 for taps, step in zip(kernel, dilations, strict=True)]
    sizes = zip(case.shape[2:], extents, strict=True)
    return all(size is not None and size >= extent for size, extent in sizes)


def _positions(node: gs.Node, operand: Sequence[int]) -> Sequence[int]:
    rank, attrs = len(operand), node.attrs
    strides, dilations = per_axis(attrs, "strides", rank), per_axis(attrs, "dilations", rank)
    if auto_pad(attrs).startswith("SAME"):
        return [-(-size // stride) for size, stride in zip(operand, strides, strict=True)]
    pads = all_pads(attrs, rank)
    result = []
    for axis, size in enumerate(operand):
        extent = (attrs["kernel_shape"][axis] - 1) * dilations[axis] + 1
        rest = size + pads[axis] + pads[axis + rank] - extent
        steps = -(-rest // strides[axis]) if attrs.get("ceil_mode", 0) else rest // strides[axis]
        result.append(steps + 1)
    return result


def _taps(node: gs.Node) -> int:
    return prod(node.attrs.get("kernel_shape") or (1,))


def _average_macs(scope: Scope, node: gs.Node) -> int | None:
    """One for each tap, as of the depthwise convolution that it is."""
    elements = scope.elements(node.outputs[0].name)
    return None if elements is None else elements * _taps(node)


# What an average over a window takes for an element in ONNX Runtime, in times of moving one, measured with windows of
# 2x2 to 5x5: larger ones slide.
_AVERAGE_WORK = 5
_AVERAGE = SpaceMap(
    lambda node: SpaceMapSort.AVERAGES,
    _average,
    keeps_constants=_averages_constants,
    work=lambda node: _AVERAGE_WORK,
    multiply_adds=_taps,
    positions=_positions,
)

POOLING = (
    Operator(
        "AveragePool",
        stays_for_a_reason=True,
        space_map=_AVERAGE,
        multiply_adds=_average_macs,
        channels=KEPT_ON_AXIS_1,
        has_window=True,
        gain=1.0,
        doubts=_pool_doubts,
    ),
    Operator(
        "BatchNormalization",
        stays_for_a_reason=True,
        channels=NORMALIZED,
        operations=2,
        normalizes=True,
        shaped_by_shapes=True,
    ),
    Operator(
        "GlobalAveragePool",
        channels=KEPT_ON_AXIS_1,
        gain=1.0,
        space_map=SpaceMap.of_sort(SpaceMapSort.AVERAGES, _global_average),
    ),
    Operator("GlobalLpPool", channels=KEPT_ON_AXIS_1),
    Operator("GlobalMaxPool", gain=1.0, channels=KEPT_ON_AXIS_1, passes=Passes.AFFINE),
    Operator("InstanceNormalization", channels=KEPT_ON_AXIS_1, shaped_by_shapes=True, is_bounded=True),
    Operator("GroupNormalization", is_bounded=True),
    Operator("LayerNormalization", shaped_by_shapes=True, is_bounded=True),
    Operator("LpPool", channels=KEPT_ON_AXIS_1, has_window=True, doubts=_pool_doubts),
    Operator("LogSoftmax", gain=0.0),
    Operator("LRN", channels=KEPT_ON_AXIS_1),
    Operator(
        "MaxPool",
        gain=1.0,
        channels=KEPT_ON_AXIS_1,
        has_window=True,
        passes=Passes.AFFINE,
        doubts=_pool_doubts,
    ),
    Operator("Softmax", gain=0.0, is_bounded=True),
)
