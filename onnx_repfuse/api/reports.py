"""What the library's functions return: a `Report` that can show and save itself, and a `Result` that has one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import onnx

import onnx_repfuse
from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile.report_file import write_report
from onnx_repfuse.records import report as records
from onnx_repfuse.records.outcome import Outcome

__all__ = ["Report", "Result"]

Made: TypeAlias = Literal["file", "memory", "plan", "nothing"]
_WIDTH = 100  # characters of a line of `summary`


@dataclass(frozen=True, repr=False)
class Report(records.Report):
    """One run over one model. Notebooks show it, and it can be printed and saved.

    Attributes:
        made: what the run left: a "file", a model in "memory", a "plan" only, or "nothing", since the result was not
            proved equal.

    The others are those of `records.report.Report`.
    """

    made: Made = "memory"

    @classmethod
    def of(cls, record: records.Report, made: Made) -> Report:
        """The report of a run that made this."""
        return cls(**{entry.name: getattr(record, entry.name) for entry in fields(records.Report)}, made=made)

    def __repr__(self) -> str:
        name = f" {self.model!r}" if self.model else ""
        folds = f"{len(self.folds)} fold{'' if len(self.folds) == 1 else 's'}"
        verdict = "planned" if self.made == "plan" else self._outcome.status
        return f"<Report{name}: {folds}, {self.before.nodes} -> {self.after.nodes} nodes, {verdict}>"

    def _repr_html_(self) -> str:
        from onnx_repfuse.report.notebook import fragment

        return fragment(self._outcome)

    def summary(self, *, verbose: bool = False) -> str:
        """The report as text, as the command line prints it; `verbose` names every node, verdict and reason."""
        from rich.console import Console

        from onnx_repfuse.report.text import show

        text = io.StringIO()
        show(
            Console(file=text, width=_WIDTH, markup=False, highlight=False, emoji=False),
            self._outcome,
            verbose,
        )
        return text.getvalue()

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that needs no other file.

        Raises:
            OutputError: it cannot be written, or a file that is no report would be replaced.
        """
        from onnx_repfuse.report.html import render

        outcome = replace(self._outcome, model=self.model or "model in memory")
        _save(path, render([outcome], onnx_repfuse.__version__))

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, as docs/json-schema.md describes it.

        Raises:
            OutputError: it cannot be written, or a file that is no report would be replaced.
        """
        from onnx_repfuse.report.json_report import dumps

        outcome = self._outcome
        _save(path, dumps([outcome], onnx_repfuse.__version__, many=False, exit_code=outcome.exit_code))

    @property
    def _outcome(self) -> Outcome:
        """What the reports of the command line are made from."""
        return Outcome(
            "plan" if self.made == "plan" else "fuse",
            self.model,
            self.output if self.made == "file" else "",
            exit_code=3 if self.made == "nothing" else 0,
            report=self,
            in_memory=self.made == "memory",
        )


def _save(path: str | os.PathLike[str], text: str) -> None:
    place = Path(path)
    try:
        write_report(place, text)
    except OSError as error:
        raise OutputError(f"cannot write '{place}': {error.strerror or error}") from error


@dataclass(frozen=True, repr=False)
class Result:
    """A fused model.

    Attributes:
        report: what was done, what was not, and how it was proved; notebooks show it.
        path: the file written, or None.
        model: the fused model in memory; read from `path` on first use.
    """

    report: Report
    path: Path | None
    _load: Callable[[], onnx.ModelProto]

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The fused model in memory."""
        return self._load()

    def __repr__(self) -> str:
        return f"<Result {str(self.path) if self.path else 'in memory'!r} of {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def summary(self, *, verbose: bool = False) -> str:
        """`Report.summary`."""
        return self.report.summary(verbose=verbose)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """`Report.save_html`."""
        self.report.save_html(path)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """`Report.save_json`."""
        self.report.save_json(path)
