"""Folds that are given up. The model is planned again without them: planning is cheap and deterministic, and
nothing has to be untangled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from onnx_repfuse.errors import Inexact, OutputError
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.modelfile.edit import ScopeKey
from onnx_repfuse.pipeline.plan_model import FoldKey, ModelPlan
from onnx_repfuse.planner.folds import PlannedFold
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal

__all__ = ["Bans", "Failure", "overflowing"]


class Failure(NamedTuple):
    """A fold that cannot stay, and why."""

    key: ScopeKey
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

    def add(self, failures: list[Failure]) -> None:
        """Give these up, too."""
        for key, fold, reason, message in failures:
            self.banned.add((key, fold.name))
            names = tuple(node_name(node) for node in fold.absorbed)
            self.refusals.append(Refusal(reason, f"the fold of '{fold.name}' was undone: {message}", names))


def overflowing(plan: ModelPlan, reason: Inexact) -> list[Failure]:
    """The folds whose weights cannot be written.

    Raises:
        OutputError: there is none, so `reason` came from elsewhere.
    """
    failed: list[Failure] = []
    for planned, fold in plan.folds:
        for name in {t.name for node in fold.created for t in node.inputs}:
            const = planned.scope.created.get(name)
            if const is None:
                continue
            try:
                const.read()
            except Inexact as found:
                failed.append(Failure(planned.scope.key, fold, found.reason, found.detail))
                break
    if not failed:
        raise OutputError(f"a folded weight cannot be written: {reason.detail}")
    return failed
