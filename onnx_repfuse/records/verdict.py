"""What was compared, and how well it agreed. These records import no runtime.

A verdict is one of three. *Passed* and *failed* need an output that would show a fault. One that cannot (it is
constant, saturated, or smaller than its rounding noise) is *not observed*, which never counts as passed. Of several
verdicts the worst counts: any failed, then any not observed; only if all passed, the whole has passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["FoldVerdict", "OutputVerdict", "Precision", "StageVerdict", "Status", "Verification", "worst_of"]


class Status(str, Enum):
    """The outcome of one comparison. TRIVIAL is for folds only: nothing is left of one that could be compared."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_OBSERVED = "not observed"
    TRIVIAL = "trivial"

    def __str__(self) -> str:
        return self.value


def worst_of(statuses: Iterable[Status]) -> Status:
    """The verdict on several things together; TRIVIAL if nothing among them could be compared.

    >>> str(worst_of([Status.PASSED, Status.NOT_OBSERVED, Status.TRIVIAL])), str(worst_of([]))
    ('not observed', 'trivial')
    """
    present = set(statuses)
    order = (Status.FAILED, Status.NOT_OBSERVED, Status.PASSED)
    return next((status for status in order if status in present), Status.TRIVIAL)


@dataclass(frozen=True)
class OutputVerdict:
    """One graph output, original against result, over all seeds and shapes.

    Attributes:
        name: the output (`name[i]` for the parts of a sequence).
        status: see `Status`.
        dtype: the element type as numpy names it; "" if nothing was produced.
        max_abs: largest |original - result|; for discrete outputs the number of elements that differ;
            `inf` where shapes, NaN or infinities disagree.
        max_rel: `max_abs / max|original|`, the largest of any input.
        over_noise: `max_abs` over the larger of the two noises (or one ulp where both are zero).
        noise: (b, c): the original's change when its inputs, and its weights, move by one ulp.
        tolerance: the absolute difference that was allowed.
        minimum_tolerance: the absolute difference that would have passed.
        cosine: cosine similarity of the two, or None where it means nothing.
        top1: share of equal argmax, or None unless the output looks like class scores.
        optimized: what ORT_ENABLE_ALL alone changes in the original, or None if not measured.
        message: one sentence for people.
        against: what the figures compare, if not this output of the two models, as "judged before the Sigmoid, at
            'logits'" or "compared with the original in float32"; "" as a rule.
    """

    name: str
    status: Status
    dtype: str
    max_abs: float
    max_rel: float
    over_noise: float
    noise: tuple[float, float]
    tolerance: float
    minimum_tolerance: float
    cosine: float | None = None
    top1: float | None = None
    optimized: float | None = None
    message: str = ""
    against: str = ""


@dataclass(frozen=True)
class StageVerdict:
    """One fold at one stage, its nodes before against its nodes after.

    Attributes:
        stage: "isolated" (synthetic inputs) or "in-place" (intermediates of the original model).
        status: see `Status`.
        error: the largest error found, and `tolerance` what was allowed at that element.
        judge: "onnxruntime" or "reference" (where the runtime lacks a kernel).
        message: one sentence for people.
    """

    stage: str
    status: Status
    error: float
    tolerance: float
    judge: str
    message: str = ""


@dataclass(frozen=True)
class FoldVerdict:
    """One fold. It counts once, whatever the number of stages.

    Attributes:
        output: the tensor whose computation was replaced.
        scope: as of `Fold`.
        stages: the verdicts of the stages it went through; none if nothing of it is left in the result.
    """

    output: str
    scope: str = ""
    stages: tuple[StageVerdict, ...] = ()

    @property
    def status(self) -> Status:
        """FAILED if a stage failed; PASSED if one passed, as each alone can prove a fold; TRIVIAL without stages."""
        present = {stage.status for stage in self.stages}
        order = (Status.FAILED, Status.PASSED, Status.NOT_OBSERVED)
        return next((status for status in order if status in present), Status.TRIVIAL)

    @property
    def message(self) -> str:
        """What the stages that have the fold's verdict say."""
        return "; ".join(stage.message for stage in self.stages if stage.status is self.status)


@dataclass(frozen=True)
class Precision:
    """How far a float output of both models is from float64, over all feeds.

    Attributes:
        output: its name.
        original, fused: root mean square of the error against float64, and `worst_*` its maximum.
        factor: `fused / original`: below one, the result is the more precise; 1 where both are exact.
    """

    output: str
    original: float
    fused: float
    worst_original: float
    worst_fused: float

    @property
    def factor(self) -> float:
        """How many times farther from float64 the result is."""
        if self.original > 0:
            return self.fused / self.original
        return 1.0 if self.fused == 0 else float("inf")


@dataclass(frozen=True)
class Verification:
    """The verdicts of a run. True if all passed, or if nothing was changed.

    Attributes:
        outputs, folds, changes: the verdicts; of `changes`, those that are proved as folds are.
        judge: what ran the whole models: "onnxruntime", or "reference" for onnx's reference evaluator.
        provider: the execution provider that whole models ran on.
        threads: of an operator; 0 is one per core.
        seeds: the seeds of the generated inputs; empty for user data.
        shapes: the input shapes that were run: one dict (input name -> shape) each.
        notes: sentences on what was left out and why.
        runs: whole-model runs at the largest shape, (of the original, of the result).
        unchanged: the result is the original, byte for byte: there was nothing to compare.
    """

    outputs: tuple[OutputVerdict, ...] = ()
    folds: tuple[FoldVerdict, ...] = ()
    changes: tuple[FoldVerdict, ...] = ()
    judge: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    seeds: tuple[int, ...] = ()
    shapes: tuple[dict[str, tuple[int, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    runs: tuple[int, int] = (0, 0)
    unchanged: bool = False

    @property
    def status(self) -> Status:
        """The worst of all verdicts; FAILED, too, if no output was compared; PASSED if nothing was changed."""
        if self.unchanged:
            return Status.PASSED
        if not self.outputs:
            return Status.FAILED
        return worst_of(verdict.status for verdict in self.verdicts)

    @property
    def verdicts(self) -> tuple[OutputVerdict | FoldVerdict, ...]:
        """All of them: outputs, folds, changes."""
        return (*self.outputs, *self.folds, *self.changes)

    def __bool__(self) -> bool:
        return self.status is Status.PASSED
