"""`--explain`: what a dry run says about one node."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from onnx_repfuse.errors import InputError
from onnx_repfuse.options import Options
from onnx_repfuse.report.record import Fold, NodeRef, Report
from onnx_repfuse.report.words import clean, percent, quantity

__all__ = ["explain", "narrate"]


def explain(model: str, node: str, options: Options | None = None) -> str:
    """Why a node of a file would or would not be fused, in words.

    Raises:
        InputError: the model cannot be read, or has no such node.
    """
    from onnx_repfuse import api
    from onnx_repfuse.verify.sessions import load

    report = api.plan(model, options)
    graph = load(model, weights=False).graph
    ops = dict(_names(graph))
    return narrate(report, node, ops)


def _names(graph: object) -> Iterator[tuple[str, str]]:
    """(name, op) of every node, by its own name and by its outputs', subgraphs included."""
    for node in graph.node:  # type: ignore[attr-defined]
        for name in (*node.output, node.name):
            if name:
                yield name, node.op_type
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _names(inner)


def narrate(report: Report, node: str, ops: dict[str, str]) -> str:
    """The same from a report; `ops` says which nodes there are."""
    folds = [fold for fold in report.folds if any(_is(ref, node) for ref in fold.absorbed)]
    names = {node} | {ref.name for fold in folds for ref in fold.absorbed if _is(ref, node)}
    refusals = [refusal for refusal in report.refusals if names & set(refusal.nodes)]
    if node not in ops and not folds and not refusals:
        near = difflib.get_close_matches(node, ops, 3)
        hint = "; did you mean " + " or ".join(f"'{name}'" for name in near) + "?" if near else ""
        raise InputError(f"the model has no node or tensor '{node}'{hint}")
    lines = [f"{clean(ops.get(node, 'node'))} '{clean(node)}'"]
    for fold in folds:
        lines += _fold(fold, node)
    for refusal in refusals:
        lines += [
            f"Not fused ({refusal.reason}): {clean(refusal.message)}",
            f"  In general: {refusal.reason.prose}.",
        ]
    if not folds and not refusals:
        lines.append(
            "Stays as it is: it is not a linear map of its input in inference (or has nothing linear beside it to "
            "join), so there was nothing to decide."
        )
    return "\n".join(lines)


def _is(ref: NodeRef, node: str) -> bool:
    return ref.name == node or node in ref.outputs


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
