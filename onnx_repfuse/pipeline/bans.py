"""Folds that are given up: the model is planned again without them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from onnx_repfuse.errors import Inexact, OutputError
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.modelfile.edit import ScopeKey
from onnx_repfuse.pipeline.plan_model import FoldKey, ModelPlan
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal

__all__ = ["Bans", "FailedFold", "folds_that_overflow"]


class FailedFold(NamedTuple):
    """A fold that cannot stay, and why."""

    scope: ScopeKey
    fold: PlannedFold
    reason: Reason
    message: str


@dataclass
class Bans:
    """What was given up so far.

    Attributes:
        banned: the folds, for the next plan.
        refusals: the same for the user.
    """

    banned: set[FoldKey] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)

    def add(self, failed: list[FailedFold]) -> None:
        """Give these up, too."""
        for scope, fold, reason, message in failed:
            # By name, as the next plan makes all its objects anew.
            self.banned.add((scope, fold.name))
            names = tuple(node_name(node) for node in fold.absorbed)
            self.refusals.append(Refusal(reason, f"the fold of '{fold.name}' was undone: {message}", names))


def folds_that_overflow(plan: ModelPlan, error: Inexact) -> list[FailedFold]:
    """The folds whose weights cannot be written in the model's float type, as writing the result raised `error`.

    Raises:
        OutputError: there is none, so `error` came from elsewhere.
    """
    failed = []
    for planned, fold in plan.folds:
        overflow = _overflow(planned, fold)
        if overflow is not None:
            failed.append(FailedFold(planned.scope.key, fold, overflow.reason, overflow.detail))
    if not failed:
        raise OutputError(f"a folded weight cannot be written: {error.detail}")
    return failed


def _overflow(planned: ScopePlan, fold: PlannedFold) -> Inexact | None:
    """Why one of a fold's new weights cannot be computed; None if all can."""
    for name in {tensor.name for node in fold.created for tensor in node.inputs}:
        if name in planned.scope.created:
            try:
                # Computes it again, to see which it was: while saving, only the first to fail is known.
                planned.scope.created[name].read()
            except Inexact as error:
                return error
    return None
