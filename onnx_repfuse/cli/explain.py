"""`--explain`: what a dry run says about one node, and what the planner weighed there.

What the planner weighed at one tensor: the forms it could be computed by, their prices, and what became of each.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.api import document_of
from onnx_repfuse.errors import InputError
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.planner.candidates import Candidate, Entry
from onnx_repfuse.planner.cost import Price
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.planner.lowering import Lowered, Step
from onnx_repfuse.planner.plan_scope import cover_scope
from onnx_repfuse.records.report import Fold, NodeRef, Report
from onnx_repfuse.report.formatting import clean, percent, plural, quantity

__all__ = ["considered", "explain", "looking_through"]

_OPS = {"Shift": "Add of a constant", "Norm": "BatchNormalization", "Mul": "Mul by a constant"}


def explain(model: str, node: str, options: Options | None = None) -> str:
    """Why a node of a file would or would not be fused, in words.

    Args:
        model: the file.
        node: a node's name, or a tensor that it computes.
        options: as for `plan`.

    Raises:
        InputError: the model cannot be read, or has no such node.
    """
    chosen = options or Options()
    with document_of(model) as document:
        before = read_scopes(document, freeze_initializers=chosen.freeze_initializers)
        op = _op(before, node)
        planned = make_plan(document, chosen)
        report = make_report(planned, name=str(model))
    folds = [fold for fold in report.folds if any(_is(ref, node) for ref in fold.absorbed)]
    lines = [f"{clean(op)} '{clean(node)}'"]
    covers: list[Cover] = []
    for fold in folds:
        lines += _fold(fold, node)
    told = _refusals(report, folds, node)
    lines += told
    for fold in folds:
        covers = [cover_scope(scope, chosen) for scope in before if scope.label == fold.scope]
        lines += _forms(covers, [fold.output])
    if not folds:
        covers = [cover_scope(one.scope, chosen) for one in planned.scopes]
        covers = [cover for cover in covers if _tensors(cover, node)]
        names = [name for cover in covers for name in _tensors(cover, node)]
        lifted = any(name in cover.lifts for cover in covers for name in names)
        if not told:
            lines.append(_nothing_to_decide(op, lifted))
        consumers = [other for cover in covers for name in names for other in looking_through(cover, name)]
        lines += _forms(covers, dict.fromkeys([*names, *consumers]))
    return "\n".join(lines)


def _op(scopes: list[Scope], wanted: str) -> str:
    """The operator of the node; raises InputError with the nearest names if there is none."""
    ops: dict[str, str] = {}
    for scope in scopes:
        for node in scope.nodes:
            ops.update((tensor.name, str(node.op)) for tensor in node.outputs if tensor.name)
    for scope in scopes:
        ops.update((node_name(node), str(node.op)) for node in scope.nodes)
    if wanted not in ops:
        near = difflib.get_close_matches(wanted, ops, 3)
        hint = "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""
        raise InputError(f"the model has no node or tensor '{wanted}'{hint}")
    return ops[wanted]


def _tensors(cover: Cover, wanted: str) -> list[str]:
    """The tensors of a node of the scope that has this name or makes this tensor."""
    for node in cover.context.scope.nodes:
        names = [tensor.name for tensor in node.outputs if tensor.name]
        if wanted == node_name(node) or wanted in names:
            return names
    return []


def _is(ref: NodeRef, node: str) -> bool:
    return ref.name == node or node in ref.outputs


def _nothing_to_decide(op: str, lifted: bool) -> str:
    if lifted:
        return "Stays as it is: it is linear, but none of the forms considered is cheaper."
    return f"Stays as it is: this {clean(op)} is not a linear map of one tensor in inference, so regions end here."


def _fold(fold: Fold, node: str) -> list[str]:
    where = f" in {clean(fold.scope)}" if fold.scope else ""
    kinds = ", ".join(str(kind) for kind in fold.kinds) or str(fold.kind)
    change = percent(fold.macs_before, fold.macs_after)
    lines = [
        f"Fused{where} ({kinds}): it computes part of '{clean(fold.output)}', whose name stays.",
        "  The region:",
    ]
    for ref in fold.absorbed:
        mark = "  <- this node" if _is(ref, node) else ""
        lines.append(f"    {clean(ref.op)} '{clean(ref.name)}' {clean(ref.label)}".rstrip() + mark)
    lines.append("  becomes:")
    lines += [
        f"    {clean(ref.op)} '{clean(ref.name)}' {clean(ref.label)}".rstrip() for ref in fold.created
    ] or ["    nothing"]
    lines.append(f"  reading: {', '.join(clean(name) for name in fold.sources) or 'nothing'}")
    lines.append(f"  MACs: {quantity(fold.macs_before)} -> {quantity(fold.macs_after)} {change}".rstrip())
    return lines


def _refusals(report: Report, folds: list[Fold], node: str) -> list[str]:
    """Those about the node, by either of its names, and those about what it became."""
    names = {node} | {ref.name for fold in folds for ref in fold.absorbed if _is(ref, node)}
    after = {ref.name for fold in folds for ref in fold.created}
    lines = []
    for refusal in report.refusals:
        if names & set(refusal.nodes):
            lines.append(f"Not fused ({refusal.reason}): {clean(refusal.message)}")
        elif after & set(refusal.nodes):
            lines.append(f"Not fused further ({refusal.reason}): {clean(refusal.message)}")
        else:
            continue
        if refusal.reason.prose not in refusal.message:
            lines.append(f"  In general: {refusal.reason.prose}.")
        lines += [f"  {clean(made)}" for made in _made(report, refusal.nodes)]
    return lines


def _made(report: Report, nodes: Iterable[str]) -> list[str]:
    """Which original nodes stand behind the names of new ones."""
    origin = {ref.name: fold for fold in report.folds for ref in fold.created}
    old = {ref.name for fold in report.folds for ref in fold.absorbed}
    return [
        f"'{name}' would be made of {', '.join(repr(ref.name) for ref in origin[name].absorbed)}."
        for name in nodes
        if name in origin and name not in old
    ]


def _forms(covers: list[Cover], tensors: Iterable[str]) -> list[str]:
    lines = []
    for tensor in tensors:
        for cover in covers:
            if tensor in cover.entries:
                lines += [f"Forms considered for '{clean(tensor)}':", *considered(cover, tensor)]
    return lines


def considered(cover: Cover, tensor: str) -> list[str]:
    """One line per form of a lifted tensor: operators, multiply-adds, estimated cost, and the outcome."""
    entry, lifted = cover.entries[tensor], cover.lifts[tensor]
    kept = "chosen" if entry.choice is None else "dearer"
    lines = [f"  as it is: {_price(cover, entry.original)} - {kept}"]
    for candidate in dict.fromkeys([entry.choice, *entry.candidates]):
        if candidate is None or (candidate.nodes < 2 and candidate is not entry.choice):
            continue  # the node itself, written anew
        written = cover.lower(lifted, candidate)
        if written is None:
            continue
        price = candidate.setup.plus(written.price)
        lines.append(
            f"  {_written(written)} of {', '.join(repr(clean(str(s))) for s in candidate.form.sources)}, in place of "
            f"{plural(candidate.nodes, 'node')}: {_price(cover, price)} - {_outcome(cover, tensor, candidate, price)}"
        )
    for reason, through in dict.fromkeys(
        (found.detail, through) for found, through in cover.inexact.get(tensor, ())
    ):
        where = f"looking through '{clean(through)}'" if through else "as one operator"
        lines.append(f"  {where}: not exact, {clean(reason)}")
    return lines


def looking_through(cover: Cover, tensor: str) -> list[str]:
    """The lifted tensors that are computed from `tensor` and may absorb it."""
    if not cover.regions.is_private(tensor):
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
    if any(now > then for now, then in zip(price[2:], entry.original[2:], strict=True)):
        return "refused: more operators"
    return "not cheaper"


def _price(cover: Cover, price: Price) -> str:
    cost = f"{price.cost / 1e6:.3g} us" if cover.model.name == "ort-cpu" else quantity(price.cost)
    return f"{quantity(price.macs)} MACs, cost {cost}"


def _written(written: Lowered) -> str:
    return " + ".join(_step(step) for step in written.steps) or "nothing"


def _step(step: Step) -> str:
    if step.view is not None:
        return clean(str(step.view.node.op))
    if step.kernel is None or step.op != "Conv":
        return _OPS.get(step.op, step.op)
    geometry: Geometry = step.kernel.geometry
    op = "ConvTranspose" if geometry.transposed else "Conv" if geometry.channel_axis != -1 else "MatMul"
    size = "x".join(map(str, geometry.kernel))
    groups = f" groups {geometry.groups}" if geometry.groups > 1 else ""
    return f"{op} {size} {geometry.c_in}->{geometry.c_out}{groups}".replace("  ", " ")
