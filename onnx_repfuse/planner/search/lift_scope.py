"""What each node of a scope is in the algebra, asked again only where that may have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    lifted, before = previous or ((), context)
    known = {one.output: one.outcome for one in lifted}
    new_layouts = context.channel_layouts.keys() - before.channel_layouts.keys()
    reclassified = context.protected ^ before.protected
    result: list[Lifted] = []
    for node in context.scope.nodes:
        if is_kept(node):
            continue
        names = [tensor.name for tensor in (*node.inputs, *node.outputs)] if known else []
        is_new = id(node) in reclassified or not new_layouts.isdisjoint(names)
        moved = not changed.isdisjoint(names)
        for number, tensor in enumerate(node.outputs):
            output = tensor.name
            if not context.scope.is_used(output):
                continue
            if is_new or output not in known or _may_differ(node, known[output], moved=moved):
                outcome = lift(context, node, number)
            else:
                outcome = known[output]
            if not _holds_kept_node(outcome, is_kept):
                result.append(Lifted(node, output, outcome))
    return result


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
