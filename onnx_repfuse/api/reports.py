"""What the library's functions return: a `Report` that can show and save itself, and a `Result` that has one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import onnx

from onnx_repfuse import errors
from onnx_repfuse.api.comparisons import Verification
from onnx_repfuse.api.shown import Shown
from onnx_repfuse.pipeline.environment import Surroundings
from onnx_repfuse.records import report as records
from onnx_repfuse.records.outcome import Outcome

__all__ = ["Report", "Result", "VerificationError"]

Made: TypeAlias = Literal["file", "memory", "plan", "nothing"]


@dataclass(frozen=True, repr=False)
class Report(Shown, records.Report):
    """One run over one model. Notebooks show it, and it can be printed and saved.

    Attributes:
        verification: the verdicts, which can be shown and saved by themselves; None if nothing was verified.
        made: what the run left: a "file", a model in "memory", a "plan" only, or "nothing", since the result was not
            proved equal.
        surroundings: where and how it ran, for files that are saved of the report.

    The others are those of `records.report.Report`.
    """

    verification: Verification | None = None
    made: Made = "memory"
    surroundings: Surroundings | None = field(default=None, compare=False)

    @classmethod
    def of(cls, record: records.Report, made: Made, surroundings: Surroundings | None = None) -> Report:
        """The report of a run that made this."""
        found = {entry.name: getattr(record, entry.name) for entry in fields(records.Report)}
        if record.verification is not None:
            names = (record.model, record.output)
            found["verification"] = Verification.of(record.verification, names, surroundings)
        return cls(**found, made=made, surroundings=surroundings)

    def __repr__(self) -> str:
        name = f" {self.model!r}" if self.model else ""
        folds = f"{len(self.folds)} fold{'' if len(self.folds) == 1 else 's'}"
        verdict = "planned" if self.made == "plan" else self._outcome.status
        return f"<Report{name}: {folds}, {self.before.nodes} -> {self.after.nodes} nodes, {verdict}>"

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


class VerificationError(errors.VerificationError):
    """As its base class; `report`, if there is one, can show and save itself."""

    report: Report | None = None


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
