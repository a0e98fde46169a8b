"""One model from the command line to its Outcome: whatever happens on the way becomes a value.

Everything here pickles, so that joblib's backends can run it anywhere.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import InputError, RepfuseError
from onnx_repfuse.records.outcome import Bench, Gate, Outcome
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME
from onnx_repfuse.report.formatting import plural

if TYPE_CHECKING:
    from onnx_repfuse.options import Options
    from onnx_repfuse.records.report import Report
    from onnx_repfuse.records.verdict import Precision
    from onnx_repfuse.verifier.inputs import FeedSpec

__all__ = ["Task", "renamed", "run"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """What to do with one model.

    Attributes:
        command: "fuse", "plan" or "compare".
        model: the input; of a comparison, the first.
        output: the file to write; of a comparison, the second model.
        options: as the library takes them.
        bench: whether to time the two.
        gates: operators that must not remain.
        by_order: of a comparison, whether inputs and outputs are paired by their order.
        layers: of a comparison, whether the tensors inside are compared, too.
        fail_on_folds: whether a plan is proved, and fails if it has anything left to do.
        tells_environment: whether the outcome has the environment, with digests of the files.
    """

    command: str
    model: str
    output: str
    options: Options
    bench: bool = False
    gates: tuple[str, ...] = ()
    by_order: bool = False
    layers: bool = False
    fail_on_folds: bool = False
    tells_environment: bool = False


def run(task: Task, progress: Progress | None = None) -> Outcome:
    """Carry a task out. Never raises but for KeyboardInterrupt."""
    if not task.tells_environment:
        return _run(task, progress)
    from onnx_repfuse.pipeline.environment import Surroundings

    is_comparison = task.command == "compare"
    roles = {"first": task.model, "second": task.output} if is_comparison else {"input": task.model}
    # before the run, which may overwrite its input
    begun = Surroundings.of(task.options, **roles).with_digests()
    outcome = _run(task, progress)
    ended = begun.after() if is_comparison else begun.after(output=outcome.output)
    return replace(outcome, environment=ended.environment())


def _run(task: Task, progress: Progress | None) -> Outcome:
    failed = Outcome(task.command, task.model, task.output if task.command == "compare" else "", exit_code=1)
    try:
        return _COMMANDS[task.command](task, progress or _silent)
    except RepfuseError as error:
        report = getattr(error, "report", None)  # of a VerificationError: the figures that did not pass
        return replace(failed, exit_code=error.exit_code, error=_line(str(error)), report=report)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        return replace(failed, error=_line(f"{error.strerror or error}{where}"))
    except MemoryError:
        return replace(failed, error="out of memory; --no-check needs less")
    except Exception as error:
        text = (
            f"internal error, {type(error).__name__}: {error} - nothing is wrong with your command; "
            "please report it with the output of -vv and, if you can, the model"
        )
        return replace(failed, error=_line(text), trace=traceback.format_exc())


def renamed(outcome: Outcome, used: Task, task: Task) -> Outcome:
    """The outcome under the names that were given, in place of those that were used."""
    output = task.output if outcome.output else ""
    report = outcome.report
    if report is not None:
        report = replace(report, model=task.model, output=task.output if report.output else "")
    error = outcome.error.replace(used.model, task.model).replace(used.output, task.output)
    return replace(outcome, model=task.model, output=output, error=error, report=report)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody is looking."""


# The imports within functions are slow ones (onnx, onnxruntime); wrong usage is reported without them.
def _fuse(task: Task, progress: Progress) -> Outcome:
    from onnx_repfuse import api

    in_place = task.model == task.output
    report = api.fuse(task.model, task.output, task.options, in_place=in_place, progress=progress).report
    bench: Bench | None = None
    precision: tuple[Precision, ...] = ()
    try:
        bench = _bench(task, progress) if task.bench else None
        precision = _precision(task, progress) if task.options.precision_study else ()
    except (RepfuseError, OSError, MemoryError) as error:  # the model is written, and verified, by now
        report = replace(
            report, notes=(*report.notes, f"written, but not measured further: {_line(str(error))}")
        )
    if bench is not None:
        report = replace(report, bench=bench.ratio)
    outcome = Outcome("fuse", task.model, task.output, report=report, bench=bench, precision=precision)
    return _gated(outcome, report, task, "written, but")


def _plan(task: Task, progress: Progress) -> Outcome:
    from onnx_repfuse import api

    if task.fail_on_folds:
        return _nothing_left(task, progress)
    report = api.plan(task.model, task.options)
    return _gated(Outcome("plan", task.model, report=report), report, task, "planned only, but")


