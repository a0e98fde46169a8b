"""Who may look through whom: private tensors, and the regions they make of a scope.

Nodes that were lifted together, as one operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp

__all__ = ["Regions", "only_readers"]


@dataclass(eq=False)
class Regions:
    """Of one scope and round; what nodes of groups are by themselves is taken out of `lifts`."""

    scope: Scope
    lifts: dict[str, LinearOp]
    gates: dict[str, LinearOp] = field(init=False)
    private: dict[str, bool] = field(default_factory=dict)  # what `is_private` said

    def __post_init__(self) -> None:
        self.gates = only_readers(self.scope, self.lifts)

    def is_private(self, name: str) -> bool:
        """One reader, and that reader has one output anybody uses: the reader may look through."""
        found = self.private.get(name)
        if found is None:
            alone = self.scope.is_private(name)
            found = self.private[name] = name in self.gates or (alone and self.is_sole(self.consumer(name)))
        return found

    def is_sole(self, node: gs.Node) -> bool:
        """It has one output anybody uses."""
        scope = self.scope
        return len(node.outputs) == 1 or sum(1 for t in node.outputs if scope.is_used(t.name)) == 1

    def consumer(self, name: str) -> gs.Node:
        """The one node that reads a private tensor."""
        gate = self.gates.get(name)
        return self.scope.consumers[name][0] if gate is None else gate.node

    @cached_property
    def roots(self) -> dict[str, str]:
        """The tensor that must exist at the end of each lifted tensor's region."""
        roots: dict[str, str] = {}
        for name in reversed(list(self.lifts)):
            roots[name] = name
            if self.is_private(name):
                for tensor in self.consumer(name).outputs:
                    if tensor.name in roots and self.scope.is_used(tensor.name):
                        roots[name] = roots[tensor.name]
        return roots


def only_readers(scope: Scope, lifts: dict[str, LinearOp]) -> dict[str, LinearOp]:
    """Forget what the inner nodes of groups are by themselves; which tensors a group alone reads, and which one."""
    result: dict[str, LinearOp] = {}
    for group in [found for found in lifts.values() if found.inner_nodes]:
        inside = {id(node) for node in (*group.inner_nodes, group.node)}
        for node in group.inner_nodes:
            for tensor in node.outputs:
                lifts.pop(tensor.name, None)
        for operand in group.operands:
            seen = operand.name in scope.outputs or operand.name in scope.captured
            if not seen and all(id(consumer) in inside for consumer in scope.consumers[operand.name]):
                result[operand.name] = group
    return result
