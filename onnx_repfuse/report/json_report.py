"""The report as JSON: schema 1, described key by key in docs/json-schema.md.

Numbers that JSON cannot hold are the strings "nan", "inf" and "-inf". The text is pure ASCII.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from onnx_repfuse.records.report import Counts, Fold, NodeRef, Refusal
from onnx_repfuse.report.advice import advice

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Bench, Outcome
    from onnx_repfuse.records.verdict import Verification

__all__ = ["SCHEMA", "document", "dumps"]

SCHEMA = 1


def dumps(outcomes: list[Outcome], version: str, *, many: bool, exit_code: int) -> str:
    """The whole document as text, ending in a newline.

    Args:
        outcomes: one per model.
        version: of this package.
        many: a list under "models" (--out-dir) instead of one flat object.
        exit_code: of the process.
    """
    head: dict[str, Any] = {"schema": SCHEMA, "tool": "onnx-repfuse", "version": version}
    if many:
        value = {**head, "exit_code": exit_code, "models": [document(outcome) for outcome in outcomes]}
    else:
        value = {**head, **document(outcomes[0])}
    return json.dumps(_plain(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def document(outcome: Outcome) -> dict[str, Any]:
    """One model's part of the document."""
    report = outcome.report
    return {
        "command": outcome.command,
        "model": outcome.model,
        "output": outcome.output or None,
        "exit_code": outcome.exit_code,
        "error": outcome.error or None,
        "counts": {
            "before": _counts(report.before),
            "after": _counts(report.after, outcome.command != "plan"),
        }
        if report
        else None,
        "folds": [_fold(fold) for fold in report.folds] if report else [],
        "refusals": [_refusal(refusal) for refusal in report.refusals] if report else [],
        "advice": list(advice(report)) if report else [],
        "verification": _verification(outcome.verification, outcome.status),
        "bench": _bench(outcome.bench),
        "precision": [
            {
                "output": one.output,
                "original": one.original,
                "fused": one.fused,
                "worst_original": one.worst_original,
                "worst_fused": one.worst_fused,
                "factor": one.factor,
            }
            for one in outcome.precision
        ],
        "gates": [{"op": gate.op, "remaining": gate.remaining} for gate in outcome.gates],
        "seconds": dict(report.seconds) if report else {},
        "notes": list(report.notes) if report else [],
    }


def _counts(counts: Counts, written: bool = True) -> dict[str, Any]:
    return {
        "ops": dict(sorted(counts.ops.items())),
        "nodes": counts.nodes,
        "parameters": counts.parameters,
        "bytes": counts.bytes if written else None,
        "macs": counts.macs,
    }


def _node(node: NodeRef) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "label": node.label,
    }


def _fold(fold: Fold) -> dict[str, Any]:
    return {
        "output": fold.output,
        "kind": str(fold.kind),
        "kinds": [str(kind) for kind in fold.kinds],
        "scope": fold.scope,
        "absorbed": [_node(node) for node in fold.absorbed],
        "created": [_node(node) for node in fold.created],
        "sources": list(fold.sources),
        "macs_before": fold.macs_before,
        "macs_after": fold.macs_after,
    }


def _refusal(refusal: Refusal) -> dict[str, Any]:
    return {
        "reason": str(refusal.reason),
        "message": refusal.message,
        "nodes": list(refusal.nodes),
        "scope": refusal.scope,
    }


def _verification(verification: Verification | None, status: str) -> dict[str, Any] | None:
    if verification is None:
        return None
    return {
        "status": status,
        "judge": verification.judge,
        "seeds": list(verification.seeds),
        "shapes": [{name: list(shape) for name, shape in case.items()} for case in verification.shapes],
        "runs": {"original": verification.runs[0], "result": verification.runs[1]},
        "notes": list(verification.notes),
        "outputs": [
            {
                "name": verdict.name,
                "status": str(verdict.status),
                "dtype": verdict.dtype,
                "max_abs": verdict.max_abs,
                "max_rel": verdict.max_rel,
                "over_noise": verdict.over_noise,
                "noise": {"inputs": verdict.noise[0], "weights": verdict.noise[1]},
                "tolerance": verdict.tolerance,
                "minimum_tolerance": verdict.minimum_tolerance,
                "cosine": verdict.cosine,
                "top1": verdict.top1,
                "optimized": verdict.optimized,
                "message": verdict.message,
            }
            for verdict in verification.outputs
        ],
        "folds": [
            {
                "output": verdict.output,
                "status": str(verdict.status),
                "stage": verdict.stage,
                "error": verdict.error,
                "tolerance": verdict.tolerance,
                "judge": verdict.judge,
                "message": verdict.message,
            }
            for verdict in verification.folds
        ],
    }


def _bench(bench: Bench | None) -> dict[str, Any] | None:
    if bench is None:
        return None
    return {
        "ratio": _spread(bench.ratio),
        "original_ms": _spread(bench.original),
        "fused_ms": _spread(bench.fused),
        "rounds": bench.rounds,
        "threads": bench.threads,
        "shapes": {name: list(shape) for name, shape in bench.shapes.items()},
    }


def _spread(values: tuple[float, float, float]) -> dict[str, float]:
    return {"median": values[0], "low": values[1], "high": values[2]}


def _plain(value: Any) -> Any:
    """The value with numpy's scalars as Python's and non-finite floats as strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
