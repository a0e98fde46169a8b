"""`--list-nodes`: one line for every node of a file, with its name and what a plan makes of it."""

from __future__ import annotations

from onnx_repfuse.api import document_of
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.records.report import Kind, Report
from onnx_repfuse.report.formatting import clean

__all__ = ["list_nodes"]


def list_nodes(model: str, options: Options | None = None) -> str:
    """The nodes in the order of the file: operator, name, what becomes of it.

    Raises:
        InputError: the model cannot be read.
    """
    chosen = options or Options()
    with document_of(model) as document:
        scopes = read_scopes(document, freeze_initializers=chosen.freeze_initializers)
        rows = [(str(node.op), node_name(node), scope.label) for scope in scopes for node in scope.nodes]
        planned = make_plan(document, chosen)
        report = make_report(planned, name=model)
    left = {(part.scope.label, node_name(node)) for part in planned.scopes for node in part.scope.nodes}
    fates = _fates(report)
    lines = []
    for op, name, scope in rows:
        fate = fates.get((scope, name)) or (
            "stays" if (scope, name) in left else "removed: nothing reads it any more"
        )
        where = f"  (in {clean(scope)})" if scope else ""
        lines.append((clean(op), clean(name), fate + where))
    width = max((len(op) for op, _, _ in lines), default=0)
    longest = min(60, max((len(name) for _, name, _ in lines), default=0))
    return "\n".join(f"{op:<{width}}  {name:<{longest}}  {fate}" for op, name, fate in lines)


def _fates(report: Report) -> dict[tuple[str, str], str]:
    """(scope, node) -> what becomes of it, where that is not simply to stay."""
    fates: dict[tuple[str, str], str] = {}
    for refusal in report.refusals:
        for name in refusal.nodes:
            fates.setdefault((refusal.scope, name), f"stays: {refusal.reason}")
    for change in report.changes:
        if change.kind not in (Kind.FROZEN, Kind.FLUSH):
            fates.update(((change.scope, name), f"removed: {change.kind}") for name in change.nodes)
    for fold in report.folds:
        fates.update(
            ((fold.scope, ref.name), f"folds: {fold.kind}, into '{clean(fold.output)}'")
            for ref in fold.absorbed
        )
    return fates
