"""Operators that may be views: Flatten, Reshape, Squeeze, Unsqueeze, Transpose, ReduceMean, ReduceSum.

A layout rule says where the channels stand behind the node, given proved shapes of input and output: `(N, C, H, W)` is
`(1, 2)`, `(N, ..., C)` is `(-1, 0)`.
"""

from __future__ import annotations

from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import (
    BY_SHAPE,
    SELECTED,
    ChannelLayout,
    ChannelRule,
    Layouts,
    layout_of_axis,
)
from onnx_repfuse.graph.operators.facts import (
    Attributes,
    Doubt,
    Layout,
    Operator,
    Passes,
    SizeCase,
    SpaceMap,
    SpaceMapSort,
    Values,
    ViewCase,
)
from onnx_repfuse.graph.scope import Scope, optional_input, static

__all__ = ["SPACE_MAPS", "layout_of_extreme", "permutation"]


def _channels_vary_fastest(case: ViewCase) -> bool:
    """Whether no position stands behind the channels in memory, so that a row of C elements is one position."""
    return all(size == 1 for size in case.shape[case.channel + 1 :])


# Flatten and Reshape


def _flatten_layout(case: ViewCase) -> Layout | None:
    # (N, C, 1, 1) -> (N, C)
    axis, rank = case.node.attrs.get("axis", 1), len(case.shape)
    axis = axis + rank if axis < 0 else axis
    if _joins_positions(case):
        return -1, 0
    return (-1, 0) if axis == case.channel and _channels_vary_fastest(case) else None


def _joins_positions(case: ViewCase) -> bool:
    """Whether it makes (N, C, H, W) to (N, C * H * W), of which each channel owns H * W neighbours.

    Or (N, H, W, C) to (N, H * W * C), where those of a channel are C apart.
    """
    own = static(case.shape[1:])
    if own is None or len(case.shape) < 3 or len(case.result) != 2:
        return False
    return prod(own) == case.result[1] != case.channels


def _parts_rows(case: ViewCase) -> bool:
    """Whether it makes (N, C * H * W) to (N, C, H, W), the reverse.

    Only the consumers tell: the same Reshape may make heads of rows, and have its channels on the last axis.
    """
    if case.is_spatial or len(case.shape) != 2 or len(case.result) < 3:
        return False
    own = static(case.result[1:])
    if own is None or own[0] == case.channels or prod(own) != case.channels:
        return False
    return case.demanded == ((1, len(case.result) - 2), own[0])


def _joined_channels(case: ViewCase) -> int:
    return (case.result[1] or 0) if _joins_positions(case) or _parts_rows(case) else case.channels


def _reshape_layout(case: ViewCase) -> Layout | None:
    # (N, ..., C) -> (M, ..., C), (N, C, 1, 1) <-> (N, C), (N, C, H, W) -> (N, C, H * W)
    if _parts_rows(case):
        return 1, len(case.result) - 2
    if _joins_positions(case):
        return -1, 0
    if _channels_vary_fastest(case):
        return _rows_layout(case)
    result = case.result
    if case.channel != 1 or result[1] != case.channels:
        return None
    if len(result) == 2:  # several positions are not one
        return None
    return (1, len(result) - 2) if _keeps_batch(case) else None


def _rows_layout(case: ViewCase) -> Layout | None:
    # each row of C elements is one position
    result, channels = case.result, case.channels
    if result[-1] == channels:
        channels_were_last = case.channel == len(case.shape) - 1
        if channels_were_last or len(result) == 2:
            return -1, 0
    # (N, C) -> (N, C, 1, 1): behind the batch, the channels are the only axis longer than 1
    if result[1] != channels or [size for size in result[1:] if size != 1] != [channels]:
        return None
    return 1, len(result) - 2


def _keeps_batch(case: ViewCase) -> bool:
    """Whether a Reshape of (N, C, ...) keeps N, so that no channel of one image gets into another."""
    shape, result, node = case.shape, case.result, case.node
    if shape[0] is not None and shape[0] == result[0]:
        return True
    # the number of elements is the same, so N is if the product of the other sizes is
    before, after = static(shape[1:]), static(result[1:])
    if before is not None and after is not None:
        return prod(before) == prod(after)
    sizes, sizes_behind = case.dims()
    if sizes[:1] == sizes_behind[:1] != ():
        return True
    if node.attrs.get("allowzero"):
        return False  # opset 14: a 0 in the target is a size of 0, else it copies the size of that axis
    target = case.scope.const(optional_input(node, 1))
    return target is not None and int(target.read().ravel()[0]) == 0


def _block(node: gs.Node) -> int:
    """The block size of a DepthToSpace."""
    return max(0, int(node.attrs.get("blocksize", 0)))


# Squeeze, Unsqueeze, ReduceMean and ReduceSum, which work on `axes`


def _constant_axes(scope: Scope, node: gs.Node) -> list[int]:
    """The axes of an attribute or a constant input; none where they are unknown or left out."""
    name = optional_input(node, 1)
    if name:
        const = scope.const(name)
        return [] if const is None else [int(axis) for axis in const.read().ravel()]
    return list(node.attrs.get("axes") or ())


def _unsqueeze_layout(case: ViewCase) -> Layout | None:
    axes = _constant_axes(case.scope, case.node)
    if not axes:
        return None
    # (N, C) with axes [2, 3] -> (N, C, 1, 1)
    rank = len(case.shape) + len(axes)
    kept = sorted(set(range(rank)) - {axis % rank for axis in axes})
    return layout_of_axis(kept[case.channel], rank)


def _removed_axes(case: ViewCase) -> set[int]:
    """The axes that Squeeze and reductions work on, if they leave batch and channels alone; else none."""
    removed = {axis % len(case.shape) for axis in _constant_axes(case.scope, case.node)}
    return set() if removed & {0, case.channel} else removed


