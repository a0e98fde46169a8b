"""The result of one model's run on the command line, which text, JSON and HTML show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_repfuse.records.report import Report

if TYPE_CHECKING:
    from onnx_repfuse.records.comparison import Comparison
    from onnx_repfuse.records.environment import Environment
    from onnx_repfuse.records.verdict import Precision, Verification

__all__ = ["Bench", "Gate", "Outcome", "worst"]

# A wrong result is worse than a missing one, and that is worse than operators that are left.
_WORST_FIRST = (3, 1, 4, 0)
_TELLING = 1.02  # of a ratio of latencies; less is no difference that anybody would notice


@dataclass(frozen=True)
class Bench:
    """Interleaved timing of two models; three numbers are (median, low quartile, high quartile).

    Attributes:
        original, fused: latency of one run in milliseconds.
        ratio: original / fused over the rounds; above 1 is faster.
        rounds: number of interleaved rounds.
        threads: threads within an operator; 0 is one per core.
        shapes: input name -> shape that was timed.
        provider: the execution provider of ONNX Runtime.
        warm_up: runs of each before the first round.
        as_zero: how many times as fast the result would be if the session took subnormal numbers for zeros; None where
            that was not measured.
    """

    original: tuple[float, float, float]
    fused: tuple[float, float, float]
    ratio: tuple[float, float, float]
    rounds: int
    threads: int
    shapes: dict[str, tuple[int, ...]]
    provider: str = "CPUExecutionProvider"
    warm_up: int = 0
    as_zero: tuple[float, float, float] | None = None

    @property
    def word(self) -> str:
        """What three quarters of the rounds say, if it is more than a busy machine makes by chance.

        >>> Bench((2, 1, 3), (1, 1, 1), (1.5, 1.01, 2), 9, 1, {}).word
        'faster'
        """
        median, low, high = self.ratio
        if low > 1 and median >= _TELLING:
            return "faster"
        if high < 1 and median <= 1 / _TELLING:
            return "slower"
        return "equal"


@dataclass(frozen=True)
class Gate:
    """One operator of --fail-on-remaining, and how many nodes of it are left."""

    op: str
    remaining: int


@dataclass(frozen=True)
class Outcome:
    """One model's run.

    Attributes:
        command: "fuse", "plan" or "compare".
        model: the file given; of a comparison, the first.
        output: the file written; of a comparison, the second; "" if nothing was written.
        exit_code: what this model alone would exit with.
        error: one line that says why it failed; "" if it did not.
        report: what was done; None if the run failed before.
        comparison: what a comparison found.
        bench: the timing, if asked for.
        left: folds and other changes that --fail-on-folds found; None without it.
        gates: one for each operator of --fail-on-remaining.
        precision: the distances of both models from float64, if asked for.
        in_memory: whether the result is a model in memory, so that no file was written.
        trace: the traceback of an internal error.
        environment: where and how it ran, if a report file was asked for.
    """

    command: str
    model: str
    output: str = ""
    exit_code: int = 0
    error: str = ""
    report: Report | None = None
    comparison: Comparison | None = None
    bench: Bench | None = None
    left: int | None = None
    gates: tuple[Gate, ...] = ()
    precision: tuple[Precision, ...] = ()
    trace: str = ""
    environment: Environment | None = None
    in_memory: bool = False

    @property
    def verification(self) -> Verification | None:
        """The verdict of a fused model or of a comparison."""
        if self.report is not None:
            return self.report.verification
        return self.comparison.verification if self.comparison is not None else None

    @property
    def status(self) -> str:
        """The verdict in a word or two; "identical" if both files have the same bytes."""
        verification = self.verification
        if verification is None:
            return "not verified"
        return "identical" if verification.unchanged else str(verification.status)


def worst(codes: list[int]) -> int:
    """The exit code of several models.

    >>> worst([0, 4, 1, 0])
    1
    """
    return next((code for code in _WORST_FIRST if code in codes), max(codes, default=0))
