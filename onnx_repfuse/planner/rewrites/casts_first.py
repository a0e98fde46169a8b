"""A Cast to floats goes in front of what permutes an image's integers, so that the permutation is one of floats.

    Cast(Gather(image, [2, 1, 0]))  ->  Gather(Cast(image), [2, 1, 0])        which the first Conv takes in

Only where a convolution or product of constant weights is behind it, with arithmetic and views in between, and where
what is permuted is its channels: an image that is turned would only be turned as floats, which are larger.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.graph.size_lists import constant_list
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["cast_first"]

MAX_NODES_BEHIND = 8
_CHOOSE = ("Gather", "Slice")
_VIEWS = ("Transpose", "Unsqueeze")
_BETWEEN = ("Add", "BatchNormalization", "Div", "Mul", "Reshape", "Sub", "Transpose", "Unsqueeze")


def cast_first(plan: ScopePlan, is_free: IsFree) -> bool:
    """Write every such pair the other way round; whether there was any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for cast in scope.nodes:
        moves = _moves_before(scope, cast)
        if not moves or not all(map(is_free, (*moves, cast))) or not _leads_to_weight(scope, moves, cast):
            continue
        replacements.fold(cast.outputs[0].name, {Kind.COMMUTE}, [*moves, cast], _written(scope, moves, cast))
        replacements.nodes.update((id(node), []) for node in moves)
    return replacements.write()


def _written(scope: Scope, moves: list[gs.Node], cast: gs.Node) -> list[gs.Node]:
    """The Cast, and then what moves elements."""
    source, output, data_type = str(moves[0].inputs[0].name), str(cast.outputs[0].name), cast.attrs["to"]

    def declared(like: str) -> str:
        name = scope.fresh(f"{like}_floats")
        scope.declare_like(name, like)
        scope.types[name] = data_type, scope.shape(like)
        return name

    name = declared(source)
    created = [new_node("Cast", scope.fresh(f"{output}_cast"), cast.attrs, [source], [name])]
    for node in moves:
        result = output if node is moves[-1] else declared(str(node.outputs[0].name))
        inputs = [name, *(tensor.name for tensor in node.inputs[1:])]
        created.append(new_node(node.op, scope.fresh(f"{output}_moved"), node.attrs, inputs, [result]))
        name = result
    return created


def _moves_before(scope: Scope, cast: gs.Node) -> list[gs.Node]:
    """A permutation of integers by a Gather or Slice, and the views between it and a Cast to floats; else nothing."""
    if cast.op != "Cast" or cast.attrs.get("to") not in FLOAT_FORMATS:
        return []
    moves: list[gs.Node] = []
    name = cast.inputs[0].name
    while len(moves) < MAX_NODES_BEHIND:
        node = scope.private_producer(name)
        if node is None:
            return []
        moves.insert(0, node)
        if node.op in _CHOOSE:
            return moves if _permutes(scope, node) else []
        if node.op not in _VIEWS:
            return []
        name = node.inputs[0].name
    return []


def _permutes(scope: Scope, choice: gs.Node) -> bool:
    """Whether a Gather or Slice chooses by constants, and keeps the shape of integers."""
    source, arguments = choice.inputs[0].name, [tensor.name for tensor in choice.inputs[1:] if tensor.name]
    data_type = scope.data_type(source)
    if data_type is None or data_type in FLOAT_FORMATS or scope.const(source) is not None:
        return False
    if not arguments or any(scope.const(argument) is None for argument in arguments):
        return False
    before = scope.shape(source)
    keeps_shape = before is not None and before == scope.shape(choice.outputs[0].name)
    # of another size than a known one, equal shapes say nothing
    return keeps_shape and before is not None and before[_chosen_axis(scope, choice, len(before))] is not None


def _chosen_axis(scope: Scope, choice: gs.Node, rank: int) -> int:
    """The axis along which a Gather or Slice chooses, counted from the end; of a Slice along several, the last one."""
    listed = constant_list(scope, optional_input(choice, 3)) if choice.op == "Slice" else None
    axis = listed[-1] if listed else choice.attrs.get("axis", 0)
    return int(axis) % rank - rank


def _leads_to_weight(scope: Scope, moves: list[gs.Node], cast: gs.Node) -> bool:
    """Whether arithmetic with constants and views lead to a convolution or product by constants, and nowhere else.

    What is chosen must be its channels there, unless a Reshape is in between, behind which that is not known.
    """
    choice, *views = moves
    axis: int | None = _chosen_axis(scope, choice, len(scope.shape(choice.inputs[0].name) or ()))
    for view in views:
        axis = _axis_behind(scope, view, axis)
    node = cast
    for _ in range(MAX_NODES_BEHIND):
        name = node.outputs[0].name
        consumer = scope.only_consumer(name)
        if consumer is None:
            return False
        node = consumer
        others = [tensor.name for tensor in node.inputs if tensor.name and tensor.name != name]
        if any(scope.const(other) is None for other in others):
            return False
        if operator(node).weight is not None:
            return bool(node.inputs[0].name == name) and _is_of_channels(scope, node, axis)
        if node.op not in _BETWEEN:
            return False
        axis = _axis_behind(scope, node, axis)
    return False


def _axis_behind(scope: Scope, node: gs.Node, axis: int | None) -> int | None:
    """Where an axis, counted from the end, is behind a node; None if that is not known."""
    if axis is None or node.op == "Reshape":
        return None
    if node.op not in _VIEWS:
        return axis
    shape, result = scope.shape(node.inputs[0].name), scope.shape(node.outputs[0].name)
    if shape is None or result is None:
        return None
    if node.op == "Transpose":
        return permutation(node, len(shape)).index(axis % len(shape)) - len(shape)
    listed = optional_input(node, 1)
    added = constant_list(scope, listed) if listed else node.attrs.get("axes")
    if added is None:
        return None
    kept = sorted(set(range(len(result))) - {one % len(result) for one in added})
    return kept[axis] - len(result)


def _is_of_channels(scope: Scope, node: gs.Node, axis: int | None) -> bool:
    """Whether an axis of what an operator reads has the channels that its weight takes, as far as is known."""
    shape = scope.shape(node.inputs[0].name)
    if axis is None or shape is None:
        return True
    return axis == (1 - len(shape) if node.op in ("Conv", "ConvTranspose") else -1)
