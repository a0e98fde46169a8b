"""A command line carried out: checked, run, reported, and its exit code decided."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from onnx_repfuse.cli import arguments, contradictions, paths
from onnx_repfuse.cli.arguments import CliArguments
from onnx_repfuse.cli.paths import STREAM
from onnx_repfuse.cli.progress import progress
from onnx_repfuse.cli.streams import copy_out, on_files
from onnx_repfuse.cli.task import Task, renamed, run
from onnx_repfuse.cli.values import words
from onnx_repfuse.modelfile.report_file import write_report
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.known_operators import check_operators
from onnx_repfuse.pipeline.runtime import runtime_of
from onnx_repfuse.records.outcome import Outcome, worst
from onnx_repfuse.report.formatting import clean

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["debugging", "execute"]

PIPE_WIDTH = 10_000  # characters


def execute(given: CliArguments, version: str) -> int:
    """Do what was asked and return the exit code. Raises RepfuseError for what stops all of it."""
    contradictions.check(given)
    options = arguments.to_options(given)
    gates = words(given.fail_on_remaining)
    pairs = paths.targets(given)
    paths.check_reports(given, pairs)
    if given.provider is not None:
        runtime_of(options)
    check_operators("--fail-on-remaining", gates)
    _check_peer(options)
    check_operators("--avoid", sorted(options.avoid))
    if not debugging(given):
        warnings.simplefilter("ignore")  # onnxruntime's and onnx's are not about the user's command
    tasks = [
        Task(
            given.command,
            model,
            output,
            options,
            given.bench,
            gates,
            by_order=given.by_order,
            layers=given.layers,
            fail_on_folds=given.fail_on_folds,
            tells_environment=given.report_file is not None or given.json_file is not None,
        )
        for model, output in pairs
    ]
    with on_files(tasks) as used:
        if given.prints_only:
            return _lines(used[0].model, given.explain, options)
        outcomes = [_delivered(*parts) for parts in zip(_run(used, given), used, tasks, strict=True)]
    code = worst([outcome.exit_code for outcome in outcomes])
    code = _save(outcomes, given, version, code)
    code = _to_stdout(lambda: _print(outcomes, given, version, code), outcomes, code)
    for outcome in outcomes:  # after the report, where whoever looks at the end of a terminal sees it
        if outcome.error:
            _complain(outcome, given)
    return code


def _delivered(outcome: Outcome, used: Task, task: Task) -> Outcome:
    """The outcome of a task, under the names given; a result for standard output is there then."""
    try:
        return copy_out(outcome, used, task)
    except OSError as error:
        _to_null()
        text = f"cannot write to standard output: {error.strerror or error}"
        return replace(renamed(outcome, used, task), output="", exit_code=1, error=text)


def _check_peer(options: Options) -> None:
    """Raise UsageError, once and not for each model, if a simplifier is named that is not installed."""
    if options.simplify is not None:
        from onnx_repfuse.pipeline.level import check_peer

        check_peer(options)


def debugging(given: CliArguments) -> bool:
    """Whether tracebacks and warnings are wanted."""
    return given.verbose > 1 or os.environ.get("ONNX_REPFUSE_DEBUG", "") not in ("", "0")


def _run(tasks: list[Task], given: CliArguments) -> list[Outcome]:
    with progress(not given.quiet) as show:
        if not given.many:
            return [run(task, show) for task in tasks]
        from onnx_repfuse.cli.batch import run_all

        def done(count: int) -> None:
            if show is not None:
                show("fusing", count, len(tasks))

        done(0)
        return run_all(tasks, given.jobs, done)


def _lines(model: str, node: str | None, options: Options) -> int:
    """Print the explanation of a node, or a list of all."""
    from onnx_repfuse.cli.explain import explain
    from onnx_repfuse.cli.list_nodes import list_nodes

    text = list_nodes(model, options) if node is None else explain(model, node, options)
    return _to_stdout(lambda: _print_lines(text), [], 0)


def _print_lines(text: str) -> None:
    from onnx_repfuse.report.lines import print_line

    console = _console(sys.stdout)
    for line in text.split("\n"):
        print_line(console, line)


def _complain(outcome: Outcome, given: CliArguments) -> None:
    where = f"{outcome.model}: " if given.many and outcome.model not in outcome.error else ""
    _error(where + outcome.error)
    if outcome.trace and debugging(given):
        print(outcome.trace, file=sys.stderr)


def _error(message: str) -> None:
    print(f"onnx-repfuse: error: {clean(message)}", file=sys.stderr)


def _save(outcomes: list[Outcome], given: CliArguments, version: str, code: int) -> int:
    """Write the report files; returns the exit code, see `_unwritten`."""
    if given.report_file is not None:
        from onnx_repfuse.report.html import render

        code = _write(given.report_file, render(outcomes, version), outcomes, code)
    if given.json_file not in (None, "-"):  # last, since it tells the exit code
        from onnx_repfuse.report.json_report import dumps

        text = dumps(outcomes, version, many=given.many, exit_code=code)
        code = _write(given.json_file, text, outcomes, code)
    return code


def _write(name: str, text: str, outcomes: list[Outcome], code: int) -> int:
    try:
        write_report(Path(name), text)
    except OSError as error:
        return _unwritten(f"'{name}'", error, outcomes, code)
    return code


def _unwritten(place: str, error: OSError, outcomes: list[Outcome], code: int) -> int:
    """Say that a report is lost, and whether the models are there; returns the exit code.

    Exit code 1 means that no model was written. Where one was, a report that is lost (a full disk) does not change the
    code.
    """
    why = f"cannot write to {place}: {error.strerror or error}"
    written = [outcome.output for outcome in outcomes if outcome.command == "fuse" and outcome.output]
    if not written:
        _error(why)
        return worst([code, 1])
    models = f"'{written[0]}' is" if len(written) == 1 else f"{len(written)} models are"
    _error(f"{models} written, but not the report: {why}")
    return code


def _to_stdout(write: Callable[[], object], outcomes: list[Outcome], code: int) -> int:
    """Print, and return the exit code: a pipe closed by its other end (`| head`) is no error, a full disk is."""
    try:
        write()
        sys.stdout.flush()
    except SystemExit:  # rich raises it on a closed pipe
        return code
    except OSError as error:
        _to_null()
        if isinstance(error, BrokenPipeError):
            return code
        return _unwritten("standard output", error, outcomes, code)
    return code


def _to_null() -> None:
    """Let standard output take anything: the interpreter flushes it when it exits, and would print a traceback."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(outcomes: list[Outcome], given: CliArguments, version: str, code: int) -> None:
    if given.json_file == "-":
        from onnx_repfuse.report.json_report import dumps

        sys.stdout.write(dumps(outcomes, version, many=given.many, exit_code=code))
    elif not given.quiet:
        _print_text(outcomes, given)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # A pipe or a file has no width: whoever searches it for a path must find it on one line.
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def _print_text(outcomes: list[Outcome], given: CliArguments) -> None:
    from onnx_repfuse.report.batch_table import summarize
    from onnx_repfuse.report.text import show

    # Standard output may carry the model.
    stream = sys.stderr if any(outcome.output == STREAM for outcome in outcomes) else sys.stdout
    console = _console(stream)
    if not given.many:
        if outcomes[0].report is not None or outcomes[0].comparison is not None:
            show(console, outcomes[0], given.verbose)
        return
    for outcome in outcomes if given.verbose else ():
        show(console, outcome, given.verbose)
        console.print()
    summarize(console, outcomes)
