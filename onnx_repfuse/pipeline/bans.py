"""Folds that are given up: the model is planned again without them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from onnx_repfuse.errors import Inexact, OutputError
from onnx_repfuse.graph.scope import node_name
from onnx_repfuse.modelfile.edit import ScopeKey
from onnx_repfuse.pipeline.plan_model import BRANCHES, FLUSH, FoldKey, ModelPlan
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.planner.forms.value_range import weighed
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Refusal

__all__ = ["Bans", "FailedFold", "folds_out_of_range"]

MAX_OUT_OF_RANGE = 3  # folds that end in one place, before all that ends there is left as it is
# Weights that cannot be written: known without running anything.
OUT_OF_RANGE = (Reason.OVERFLOW, Reason.UNDERFLOW, Reason.NON_FINITE)


FLUSH_UNDONE = "small weights were left as they are"


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
        attempts: how many calls of `add` gave up a fold that failed its proof.
    """

    banned: set[FoldKey] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)
    attempts: int = 0
    _is_flush_tried_again: bool = False
    _out_of_range: Counter[FoldKey] = field(default_factory=Counter)  # inner outputs of such folds

    def add(self, failed: list[FailedFold]) -> None:
        """Give these up, too."""
        self.attempts += any(one.reason not in OUT_OF_RANGE for one in failed)
        for scope, fold, reason, message in failed:
            if reason in OUT_OF_RANGE and self._weigh(scope, fold):
                continue
            # By name, as the next plan makes all its objects anew.
            self.banned.add((scope, fold.name))
            if reason in OUT_OF_RANGE:
                self._ban_shorter(scope, fold)
            names = tuple(node_name(node) for node in fold.absorbed)
            self.refusals.append(Refusal(reason, f"the fold of '{fold.name}' was undone: {message}", names))

    def add_flush(self, plan: ModelPlan, why: str) -> bool:
        """Give up the flushing of weights, if the plan has any; whether it had."""
        if plan.flushing is None or not plan.flushing.flushed:
            return False
        self.attempts += 1
        self.banned.add(FLUSH)
        names = tuple(dict.fromkeys(name for change in plan.flushing.changes() for name in change.nodes))
        message = f"{FLUSH_UNDONE}: with zeros in their place, {why}"
        self.refusals.append(Refusal(Reason.VERIFICATION, message, names))
        return True

    def add_branches(self, plan: ModelPlan, why: str) -> bool:
        """Let every If stay, if the plan has replaced any; whether it had."""
        if not plan.inlined:
            return False
        self.attempts += 1
        self.banned.add(BRANCHES)
        names = tuple(one.name for one in plan.inlined)
        message = f"every If was left as it is: with the branches that they always take in their place, {why}"
        self.refusals.append(Refusal(Reason.VERIFICATION, message, names))
        return True

    def _weigh(self, scope: ScopeKey, fold: PlannedFold) -> bool:
        """Let the next plan read the kernels of a fold, to see how far they reach; False if the last one did."""
        inner = {(scope, weighed(tensor.name)) for node in fold.absorbed for tensor in node.outputs}
        if inner <= self.banned:
            return False
        self.banned |= inner
        return True

    def try_flush_again(self) -> None:
        """Once, when folds were found to be at fault: then the flushing was given up for nothing."""
        if FLUSH in self.banned and not self._is_flush_tried_again:
            self._is_flush_tried_again = True
            self.banned.discard(FLUSH)
            self.refusals = [
                refusal for refusal in self.refusals if not refusal.message.startswith(FLUSH_UNDONE)
            ]

    def _ban_shorter(self, scope: ScopeKey, fold: PlannedFold) -> None:
        """Ban what the next plan would find inside a fold whose weights cannot be written, if that goes on and on.

        Without its last node a fold may fit. In a long row, one after the other may not.
        """
        inner = {(scope, tensor.name) for node in fold.absorbed for tensor in node.outputs}
        self._out_of_range.update(inner)
        if self._out_of_range[scope, fold.name] >= MAX_OUT_OF_RANGE:
            self.banned |= inner


def folds_out_of_range(plan: ModelPlan, error: Inexact) -> list[FailedFold]:
    """The folds whose weights cannot be written in the model's float type, as writing the result raised `error`.

    Raises:
        OutputError: there is none, so `error` came from elsewhere.
    """
    failed = []
    for planned, fold in plan.folds:
        why = _why_out_of_range(planned, fold)
        if why is not None:
            failed.append(FailedFold(planned.scope.key, fold, why.reason, why.detail))
    if not failed:
        raise OutputError(f"a folded weight cannot be written: {error.detail}")
    return failed


def _why_out_of_range(planned: ScopePlan, fold: PlannedFold) -> Inexact | None:
    """Why one of a fold's new weights cannot be computed; None if all can."""
    for name in {*fold.outputs, *(tensor.name for node in fold.created for tensor in node.inputs)}:
        if name in planned.scope.created:
            try:
                # Computes it again, to see which it was: while saving, only the first to fail is known.
                planned.scope.created[name].read()
            except Inexact as error:
                return error
    return None
