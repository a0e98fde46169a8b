"""Who may look through whom: private tensors, and the regions they make of a scope.

A tensor is private if one node reads its values, that node has one output which is used, and nobody outside sees the
tensor. Nodes that ask for its shape only may read another tensor (`limits.shape_consumers`).
Then only the consumer needs it, and may compute its own output from the tensor's sources instead. Private tensors join
their nodes to regions, each with one root: a tensor that must exist. Regions do not influence one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp

__all__ = ["Regions"]


@dataclass(eq=False)
class Regions:
    """Regions of one scope.

    Attributes:
        lifts: output -> operator, in topological order. Where several nodes were lifted as one operator, the
            entries of the inner nodes are removed.
        shaped: tensors that are not private, as their shape is asked for.
        read_by_group: a tensor that only nodes of one such operator read -> that operator.
    """

    scope: Scope
    lifts: dict[str, LinearOp]
    shaped: frozenset[str] = frozenset()
    read_by_group: dict[str, LinearOp] = field(init=False)
    # answers of `is_private`, which is asked again and again
    _private: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = [lifted for lifted in self.lifts.values() if lifted.inner_nodes]
        for group in groups:
            for node in group.inner_nodes:
                for tensor in node.outputs:
                    self.lifts.pop(tensor.name, None)
        self.read_by_group = {name: group for group in groups for name in _read_alone(self.scope, group)}

    def is_private(self, name: str) -> bool:
        """Whether the tensor's consumer may look through it."""
        answer = self._private.get(name)
        if answer is None:
            answer = name in self.read_by_group or self._has_one_consumer(name)
            self._private[name] = answer
        return answer

    def _has_one_consumer(self, name: str) -> bool:
        if self.scope.is_seen(name) or name in self.shaped:
            return False
        consumers = _value_consumers(self.scope, name)
        return len(consumers) == 1 and self.has_one_used_output(consumers[0])

    def has_one_used_output(self, node: gs.Node) -> bool:
        """Whether only one of its outputs is used."""
        outputs = node.outputs
        return len(outputs) == 1 or sum(1 for tensor in outputs if self.scope.is_used(tensor.name)) == 1

    def consumer(self, name: str) -> gs.Node:
        """The node that alone reads a tensor's values."""
        group = self.read_by_group.get(name)
        return _value_consumers(self.scope, name)[0] if group is None else group.node

    @cached_property
    def roots(self) -> dict[str, str]:
        """Of each lifted tensor the root of its region."""
        roots: dict[str, str] = {}
        for name in reversed(list(self.lifts)):
            roots[name] = name
            if self.is_private(name):
                for tensor in self.consumer(name).outputs:
                    if tensor.name in roots and self.scope.is_used(tensor.name):
                        roots[name] = roots[tensor.name]
        return roots


def _value_consumers(scope: Scope, name: str) -> list[gs.Node]:
    """The nodes that read the values of a tensor, and not only its shape."""
    consumers = scope.consumers.get(name, [])
    if len(consumers) == 1:
        return consumers  # if it is a Shape, the tensor is no operand of anything that is lifted
    return [consumer for consumer in consumers if operator(consumer).of_shape is None]


def _read_alone(scope: Scope, group: LinearOp) -> Iterator[str]:
    """The operands of which nobody but the nodes of a group reads the values."""
    nodes = {id(node) for node in (*group.inner_nodes, group.node)}
    for operand in group.operands:
        name = operand.name
        consumers = _value_consumers(scope, name)
        if not scope.is_seen(name) and all(id(consumer) in nodes for consumer in consumers):
            yield name
