"""What the inputs of a run may never reach: subgraphs and function bodies, and the model in its other branches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.graph.constant_ifs import always_taken
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.pipeline.bans import FailedFold
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.outputs.baseline import Baseline
    from onnx_repfuse.verifier.scopes.forced import ForcedBranches

__all__ = ["check_scopes", "force_branches"]


def check_scopes(plan: ModelPlan, baseline: Baseline, result: Path) -> tuple[list[FailedFold], list[str]]:
    """Run each subgraph and function body that has folds as a model of its own, before and after.

    Returns:
        The folds of the scopes that differ, and notes on those that could not be compared.
    """
    from onnx_repfuse.verifier.scopes.check import check_scopes as check

    labels = {planned.scope.key: planned.scope.label for planned in plan.scopes}
    keys = list(dict.fromkeys(planned.scope.key for planned, _ in plan.folds if planned.scope.key))
    failed: list[FailedFold] = []
    notes: list[str] = []
    for verdict in check(baseline, result, keys, plan.document.model):
        if verdict.status is Status.FAILED:
            message = f"{labels[verdict.key]}, run alone: {verdict.message}"
            failed += [
                FailedFold(verdict.key, fold, Reason.VERIFICATION, message)
                for planned, fold in plan.folds
                if planned.scope.key == verdict.key
            ]
        elif verdict.status is Status.NOT_OBSERVED:
            notes.append(f"{labels[verdict.key]} was not run alone: {verdict.message}")
    return failed, notes


def force_branches(baseline: Baseline, document: Document) -> ForcedBranches:
    """What the user gave, in all its branches, measured; `document` is that, or was made of it."""
    from onnx_repfuse.verifier.scopes.forced import ForcedBranches

    original = document.original
    return ForcedBranches(baseline, original.model, always_taken(original))
