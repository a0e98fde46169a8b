"""The process behind one job of the page: a request in, progress and an answer out; `serve/process.py` has the rules.

The request names the models' files and a folder. The result goes into `result/` there, the reports beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from onnx_repfuse import __version__
from onnx_repfuse.cli import contradictions
from onnx_repfuse.cli.arguments import CliArguments, to_options
from onnx_repfuse.cli.main import tune_process
from onnx_repfuse.cli.paths import beside
from onnx_repfuse.cli.task import Task, renamed, run
from onnx_repfuse.cli.uploads import missing_data_files, move_data_files
from onnx_repfuse.errors import RepfuseError, quoted
from onnx_repfuse.records.outcome import Outcome
from onnx_repfuse.report.html import render
from onnx_repfuse.report.json_report import dumps

__all__ = ["main"]

_SECONDS_BETWEEN = 0.1  # two messages of one stage of progress


def main() -> None:
    """Carry out the request of standard input."""
    # What a library prints must not come between the messages.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _be_the_first_to_go()
    tune_process()
    warnings.simplefilter("ignore")  # as the command line does
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    folder = Path(request["folder"])
    outcome = _outcome(request, Messages(answers))
    outcome = replace(outcome, error=as_uploaded(outcome.error, folder))
    if outcome.report is not None or outcome.comparison is not None:
        (folder / "report.html").write_text(render([outcome], __version__), encoding="utf-8")
    document = dumps([outcome], __version__, many=False, exit_code=outcome.exit_code)
    (folder / "report.json").write_text(document, encoding="utf-8")
    verdict = "error" if outcome.exit_code in (1, 2) else outcome.status
    answer = {"exit_code": outcome.exit_code, "verdict": verdict, "error": outcome.error[:2000]}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def as_uploaded(text: str, folder: Path) -> str:
    """A message with the names of files that the user knows: those of the job's own folder mean nothing to them."""
    return re.sub(rf"{re.escape(str(folder))}/(first|second|result)/", "", text)


def _be_the_first_to_go() -> None:
    """Where memory runs out, Linux is to kill this process, and not the server or the user's other work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_the_server() -> None:
    """The server keeps our standard input open as long as it lives."""
    sys.stdin.read()
    os._exit(1)


class Messages:
    """Progress as lines of JSON."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._stage, self._last = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Write a line, if the stage is new or some time has passed."""
        now = time.monotonic()
        if stage != self._stage or now - self._last >= _SECONDS_BETWEEN:
            self._stage, self._last = stage, now
            self._stream.write(json.dumps({"stage": stage, "done": done, "total": total}) + "\n")
            self._stream.flush()


def _outcome(request: dict[str, Any], progress: Messages) -> Outcome:
    """What became of it, under the names that the user knows."""
    models = [Path(model) for model in request["models"]]
    names = [model.name for model in models]
    kind = request["kind"]
    for model in models:
        move_data_files(model)
        missing = missing_data_files(model)
        if missing:
            error = f"{model.name} has weights in {quoted(missing[0])}, which did not come with it"
            advice = "drop or choose the model and its data files together"
            output = names[1] if kind == "compare" else ""
            return Outcome(kind, names[0], output, exit_code=1, error=f"{error}: {advice}")
    if kind == "fuse":
        result = Path(request["folder"], "result")
        result.mkdir()
        names.append(beside(names[0]))
        models.append(result / names[1])
    try:
        task = _task(kind, [str(model) for model in models], request["settings"])
    except RepfuseError as error:
        output = names[1] if kind == "compare" else ""
        return Outcome(kind, names[0], output, exit_code=error.exit_code, error=str(error))
    return renamed(run(task, progress), task, replace(task, model=names[0], output=names[1]))


def _task(kind: str, models: list[str], settings: dict[str, Any]) -> Task:
    """Raises UsageError for settings that mean nothing."""
    shapes = tuple(settings.get("input_shape", "").split())
    given = CliArguments(
        models=tuple(models),
        compare=kind == "compare",
        bench=settings.get("bench", False),
        level="2" if settings.get("thorough") else "1",
        by_order=settings.get("by_order", False),
        layers=settings.get("layers", False),
        input_shape=shapes,
    )
    contradictions.check(given)
    model, output = models
    return Task(
        kind,
        model,
        output,
        to_options(given),
        given.bench,
        by_order=given.by_order,
        layers=given.layers,
        tells_environment=True,
    )
