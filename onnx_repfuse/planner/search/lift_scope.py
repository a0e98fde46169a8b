"""What each node of a scope is in the algebra, asked again only where that may have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import Context, Declined, LinearOp, lift

__all__ = ["Lifted", "lift_all"]


class Lifted(NamedTuple):
    """An output of a node, and what it is in the algebra."""

    node: gs.Node
    output: str
    outcome: LinearOp | Declined | None

    @property
    def declined(self) -> Declined | None:
        """Why it is not folded, or not as a convolution; None if nothing kept it from being lifted."""
        return self.outcome.declined if isinstance(self.outcome, LinearOp) else self.outcome


def lift_all(
    context: Context,
    is_kept: Callable[[gs.Node], bool],
    previous: tuple[Sequence[Lifted], Context] | None,
    changed: set[str],
) -> list[Lifted]:
    """Every used output of every node that may change, and what it is.

    Args:
        context: of the scope as it is.
        is_kept: whether a node stays.
        previous: what a round before found, in which context.
        changed: tensors that other nodes make or read since then.
    """
    known = _Known.of(context, previous, changed)
    result: list[Lifted] = []
    for node in context.scope.nodes:
        if is_kept(node):
            continue
        may_differ = known.rule(node)
        for number, tensor in enumerate(node.outputs):
            output = tensor.name
            if not context.scope.is_used(output):
                continue
            outcome = lift(context, node, number) if may_differ(output) else known.outcomes[output]
            if not _holds_kept_node(outcome, is_kept):
                result.append(Lifted(node, output, outcome))
    return result


@dataclass(frozen=True, eq=False)
class _Known:
    """What a round before found, and what changed since then.

    Attributes:
        outcomes: by output.
        new_layouts: tensors of which channels were not known.
        reclassified: id() of the nodes that are part of a pattern now, and were not, or the other way.
        changed: tensors that other nodes make or read.
    """

    outcomes: dict[str, LinearOp | Declined | None]
    new_layouts: Set[str]
    reclassified: Set[int]
    changed: Set[str]

    @classmethod
    def of(
        cls, context: Context, previous: tuple[Sequence[Lifted], Context] | None, changed: Set[str]
    ) -> _Known:
        lifted, before = previous or ((), context)
        return cls(
            {one.output: one.outcome for one in lifted},
            context.channel_layouts.keys() - before.channel_layouts.keys(),
            context.protected ^ before.protected,
            changed,
        )

    def rule(self, node: gs.Node) -> Callable[[str], bool]:
        """Which outputs of a node may be something else than they were."""
        if not self.outcomes:
            return lambda output: True
        names = [tensor.name for tensor in (*node.inputs, *node.outputs)]
        if id(node) in self.reclassified or not self.new_layouts.isdisjoint(names):
            return lambda output: True
        moved = not self.changed.isdisjoint(names)
        return lambda output: (
            output not in self.outcomes or _may_differ(node, self.outcomes[output], moved=moved)
        )


def _holds_kept_node(outcome: LinearOp | Declined | None, is_kept: Callable[[gs.Node], bool]) -> bool:
    return isinstance(outcome, LinearOp) and any(map(is_kept, outcome.inner_nodes))


def _may_differ(node: gs.Node, outcome: LinearOp | Declined | None, *, moved: bool) -> bool:
    """Whether a node, of whose tensors no more is known than before, may be something else than it was.

    Args:
        moved: other nodes make or read its tensors.
    """
    if isinstance(outcome, LinearOp) and outcome.inner_nodes:
        return True
    if not moved:
        return False
    if not _has_parameters(node) or not isinstance(outcome, LinearOp) or outcome.node is not node:
        return True  # another node may have come to make this tensor
    return bool(outcome.operands[0].name != node.inputs[0].name)


def _has_parameters(node: gs.Node) -> bool:
    """Whether its own constants say what it computes from its first input: a Conv, a MatMul, a BatchNormalization.

    Then it stays the same operator as long as it reads the same tensor, whatever node computes that.
    """
    facts = operator(node)
    return facts.weight is not None or facts.normalizes
