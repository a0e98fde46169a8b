"""The maps of the model before and after: every node, and the folds that absorbed or created it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnx_repfuse.graph.scope import OPAQUE, node_name
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.graph_map import GraphMap, GraphMaps, MapNode

__all__ = ["graph_maps"]

_Node = tuple[str, str, Sequence[str], Sequence[str], int]  # name, op, inputs, outputs, key of its folds
_Owners = dict[int, list[PlannedFold]]


def graph_maps(plan: ModelPlan) -> GraphMaps:
    """The maps of a planned model, of all its scopes.

    Where the model was converted or simplified first, the map before is of what that gave: folds absorbed its nodes.
    """
    numbers = _numbers(plan)
    before: list[MapNode] = []
    after: list[MapNode] = []
    for planned in plan.scopes:
        absorbed, created = _owners(planned)
        before += _placed(_original(planned), planned, len(before), absorbed, numbers)
        after += _placed(_now(planned), planned, len(after), created, numbers)
    return GraphMaps(tuple(before), tuple(after))


def _numbers(plan: ModelPlan) -> dict[int, int]:
    """id() of a fold -> its place among those of the report."""
    folds = (fold for _, fold in plan.folds if not fold.is_change)
    return {id(fold): number for number, fold in enumerate(folds)}


def _owners(planned: ScopePlan) -> tuple[_Owners, _Owners]:
    """Place of an original node -> what absorbed it; id() of a node -> what created it.

    An empty list for a node that came, or went, without a fold; a node that is as it was has no entry.
    """
    scope = planned.scope
    present = {scope.anchor[id(node)] for node in scope.nodes if id(node) in scope.original}
    # Constants go where folds have absorbed all that read them.
    absorbed: _Owners = {place: [] for place in range(len(scope.proto.node)) if place not in present}
    created: _Owners = {id(node): [] for node in scope.nodes if id(node) not in scope.original}
    for fold in planned.folds:
        for node in fold.absorbed:
            absorbed.setdefault(scope.anchor[id(node)], []).append(fold)
        for node in fold.created:
            created.setdefault(id(node), []).append(fold)
    return absorbed, created


def _original(planned: ScopePlan) -> Iterator[_Node]:
    """The nodes as they are in the file."""
    for place, node in enumerate(planned.scope.proto.node):
        name = node.name or next(filter(None, node.output), node.op_type)
        yield name, node.op_type, node.input[:], node.output[:], place


def _now(planned: ScopePlan) -> Iterator[_Node]:
    """The nodes of the result."""
    for node in planned.scope.nodes:
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        yield node_name(node), node.op.removeprefix(OPAQUE), inputs, outputs, id(node)


def _placed(
    nodes: Iterable[_Node],
    planned: ScopePlan,
    start: int,
    owners: _Owners,
    numbers: dict[int, int],
) -> GraphMap:
    """The nodes of one scope, the first of which has the place `start` in the map."""
    nodes = list(nodes)
    producer = {
        name: place for place, (_, _, _, outputs, _) in enumerate(nodes, start) for name in outputs if name
    }
    constants = set(planned.scope.constants)
    placed = []
    for name, op, inputs, outputs, key in nodes:
        read = [each for each in dict.fromkeys(inputs) if each]
        above = tuple(producer[each] for each in read if each in producer)
        folds = tuple(numbers[id(fold)] for fold in owners.get(key, ()) if id(fold) in numbers)
        is_constant = op == "Constant" or (bool(read) and constants.issuperset(read))
        if is_constant:
            constants.update(outputs)
        is_changed = key in owners and not folds
        placed.append(MapNode(name, op, planned.scope.label, above, folds, is_changed, is_constant))
    return tuple(placed)
