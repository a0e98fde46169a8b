"""`-` as a model: standard input and standard output.

ONNX Runtime and the writer want files, so a model from a stream is put into a temporary one, and the result is copied
out of one when it is proved and whole. A file whose name is `-` is `./-`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onnx_repfuse.cli.paths import STREAM
from onnx_repfuse.cli.task import Task, renamed
from onnx_repfuse.errors import InputError, OutputError, UsageError
from onnx_repfuse.records.outcome import Outcome

__all__ = ["copy_out", "on_files"]


@contextmanager
def on_files(tasks: list[Task]) -> Iterator[list[Task]]:
    """The tasks with temporary files in place of streams.

    Raises:
        InputError: standard input cannot be read, or its model has external data.
        UsageError: there is no model on it, or standard output is a terminal.
    """
    if not any(STREAM in (task.model, task.output) for task in tasks):
        yield tasks
        return
    with tempfile.TemporaryDirectory(prefix="repfuse-") as name:
        source, result = Path(name) / "stdin.onnx", Path(name) / "result" / "stdout.onnx"
        result.parent.mkdir()
        if any(_reads(task) for task in tasks):
            _copy_in(source)
        if any(_writes(task) for task in tasks) and sys.stdout.isatty():
            raise UsageError(
                "a model is not written to a terminal: give -o FILE, or let a pipe or file take it"
            )
        yield [_on_files(task, str(source), str(result)) for task in tasks]


def _reads(task: Task) -> bool:
    return task.model == STREAM or (task.command == "compare" and task.output == STREAM)


def _writes(task: Task) -> bool:
    return task.command == "fuse" and task.output == STREAM


def _on_files(task: Task, source: str, result: str) -> Task:
    output = task.output
    if output == STREAM:
        output = source if task.command == "compare" else result
    return replace(task, model=source if task.model == STREAM else task.model, output=output)


def _copy_in(place: Path) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- means standard input, and no model is piped into it")
    from onnx_repfuse.modelfile.byte_source import Source
    from onnx_repfuse.modelfile.document import Document

    try:
        data = sys.stdin.buffer.read()
        place.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror or error}") from error
    if not data:
        raise InputError("standard input is empty: it brings no model")
    # refuses external data, which does not come with it
    Document(Source("the model", data=data), None).close()


def copy_out(outcome: Outcome, used: Task, given: Task) -> Outcome:
    """The outcome under the names that were given, its result written to standard output if that was asked for.

    Raises OSError if that cannot be written.
    """
    if _writes(given) and outcome.output:
        data = Path(used.output)
        if len(list(data.parent.iterdir())) > 1:
            raise OutputError(
                "the result has external data, which standard output cannot carry: give -o FILE"
            )
        sys.stdout.flush()
        with data.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return renamed(outcome, used, given)