def _nothing_left(task: Task, progress: Progress) -> Outcome:
    """Prove what would be done, without writing it, and fail if there is anything."""
    from onnx_repfuse.api import document_of
    from onnx_repfuse.pipeline.run import run as prove

    with document_of(task.model) as document, tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
        place = Path(folder) / "result.onnx"
        report = prove(document, place, task.options, name=task.model, output_name="", progress=progress)
    parts = [plural(len(report.folds), "fold")] if report.folds else []
    parts += [plural(len(report.changes), "other change")] if report.changes else []
    left = len(report.folds) + len(report.changes)
    if report.verification is not None and not report.verification.unchanged and not left:
        left, parts = 1, ["a conversion"]  # to another opset, for one
    outcome = _gated(Outcome("plan", task.model, report=report, left=left), report, task, "proved only, but")
    if left:
        verb = "is" if left == 1 else "are"
        error = f"--fail-on-folds: {' and '.join(parts)} {verb} left to make, and passed verification"
        outcome = replace(outcome, exit_code=4, error=error)
    return outcome


def _gated(outcome: Outcome, report: Report, task: Task, but: str) -> Outcome:
    """The outcome with what `--fail-on-remaining` found in the result."""
    gates = tuple(Gate(op, report.after.ops.get(op, 0)) for op in task.gates)
    left = ", ".join(f"{gate.remaining} {gate.op}" for gate in gates if gate.remaining)
    if not left:
        return replace(outcome, gates=gates)
    return replace(outcome, gates=gates, exit_code=4, error=f"{but} --fail-on-remaining found {left}")


def _compare(task: Task, progress: Progress) -> Outcome:
    from onnx_repfuse.api.comparisons import outcome_of
    from onnx_repfuse.modelfile.snapshot import safe_to_run
    from onnx_repfuse.pipeline.runtime import runtime_of
    from onnx_repfuse.verifier.comparing.two_models import compare_models

    first, second = Path(task.model), Path(task.output)
    for model in (first, second):
        _check_readable(model)
    progress("comparing", 0, 0)
    with safe_to_run(first, second) as (one, other):
        comparison = compare_models(
            one,
            other,
            spec=_feeds(task),
            rtol=task.options.rtol,
            atol=task.options.atol,
            runtime=runtime_of(task.options),
            by_order=task.by_order,
            layers=task.layers,
            on_progress=partial(progress, "comparing layers"),
        )
    bench = _bench(task, progress) if task.bench else None
    return replace(outcome_of(comparison, task.model, task.output), bench=bench)


_COMMANDS = {"fuse": _fuse, "plan": _plan, "compare": _compare}


def _check_readable(model: Path) -> None:
    """Raise InputError, with the file's name, if it cannot be read: such a file is not a different model."""
    from onnx_repfuse.api import document_of

    try:
        with document_of(model):
            pass
    except InputError as error:
        raise InputError(f"'{model}': {error}") from error


def _feeds(task: Task) -> FeedSpec:
    from onnx_repfuse.verifier.user_inputs import feed_spec

    shapes = {**task.options.input_shapes, **task.options.overwrite_input_shapes}
    return feed_spec(task.model, shapes, task.options.input_data)


def _bench(task: Task, progress: Progress) -> Bench:
    from onnx_repfuse.modelfile.snapshot import safe_to_run
    from onnx_repfuse.pipeline.benchmark import measure, measure_as_zero
    from onnx_repfuse.pipeline.runtime import runtime_of

    progress("timing", 0, 0)
    runtime = runtime_of(task.options)
    with safe_to_run(Path(task.model), Path(task.output)) as (first, second):
        bench = measure(first, second, _feeds(task), runtime=runtime)
        # Of a comparison, the inputs may have other names; and of the setting, other providers know nothing.
        if task.command == "compare" or runtime.providers != DEFAULT_RUNTIME.providers:
            return bench
        return replace(bench, as_zero=measure_as_zero(second, _feeds(task), runtime=runtime))


def _precision(task: Task, progress: Progress) -> tuple[Precision, ...]:
    from onnx_repfuse.modelfile.snapshot import safe_to_run
    from onnx_repfuse.pipeline.runtime import runtime_of
    from onnx_repfuse.verifier.outputs.float64_study import study

    progress("comparing with float64", 0, 0)
    runtime = runtime_of(task.options)
    with safe_to_run(Path(task.model), Path(task.output)) as (first, second):
        return study(first, second, spec=_feeds(task), runtime=runtime)


def _line(text: str) -> str:
    return " ".join(text.split()) or "unknown error"
