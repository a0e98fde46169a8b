"""Pools and normalizations of (N, C, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_repfuse.graph.operators.channel_rules import KEPT_ON_AXIS_1, NORMALIZED
from onnx_repfuse.graph.operators.facts import Layout, Operator, SizeCase, SpaceMap, SpaceMapSort, ViewCase

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
        if self.size is None:
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


POOLING = (
    Operator(
        "AveragePool",
        stays_for_a_reason=True,
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
    Operator("GlobalMaxPool", gain=1.0, channels=KEPT_ON_AXIS_1),
    Operator("InstanceNormalization", channels=KEPT_ON_AXIS_1, shaped_by_shapes=True, is_bounded=True),
    Operator("GroupNormalization", is_bounded=True),
    Operator("LayerNormalization", shaped_by_shapes=True, is_bounded=True),
    Operator("LpPool", channels=KEPT_ON_AXIS_1, has_window=True, doubts=_pool_doubts),
    Operator("LogSoftmax", gain=0.0),
    Operator("LRN", channels=KEPT_ON_AXIS_1),
    Operator("MaxPool", gain=1.0, channels=KEPT_ON_AXIS_1, has_window=True, doubts=_pool_doubts),
    Operator("Softmax", gain=0.0, is_bounded=True),
)
