"""What nodes compute from constants alone, written as initializers.

Before anything else is folded: a kernel that the graph computes is a weight from then on. No value is read for that;
the initializer is computed while it is written, by a runtime (`graph.constant_folding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.edit_points import replace_nodes
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.modelfile.dtypes import stored_size
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.report import Kind

__all__ = ["write_constants"]

# What an initializer may take beyond the weights that it replaces. A mask that the graph expands from a scalar, or a
# weight that another node reads untransposed, stays computed: the file would grow, and runtimes compute it once.
MAX_GROWN_BYTES = 4096
# ONNX Runtime leaves these, and whatever is made of them, for every run. For the fastest result, the file grows.
COMPUTED_IN_EVERY_RUN = ("ConstantOfShape",)
MAX_GROWN_FOR_SPEED = 4 << 20  # of one scope
MAX_NODES_BACK = 256  # looked at for the weights that an initializer replaces
NOTHING_COMPUTED = ("Constant",)  # operators that are no more than an initializer themselves


def write_constants(
    plan: ScopePlan, is_kept: Callable[[gs.Node], bool], banned: frozenset[str], *, for_speed: bool = False
) -> bool:
    """Replace nodes that compute constants by initializers; whether there were any.

    Kept nodes, banned outputs and what is an output of the scope stay. `for_speed` lets the file grow where ONNX
    Runtime would compute a constant in every run.
    """
    scope = plan.scope
    room = MAX_GROWN_FOR_SPEED if for_speed else 0
    written, absorbed = _absorbed(scope, _Stays(scope, is_kept, banned, room))
    below = _nodes_below(scope, [node for node, _ in written], absorbed)
    for node, wanted in written:
        for name in wanted:
            scope.created[name] = scope.constants[name]
            # each output is a fold of its own: it is proved by itself
            nodes = below[id(node)] if name == wanted[0] else [node]
            plan.add(PlannedFold((name,), nodes, [], frozenset((Kind.CONSTANT,)), 0, 0))
    replace_nodes(scope, {place: [] for place in absorbed})
    return bool(written)


def _absorbed(scope: Scope, stays: _Stays) -> tuple[list[tuple[gs.Node, list[str]]], set[int]]:
    """The nodes that end in initializers, with their outputs that become these; and ids of all nodes that go."""
    written: list[tuple[gs.Node, list[str]]] = []
    absorbed: set[int] = set()
    # From the consumers to the producers: what only an absorbed node reads is absorbed with it.
    for node in reversed(scope.nodes):
        if not stays.computes_constants(node):
            continue
        wanted = [tensor.name for tensor in node.outputs if _is_wanted(scope, tensor.name, absorbed)]
        if any(stays.would_grow(node, name) for name in wanted):
            continue
        absorbed.add(id(node))
        if wanted:
            written.append((node, wanted))
    return written[::-1], absorbed


def _is_wanted(scope: Scope, name: str, absorbed: set[int]) -> bool:
    """Whether a node that stays reads it, or a subgraph."""
    return name in scope.captured or any(id(node) not in absorbed for node in scope.consumers.get(name, ()))


class _Stays:
    """Which nodes stay although they compute constants."""

    def __init__(
        self, scope: Scope, is_kept: Callable[[gs.Node], bool], banned: frozenset[str], room: int
    ) -> None:
        self.scope, self.is_kept, self.banned, self.room = scope, is_kept, banned, room

    def computes_constants(self, node: gs.Node) -> bool:
        """Whether all that is read of a node is constant, and nothing keeps it."""
        scope = self.scope
        if node.op in NOTHING_COMPUTED or id(node) not in scope.original:
            return False
        used = [tensor.name for tensor in node.outputs if scope.is_used(tensor.name)]
        if not used or not self.banned.isdisjoint(used) or not scope.outputs.isdisjoint(used):
            return False
        if any(scope.const(name) is None or self._would_not_load(name) for name in used):
            return False
        return not self.is_kept(node)

    def _would_not_load(self, name: str) -> bool:
        """Whether ONNX Runtime refuses a reader of a tensor once that is an initializer.

        Range wants scalars. Runtimes take vectors of one number, too, but refuse initializers that are vectors.
        """
        value = self.scope.const(name)
        is_vector = value is not None and len(value.shape) > 0
        return is_vector and any(reader.op == "Range" for reader in self.scope.consumers.get(name, ()))

    def would_grow(self, node: gs.Node, name: str) -> bool:
        """Whether the file would grow by more than a little if a tensor became an initializer."""
        grown = _bytes(self.scope.constants[name]) - MAX_GROWN_BYTES
        if grown <= 0 or grown <= self._replaced(node):
            return False
        if grown > self.room or not self._is_computed_in_every_run(node):
            return True
        self.room -= grown
        return False

    def _is_computed_in_every_run(self, node: gs.Node) -> bool:
        scope, seen, pending = self.scope, {id(node)}, [node]
        while pending and len(seen) < MAX_NODES_BACK:
            one = pending.pop()
            if one.op in COMPUTED_IN_EVERY_RUN:
                return True
            for tensor in one.inputs:
                producer = scope.producer.get(tensor.name)
                if producer is not None and id(producer) not in seen:
                    seen.add(id(producer))
                    pending.append(producer)
        return False

    def _replaced(self, node: gs.Node) -> int:
        """Bytes of the stored constants that nobody reads but this node and those that only it needs."""
        scope, found, total = self.scope, {id(node)}, 0
        pending = [node]
        while pending and len(found) < MAX_NODES_BACK:
            for name in dict.fromkeys(tensor.name for tensor in pending.pop().inputs):
                if not self._is_read_alone(name, found):
                    continue
                producer = scope.producer.get(name)
                if producer is None or producer.op in NOTHING_COMPUTED:
                    total += _bytes(scope.constants[name])
                elif id(producer) not in found:
                    found.add(id(producer))
                    pending.append(producer)
        return total

    def _is_read_alone(self, name: str, nodes: Set[int]) -> bool:
        """Whether only these nodes, given by id(), read a tensor, and it is a constant of this graph."""
        scope = self.scope
        if not name or scope.is_seen(name) or name not in scope.constants:
            return False
        if any(id(one) not in nodes for one in scope.consumers.get(name, ())):
            return False
        # What is of a graph around this one stays there.
        return name in scope.producer or name in scope.initializers or name in scope.created


def _bytes(const: Const) -> int:
    return stored_size(const.data_type, const.shape) or 0


def _nodes_below(scope: Scope, written: Iterable[gs.Node], absorbed: set[int]) -> dict[int, list[gs.Node]]:
    """For each node that ends in an initializer, it and the absorbed nodes it needs; one that two need is the first's.

    Args:
        written: these nodes, in topological order.
        absorbed: ids of all nodes that go.
    """
    taken: set[int] = set()
    result = {}
    for last in written:
        pending, nodes = [last], []
        while pending:
            node = pending.pop()
            if id(node) in taken:
                continue
            taken.add(id(node))
            nodes.append(node)
            producers = (scope.producer.get(tensor.name) for tensor in node.inputs)
            pending += [one for one in producers if one is not None and id(one) in absorbed]
        result[id(last)] = sorted(nodes, key=lambda node: scope.anchor[id(node)])
    return result
