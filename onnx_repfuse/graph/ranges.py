"""In which range an activation's values lie, and which it leaves as they are: Relu, Clip and their like.

Relu and Clip give out NaN for NaN and -0 for -0. So one behind another that leaves all values of a range as they are
gives out what it reads, bit for bit, if that lies in the range. A Clip without an end takes an infinity to the largest
finite number: it is no identity.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["Range", "changes_nothing", "kept_range"]

ENDS_BY_DEFAULT_SINCE = 6  # the opset
LARGEST = float(np.finfo(np.float32).max)  # the ends of a Clip by default, while they are attributes


class Range(NamedTuple):
    """From `low` to `high`, both included; and NaN."""

    low: float
    high: float

    def holds(self, other: Range) -> bool:
        """Whether all of another range is in it."""
        return self.low <= other.low and other.high <= self.high


_NEVER_NEGATIVE = Range(0.0, inf)
# Sigmoid and Tanh are none: runtimes compute them by rational functions, which may go beyond by rounding.
_ALWAYS = {
    "Abs": _NEVER_NEGATIVE, "Exp": _NEVER_NEGATIVE, "HardSigmoid": Range(0.0, 1.0), "Sqrt": _NEVER_NEGATIVE,
}  # fmt: skip
_ROUND = ("Ceil", "Floor", "Round")  # each gives out an integer as it is


def kept_range(scope: Scope, node: gs.Node) -> Range | None:
    """The values that a Relu or Clip gives out as they are, which are those that it has; None for other nodes."""
    if node.op == "Relu":
        return _NEVER_NEGATIVE
    return _range_of_clip(scope, node) if node.op == "Clip" else None


def changes_nothing(scope: Scope, before: gs.Node, node: gs.Node) -> bool:
    """Whether a node gives out only values that the one behind it leaves as they are."""
    if node.op in _ROUND:
        return before.op in _ROUND
    if node.op == "Abs":
        return before.op in ("Abs", "Exp")  # of the others, 0 may be -0
    values, kept = _ALWAYS.get(before.op) or kept_range(scope, before), kept_range(scope, node)
    return values is not None and kept is not None and kept.holds(values)


def _range_of_clip(scope: Scope, node: gs.Node) -> Range | None:
    ends = _ends_of_clip(scope, node)
    if ends is None or not ends.low <= ends.high:
        return None  # of ends in the wrong order, the upper one counts; or one is NaN
    # beside a 0, a -0 might be the one that is given out
    return None if any(end == 0 and np.signbit(end) for end in ends) else ends


def _ends_of_clip(scope: Scope, node: gs.Node) -> Range | None:
    """Both ends of a Clip, by default those of its type; None where one is not constant."""
    if operator(node).uses_attributes(scope.opset):
        if scope.opset < ENDS_BY_DEFAULT_SINCE:
            return None
        return Range(float(node.attrs.get("min", -LARGEST)), float(node.attrs.get("max", LARGEST)))
    limits = FLOAT_FORMATS.get(scope.data_type(node.inputs[0].name) or 0)
    if limits is None:
        return None
    names = optional_input(node, 1), optional_input(node, 2)
    low = scope.scalar(names[0]) if names[0] else -limits.largest
    high = scope.scalar(names[1]) if names[1] else limits.largest
    return None if low is None or high is None else Range(low, high)
