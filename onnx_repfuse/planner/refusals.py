"""What stayed although it is linear, and why, in sentences."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.lift import Declined
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal

__all__ = ["opset_refusal", "refusals"]


def refusals(scope: Scope, cover: Cover, declined: list[tuple[gs.Node, Declined]]) -> list[Refusal]:
    """The refusals of the last round, in topological order."""
    result = [
        Refusal(
            found.reason,
            f"{_title(scope, node)} stays: {found.detail or found.reason.prose}.",
            (node_name(node),),
            scope.label,
        )
        for node, found in declined
        if found.reason is not Reason.IDIOM or node.op != "Identity"
    ]
    for name, lifted in cover.lifts.items():
        if not operator(lifted.node).stays_for_a_reason and lifted.padding_value is None:
            continue
        told = _inexact(scope, cover, name) or _readers(scope, cover, name) or _cost(scope, cover, name)
        if told is not None:
            result.append(told)
    return result


def opset_refusal(scope: Scope, node: gs.Node, others: list[gs.Node]) -> Refusal:
    """A node of an activation that later opsets have an operator for, and those that stay with it."""
    message = f"{_title(scope, node)} stays: {Reason.OPSET.prose}."
    return Refusal(Reason.OPSET, message, tuple(map(node_name, others)), scope.label)


def _title(scope: Scope, node: gs.Node) -> str:
    """A node in words; one that this run made goes by the tensor it makes, which the user knows."""
    if id(node) in scope.original:
        return f"{node.op} '{node_name(node)}'"
    return f"the fused {node.op} of '{node.outputs[0].name}'"


def _inexact(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    found = cover.inexact.get(name)
    if not found:
        return None
    reason, through = next((pair for pair in found if pair[1]), found[0])
    node, below = cover.lifts[name].node, cover.lifts.get(through)
    if below is None:
        return Refusal(
            reason.reason, f"{_title(scope, node)} stays: {reason.detail}.", (node_name(node),), scope.label
        )
    return Refusal(
        reason.reason,
        f"{_title(scope, node)} and {_title(scope, below.node)} stay apart: {reason.detail}.",
        (node_name(node), node_name(below.node)),
        scope.label,
    )


def _readers(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """A per-channel operator that cannot go into the convolution before it, which others read, too."""
    lifted = cover.lifts[name]
    if len(lifted.operands) != 1 or not lifted.terms[0].kernel.geometry.is_diagonal:
        return None
    source = lifted.operands[0].name
    below = cover.lifts.get(source)
    if below is None or cover.regions.is_private(source) or operator(below.node).weight is None:
        return None
    other = next((r for r in scope.consumers.get(source, []) if r is not lifted.node), None)
    if source in scope.outputs:
        why = "is a graph output"
    elif other is not None:
        why = f"also feeds {_title(scope, other)}"
    else:
        why = "is read inside a subgraph"
    macs = cover.entries[source].node.macs
    return Refusal(
        Reason.READERS,
        f"{_title(scope, lifted.node)} stays: its input '{source}' {why}, so folding would compute "
        f"{_title(scope, below.node)} twice (+{_mega(macs)} MMAC).",
        (node_name(lifted.node), node_name(below.node)),
        scope.label,
    )


def _cost(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """A foldable pair whose parts are cheaper than the whole."""
    if name in cover.banned:
        return None  # not for its price: it did not pass verification, which is told already
    lifted, entry = cover.lifts[name], cover.entries[name]
    deeper = [c for c in entry.candidates if c.nodes > 1 and c.convolves]
    if entry.choice is not None or not deeper or not cover.regions.is_private(lifted.operands[0].name):
        return None
    best = min(deeper, key=lambda c: c.nodes)
    price = cover.price(lifted, best)
    below = cover.lifts.get(lifted.operands[0].name)
    if price is None or below is None:
        return None
    if price.macs <= entry.original.macs:
        return None
    return Refusal(
        Reason.COST,
        f"{_title(scope, lifted.node)} and {_title(scope, below.node)} stay apart: as one operator they would take "
        f"{_mega(price.macs)} MMAC instead of {_mega(entry.original.macs)}.",
        (node_name(lifted.node), node_name(below.node)),
        scope.label,
    )


def _mega(macs: int) -> str:
    return f"{macs / 1e6:.3g}"
