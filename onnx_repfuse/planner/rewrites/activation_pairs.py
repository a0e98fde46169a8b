"""An activation behind another one that limits values: one of them, or one Clip, bit for bit.

    Relu(Relu(x)) = Relu(x)        Relu(Clip(x, 0, 6)) = Clip(x, 0, 6)        Floor(Ceil(x)) = Ceil(x)
    Clip(Clip(x, a, b), c, d)  =  Clip(x, max(a, c), min(b, d))        where that is no empty range; Relu is Clip(x, 0)
    Min(Max(x, 0), 6)  =  Clip(x, 0, 6)        but for the sign of a zero

Only where nobody else reads what is between: else the second, which changes nothing, equals the first
(`equal_nodes`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import OPERATORS
from onnx_repfuse.graph.ranges import EXTREMES, Range, changes_nothing, kept_range
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.graph.zero_signs import tells_zeros_apart
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["join_activations"]


def join_activations(plan: ScopePlan, is_free: IsFree, avoided: frozenset[str]) -> bool:
    """Write each such pair as one node; whether there was any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
        avoided: operators that the target cannot run.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for second in scope.nodes:
        first = scope.private_producer(optional_input(second, 0)) if len(second.outputs) == 1 else None
        if first is None or id(first) in replacements.nodes or not (is_free(first) and is_free(second)):
            continue
        created = _joined(scope, first, second)
        if created is not None and created.op not in avoided:
            replacements.fold(second.outputs[0].name, {Kind.ACTIVATION}, [first, second], [created])
            replacements.nodes[id(first)] = []
    return replacements.write()


def _joined(scope: Scope, first: gs.Node, second: gs.Node) -> gs.Node | None:
    """The one node for two in a row; None if they stay."""
    output = str(second.outputs[0].name)
    if {first.op, second.op} & set(EXTREMES) and tells_zeros_apart(scope, output):
        return None
    if changes_nothing(scope, first, second):
        inputs = [tensor.name for tensor in first.inputs]
        return new_node(first.op, scope.fresh(f"{output}_alone"), first.attrs, inputs, [output])
    before, kept = kept_range(scope, first), kept_range(scope, second)
    if before is None or kept is None:
        return None
    both = Range(max(before.low, kept.low), min(before.high, kept.high))
    return _clip(scope, str(first.inputs[0].name), output, both)


def _clip(scope: Scope, source: str, output: str, kept: Range) -> gs.Node | None:
    """The one node; None where there is none, as of ranges apart, or its type is not known."""
    data_type = scope.data_type(source) or 0
    limits = FLOAT_FORMATS.get(data_type)
    if limits is None or kept.low > kept.high:
        return None
    name = scope.fresh(f"{output}_limited")
    if OPERATORS["Clip"].uses_attributes(scope.opset):
        attributes: dict[str, Any] = {"min": kept.low, "max": kept.high}
        return new_node("Clip", name, attributes, [source], [output])
    # an end that is missing is the largest number on its side, which takes an infinity to it, unlike an infinite end
    missing = Range(-limits.largest, limits.largest)
    ends = [
        "" if end == largest else _number(scope, f"{output}_{label}", end, data_type)
        for label, end, largest in zip(("min", "max"), kept, missing, strict=True)
    ]
    return new_node("Clip", name, {}, [source, *ends], [output])


def _number(scope: Scope, stem: str, end: float, data_type: int) -> str:
    """An end, which is a number of that type, or infinite."""
    value = np.array(end, FLOAT_FORMATS[data_type].dtype)
    return scope.new_constant(stem, Const((), data_type, lambda: value))
