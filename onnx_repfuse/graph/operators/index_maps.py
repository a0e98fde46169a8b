"""Operators that pick, stack, pad or make elements: Concat, Gather, Pad, Slice, Split, and what computes sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.operators.channel_rules import KEPT_WHERE_PROVED, SELECTED, STACKED
from onnx_repfuse.graph.operators.facts import (
    Attributes,
    Layout,
    Operator,
    SizeCase,
    SpaceMap,
    SpaceMapSort,
    Values,
    ViewCase,
)
from onnx_repfuse.graph.scope import Scope, optional_input

__all__ = ["END_OF_AXIS", "INDEX_MAPS", "gathered", "sliced", "split_sizes"]

END_OF_AXIS = (1 << 31) - 1  # the `ends` of a Slice that means: to the end


def split_sizes(scope: Scope, node: gs.Node, whole: int) -> list[int] | None:
    """The sizes of a Split's outputs, all positive: from an attribute (before opset 13), from an input, or equal parts.

    Args:
        whole: the size of what is split.
    """
    sizes = node.attrs.get("split")
    count = len(node.outputs)
    name = optional_input(node, 1)
    if name:
        const = scope.const(name)
        sizes = None if const is None or const.size != count else const.integers()
        if sizes is None:
            return None
    if sizes is None:  # ceil(whole / count) each, the last one what is left (num_outputs, opset 18)
        chunk = -(-whole // count)
        sizes = [min(chunk, whole - number * chunk) for number in range(count)]
    is_partition = len(sizes) == count and sum(sizes) == whole and min(sizes) > 0
    return list(sizes) if is_partition else None


def gathered(size: int, index: Values) -> NDArray[np.intp] | None:
    """The places along an axis that an index lists, counted from the front; None if it lists none, or one outside."""
    places = np.asarray(index).ravel().astype(np.intp)
    if not len(places) or places.min() < -size or places.max() >= size:
        return None
    return places % size


def sliced(size: int, start: int, end: int, step: int) -> NDArray[np.intp]:
    """The places along an axis that a Slice takes; none where runtimes do not agree."""
    if step < 0 and end >= END_OF_AXIS:  # backwards, which ONNX Runtime takes to the front
        return np.arange(0)
    return np.arange(size)[start:end:step]


def _shape(attrs: Attributes, shape: tuple[int, ...]) -> Values:
    return np.array(shape, np.int64)[attrs.get("start", 0) : attrs.get("end")]


def _number_of_elements(_attrs: Attributes, shape: tuple[int, ...]) -> Values:
    return np.array(prod(shape), np.int64)


def _slice_doubts(case: SizeCase) -> Sequence[int]:
    """A Slice backwards to the greatest number, which is the front for ONNX Runtime and the end for onnx."""
    if len(case.inputs) < 5:
        return ()  # without steps it goes forwards
    ends, steps = case.inputs[2] or [0], case.inputs[4] or [1]
    if min(steps) >= 0 or max(ends) < END_OF_AXIS:
        return ()
    return range(len(case.result))


def _every_axis(case: SizeCase) -> Sequence[int]:
    """All sizes: inference does not count the half of the frequencies that `onesided` leaves."""
    return range(len(case.result))


def _of_space(case: ViewCase, axes: Iterable[int]) -> Layout | None:
    """The layout, where the channels are not touched, nor is the batch, if it is not known: work is told by image.

    Args:
        axes: those that may change.
    """
    rank = len(case.shape)
    if not case.is_spatial or len(case.result) != rank or case.result[1] is None:
        return None
    changed = {axis % rank for axis in axes}
    is_batch_known = None not in (case.shape[0], case.result[0])
    stay = {1} if is_batch_known else {0, 1}
    return case.before if changed.isdisjoint(stay) else None


def _expand_layout(case: ViewCase) -> Layout | None:
    """(N, C, 1, 1) -> (N, C, H, W)"""
    name = optional_input(case.node, 1)
    const = case.scope.const(name)
    dims, _ = case.dims()  # finds the lists that are computed from sizes, too
    sizes = case.scope.size_lists.get(name, ()) if const is None else const.read().ravel().tolist()
    # a longer list adds axes in front; a shorter one is aligned from the right, as numpy broadcasts
    if {len(sizes), len(dims)} != {len(case.shape)} or sizes[1] not in (1, case.channels):
        return None
    pairs = enumerate(zip(sizes, dims, strict=True))
    return _of_space(case, [axis for axis, (size, own) in pairs if size not in (1, own)])


def _tile_layout(case: ViewCase) -> Layout | None:
    const = case.scope.const(optional_input(case.node, 1))
    if const is None or const.size != len(case.shape):  # in opset 1, one number and an axis
        return None
    return _of_space(case, [axis for axis, times in enumerate(const.read().ravel()) if times != 1])


def _pad_layout(case: ViewCase) -> Layout | None:
    """Of pads that repeat positions; constants are padded by `lift_pad`."""
    if case.node.attrs.get("mode", "constant") not in ("edge", "reflect", "wrap"):
        return None
    const = case.scope.const(optional_input(case.node, 1))
    pads = case.node.attrs.get("pads") or ([-1] if const is None else const.read().ravel().tolist())
    if min(pads) < 0:
        return None  # it crops
    if case.shape[1] != case.result[1]:
        return None  # the other channels would be copies of these
    named = case.scope.const(optional_input(case.node, 3))
    axes = range(len(case.shape)) if named is None else named.read().ravel().tolist()
    has_unknown_axes = named is None and optional_input(case.node, 3)
    if has_unknown_axes or len(pads) != 2 * len(axes):
        return _of_space(case, axes)  # any of them may be padded
    return _of_space(case, [axis for number, axis in enumerate(axes) if any(pads[number :: len(axes)])])


def _slice_layout(case: ViewCase) -> Layout | None:
    """Of a Slice that takes positions of space, forwards; where sizes are not known, by constants."""
    if case.shape[1] != case.result[1]:
        return None
    if not _goes_forwards(case):
        return None
    if _crops_space_by_constants(case):
        return _of_space(case, ())
    is_known = None not in (*case.shape[2:], *case.result[2:])
    return _of_space(case, [0]) if is_known else None


def _goes_forwards(case: ViewCase) -> bool:
    """Whether all steps of a Slice are positive."""
    name = optional_input(case.node, 4)
    if not name:
        return True
    steps = case.scope.const(name)
    return steps is not None and min(steps.read().ravel(), default=1) > 0


def _crops_space_by_constants(case: ViewCase) -> bool:
    """Whether a Slice names its axes, none of them the batch or the channels, and its bounds are constants."""
    if case.node.inputs[1:]:  # inputs since opset 10: starts, ends, axes, steps
        lists = [case.scope.const(tensor.name) for tensor in case.node.inputs[1:] if tensor.name]
        axes = case.scope.const(optional_input(case.node, 3))
        if None in lists or axes is None:
            return False
        named = [int(axis) for axis in axes.read().ravel()]
    else:
        named = list(case.node.attrs.get("axes") or ())
    return bool(named) and all(axis % len(case.shape) > 1 for axis in named)


INDEX_MAPS = (
    Operator("Concat", gain=1.0, channels=STACKED, operations=0),
    Operator("ConstantOfShape"),
    Operator("Expand", gain=1.0, space_map=SpaceMap.of_sort(SpaceMapSort.REPEATS, _expand_layout)),
    Operator("Tile", gain=1.0, space_map=SpaceMap.of_sort(SpaceMapSort.REPEATS, _tile_layout)),
    Operator("Gather", gain=1.0, channels=SELECTED, operations=0),
    Operator(
        "Pad",
        space_map=SpaceMap.of_sort(SpaceMapSort.REPEATS, _pad_layout),
        gain=1.0,
        stays_for_a_reason=True,
        channels=KEPT_WHERE_PROVED,
        attributes_are_inputs_since=11,
        operations=0,
    ),
    Operator("GatherND", gain=1.0, operations=0),
    Operator("Range"),
    Operator("Shape", gain=0.0, of_shape=_shape),
    Operator("Size", gain=0.0, of_shape=_number_of_elements),
    Operator(
        "Slice",
        space_map=SpaceMap.of_sort(SpaceMapSort.CHOOSES, _slice_layout),
        gain=1.0,
        channels=SELECTED,
        attributes_are_inputs_since=10,
        doubts=_slice_doubts,
    ),
    Operator("SpaceToDepth", gain=1.0, channels=SELECTED, operations=0),
    Operator("STFT", doubts=_every_axis),
    Operator("Split", gain=1.0, channels=SELECTED, outputs_are_alike=True, attributes_are_inputs_since=13),
)
