"""What the nodes of a scope are in the algebra; in later rounds, asked only of those that may have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.lift import Context, Declined, Lifted, lift

__all__ = ["Lifting", "lift_all"]

Lifting = tuple[gs.Node, Lifted | Declined | None, str]

# once lifted, these are what their constants and the frames of their tensors say, whoever makes or reads those
_ALONE = frozenset(("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"))


def lift_all(
    context: Context,
    kept: Callable[[gs.Node], bool],
    previous: tuple[Context, Sequence[Lifting]] | None,
    changed: set[str],
) -> list[Lifting]:
    """Every used output of every node that may change, and what it is.

    Args:
        context: of the scope as it is.
        kept: whether a node stays as it is.
        previous: the context and the result of the round before.
        changed: tensors that others make or read since then.
    """
    before, lifted = previous or (context, ())
    known = {name: found for _, found, name in lifted}
    fresh = context.frames.keys() - before.frames.keys()
    result: list[Lifting] = []
    for node in context.scope.nodes:
        if kept(node):
            continue
        names = [t.name for t in (*node.inputs, *node.outputs)] if previous else []
        stands = previous is not None and fresh.isdisjoint(names) and _same_idiom(context, before, node)
        moved = stands and not changed.isdisjoint(names)
        for number, tensor in enumerate(node.outputs):
            if not context.scope.is_used(tensor.name):
                continue
            found = known.get(tensor.name)
            if not stands or tensor.name not in known or _may_differ(node, found, moved):
                found = lift(context, node, number)
            if isinstance(found, Lifted) and any(kept(inner) for inner in found.also):
                continue
            result.append((node, found, tensor.name))
    return result


def _same_idiom(context: Context, before: Context, node: gs.Node) -> bool:
    """Whether its part in an idiom is the same."""
    return (id(node) in context.protected) == (id(node) in before.protected)


def _may_differ(node: gs.Node, found: Lifted | Declined | None, moved: bool) -> bool:
    """Whether a node that is as before, but for its neighbours if it has `moved`, may be something else."""
    if isinstance(found, Lifted) and found.also:
        return True
    if not moved:
        return False
    if node.op not in _ALONE or not isinstance(found, Lifted) or found.node is not node:
        return True  # another node may have come to make this tensor
    return bool(found.operands[0].name != node.inputs[0].name)
