"""A sum or mean over an axis along which tensors were stacked, as the sum or mean of these tensors.

    ReduceSum(Concat(Unsqueeze(a), Unsqueeze(b)))  ->  Sum(a, b)        torch.stack([a, b]).sum(0); mean likewise

Nothing is copied then, and covering sees the branches of a sum.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.graph.size_lists import constant_list
from onnx_repfuse.graph.zero_signs import tells_zeros_apart
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["sum_stacked"]

# ReduceMax and ReduceMin are none: of NaN, runtimes make something else there than in Max and Min.
_SUMS = {"ReduceMean": "Mean", "ReduceSum": "Sum"}


def sum_stacked(plan: ScopePlan, is_free: IsFree) -> bool:
    """Add tensors without stacking them; whether there were any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for node in scope.nodes if scope.opset >= NUMPY_BROADCAST_SINCE else ():
        concat = scope.private_producer(node.inputs[0].name) if node.op in _SUMS else None
        if concat is None or concat.op != "Concat":
            continue
        parts, unsqueezing = _parts(scope, node, concat)
        absorbed = [*unsqueezing, concat, node]
        if len(parts) < 2 or not all(map(is_free, absorbed)):
            continue
        output = node.outputs[0].name
        created = new_node(_SUMS[node.op], scope.fresh(f"{output}_unstacked"), {}, parts, [output])
        replacements.fold(output, {Kind.BRANCHES}, absorbed, [created])
        replacements.nodes[id(concat)] = []
    return replacements.write()


def _parts(scope: Scope, node: gs.Node, concat: gs.Node) -> tuple[list[str], list[gs.Node]]:
    """The tensors that are added, and the nodes that give each of them an axis for that; none where it is no such sum.

    Of a part that has the axis by itself, the sum keeps it; and parts must be proved to have equal shapes.
    """
    names, axis = [tensor.name for tensor in concat.inputs], _axis(scope, node)
    if axis is None or not _are_stacked(scope, names, axis, concat.attrs.get("axis", 1)):
        return [], []
    if not _is_same_sum(scope, node, scope.data_type(names[0])):
        return [], []
    if node.attrs.get("keepdims", 1):
        return names, []
    unsqueezing = [_unsqueezed(scope, name, axis) for name in names]
    known = [one for one in unsqueezing if one is not None]
    return ([one.inputs[0].name for one in known], known) if len(known) == len(names) else ([], [])


def _are_stacked(scope: Scope, names: list[str], axis: int, stacked: int) -> bool:
    """Whether tensors have one position along an axis, which is that of their Concat, and equal shapes."""
    for shape in map(scope.shape, names):
        if shape is None or not -len(shape) <= axis < len(shape) or shape[axis] != 1:
            return False
        if axis % len(shape) != stacked % len(shape):
            return False
    return equal_shapes(scope, names)


def _is_same_sum(scope: Scope, node: gs.Node, data_type: int | None) -> bool:
    """Whether runtimes have Sum or Mean of this type, and it gives what the reduction gives."""
    if data_type not in FLOAT_FORMATS:
        return False  # a mean of integers is cut off
    if node.op == "ReduceMean" and data_type == onnx.TensorProto.DOUBLE:
        return False  # ONNX Runtime has no Mean of doubles
    # a reduction begins with 0: of -0 and -0 it makes 0, and Sum -0
    return not tells_zeros_apart(scope, node.outputs[0].name)


def _axis(scope: Scope, node: gs.Node) -> int | None:
    """The one axis that a reduction sums over."""
    name = optional_input(node, 1)
    given = constant_list(scope, name) if name else node.attrs.get("axes")
    if name and operator(node).uses_attributes(scope.opset):
        return None
    return int(given[0]) if given is not None and len(given) == 1 else None


def _unsqueezed(scope: Scope, name: str, axis: int) -> gs.Node | None:
    """The Unsqueeze that gives a tensor this axis alone, if it reads another tensor."""
    producer, shape = scope.producer.get(name), scope.shape(name)
    if producer is None or producer.op != "Unsqueeze" or shape is None or scope.const(name) is not None:
        return None
    listed = optional_input(producer, 1)
    axes = constant_list(scope, listed) if listed else producer.attrs.get("axes")
    places = None if axes is None else [one % len(shape) for one in axes]
    return producer if places == [axis % len(shape)] else None
