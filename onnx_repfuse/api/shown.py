"""What the library returns can show itself in notebooks, be printed and be saved, as the command line's reports are."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import onnx_repfuse
from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile.report_file import write_report
from onnx_repfuse.pipeline.environment import Surroundings
from onnx_repfuse.records.outcome import Outcome

__all__ = ["Shown"]

_WIDTH = 100  # characters of a line of `summary`


class Shown(ABC):
    """Something that reports are made from."""

    surroundings: Surroundings | None

    @property
    @abstractmethod
    def _outcome(self) -> Outcome:
        """What the reports of the command line are made from."""

    def _repr_html_(self) -> str:
        from onnx_repfuse.report.notebook import fragment

        return fragment(self._outcome)

    def summary(self, *, verbose: bool = False) -> str:
        """The report as text, as the command line prints it; `verbose` names every node, verdict and reason."""
        from rich.console import Console

        from onnx_repfuse.report.text import show

        text = io.StringIO()
        console = Console(file=text, width=_WIDTH, markup=False, highlight=False, emoji=False)
        show(console, self._outcome, verbose)
        return text.getvalue()

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page that needs no other file.

        Raises:
            OutputError: it cannot be written, or a file that is no report would be replaced.
        """
        from onnx_repfuse.report.html import render

        outcome = self._with_environment()
        named = replace(outcome, model=outcome.model or "model in memory")
        _save(path, render([named], onnx_repfuse.__version__))

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, as docs/json-schema.md describes it.

        Raises:
            OutputError: it cannot be written, or a file that is no report would be replaced.
        """
        from onnx_repfuse.report.json_report import dumps

        outcome = self._with_environment()
        _save(path, dumps([outcome], onnx_repfuse.__version__, many=False, exit_code=outcome.exit_code))

    def _with_environment(self) -> Outcome:
        """The digests are computed here: who saves no report does not wait for them."""
        found = self.surroundings
        return replace(self._outcome, environment=found.environment() if found is not None else None)


def _save(path: str | os.PathLike[str], text: str) -> None:
    place = Path(path)
    try:
        write_report(place, text)
    except OSError as error:
        raise OutputError(f"cannot write '{place}': {error.strerror or error}") from error
