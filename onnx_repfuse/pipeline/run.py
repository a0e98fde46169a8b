"""load -> lift -> plan -> fold -> splice -> prove -> save, one model.

A fold that does not pass its proof is banned and the model is planned again without it, until what is left passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import Inexact, VerificationError
from onnx_repfuse.modelfile.atomic_write import workspace
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.save import publish, save
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.bans import Bans, overflowing
from onnx_repfuse.pipeline.compare_models import blame, compare, measure, reason
from onnx_repfuse.pipeline.invalid_model import blaming
from onnx_repfuse.pipeline.make_report import describe
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.pipeline.prove_folds import prove
from onnx_repfuse.records.report import Report
from onnx_repfuse.records.verdict import FoldVerdict, Status, Verification

if TYPE_CHECKING:
    from onnx_repfuse.verifier.outputs.baseline import Baseline

__all__ = ["run"]

Progress = Callable[[str, int, int], None]
ATTEMPTS = 32
IDENTICAL = Verification(
    notes=("nothing was folded: the output is the input, byte for byte",), unchanged=True
)


def run(
    document: Document, output: Path, options: Options, *, name: str = "", progress: Progress | None = None
) -> Report:
    """Fuse a document and write it to `output`.

    Raises:
        InputError, OutputError: as they say.
        VerificationError: nothing was written; its `report` attribute tells the figures.
    """
    tell = progress or _quiet
    seconds: dict[str, float] = {}
    undone = Bans()
    baseline: Baseline | None = None
    verification: Verification | None = None
    nbytes = 0

    def report() -> Report:
        return describe(
            plan,
            name=name,
            output=str(output),
            nbytes=nbytes,
            undone=undone.refusals,
            verification=verification,
            seconds=seconds,
        )

    with blaming(document), workspace(output) as folder:
        staged = folder / output.name
        for _ in range(ATTEMPTS):
            with _timed(seconds, "plan"):
                tell("planning", 0, 1)
                plan = make_plan(document, options, undone.banned)
            proving = options.check and bool(plan.folds)
            verdicts: list[FoldVerdict] = []
            if proving:
                with _timed(seconds, "verify"):
                    tell("proving", 0, 1)
                    baseline = baseline or measure(document, options, folder)
                with _timed(seconds, "probe"):
                    failed, verdicts = prove(plan, baseline, lambda done, total: tell("probing", done, total))
                if failed:
                    undone.add(failed)
                    continue
            with _timed(seconds, "write"):
                tell("writing", 0, 1)
                try:
                    place = staged if proving else output
                    nbytes = save(document, plan.edits(), place, external=options.external)
                except Inexact as error:
                    undone.add(overflowing(plan, error))
                    continue
            if baseline is None or not proving:
                verification = IDENTICAL if options.check else None
                return report()
            with _timed(seconds, "verify"):
                tell("proving", 0, 1)
                document.release()
                found = compare(baseline, staged, options)
                verification = replace(found, folds=tuple(verdicts))
                if found.status is Status.FAILED:  # also when nothing was compared, whatever the folds say
                    culprits = blame(plan, baseline, options, undone.banned, folder, reason(found))
                    if not culprits:
                        raise _refused(f"nothing was written: {reason(found)}", report())
                    undone.add(culprits)
                    continue
            with _timed(seconds, "write"):
                nbytes = publish(document, plan.edits(), staged, output, external=options.external)
            return report()
        raise _refused(
            f"nothing was written: after {ATTEMPTS} attempts there was still a fold that failed", report()
        )


def _refused(why: str, report: Report) -> VerificationError:
    error = VerificationError(f"verification failed, {why}")
    error.report = report  # type: ignore[attr-defined]
    return error


def _quiet(stage: str, done: int, total: int) -> None:
    return None


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