def _squeeze_layout(case: ViewCase) -> Layout | None:
    # (N, C, 1, 1) with axes [2, 3] -> (N, C); (N, L, C) with axis 1 -> (N, C)
    removed = _removed_axes(case)
    if not removed:
        return None
    return layout_of_axis(case.channel - sum(axis < case.channel for axis in removed), len(case.result))


def _reduce_layout(case: ViewCase) -> Layout | None:
    if not case.node.attrs.get("keepdims", 1):
        return _squeeze_layout(case)
    return layout_of_axis(case.channel, len(case.shape)) if _removed_axes(case) else None


def layout_of_extreme(scope: Scope, node: gs.Node, layout: Layout) -> Layout | None:
    """Where channels are behind a ReduceMax or ReduceMin; None unless it works on positions of one image alone."""
    shape, (channel_axis, rank) = scope.shape(node.inputs[0].name), layout
    if shape is None and channel_axis != 1:
        return None  # a MatMul takes any number of leading axes
    dims = rank + 2 if shape is None else len(shape)
    axes = {axis % dims for axis in _constant_axes(scope, node)} if dims else set()
    if not axes or not axes.isdisjoint({0, channel_axis % dims}):
        return None
    if node.attrs.get("keepdims", 1):
        return layout
    channel = channel_axis % dims
    return layout_of_axis(channel - sum(axis < channel for axis in axes), dims - len(axes))


def _extreme_forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    first = layouts.first(node)
    layout = None if first is None else layout_of_extreme(layouts.scope, node, first.layout)
    if first is None or layout is None:
        return BY_SHAPE.forwards(layouts, node)
    return ChannelLayout(*layout, first.channels, first.data_type)


_EXTREME = ChannelRule(_extreme_forwards)


def _axes(attrs: Attributes, axes: Values | None) -> tuple[int, ...]:
    given = attrs.get("axes") if axes is None else axes.ravel()
    return () if given is None else tuple(int(axis) for axis in given)


def _negative_axes_doubts(case: SizeCase) -> tuple[()] | Doubt:
    """Negative axes before opset 11, which allowed none: inference takes them for others."""
    return Doubt.SHAPE if case.opset < 11 and min(case.attrs.get("axes", ()), default=0) < 0 else ()


def _squeeze_doubts(case: SizeCase) -> tuple[()] | Doubt:
    """An empty list of axes, too, which is no axis for onnx and every axis of size 1 for ONNX Runtime."""
    is_empty = case.inputs[1:] == [[]] or case.attrs.get("axes") == []
    # No axes are all those of size 1: onnx before 1.18 takes every unknown size for a 1.
    is_unknown = not any(case.names[1:]) and not case.attrs.get("axes") and None in case.shape
    return Doubt.SHAPE if is_empty or is_unknown else _negative_axes_doubts(case)


# Transpose


def permutation(node: gs.Node, rank: int) -> list[int]:
    """Of a Transpose: `perm`, or by default the axes reversed."""
    return list(node.attrs.get("perm") or range(rank)[::-1])


def _transpose_layout(case: ViewCase) -> Layout | None:
    # perm (0, 2, 3, 1): (N, C, H, W) -> (N, H, W, C)
    rank = len(case.shape)
    return layout_of_axis(permutation(case.node, rank).index(case.channel), rank)


SPACE_MAPS = (
    Operator(
        "DepthToSpace",
        gain=1.0,
        channels=SELECTED,
        space_map=SpaceMap(
            lambda node: SpaceMapSort.JOINS,
            lambda case: (1, 2) if case.before == (1, 2) and _block(case.node) else None,
            channels=lambda case: case.channels // max(1, _block(case.node) ** 2),
            positions=lambda node, space: [size * _block(node) for size in space],
        ),
    ),
    Operator(
        "Flatten",
        gain=1.0,
        space_map=SpaceMap(lambda node: SpaceMapSort.RESHAPES, _flatten_layout, channels=_joined_channels),
    ),
    Operator(
        "ReduceMean",
        gain=1.0,
        channels=SELECTED,
        space_map=SpaceMap.of_sort(SpaceMapSort.AVERAGES, _reduce_layout),
        attributes_are_inputs_since=18,
    ),
    Operator("ReduceMax", gain=1.0, channels=_EXTREME, passes=Passes.AFFINE, attributes_are_inputs_since=18),
    Operator("ReduceMin", gain=1.0, channels=_EXTREME, passes=Passes.AFFINE, attributes_are_inputs_since=18),
    Operator(
        "ReduceSum",
        gain=4096.0,
        channels=SELECTED,
        space_map=SpaceMap(
            lambda node: SpaceMapSort.AVERAGES, _reduce_layout, keeps_constants=lambda case: False
        ),
        attributes_are_inputs_since=13,
    ),
    Operator(
        "Reshape",
        gain=1.0,
        space_map=SpaceMap(lambda node: SpaceMapSort.RESHAPES, _reshape_layout, channels=_joined_channels),
        attributes_are_inputs_since=5,
    ),
    Operator(
        "Squeeze",
        gain=1.0,
        space_map=SpaceMap.of_sort(SpaceMapSort.RESHAPES, _squeeze_layout),
        attributes_are_inputs_since=13,
        doubts=_squeeze_doubts,
    ),
    Operator(
        "Transpose",
        gain=1.0,
        space_map=SpaceMap.of_sort(SpaceMapSort.PERMUTES, _transpose_layout),
    ),
    Operator(
        "Unsqueeze",
        gain=1.0,
        space_map=SpaceMap.of_sort(SpaceMapSort.RESHAPES, _unsqueeze_layout),
        attributes_are_inputs_since=13,
        doubts=_negative_axes_doubts,
    ),
)
