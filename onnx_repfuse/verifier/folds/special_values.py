"""NaN, infinities, -0, the largest and the smallest numbers, for folds that hand values on without adding any.

An activation that limits values, a Max, a Where or what does nothing gives out one of the values it reads, or a limit.
That law holds for every value there is, and ONNX Runtime says which one it is for NaN. A sum has no such law:
`inf - inf` is NaN in one order and not met in another. So only folds without arithmetic are tried, and arithmetic with
constants of which nothing is left, such as `x * 1`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_repfuse.verifier.distance import Array, is_float_array
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.stimuli import Stimulus

__all__ = ["first_difference", "hands_on", "larger", "special_feed"]

_MOVE = {"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_CHOOSE = {
    "Abs", "And", "Ceil", "Clip", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min",
    "Neg", "Not", "Or", "Relu", "Round", "Where",
}  # fmt: skip
_DO_NOTHING = {"Add", "Div", "Mean", "Mul", "Pow", "Sub", "Sum"}  # with some constants


def hands_on(case: FoldCase) -> bool:
    """Whether every value that both sides give out is one they read, or a limit, but for its sign."""
    before, after = ({node.op_type for node in model.graph.node} for model in (case.before, case.after))
    if any(node.domain for model in (case.before, case.after) for node in model.graph.node):
        return False
    if before | after <= _MOVE | _CHOOSE:
        return bool((before | after) & _CHOOSE)
    return before <= _MOVE | _CHOOSE | _DO_NOTHING and after <= _MOVE and not _adds_tensors(case.before)


def _adds_tensors(model: onnx.ModelProto) -> bool:
    """Whether arithmetic reads two tensors: of `(x + x) - x` remains x, but an infinity makes NaN of it."""
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    constants.update(node.output[0] for node in model.graph.node if node.op_type == "Constant")
    return any(
        node.op_type in _DO_NOTHING and sum(name not in constants for name in node.input) > 1
        for node in model.graph.node
    )


def special_feed(case: FoldCase, like: Mapping[str, Array]) -> dict[str, Array]:
    """Such values in the shapes and types of another feed, in an order of its own for each source."""
    sizes = (np.inf, case.float_format.largest, case.float_format.smallest, 1.0, 0.0)
    values = np.array([np.nan, *(sign * size for size in sizes for sign in (1.0, -1.0))])
    feed = dict(like)
    for number, (name, array) in enumerate(like.items()):
        if is_float_array(array):
            order = np.random.default_rng(number).permutation(len(values))
            feed[name] = np.resize(values[order], array.shape).astype(array.dtype)
    return feed


def larger(first: Stimulus | None, second: Stimulus) -> Stimulus:
    """The one that has more elements."""
    sizes = [sum(array.size for array in one.feed.values()) if one else 0 for one in (first, second)]
    return first if first and sizes[0] >= sizes[1] else second


def first_difference(case: FoldCase, before: Array, after: Array) -> str:
    """The first value that only one of two results has, as a clause; "" if there is none.

    Zeros of both signs are one value, as runtimes give out one or the other of them for a Max of both.
    """
    old, new = before.ravel(), after.ravel()
    if any(node.op_type in _DO_NOTHING for node in case.before.graph.node):
        # What overflows on the way, or falls below the smallest number, need not: NaN is NaN in any case.
        same = np.isnan(old) == np.isnan(new)
    else:
        same = (old == new) | (np.isnan(old) & np.isnan(new))
    places = np.flatnonzero(~same)
    return f"{new[places[0]]} instead of {old[places[0]]}" if len(places) else ""
