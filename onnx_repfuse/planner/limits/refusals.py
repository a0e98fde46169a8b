"""What stayed although it is linear, and why, in sentences for the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.lift import Declined, LinearOp
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal
from onnx_repfuse.records.units import quantity

__all__ = [
    "chain_refusal",
    "opset_refusal",
    "refusals",
    "sign_refusal",
    "size_refusal",
    "stride_refusal",
    "sum_refusal",
    "window_refusal",
]

MAX_NODES_BACK = 8  # looked at between a BatchNormalization and its convolution


def refusals(scope: Scope, cover: Cover, declined: Iterable[tuple[gs.Node, Declined]]) -> list[Refusal]:
    """The refusals of the last round: nodes that were not lifted, then those that were, in topological order."""
    result: list[Refusal] = []
    for node, outcome in declined:
        if outcome.reason is not Reason.FUSED_PATTERN or _would_be_missed(scope, node):
            why = outcome.detail or outcome.reason.prose
            result.append(_stays(scope, outcome.reason, why, node))
    result += filter(None, (_why_it_stays(scope, cover, name) for name in cover.lifts))
    return result


def _why_it_stays(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """The first reason why an operator was not folded, where somebody may ask; None if there is none to tell."""
    lifted = cover.lifts[name]
    if not operator(lifted.node).stays_for_a_reason and lifted.padding_value is None:
        return None
    reasons = (_not_exact, _may_broadcast, _shared_source, _more_multiply_adds, _behind_an_obstacle)
    return next(filter(None, (reason(scope, cover, name) for reason in reasons)), None)


def _would_be_missed(scope: Scope, node: gs.Node) -> bool:
    """Whether somebody may ask why a part of a pattern stays: not of an Identity, nor of what `--avoid` has written."""
    is_known = id(node) in scope.original or _origin(scope, node)[0] == node.op
    return node.op != "Identity" and is_known


def opset_refusal(scope: Scope, node: gs.Node, others: Iterable[gs.Node]) -> Refusal:
    """A node of an activation that later opsets have an operator for, and those that stay with it."""
    return _refusal(scope, Reason.OPSET, f"{_title(scope, node)} stays: {Reason.OPSET.prose}.", *others)


def size_refusal(scope: Scope, nodes: Sequence[gs.Node]) -> Refusal:
    """Nodes that would take more multiply-adds as others at some size that is known only at run time."""
    *others, last = nodes
    names = " and ".join(_title(scope, node) for node in (last, *others[-1:]))
    verb = "stay" if others else "stays"
    why = "folded they would take more multiply-adds at some of the sizes that are not known"
    return _refusal(scope, Reason.SHAPE, f"{names} {verb} as they are: {why}.", last, *others)


def window_refusal(scope: Scope, nodes: Sequence[gs.Node], node: gs.Node) -> Refusal:
    """A pool or Slice that is no convolution where its input is small, and what would have been folded with it."""
    others = [other for other in nodes if other is not node]
    why = (
        "of an input that is smaller than its window, runtimes take what there is, where a Conv would not run"
    )
    return _stays(scope, Reason.SHAPE, why, node, *others)


def sign_refusal(scope: Scope, node: gs.Node, other: gs.Node) -> Refusal:
    """A per-channel operator that would fold beyond a maximum or an activation."""
    why = f"it cannot pass {_title(scope, other)}, as its factors are not all positive"
    return _stays(scope, Reason.SIGN, why, node, other)


def stride_refusal(scope: Scope, node: gs.Node, reason: Reason, why: str) -> Refusal:
    """A strided 1x1 convolution behind one that has to compute all positions."""
    return _refusal(scope, reason, f"{_title(scope, node)} keeps its stride: {why}.", node)


def chain_refusal(scope: Scope, nodes: Sequence[gs.Node], reason: Reason, why: str) -> Refusal:
    """Arithmetic with constants in a row that is not one Mul and one Add in floating point."""
    *others, last = nodes
    return _refusal(scope, reason, f"{_title(scope, last)} and those before it stay: {why}.", last, *others)


def norm_refusal(scope: Scope, node: gs.Node, norm: gs.Node, reason: Reason, why: str) -> Refusal:
    """A factor or shift behind a normalization that stays out of its parameters."""
    return _stays(scope, reason, f"in {_title(scope, norm)}, {why}", node, norm)


def sum_refusal(scope: Scope, factor: gs.Node, total: gs.Node) -> Refusal:
    """A factor of a product of two tensors to which something was added: attention's, where the mask is scaled, too."""
    why = f"it scales all that {_title(scope, total)} adds, and the summands would need a factor each"
    return _stays(scope, Reason.COST, why, factor, total)


def _stays(scope: Scope, reason: Reason, why: str, node: gs.Node, *others: gs.Node) -> Refusal:
    """A node that stays, and those that stay with it."""
    return _refusal(scope, reason, f"{_title(scope, node)} stays: {why}.", node, *others)


def _stay_apart(scope: Scope, reason: Reason, why: str, node: gs.Node, below: gs.Node) -> Refusal:
    """Two nodes that do not become one."""
    return _refusal(
        scope, reason, f"{_title(scope, node)} and {_title(scope, below)} stay apart: {why}.", node, below
    )


def _refusal(scope: Scope, reason: Reason, message: str, *nodes: gs.Node) -> Refusal:
    names = dict.fromkeys(_origin(scope, node)[1] for node in nodes)
    return Refusal(reason, message, tuple(names), scope.label)


