"""Operands that are expanded to the shape of the tensor beside them, where the operator broadcasts by itself.

    y + Expand(c, Shape(y))  ->  y + c        y * ConstantOfShape(Shape(y), v)  ->  y * v

torch's `ones_like`, `full_like` and `expand_as` are exported so. In its own shape, covering sees that c is a value per
channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.graph.views import computed_from_shapes, whole_shape_of
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["read_unexpanded"]

_ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_LISTS = {"Expand": 1, "ConstantOfShape": 0}  # the input that says the shape
EXPAND_SINCE = 8  # the opset that brought it; before 7, operands broadcast otherwise


def read_unexpanded(plan: ScopePlan, is_free: IsFree) -> bool:
    """Let arithmetic read constants before they are expanded; whether there were any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for node in scope.nodes if scope.opset >= EXPAND_SINCE else ():
        if node.op not in _ARITHMETIC or len(node.inputs) != 2 or not is_free(node):
            continue
        for place in (0, 1):
            expanding = scope.producer.get(node.inputs[place].name)
            beside = node.inputs[1 - place].name
            if expanding is None or not is_free(expanding) or not _is_expanded_to(scope, expanding, beside):
                continue
            before = _value(scope, expanding)
            if not before:
                continue
            inputs = [beside, beside]
            inputs[place] = before
            output = node.outputs[0].name
            sizes = computed_from_shapes(scope, expanding.inputs[_LISTS[expanding.op]].name)
            fresh = new_node(node.op, scope.fresh(f"{output}_unexpanded"), node.attrs, inputs, [output])
            replacements.fold(output, {Kind.AFFINE}, [*sizes, expanding, node], [fresh])
            break
    return replacements.write()


def _is_expanded_to(scope: Scope, node: gs.Node, beside: str) -> bool:
    """Whether a node expands something to the shape of a tensor, which the two would broadcast to anyway."""
    place = _LISTS.get(node.op)
    if place is None or scope.const(node.outputs[0].name) is not None or scope.const(beside) is not None:
        return False
    like = whole_shape_of(scope, optional_input(node, place))
    return bool(like) and (like == beside or equal_shapes(scope, [like, beside]))


def _value(scope: Scope, node: gs.Node) -> str:
    """The constant that is expanded; "" if it is none."""
    if node.op == "Expand":
        name = node.inputs[0].name
        return str(name) if scope.const(name) is not None else ""
    data_type = scope.data_type(node.outputs[0].name)
    if data_type is None or id(node) not in scope.original:
        return ""
    value = _filled(scope, node)
    return scope.new_constant(f"{node.outputs[0].name}_value", Const((), data_type, lambda: value))


def _filled(scope: Scope, node: gs.Node) -> Any:
    """The value of a ConstantOfShape, a float zero by default; shape ()."""
    proto = scope.proto.node[scope.anchor[id(node)]]
    given = [onnx.numpy_helper.to_array(one.t) for one in proto.attribute if one.name == "value"]
    return given[0].reshape(()) if given else np.zeros((), np.float32)
