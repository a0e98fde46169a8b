"""Nodes that are replaced, noted as folds: what replaces which original nodes, also where folds build upon folds.

A fold may absorb what an earlier one created. To the user that is one fold, so the two are joined: `PlannedFold` keeps
the original nodes behind every new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.edit_points import replace_nodes
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.report import Kind

__all__ = [
    "IsFree",
    "Replacements",
    "add_fold",
    "folds_below",
    "joined_fold",
    "original_nodes",
    "outputs_around",
]


IsFree = Callable[
    [gs.Node], bool
]  # whether a node may be replaced: nobody keeps it, and no fold of it is banned


@dataclass(eq=False)
class Replacements:
    """Folds that are noted one by one while the nodes of a scope are searched, and written all at once at the end.

    Attributes:
        plan: of the scope.
        nodes: id() of a node -> the nodes in its place.
    """

    plan: ScopePlan
    nodes: dict[int, list[gs.Node]] = field(default_factory=dict)

    def fold(
        self, output: str, kinds: Set[Kind], absorbed: Sequence[gs.Node], created: list[gs.Node]
    ) -> None:
        """Note a fold as `add_fold` does, and put the new nodes in the place of the last one that it absorbs.

        The others stay in the scope until nobody needs them; see `edit_points.remove_dead_nodes`.
        """
        add_fold(self.plan, output, kinds, absorbed, created)
        self.nodes[id(absorbed[-1])] = created

    def fold_together(
        self,
        kind: Kind,
        ends: Sequence[gs.Node],
        written: Mapping[int, list[gs.Node]],
        absorbed: Sequence[gs.Node],
        macs: tuple[int, int],
    ) -> None:
        """Note nodes that are written again together: a fold for each end. What the ends share counts to the first.

        Args:
            kind: of the folds.
            ends: the nodes among them whose outputs others read.
            written: id() of a node -> the nodes in its place.
            absorbed: the nodes, in their order.
            macs: multiply-adds before and after.
        """
        first, *others = ends
        for end in others:
            add_fold(self.plan, end.outputs[0].name, {kind}, [end], written[id(end)])
        apart = set(map(id, others))  # `==` would compare what nodes hold
        shared = [node for node in absorbed if id(node) not in apart]
        created = [new for node in shared for new in written[id(node)]]
        add_fold(self.plan, first.outputs[0].name, {kind}, shared, created, macs)
        self.nodes |= written

    def write(self) -> bool:
        """Put the new nodes into the scope; whether there are any."""
        replace_nodes(self.plan.scope, self.nodes)
        return bool(self.nodes)


def add_fold(
    plan: ScopePlan,
    output: str,
    kinds: Set[Kind],
    absorbed: Sequence[gs.Node],
    created: list[gs.Node],
    macs: tuple[int, int] = (0, 0),
    by_itself: bool = False,
    below: Sequence[PlannedFold] = (),
) -> PlannedFold:
    """Note a fold, joined with the earlier ones it builds upon.

    Args:
        plan: where it is noted.
        output: the tensor that it computes. If an earlier fold created that for itself, it is known by that one's.
        kinds: of the fold.
        absorbed: the nodes that it stands for.
        created: the nodes that compute the same.
        macs: multiply-adds before and after.
        by_itself: the output is compared by itself, as a part of a Split that a fold wrote again and did not change.
        below: earlier folds that it builds upon, beside the last ones that created nodes which it absorbs.
    """
    earlier = list(dict.fromkeys([*folds_below(plan, absorbed), *below]))
    outputs = () if by_itself else outputs_around(output, earlier)
    fold = PlannedFold(outputs or (output,), [], created, frozenset(kinds), *macs)
    plan.add(joined_fold(plan, fold, absorbed, earlier), earlier)
    return fold


def folds_below(plan: ScopePlan, nodes: Iterable[gs.Node]) -> list[PlannedFold]:
    """The folds that created some of these nodes."""
    folds = [plan.creator[id(node)] for node in nodes if id(node) in plan.creator]
    return list(dict.fromkeys(folds))


def original_nodes(
    plan: ScopePlan, nodes: Iterable[gs.Node], earlier: Sequence[PlannedFold]
) -> list[gs.Node]:
    """The original nodes behind those that are absorbed; one twice, where two folds absorbed it."""
    behind = [node for fold in earlier for node in fold.absorbed]
    return behind + [node for node in nodes if id(node) not in plan.creator]


def joined_fold(
    plan: ScopePlan, fold: PlannedFold, nodes: Sequence[gs.Node], earlier: Sequence[PlannedFold]
) -> PlannedFold:
    """A fold that absorbs these nodes, joined with the earlier ones that created some of them.

    Args:
        fold: what it creates, without `absorbed`.
        nodes: what it absorbs.
        earlier: the folds it builds upon.
    """
    absorbed = {id(node): node for node in original_nodes(plan, nodes, earlier)}
    fold.absorbed = sorted(absorbed.values(), key=lambda node: plan.scope.anchor[id(node)])
    # A fold that was noted just now, and shares nodes with this one, may have been joined with the same ones.
    gone = {id(node) for node in (*nodes, *fold.created)}
    left: list[gs.Node] = []
    groups: tuple[LinearOp, ...] = ()
    for one in earlier:
        left += [node for node in one.created if id(node) not in gone]
        # two may have been joined with the same one, and share nodes
        gone.update(id(node) for node in one.created)
        groups += one.groups
        fold.roles |= one.roles
        fold.macs_before += one.macs_before
        fold.macs_after += one.macs_after
    fold.created, fold.groups = left + fold.created, groups + fold.groups
    return fold


def outputs_around(name: str, earlier: Sequence[PlannedFold]) -> tuple[str, ...]:
    """The outputs of the fold that created a tensor for itself; () if none did, or it is what another one computes."""
    if any(name in fold.outputs for fold in earlier):
        return ()
    for fold in earlier:
        created = {tensor.name for node in fold.created for tensor in node.outputs}
        if name in created and name not in fold.outputs:
            return fold.outputs
    return ()
