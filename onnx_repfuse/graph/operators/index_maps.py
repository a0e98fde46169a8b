"""Operators that pick, stack, pad or make elements: Concat, Gather, Pad, Slice, Split, and what computes sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_repfuse.graph.operators.channel_rules import KEPT_WHERE_PROVED, SELECTED, STACKED
from onnx_repfuse.graph.operators.facts import Attributes, Operator, SizeCase, Values
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS

__all__ = ["INDEX_MAPS"]

END_OF_AXIS = (1 << 31) - 1  # the `ends` of a Slice that means: to the end


def _concat(attrs: Attributes, *parts: Values) -> Values:
    return np.concatenate(parts, axis=attrs["axis"])


def _constant_of_shape(attrs: Attributes, shape: Values) -> Values:
    value = attrs.get("value")
    filler = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
    # a view of one element: the shape may be larger than memory
    return np.broadcast_to(filler.ravel()[0], tuple(int(size) for size in shape))


def _expand(attrs: Attributes, x: Values, shape: Values) -> Values:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(size) for size in shape)))


def _gather(attrs: Attributes, x: Values, index: Values) -> Values:
    return np.asarray(np.take(x, index, axis=attrs.get("axis", 0)))


def _range(attrs: Attributes, start: Values, limit: Values, delta: Values) -> Values:
    count = int(np.ceil((limit.item() - start.item()) / delta.item()))
    if count > MAX_FOLDED_ELEMENTS:
        raise ValueError("too long to evaluate")
    return np.asarray(start.item() + np.arange(max(count, 0)) * delta.item(), start.dtype)


def _shape(attrs: Attributes, shape: tuple[int, ...]) -> Values:
    return np.array(shape, np.int64)[attrs.get("start", 0) : attrs.get("end")]


def _slice(
    attrs: Attributes,
    x: Values,
    starts: Values | None = None,
    ends: Values | None = None,
    axes: Values | None = None,
    steps: Values | None = None,
) -> Values:
    first = np.ravel(attrs["starts"] if starts is None else starts)
    last = np.ravel(attrs["ends"] if ends is None else ends)
    along = np.ravel(attrs.get("axes", range(len(first))) if axes is None else axes)
    stride = np.ones(len(first), np.int64) if steps is None else np.ravel(steps)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        index[int(axis)] = _range_of(int(start), int(end), int(step), x.shape[int(axis)])
    return np.asarray(x[tuple(index)])


def _range_of(start: int, end: int, step: int, size: int) -> slice:
    """A Slice along one axis as numpy's, where the end of one that goes backwards differs."""
    if step >= 0:
        return slice(start, end, step)
    if end >= END_OF_AXIS:
        raise ValueError("a Slice backwards to the end")  # which ONNX Runtime takes to the front
    return slice(start, None if end < -size else end, step)  # past the front: down to the first element


def _slice_doubts(case: SizeCase) -> Sequence[int]:
    """A Slice backwards to the greatest number, which is the front for ONNX Runtime and the end for onnx."""
    if len(case.inputs) < 5:
        return ()  # without steps it goes forwards
    ends, steps = case.inputs[2] or [0], case.inputs[4] or [1]
    if min(steps) >= 0 or max(ends) < END_OF_AXIS:
        return ()
    return range(len(case.result))


def _every_axis(case: SizeCase) -> Sequence[int]:
    """All sizes.

    Einsum: an index may be of size 1 in one operand, and inference takes the first size it meets. STFT: inference does
    not count the half of the frequencies that `onesided` leaves.
    """
    return range(len(case.result))


INDEX_MAPS = (
    Operator("Concat", gain=1.0, channels=STACKED, evaluate=_concat, operations=0),
    Operator("ConstantOfShape", evaluate=_constant_of_shape),
    Operator("Einsum", doubts=_every_axis),
    Operator("Expand", gain=1.0, evaluate=_expand),
    Operator("Gather", gain=1.0, evaluate=_gather),
    Operator(
        "Pad",
        gain=1.0,
        stays_for_a_reason=True,
        channels=KEPT_WHERE_PROVED,
        attributes_are_inputs_since=11,
        operations=0,
    ),
    Operator("Range", evaluate=_range, jumps=lambda attrs: True, undefined_for="biuf"),
    Operator("Shape", gain=0.0, evaluate=_shape, reads_shape_only=True),
    Operator(
        "Slice",
        gain=1.0,
        channels=SELECTED,
        attributes_are_inputs_since=10,
        evaluate=_slice,
        takes_omitted_inputs=True,
        doubts=_slice_doubts,
    ),
    Operator("STFT", doubts=_every_axis),
    Operator("Split", gain=1.0, channels=SELECTED, outputs_are_alike=True, attributes_are_inputs_since=13),
)
