"""A plan as a Report: folds and nodes in words a person can follow."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.edit_points import used_names
from onnx_repfuse.graph.model_size import count
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.records.report import Fold, NodeRef, Refusal, Report
from onnx_repfuse.records.verdict import Verification

__all__ = ["describe"]


def describe(
    plan: ModelPlan,
    *,
    name: str = "",
    output: str = "",
    nbytes: int = 0,
    undone: Sequence[Refusal] = (),
    verification: Verification | None = None,
    seconds: dict[str, float] | None = None,
) -> Report:
    """The report of a run, or of a dry run."""
    scopes = [planned.scope for planned in plan.scopes]
    after = count(scopes, used_names(scopes), nbytes)
    folds = tuple(_fold(planned, fold) for planned, fold in plan.folds)
    refused = (*undone, *(r for planned in plan.scopes for r in planned.refusals))
    notes = tuple(note for planned in plan.scopes for note in planned.notes)
    return Report(name, output, plan.before, after, folds, refused, verification, seconds or {}, None, notes)


def _fold(planned: ScopePlan, fold: PlannedFold) -> Fold:
    scope = planned.scope
    inner = {t.name for node in fold.created for t in node.outputs}
    read = dict.fromkeys(
        t.name
        for node in fold.created
        for t in node.inputs
        if t.name not in inner and t.name not in scope.constants
    )
    roles = sorted(fold.roles, key=lambda kind: kind.value)
    return Fold(
        fold.name,
        fold.kind,
        tuple(roles) or (fold.kind,),
        tuple(_ref(scope, node) for node in fold.absorbed),
        tuple(_ref(scope, node) for node in fold.created),
        tuple(read),
        scope.label,
        fold.macs_before,
        fold.macs_after,
    )


def _ref(scope: Scope, node: gs.Node) -> NodeRef:
    inputs = [t.name for t in node.inputs if t.name and t.name not in scope.constants]
    outputs = [t.name for t in node.outputs if t.name]
    return NodeRef(node_name(node), node.op, tuple(inputs), tuple(outputs), _label(scope, node))


def _label(scope: Scope, node: gs.Node) -> str:
    facts = operator(node)
    if facts.weight is None and not facts.has_window:
        return ""
    const = scope.constants.get(node.inputs[1].name) if len(node.inputs) > 1 else None
    parts = []
    kernel = node.attrs.get("kernel_shape") or (const.shape[2:] if const is not None else ())
    if kernel:
        parts.append("x".join(map(str, kernel)))
    if facts.weight is not None and const is not None and len(const.shape) >= 2:
        read, written = facts.weight(node, const.shape)
        parts.append(f"{read}->{written}")
        groups = node.attrs.get("group", 1)
        if groups != 1:
            parts.append(f"groups {groups}")
    for key, label in (("strides", "stride"), ("dilations", "dilation")):
        value = node.attrs.get(key)
        if value and any(v != 1 for v in value):
            parts.append(f"{label} {value[0] if len(set(value)) == 1 else value}")
    return ", ".join(parts)
