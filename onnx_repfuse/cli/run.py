"""A checked command line carried out: tasks run, reports rendered, exit code settled."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from onnx_repfuse.cli import arguments, paths
from onnx_repfuse.cli.arguments import CliArguments
from onnx_repfuse.cli.progress import progress
from onnx_repfuse.cli.task import Task, check_ops, run
from onnx_repfuse.cli.values import words
from onnx_repfuse.errors import OutputError
from onnx_repfuse.options import Options
from onnx_repfuse.records.outcome import Outcome, worst
from onnx_repfuse.report.formatting import clean

__all__ = ["debugging", "execute"]


def execute(given: CliArguments, version: str) -> int:
    """Do what was asked and return the exit code. Raises RepfuseError for what stops all of it."""
    arguments.check(given)
    options = arguments.to_options(given)
    gates = words(given.fail_on_remaining)
    pairs = paths.targets(given)
    paths.check_reports(given, pairs)
    if gates:
        check_ops(gates)
    if not debugging(given):
        warnings.simplefilter("ignore")
    if given.explain is not None:
        return _explain(given, options)
    tasks = [Task(given.command, model, output, options, given.bench, gates) for model, output in pairs]
    outcomes = _run(tasks, given)
    code = worst([outcome.exit_code for outcome in outcomes])
    for outcome in outcomes:
        if outcome.error:
            _complain(outcome, given)
    code = _save(outcomes, given, version, code)
    return _to_stdout(lambda: _print(outcomes, given, version, code), code)


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


def _explain(given: CliArguments, options: Options) -> int:
    from onnx_repfuse.cli.explain import explain

    text = explain(given.models[0], given.explain or "", options)
    return _to_stdout(lambda: print(text), 0)


def _complain(outcome: Outcome, given: CliArguments) -> None:
    where = f"{outcome.model}: " if given.many and outcome.model not in outcome.error else ""
    print(f"onnx-repfuse: error: {clean(where + outcome.error)}", file=sys.stderr)
    if outcome.trace and debugging(given):
        print(outcome.trace, file=sys.stderr)


def _save(outcomes: list[Outcome], given: CliArguments, version: str, code: int) -> int:
    """Write the report files; one that cannot be written makes a success a failure, and its JSON says so."""
    if given.report_file is not None:
        from onnx_repfuse.report.html import render

        code = _attempt(given.report_file, render(outcomes, version), code)
    if given.json_file not in (None, "-"):
        from onnx_repfuse.report.json_report import dumps

        code = _attempt(given.json_file, dumps(outcomes, version, many=given.many, exit_code=code), code)
    return code


def _to_stdout(write: Callable[[], object], code: int) -> int:
    """Print, to a reader who may have gone (`| head`, which is no fault) or onto a full disk (which is)."""
    try:
        write()
        sys.stdout.flush()
    except SystemExit:  # rich, to a reader who has gone
        return code
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code
        print(f"onnx-repfuse: error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return worst([code, 1])
    return code


def _attempt(name: str, text: str, code: int) -> int:
    try:
        _replace(Path(name), text)
    except OSError as error:
        message = str(OutputError(f"cannot write '{name}': {error.strerror or error}"))
        print(f"onnx-repfuse: error: {clean(message)}", file=sys.stderr)
        return worst([code, 1])
    return code


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all, except through a link (/dev/stdout is one) or into what is no regular file."""
    data = text.encode("utf-8", "backslashreplace")
    if paths.is_precious(path):
        raise FileExistsError(0, "it is no report, and came in the meantime")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    mode = 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}."[:50])
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _print(outcomes: list[Outcome], given: CliArguments, version: str, code: int) -> None:
    if given.json_file == "-":
        from onnx_repfuse.report.json_report import dumps

        sys.stdout.write(dumps(outcomes, version, many=given.many, exit_code=code))
        return
    if given.quiet:
        return
    from rich.console import Console

    from onnx_repfuse.report.text import show, summarize

    console = Console(markup=False, highlight=False, emoji=False)
    if given.many:
        if given.verbose:
            for outcome in outcomes:
                show(console, outcome, given.verbose)
                console.print()
        summarize(console, outcomes)
        return
    for outcome in outcomes:
        if outcome.report is not None or outcome.compared is not None:
            show(console, outcome, given.verbose)