def _title(scope: Scope, node: gs.Node) -> str:
    """A node in words; a new one is called by the node of the file whose tensor it computes, which the user knows."""
    op, name = _origin(scope, node)
    if id(node) in scope.original:
        return f"{op} '{name}'"
    now = f"now {'an' if node.op[0] in 'AEIOU' else 'a'} {node.op}"
    return f"{op} '{name}' ({now})" if op != node.op else f"{op} '{name}' (with what was folded into it)"


def _origin(scope: Scope, node: gs.Node) -> tuple[str, str]:
    """(operator, name) of a node of the file: the node itself, or the one whose tensor a new node computes.

    A new tensor has the name of one of the file, and more behind it.
    """
    if id(node) in scope.original:
        return str(node.op), node_name(node)
    name = node.outputs[0].name
    while name and name not in scope.file_nodes and name not in scope.used_before:
        name = name[: max(name.rfind("_"), name.rfind("."), 0)]
    return scope.file_nodes.get(name, (str(node.op), node_name(node)))


def _not_exact(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """No form equals an operator, or it and the one before it, for every input."""
    reasons = cover.inexact.get(name)
    if not reasons:
        return None
    reason, through = next((pair for pair in reasons if pair[1]), reasons[0])
    node, below = cover.lifts[name].node, cover.lifts.get(through)
    if below is None:
        return _stays(scope, reason.reason, reason.detail, node)
    return _stay_apart(scope, reason.reason, reason.detail, node, below.node)


def _may_broadcast(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """A per-channel operator cannot go into the operands of a sum before it, as one may be larger than the other."""
    lifted = cover.lifts[name]
    below = cover.lifts.get(lifted.operands[0].name)
    if below is None or not below.needs_equal_shapes or not _is_per_channel(lifted):
        return None
    if not cover.regions.is_private(below.output) or cover.entries[name].choice is not None:
        return None
    why = "it is not proved that the operands of the latter have equal shapes, "
    why += "and one that broadcasts would get its shift at fewer positions"
    return _stay_apart(scope, Reason.BROADCAST, why, lifted.node, below.node)


def _is_per_channel(lifted: LinearOp) -> bool:
    return len(lifted.operands) == 1 and lifted.terms[0].kernel.geometry.is_diagonal


def _shared_source(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """A per-channel operator cannot go into the convolution before it, whose output has other consumers, too."""
    lifted = cover.lifts[name]
    if not _is_per_channel(lifted):
        return None
    source = lifted.operands[0].name
    below = cover.lifts.get(source)
    if below is None or cover.regions.is_private(source) or operator(below.node).weight is None:
        return None
    macs = quantity(cover.entries[source].node.macs)
    why = f"its input '{source}' {_other_use(scope, source, lifted.node)}, "
    why += f"so folding would compute {_title(scope, below.node)} twice (+{macs} multiply-adds)"
    return _stays(scope, Reason.CONSUMERS, why, lifted.node, below.node)


def _other_use(scope: Scope, name: str, node: gs.Node) -> str:
    """Who else but `node` needs a tensor."""
    if name in scope.outputs:
        return "is a graph output"
    for consumer in scope.consumers.get(name, []):
        if consumer is not node:
            return f"also feeds {_title(scope, consumer)}"
    return "is read inside a subgraph"


def _more_multiply_adds(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """Two operators could be one, but it would take more multiply-adds than both."""
    lifted, entry = cover.lifts[name], cover.entries[name]
    source = lifted.operands[0].name
    below = cover.lifts.get(source)
    if entry.choice is not None or below is None or not cover.regions.is_private(source):
        return None
    if name in cover.banned:
        return None  # it did not pass verification, which is reported already
    folded = [candidate for candidate in entry.candidates if candidate.nodes > 1 and candidate.convolves]
    if not folded:
        return None
    # a sum may look through one of its operands alone: what is told is what all of them would be as one
    as_one = min(folded, key=lambda candidate: (len(candidate.form.sources), candidate.nodes))
    price = cover.price(lifted, as_one)
    if price is None or price.macs <= entry.original.macs:
        return None
    macs = quantity(price.macs), quantity(entry.original.macs)
    why = f"as one operator they would take {macs[0]} multiply-adds instead of {macs[1]}"
    return _stay_apart(scope, Reason.COST, why, lifted.node, below.node)


def _behind_an_obstacle(scope: Scope, cover: Cover, name: str) -> Refusal | None:
    """A BatchNormalization whose convolution is behind a Cast, or computes in integers."""
    node = cover.lifts[name].node
    if not operator(node).normalizes:
        return None
    obstacle: gs.Node | None = None
    before = scope.producer.get(cover.lifts[name].operands[0].name)
    for _ in range(MAX_NODES_BACK):
        if before is None:
            return None
        if operator(before).is_quantized:
            why = f"its input comes from {_title(scope, before)}, which computes in integers: fuse before you quantize"
            return _stays(scope, Reason.QUANTIZED, why, node, before)
        if obstacle is not None and operator(before).weight is not None:
            why = f"{_title(scope, obstacle)} is between it and {_title(scope, before)}"
            return _stays(scope, Reason.UNSUPPORTED, why, node, before)
        # how a dynamically quantized result becomes a float again
        if before.op not in ("Cast", "Mul", "Add"):
            return None
        obstacle = before if before.op == "Cast" else obstacle
        before = scope.producer.get(before.inputs[0].name)
    return None
