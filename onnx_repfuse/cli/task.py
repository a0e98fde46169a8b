"""One model from the command line to its Outcome: whatever happens on the way becomes a value.

Everything here pickles, so that joblib's backends can run it anywhere.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import InputError, RepfuseError, UsageError
from onnx_repfuse.records.outcome import Bench, Gate, Outcome

if TYPE_CHECKING:
    from onnx_repfuse.options import Options
    from onnx_repfuse.records.verdict import Precision
    from onnx_repfuse.verifier.inputs import FeedSpec

__all__ = ["Task", "check_ops", "run"]

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
    """

    command: str
    model: str
    output: str
    options: Options
    bench: bool = False
    gates: tuple[str, ...] = ()


def run(task: Task, progress: Progress | None = None) -> Outcome:
    """Do it. Never raises but for KeyboardInterrupt."""
    blank = Outcome(task.command, task.model, task.output if task.command == "compare" else "")
    try:
        return _COMMANDS[task.command](task, progress)
    except RepfuseError as error:
        report = getattr(error, "report", None)
        return replace(blank, exit_code=error.exit_code, error=_line(str(error)), report=report)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        return replace(blank, exit_code=1, error=_line(f"{error.strerror or error}{where}"))
    except MemoryError:
        return replace(blank, exit_code=1, error="out of memory; --no-check needs less")
    except Exception as error:
        text = (
            f"internal error, {type(error).__name__}: {error} - nothing is wrong with your command; "
            "please report it with the output of -vv and, if you can, the model"
        )
        return replace(blank, exit_code=1, error=_line(text), trace=traceback.format_exc())


def _fuse(task: Task, progress: Progress | None) -> Outcome:
    from onnx_repfuse import api

    report = api.fuse(task.model, task.output, task.options, progress=progress).report
    bench: Bench | None = None
    precision: tuple[Precision, ...] = ()
    try:
        bench = _bench(task, progress) if task.bench else None
        precision = _precision(task, progress) if task.options.precision_study else ()
    except RepfuseError as error:  # the model is written, and verified, by now
        report = replace(report, notes=(*report.notes, f"written, but not measured further: {error}"))
    if bench is not None:
        report = replace(report, bench=bench.ratio)
    done = Outcome("fuse", task.model, task.output, report=report, bench=bench, precision=precision)
    return _gated(done, task, "written, but")


def _plan(task: Task, progress: Progress | None) -> Outcome:
    from onnx_repfuse import api

    report = api.plan(task.model, task.options)
    return _gated(Outcome("plan", task.model, report=report), task, "planned only, but")


def _gated(done: Outcome, task: Task, but: str) -> Outcome:
    ops = done.report.after.ops if done.report is not None else {}
    gates = tuple(Gate(op, ops.get(op, 0)) for op in task.gates)
    left = ", ".join(f"{gate.remaining} {gate.op}" for gate in gates if gate.remaining)
    error = f"{but} --fail-on-remaining found {left}" if left else ""
    return replace(done, gates=gates, exit_code=4 if left else 0, error=error)


def _compare(task: Task, progress: Progress | None) -> Outcome:
    from onnx_repfuse.verifier.outputs.compare import verify_outputs

    options = task.options
    first, second = Path(task.model), Path(task.output)
    for model in (first, second):
        _readable(model)
    if progress is not None:
        progress("comparing", 0, 0)
    found = verify_outputs(
        first,
        second,
        spec=_feeds(task),
        rtol=options.rtol,
        atol=options.atol,
        optimized=True,
        by_position=True,
    )
    bench = _bench(task, progress) if task.bench else None
    chosen = options.rtol is not None or options.atol is not None  # then "too close to see" is what was asked
    fine = bool(found) or (chosen and found.status.value == "not observed")
    error = "" if fine else _verdict(found.status.value)
    return Outcome("compare", task.model, task.output, 0 if fine else 3, error, compared=found, bench=bench)


def _readable(model: Path) -> None:
    """Raise InputError, with the file's name, for one that is not."""
    from onnx_repfuse.api import document_of

    try:
        document_of(model).close()
    except InputError as error:
        raise InputError(f"'{model}': {error}") from error


_COMMANDS = {"fuse": _fuse, "plan": _plan, "compare": _compare}


def _verdict(status: str) -> str:
    if status == "failed":
        return "the two models differ"
    return "no output could have shown a difference; try --input-data with real inputs"


def _feeds(task: Task) -> FeedSpec:
    from onnx_repfuse.verifier.user_inputs import feed_spec

    return feed_spec(task.model, task.options.input_shapes, task.options.input_data)


def _bench(task: Task, progress: Progress | None) -> Bench:
    from onnx_repfuse.cli.benchmark import measure

    if progress is not None:
        progress("timing", 0, 0)
    return measure(task.model, task.output, _feeds(task))


def _precision(task: Task, progress: Progress | None) -> tuple[Precision, ...]:
    from onnx_repfuse.verifier.outputs.float64_study import study

    if progress is not None:
        progress("comparing with float64", 0, 0)
    return study(Path(task.model), Path(task.output), spec=_feeds(task))


def _line(text: str) -> str:
    return " ".join(text.split()) or "unknown error"


def check_ops(ops: tuple[str, ...]) -> None:
    """Refuse an operator that is a misspelling of one of ONNX's: its gate would always be open."""
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    folded = {name.lower(): name for name in known}
    for op in ops:
        if op in known:
            continue
        begun = [name for name in sorted(folded) if len(op) > 3 and name.startswith(op.lower())]
        near = next(iter([*begun, *difflib.get_close_matches(op.lower(), folded, 1, 0.8)]), None)
        if near:
            raise UsageError(
                f"--fail-on-remaining: there is no operator '{op}'; did you mean '{folded[near]}'?"
            )
