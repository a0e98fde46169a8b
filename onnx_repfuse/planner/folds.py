"""What planning made of a scope: folds, and what was not done."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.candidates import chief
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["PlannedFold", "ScopePlan", "originals"]


@dataclass(eq=False)
class PlannedFold:
    """One fold.

    Attributes:
        root: the tensor that is computed otherwise.
        absorbed: original nodes that went, in topological order.
        created: the nodes that came and are still there.
        roles: kinds of what was absorbed.
        macs_before, macs_after: multiply-adds.
        groups: what several of the absorbed nodes were lifted as together.
        alias: where nothing was created, the tensor that readers of the root read now.
    """

    root: str
    absorbed: list[gs.Node]
    created: list[gs.Node]
    roles: frozenset[Kind]
    macs_before: int
    macs_after: int
    groups: tuple[LinearOp, ...] = ()
    alias: str = ""

    @property
    def kind(self) -> Kind:
        """The chief kind."""
        return chief(self.roles)


@dataclass(eq=False)
class ScopePlan:
    """A scope after planning: its nodes are the new ones. `aliases` are tensors that became another one's name."""

    scope: Scope
    folds: list[PlannedFold] = field(default_factory=list)
    aliases: dict[str, PlannedFold] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def originals(planned: ScopePlan, made: PlannedFold) -> list[onnx.NodeProto]:
    """The nodes a fold absorbed, as they were; and those that became names of what it reads now."""
    anchor, proto = planned.scope.anchor, planned.scope.proto
    found = {anchor[id(node)] for node in made.absorbed}
    pending = [proto.node[position] for position in found]
    while pending:
        for name in pending.pop().input:
            below = planned.aliases.get(name)
            fresh = {anchor[id(node)] for node in below.absorbed} - found if below is not None else set()
            found |= fresh
            pending.extend(proto.node[position] for position in fresh)
    return [proto.node[position] for position in sorted(found)]
