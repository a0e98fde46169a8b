"""`--explain`: what a dry run says about one node, and what the planner weighed there.

That is the forms a tensor could be computed by, the price of each, and why it was chosen or not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.api import document_of
from onnx_repfuse.errors import InputError
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.lift import may_be_linear
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.plan_model import ModelPlan, make_plan
from onnx_repfuse.planner.cover_scope import cover_scope
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.forms.view_sources import tensors_read
from onnx_repfuse.planner.pricing.cost import Price
from onnx_repfuse.planner.pricing.steps import Lowered, Step
from onnx_repfuse.planner.search.candidates import Candidate, Entry, way_of
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.report import Fold, Kind, NodeRef, Report
from onnx_repfuse.records.units import duration, quantity
from onnx_repfuse.report.formatting import clean, percent, plural

__all__ = ["considered", "explain", "meant"]

_OPS = {"Shift": "Add of a constant", "Norm": "BatchNormalization", "Mul": "Mul by a constant"}
# Others that are not read as linear, such as CumSum, may be linear nevertheless.
_NOT_LINEAR = {
    "Abs", "ArgMax", "ArgMin", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "LogSoftmax", "MaxPool", "Mish", "PRelu", "Reciprocal",
    "ReduceL2", "ReduceMax", "ReduceMin", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu", "TopK",
}  # fmt: skip


def explain(model: str, node: str, options: Options | None = None) -> str:
    """Why a node of a file would or would not be fused, in words.

    Args:
        model: the file.
        node: a node's name, a tensor that it computes, a glob on nodes' names, or an input or initializer: then the
            nodes that read it are explained.
        options: as for `plan`.

    Raises:
        InputError: the model cannot be read, or has no such node.
    """
    chosen = options or Options()
    with document_of(model) as document:
        original = read_scopes(document, freeze_initializers=chosen.freeze_initializers)
        head, nodes = meant(original, node)
        planned = make_plan(document, chosen)
        report = make_report(planned, name=str(model))
    texts = [_explained(name, original, planned, report, chosen) for name in nodes]
    return "\n\n".join([*head, *texts])


def _explained(node: str, original: list[Scope], planned: ModelPlan, report: Report, chosen: Options) -> str:
    """The explanation of one node."""
    op = _ops(original)[node]
    name = _name_of(original, node)
    folds = [fold for fold in report.folds if any(_is(ref, node) for ref in fold.absorbed)]
    refusals = list(_refusals(report, folds, node))
    lines = [f"{clean(op)} '{clean(node)}'"]
    for fold in folds:
        lines += _fold(fold, node, report)
    lines += refusals
    if folds:
        lines += _forms_of_folds(folds, original, planned.scopes, chosen)
    elif gone := _removed(report, [part.scope for part in planned.scopes], node, name):
        lines += gone
    else:
        lines += _forms_of_node(node, op, planned.scopes, chosen, explained=bool(refusals))
    return "\n".join(lines)


def _forms_of_folds(
    folds: list[Fold], original: list[Scope], planned: list[ScopePlan], options: Options
) -> Iterator[str]:
    """What was weighed for the outputs of folds, in the model as it was."""
    plan_of = {plan.scope.key: plan for plan in planned}
    for fold in folds:
        for scope in original:
            if scope.label == fold.scope:
                plan = plan_of[scope.key]
                yield from _forms(cover_scope(scope, options, plan), plan, [fold.output])


def _forms_of_node(
    node: str, op: str, planned: list[ScopePlan], options: Options, *, explained: bool
) -> list[str]:
    """What was weighed for a node that stays, and for its consumer, in the model as planned.

    The first line says why it stays, unless a refusal has `explained` that.
    """
    lines: list[str] = []
    linear = may_be = False
    for plan in planned:
        tensors = _tensors(plan.scope, node)
        if not tensors:
            continue
        cover = cover_scope(plan.scope, options, plan)
        linear |= any(name in cover.lifts for name in tensors)
        may_be |= any(may_be_linear(plan.scope.producer[name]) for name in tensors)
        consumers = [other for name in tensors for other in _looking_through(cover, name)]
        lines += _forms(cover, plan, dict.fromkeys([*tensors, *consumers]))
    if explained:
        return lines
    if linear:
        return ["Stays as it is: it is linear, but none of the forms considered is cheaper.", *lines]
    if any(fnmatchcase(node, pattern) for pattern in options.keep):
        return ["Stays as it is: --keep names it.", *lines]
    why = f"{clean(op)} is not among the operators that are read as linear maps"
    if op in _NOT_LINEAR:
        why = f"this {clean(op)} is not a linear map"
    if may_be:  # Mul of two tensors, a Conv whose weights are computed, an Add of which no shape is known
        why = f"nothing proves that this {clean(op)} is a linear map of one tensor: "
        why += "what else it reads is not constant, or its shape is not known"
    return [f"Stays as it is: {why}, so regions end here.", *lines]


def _name_of(scopes: list[Scope], wanted: str) -> str:
    """The name of the node that has this name or computes this tensor."""
    for scope in scopes:
        for node in scope.nodes:
            if wanted == node_name(node) or wanted in [tensor.name for tensor in node.outputs]:
                return node_name(node)
    return wanted


def _removed(report: Report, planned: list[Scope], node: str, name: str) -> list[str]:
    """Why a node that no fold absorbed is not there any more; nothing if it is."""
    claims = [change for change in report.changes if name in change.nodes and change.kind is not Kind.FROZEN]
    if claims:
        return [f"Removed ({change.kind}), which is no fold: {clean(change.claim)}." for change in claims]
    if any(_tensors(scope, node) for scope in planned):
        return []
    return ["Removed: no node reads what it computes any more."]


def meant(scopes: list[Scope], wanted: str) -> tuple[list[str], list[str]]:
    """(a head line if there is something to say, the nodes) that a word of the user means.

    Raises:
        InputError: there is no such node; with the nearest names.
    """
    ops = _ops(scopes)
    if wanted in ops:
        return [], [wanted]
    inputs: dict[str, list[str]] = {}  # node -> the tensors that it reads
    for scope in scopes:
        for node in scope.nodes:
            inputs.setdefault(node_name(node), []).extend(tensor.name for tensor in node.inputs)
    matching = [name for name in inputs if fnmatchcase(name, wanted)]
    if matching:
        return ([f"{plural(len(matching), 'node')}:"] if len(matching) > 1 else []), matching
    reading = [name for name, tensors in inputs.items() if wanted in tensors]
    if reading:
        return [f"'{clean(wanted)}' is read by {plural(len(reading), 'node')}:"], reading
    read = dict.fromkeys(tensor for tensors in inputs.values() for tensor in tensors if tensor)
    names = [*ops, *(name for name in read if name not in ops)]
    raise InputError(f"the model has no node or tensor '{wanted}'{_hint(wanted, names)}")


def _hint(wanted: str, names: list[str]) -> str:
    """The nearest names, or where all of them are listed."""
    near = difflib.get_close_matches(wanted, names, 3)
    if not near:
        return "; --list-nodes prints the names"
    return "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?"


def _ops(scopes: list[Scope]) -> dict[str, str]:
    """Name of a node, or of a tensor that it computes -> its operator."""
    ops: dict[str, str] = {}
    for scope in scopes:
        for node in scope.nodes:
            ops.update((tensor.name, str(node.op)) for tensor in node.outputs if tensor.name)
    for scope in scopes:
        ops.update((node_name(node), str(node.op)) for node in scope.nodes)
    return ops


def _tensors(scope: Scope, wanted: str) -> list[str]:
    """The outputs of the node that has this name or computes this tensor; none if the scope has no such node."""
    for node in scope.nodes:
        names = [tensor.name for tensor in node.outputs if tensor.name]
        if wanted == node_name(node) or wanted in names:
            return names
    return []


def _is(ref: NodeRef, node: str) -> bool:
    return ref.name == node or node in ref.outputs


def _fold(fold: Fold, node: str, report: Report) -> Iterator[str]:
    where = f" in {clean(fold.scope)}" if fold.scope else ""
    kinds = ", ".join(map(str, fold.kinds)) or str(fold.kind)
    is_gone = any(part.scope == fold.scope and fold.output in part.tensors for part in report.vanished)
    instead = (
        f"in whose place '{', '.join(map(clean, fold.sources))}' is read" if is_gone else "whose name stays"
    )
    yield f"Fused{where} ({kinds}): it computes part of '{clean(fold.output)}', {instead}."
    yield "  The region:"
    for ref in fold.absorbed:
        yield f"    {_titled(ref)}{'  <- this node' if _is(ref, node) else ''}"
    yield "  becomes:"
    for ref in fold.created:
        yield f"    {_titled(ref)}"
    if not fold.created:
        yield "    nothing"
    yield f"  reading: {', '.join(map(clean, fold.sources)) or 'nothing'}"
    macs = f"{quantity(fold.macs_before)} -> {quantity(fold.macs_after)}"
    yield f"  MACs: {macs} {percent(fold.macs_before, fold.macs_after)}".rstrip()


def _titled(ref: NodeRef) -> str:
    return f"{clean(ref.op)} '{clean(ref.name)}' {clean(ref.label)}".rstrip()


def _refusals(report: Report, folds: list[Fold], node: str) -> Iterator[str]:
    """Those about the node, by either of its names, and those about the nodes it was folded into.

    These are called by a node of the file that went into the same fold.
    """
    names = {node, *(ref.name for fold in folds for ref in fold.absorbed)}
    further = " further" if folds else ""
    for refusal in report.refusals:
        if names.isdisjoint(refusal.nodes):
            continue
        yield f"Not fused{further} ({refusal.reason}): {clean(refusal.message)}"
        if refusal.reason.prose not in refusal.message:
            yield f"  In general: {refusal.reason.prose}."
        yield from _origins(report, refusal.nodes)


def _origins(report: Report, nodes: Iterable[str]) -> Iterator[str]:
    """What else went into folds that are called by one of their nodes."""
    fold_of = {ref.name: fold for fold in report.folds for ref in fold.absorbed}
    for name in nodes:
        if name in fold_of and len(fold_of[name].absorbed) > 1:
            parts = ", ".join(repr(ref.name) for ref in fold_of[name].absorbed if ref.name != name)
            yield "  " + clean(f"Into '{name}' also went {parts}.")


def _forms(cover: Cover, plan: ScopePlan, tensors: Iterable[str]) -> Iterator[str]:
    for tensor in tensors:
        if tensor in cover.entries:
            yield f"Forms considered for '{clean(tensor)}':"
            yield from considered(cover, tensor, plan)


def considered(cover: Cover, tensor: str, plan: ScopePlan | None = None) -> Iterator[str]:
    """One line per form of a lifted tensor: operators, multiply-adds, estimated cost, and the outcome.

    Of a `plan`, the ways that it refused are told so.
    """
    refused = {} if plan is None else plan.refused
    entry = cover.entries[tensor]
    verdict = "chosen" if entry.choice is None else "more expensive"
    yield f"  as it is: {_price(cover, entry.original)} - {verdict}"
    for candidate in dict.fromkeys([entry.choice, *entry.candidates]):
        # The form of the node by itself is the one above, unless it was chosen.
        if candidate is not None and (candidate.nodes > 1 or candidate is entry.choice):
            yield from _candidate(cover, tensor, candidate, refused.get((tensor, way_of(candidate)), ""))
    failures = [(failure.detail, through) for failure, through in cover.inexact.get(tensor, ())]
    for detail, through in dict.fromkeys(failures):
        where = f"looking through '{clean(through)}'" if through else "as one operator"
        yield f"  {where}: not exact, {clean(detail)}"


def _candidate(cover: Cover, tensor: str, candidate: Candidate, why_refused: str) -> Iterator[str]:
    lowered = cover.lower(cover.lifts[tensor], candidate)
    if lowered is None:
        return
    price = candidate.setup.plus(lowered.price)
    sources = ", ".join(repr(clean(name)) for name in dict.fromkeys(tensors_read(candidate.form)))
    replaced = plural(candidate.nodes, "node")
    outcome = f"refused: {why_refused}" if why_refused else _outcome(cover, tensor, candidate, price)
    yield f"  {_operators(lowered)} of {sources}, in place of {replaced}: {_price(cover, price)} - {outcome}"


def _looking_through(cover: Cover, tensor: str) -> list[str]:
    """The lifted tensors that are computed from `tensor` and may absorb it."""
    if not cover.regions.is_private(tensor):  # with several consumers, none absorbs it
        return []
    (consumer,) = cover.context.scope.consumers[tensor]
    return [t.name for t in consumer.outputs if t.name in cover.entries]


def _outcome(cover: Cover, tensor: str, candidate: Candidate, price: Price) -> str:
    entry: Entry = cover.entries[tensor]
    if candidate is entry.choice:
        return "chosen"
    if not cover.is_allowed(candidate.roles):
        return "ruled out by --skip or --only"
    if tensor in cover.banned:
        return "ruled out: it did not pass verification"
    if price.macs > entry.original.macs:
        return "refused: more multiply-adds"
    if any(new > old for new, old in zip(price[2:], entry.original[2:], strict=True)):
        return "refused: more operators"
    return "not cheaper"


def _price(cover: Cover, price: Price) -> str:
    cost = duration(price.cost / 1e12) if cover.model.name == "ort-cpu" else quantity(price.cost)
    return f"{quantity(price.macs)} MACs, cost {cost}"


def _operators(lowered: Lowered) -> str:
    return " + ".join(_step(step) for step in lowered.steps) or "nothing"


def _step(step: Step) -> str:
    if step.view is not None:
        return clean(str(step.view.node.op))
    if step.kernel is None or step.op != "Conv":
        return _OPS.get(step.op, step.op)
    geometry: Geometry = step.kernel.geometry
    op = "ConvTranspose" if geometry.transposed else "Conv" if geometry.channel_axis != -1 else "MatMul"
    size = "x".join(map(str, geometry.kernel))  # empty for a MatMul, which has no spatial axis
    groups = f"groups {geometry.groups}" if geometry.groups > 1 else ""
    return " ".join(filter(None, [op, size, f"{geometry.c_in}->{geometry.c_out}", groups]))
