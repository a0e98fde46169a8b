"""One run: a document is planned, proved, written and compared.

A fold that fails its proof is banned and the model is planned again without it, until what is left passes. Planning is
cheap and deterministic, so nothing has to be untangled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import Inexact, OutputError, VerificationError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.save import Saved, publish, save
from onnx_repfuse.modelfile.work_folder import work_folder
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.bans import Bans, folds_out_of_range
from onnx_repfuse.pipeline.beside import Beside, Started
from onnx_repfuse.pipeline.blas_threads import one_blas_thread
from onnx_repfuse.pipeline.check_scopes import check_scopes
from onnx_repfuse.pipeline.compare_models import compare, folds_to_blame, reason_of
from onnx_repfuse.pipeline.input_shapes import shapes_note, with_input_shapes
from onnx_repfuse.pipeline.invalid_model import invalid_model_is_input_error
from onnx_repfuse.pipeline.level import at_level
from onnx_repfuse.pipeline.make_report import make_report
from onnx_repfuse.pipeline.originals import Originals
from onnx_repfuse.pipeline.plan_model import ModelPlan, make_plan
from onnx_repfuse.pipeline.prove_folds import ends_of_folds, prove_folds, take_little_memory
from onnx_repfuse.pipeline.range_ratios import RangeRatios
from onnx_repfuse.pipeline.runtime import runtime_of
from onnx_repfuse.pipeline.spoken_paths import SpokenPaths
from onnx_repfuse.pipeline.unrun_models import unobserved
from onnx_repfuse.pipeline.written_weights import WrittenWeights
from onnx_repfuse.planner.flush.flushing import Scanned
from onnx_repfuse.records.report import Report
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME
from onnx_repfuse.records.verdict import FoldVerdict, Status, Verification

if TYPE_CHECKING:
    from onnx_repfuse.verifier.outputs.baseline import Baseline
    from onnx_repfuse.verifier.outputs.candidate import Ran

__all__ = ["run"]

Progress = Callable[[str, int, int], None]  # stage, done, total
# bytes of a model, up to which it runs beside our own work, and its new weights are kept for the proof: the steps for
# larger ones need the memory one after the other
SMALL_BYTES = 128 << 20
MAX_ATTEMPTS = 32  # that failed their proof; each bans at least one fold, and mostly all that fail
IDENTICAL = Verification(
    notes=("nothing was folded: the output is the input, byte for byte",), unchanged=True
)
UNFOLDED = Verification(
    notes=("nothing was folded: the output has the input's nodes and weights, in other files",),
    unchanged=True,
)


@one_blas_thread()
def run(
    document: Document,
    output: Path,
    options: Options,
    *,
    name: str = "",
    output_name: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Fuse a document and write it to `output`.

    Args:
        document: the model.
        output: the file to write.
        options: the user's choices.
        name, output_name: what the report calls the two; the output's path unless it is given. "" for an output that
            is a temporary file.
        progress: called with (stage, done, total).

    Raises:
        InputError: the model is not valid, or does not run.
        UsageError: the installed ONNX Runtime does not have the provider.
        OutputError: the result cannot be written.
        VerificationError: it was not proved equal or, under `Options.strict`, not observed. Its `report` attribute
            has the figures.

    Whatever it raises, nothing was written.
    """

    runtime_of(options)  # a provider that is not there is found before the work begins

    def go(given: Document, chosen: Options, place: Path | None) -> Report:
        return _run(
            given, place or output, chosen, name=name, output_name=output_name, progress=progress or _silent
        )

    shapes = options.overwrite_input_shapes
    if not shapes:
        return at_level(document, options, go, lambda: work_folder(output))
    verified = replace(options, input_shapes={**options.input_shapes, **shapes})
    with work_folder(output) as folder, with_input_shapes(document, shapes, folder) as given:
        report = at_level(given, verified, go, lambda: work_folder(output))
    return replace(report, notes=(*report.notes, shapes_note(shapes)))


