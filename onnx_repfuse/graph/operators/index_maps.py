"""Operators that pick, stack, pad or make elements: Concat, Gather, Pad, Slice, Split, and what computes sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_repfuse.graph.operators.channel_rules import KEPT_WHERE_PROVED, SELECTED, STACKED
from onnx_repfuse.graph.operators.facts import Attributes, Operator, SizeCase, Values

__all__ = ["END_OF_AXIS", "INDEX_MAPS"]

END_OF_AXIS = (1 << 31) - 1  # the `ends` of a Slice that means: to the end


def _shape(attrs: Attributes, shape: tuple[int, ...]) -> Values:
    return np.array(shape, np.int64)[attrs.get("start", 0) : attrs.get("end")]


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
    Operator("Concat", gain=1.0, channels=STACKED, operations=0),
    Operator("ConstantOfShape"),
    Operator("Einsum", doubts=_every_axis),
    Operator("Expand", gain=1.0),
    Operator("Gather", gain=1.0, channels=SELECTED, operations=0),
    Operator(
        "Pad",
        gain=1.0,
        stays_for_a_reason=True,
        channels=KEPT_WHERE_PROVED,
        attributes_are_inputs_since=11,
        operations=0,
    ),
    Operator("GatherND", gain=1.0, operations=0),
    Operator("Range"),
    Operator("Shape", gain=0.0, of_shape=_shape),
    Operator(
        "Slice",
        gain=1.0,
        channels=SELECTED,
        attributes_are_inputs_since=10,
        doubts=_slice_doubts,
    ),
    Operator("SpaceToDepth", gain=1.0, channels=SELECTED, operations=0),
    Operator("STFT", doubts=_every_axis),
    Operator("Split", gain=1.0, channels=SELECTED, outputs_are_alike=True, attributes_are_inputs_since=13),
)
