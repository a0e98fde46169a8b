"""Operands that are expanded to the shape of the tensor beside them, where the operator broadcasts by itself.

    y + Expand(c, Shape(y))  ->  y + c        y * ConstantOfShape(Shape(y), v)  ->  y * v

torch's `ones_like`, `full_like` and `expand_as` are exported so. In its own shape, covering sees that c is a value per
channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.scope import Const, Scope, Shape, optional_input
from onnx_repfuse.graph.views import computed_from_shapes, whole_shape_of
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["read_unexpanded"]

_ARITHMETIC = ("Add", "Div", "Mul", "Sub")
_LISTS = {"Expand": 1, "ConstantOfShape": 0}  # the input that says the shape
MAX_ELEMENTS = 1 << 20  # of a constant that is looked at
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
            unexpanded = _unexpanded(scope, node, place, is_free)
            if unexpanded is None:
                continue
            before, absorbed = unexpanded
            inputs = [tensor.name for tensor in node.inputs]
            inputs[place] = before
            output = node.outputs[0].name
            fresh = new_node(node.op, scope.fresh(f"{output}_unexpanded"), node.attrs, inputs, [output])
            replacements.fold(output, {Kind.AFFINE}, [*absorbed, node], [fresh])
            break
    return replacements.write()


def _unexpanded(scope: Scope, node: gs.Node, place: int, is_free: IsFree) -> tuple[str, list[gs.Node]] | None:
    """What an operand was before it was expanded, and the nodes that expand it; None if it was not."""
    name, beside = node.inputs[place].name, node.inputs[1 - place].name
    const = scope.const(name)
    if const is not None:
        shorter = _without_repeats(const, scope.shape(beside))
        return None if shorter is None else (scope.new_constant(f"{name}_unexpanded", shorter), [])
    expanding = scope.producer.get(name)
    if expanding is None or not is_free(expanding) or not _is_expanded_to(scope, expanding, beside):
        return None
    before = _value(scope, expanding)
    sizes = computed_from_shapes(scope, expanding.inputs[_LISTS[expanding.op]].name)
    return (before, [*sizes, expanding]) if before else None


def _without_repeats(const: Const, beside: Shape | None) -> Const | None:
    """A constant of several axes with one position along those where all are the same; None if there is none.

    Args:
        beside: the shape of the other operand, which must have those positions by itself.
    """
    axes = [] if beside is None or not _may_repeat(const) else _axes_in_common(const.shape, beside)
    values = const.computed() if axes else None
    if values is None:
        return None
    for axis in axes:
        first = values.take([0], axis)
        # by their bits: 0 is not -0, and NaN is NaN
        if np.array_equal(_bits(values), np.broadcast_to(_bits(first), values.shape)):
            values = first
    return None if values.shape == const.shape else Const(values.shape, const.data_type, lambda: values)


def _may_repeat(const: Const) -> bool:
    """Whether planning looks at the values of a constant of several axes: not of one that a fold made."""
    is_from_file = const.kernel is None and const.bias is None
    has_axes = sum(size > 1 for size in const.shape) > 1
    return is_from_file and has_axes and const.size <= const.effort <= MAX_ELEMENTS


def _axes_in_common(shape: Sequence[int], beside: Shape) -> list[int]:
    """The axes along which a constant has as many positions, more than one, as what it is combined with."""
    if len(beside) < len(shape):
        return []  # the constant makes the result longer
    others = beside[len(beside) - len(shape) :]
    return [axis for axis, size in enumerate(shape) if size > 1 and others[axis] == size]


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


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