def _run(
    document: Document,
    output: Path,
    options: Options,
    *,
    name: str,
    output_name: str | None,
    progress: Progress,
) -> Report:
    """`run`, of a document and with options that are final."""
    spoken = SpokenPaths(name, output, in_memory=output_name == "")
    with spoken.in_errors(), invalid_model_is_input_error(document), work_folder(output) as folder:
        spoken.add(folder)
        names = (name, str(output) if output_name is None else output_name)
        job = _Run(document, output, options, names, progress, folder, spoken)
        try:
            # Folds whose weights cannot be written cost no attempt: each bans more, and nothing was proved in vain.
            while job.bans.attempts < MAX_ATTEMPTS:
                banned = set(job.bans.banned)
                if job.attempt():
                    return job.report()
                if job.bans.banned == banned:
                    break
            raise job.failed(f"folds were given up {job.bans.attempts} times, and one still failed")
        except Exception:
            # What another program did to the file meanwhile explains everything else, as a failed proof.
            document.check_unchanged()
            raise


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody is looking."""


def _runner(measured: Callable[[], Baseline | str], result: Path) -> Callable[[], Ran]:
    """What runs a result on the feeds of the original; on none if that cannot be run."""

    def run() -> Ran:
        from onnx_repfuse.verifier.outputs.candidate import run_candidate

        baseline = measured()
        return ({}, "") if isinstance(baseline, str) else run_candidate(baseline, result)

    return run


@dataclass
class _Run:
    """What a run was given, and what it has planned, measured and found so far."""

    document: Document
    output: Path
    options: Options
    names: tuple[str, str]  # of the input and the output, in the report
    progress: Progress
    folder: Path  # for trial results and the result, until it is proved
    spoken: SpokenPaths
    bans: Bans = field(default_factory=Bans)
    seconds: dict[str, float] = field(default_factory=dict)
    scanned: Scanned = field(default_factory=dict)  # what plans found out about the weights
    verification: Verification | None = None
    saved: Saved = field(default_factory=lambda: Saved(0))
    ratios: RangeRatios | None = None
    plan: ModelPlan = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is run before a plan is made."""
        self.originals = Originals(self.document, self.options, self.folder, self.spoken)

    def report(self) -> Report:
        """The report of the run so far."""
        return make_report(
            self.plan,
            name=self.names[0],
            output=self.names[1],
            nbytes=self.saved.nbytes,
            undone=self.bans.refusals,
            verification=self.verification,
            seconds=self.seconds,
            ratios=self.ratios,
        )

    def failed(self, why: str) -> VerificationError:
        """The error that ends the run."""
        return self._refused(f"verification failed, nothing was written: {why}")

    def _refused(self, message: str) -> VerificationError:
        error = VerificationError(message)
        error.report = self.report()
        return error

    def attempt(self) -> bool:
        """Plan once, and write the result if it is proved; False if a fold was banned instead.

        Raises:
            VerificationError: the result fails, and no fold is to blame; or it was not observed, under `strict`.
        """
        with self._timed("plan"):
            self.progress("planning", 0, 1)
            self.ratios = None  # of the last plan
            self.plan = make_plan(self.document, self.options, self.bans.banned, self.scanned)
        # Without changes the output is a copy of the input: there is nothing to prove.
        if not self.options.check or not self.plan.is_change:
            too_large = self._write(self.output)
            if too_large is not None:
                self.bans.add(folds_out_of_range(self.plan, too_large))
            unchanged = IDENTICAL if self.saved.is_copy else UNFOLDED
            self.verification = unchanged if self.options.check else None
            return too_large is None
        with Beside(at_once=self.document.nbytes <= SMALL_BYTES) as beside:
            if not self._is_proved(beside):
                beside.stop()  # a result that is not the one
                return False
        if self.options.strict:
            self._check_observed()
        with self._timed("write"):
            self.saved = publish(
                self.plan.document, self.plan.edits(), self.saved, self.output, external=self.options.external
            )
        return True

    def _is_proved(self, beside: Beside) -> bool:
        """Write the result into our own folder, and prove it there; False if a fold was banned.

        Whole models run beside what we compute: the original while the result is written, and the result while its
        folds are proved; folds are probed as soon as the result is written.
        """
        # The name, too, is the output's, as the model says the name of its data file.
        staged = self.folder / self.output.name
        ends, written = ends_of_folds(self.plan), WrittenWeights(SMALL_BYTES if beside.is_at_once else 0)
        given = bool(self.options.input_shapes or self.options.input_data)
        read_along = ends if take_little_memory(self.plan, ends, has_given_sizes=given) else ()
        measured = self.originals.measuring(beside, read_along)
        try:
            too_large = self._write(staged, written)
        except OutputError:  # as a full disk, for which nobody waits until the model has run
            raise
        except Exception:
            measured()  # what it raises comes first: that the model does not run
            raise
        run = None if too_large else beside.start(_runner(measured, staged), when_idle=True)
        of_folds = Started(lambda: self.originals.measure_for_folds(measured(), read_along), measured.is_over)
        verdicts = self._prove(ends, written, of_folds, beside)
        if verdicts is None:
            return False
        if too_large is not None:
            self.bans.add(folds_out_of_range(self.plan, too_large))
            return False
        baseline, fold_baseline = measured(), of_folds()
        notes = self._check_scopes(fold_baseline, staged)
        return notes is not None and self._compare(baseline, staged, run, verdicts, notes)

    def _check_observed(self) -> None:
        """Raise VerificationError unless all that was compared could have shown a fault."""
        assert self.verification is not None
        if self.verification.status is Status.NOT_OBSERVED:
            why = reason_of(self.verification, Status.NOT_OBSERVED)
            raise self._refused(f"not all was observed, and under --strict nothing was written: {why}")

    def _prove(
        self,
        ends: Sequence[Sequence[str]],
        written: WrittenWeights,
        original: Started[Baseline | str],
        beside: Beside,
    ) -> list[FoldVerdict] | None:
        """Judge each fold by itself; None if any failed."""
        with self._timed("probe"):
            # On the CPU, whatever the provider: folds are held to float32's own bounds.
            runtime = replace(DEFAULT_RUNTIME, custom_ops=tuple(self.options.custom_ops))
            failed, verdicts = prove_folds(
                self.plan,
                ends,
                written,
                original,
                runtime,
                lambda done, total: self.progress("probing", done, total),
                beside,
            )
        # All folds are judged before the next plan: one attempt for many failures.
        self.bans.add(failed)
        return None if failed else verdicts

    def _write(self, place: Path, written: WrittenWeights | None = None) -> Inexact | None:
        """Write the result, and note its weights; what is wrong if one of them does not fit its type."""
        with self._timed("write"):
            self.progress("writing", 0, 1)
            try:
                self.ratios = RangeRatios(self.plan)
                edits = self.ratios.noting(
                    self.plan.edits() if written is None else written.noting(self.plan.edits())
                )
                self.saved = save(self.plan.document, edits, place, external=self.options.external)
            except Inexact as error:
                return error
        return None

    def _check_scopes(self, baseline: Baseline | str, staged: Path) -> list[str] | None:
        """Run what the inputs may never reach; notes on what could not be run, or None if any of it differs."""
        if isinstance(baseline, str):
            return []  # `unobserved` says that nothing but the folds was compared
        with self._timed("verify"):
            self.progress("proving", 0, 1)
            self.document.release()
            failed, notes = check_scopes(self.plan, baseline, staged)
            self.bans.add(failed)
        return None if failed else notes

    def _compare(
        self,
        baseline: Baseline | str,
        staged: Path,
        run: Callable[[], Ran] | None,
        verdicts: list[FoldVerdict],
        notes: list[str],
    ) -> bool:
        """Compare the outputs of the result with the original's; False if they differ, and a fold is to blame."""
        with self._timed("verify"):
            self.progress("proving", 0, 1)
            self.document.release()  # ONNX Runtime needs the memory now
            if isinstance(baseline, str):
                self.verification = self._joined(unobserved(self.document, staged, baseline), verdicts, notes)
                if self.verification.status is Status.FAILED:
                    raise self.failed(reason_of(self.verification, Status.FAILED))
                return True
            comparison = compare(baseline, staged, self.options, self.plan.flushing, run)
            comparison = self.spoken.verification(comparison)
            self.verification = self._joined(comparison, verdicts, notes)
            # Nothing compared is a failure, too, whatever the folds say.
            if comparison.status is Status.FAILED:
                self._blame(baseline, self._agrees, reason_of(comparison, Status.FAILED))
                return False
            why = self.originals.branches(baseline).difference(staged)
            if why:
                self._blame(baseline, self._agrees_in_branches, why)
            return not why

    def _joined(
        self, comparison: Verification, verdicts: list[FoldVerdict], notes: list[str]
    ) -> Verification:
        """The comparison of the outputs, the verdicts on folds and on other changes, and notes on scopes."""
        parts: tuple[list[FoldVerdict], list[FoldVerdict]] = ([], [])
        for (planned, fold), verdict in zip(self.plan.folds, verdicts, strict=True):
            if planned.is_left(fold):
                parts[fold.is_change].append(verdict)
        folds, changes = map(tuple, parts)
        return replace(comparison, folds=folds, changes=changes, notes=(*comparison.notes, *notes))

    def _agrees(self, candidate: Path) -> bool:
        assert self.originals.whole is not None
        assert not isinstance(self.originals.whole, str)
        return compare(self.originals.whole, candidate, self.options).status is not Status.FAILED

    def _agrees_in_branches(self, candidate: Path) -> bool:
        assert self.originals.whole is not None
        assert not isinstance(self.originals.whole, str)
        return not self.originals.branches(self.originals.whole).difference(candidate)

    def _blame(self, baseline: Baseline, agrees: Callable[[Path], bool], why: str) -> None:
        """Ban the folds without which the rest agrees. Raises VerificationError if there are none.

        Before any fold, flushed weights are suspected: they are given up together.
        """
        why = self.spoken.text(why)
        if self.bans.add_flush(self.plan, why):
            return
        failed = folds_to_blame(self.plan, agrees, baseline, self.options, self.bans.banned, self.folder, why)
        if not failed:
            if self.bans.add_branches(self.plan, why):
                return
            raise self.failed(why)
        self.bans.add(failed)
        self.bans.try_flush_again()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
