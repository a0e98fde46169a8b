"""In which range an activation's values lie, and which it leaves as they are: Relu, Clip and their like.

Relu and Clip give out NaN for NaN and -0 for -0. So one behind another that leaves all values of a range as they are
gives out what it reads, bit for bit, if that lies in the range. A Clip without an end takes an infinity to the largest
finite number: it is no identity. A Max with 0 may take -0 to 0.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["EXTREMES", "Range", "changes_nothing", "kept_range"]

EXTREMES = ("Max", "Min")  # of a tensor and a number
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
    """The values that a Relu, Clip, or Min or Max with a number gives out as they are, which are those that it has.

    None for other nodes.
    """
    if node.op == "Relu":
        return _NEVER_NEGATIVE
    if node.op in EXTREMES:
        return _range_of_extreme(scope, node)
    return _range_of_clip(scope, node) if node.op == "Clip" else None


def changes_nothing(scope: Scope, before: gs.Node, node: gs.Node) -> bool:
    """Whether a node gives out only values that the one behind it leaves as they are."""
    if node.op in _ROUND:
        return before.op in _ROUND
    if node.op == "Abs":
        return before.op in ("Abs", "Exp")  # of the others, 0 may be -0
    values, kept = _ALWAYS.get(before.op) or kept_range(scope, before), kept_range(scope, node)
    return values is not None and kept is not None and kept.holds(values)


def _range_of_extreme(scope: Scope, node: gs.Node) -> Range | None:
    """Of a Min or Max of a tensor of floats and a number, in this order, as TensorFlow's converter writes ReLU6.

    Other types have Min and Max, but no Clip in ONNX Runtime. Which of 0 and -0 is the larger one, runtimes disagree.
    """
    data, number = node.inputs[0].name, optional_input(node, 1)
    end, const = scope.scalar(number), scope.const(number)
    if len(node.inputs) != 2 or end is None or const is None or const.data_type != onnx.TensorProto.FLOAT:
        return None
    adds_axes = len(const.shape) > len(scope.shape(data) or ())
    is_plain = not np.isnan(end) and not (end == 0 and np.signbit(end))
    if adds_axes or not is_plain or scope.const(data) is not None:
        return None
    return Range(end, inf) if node.op == "Max" else Range(-inf, end)


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
