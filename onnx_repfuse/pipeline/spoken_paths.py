"""What messages call temporary files: by the names that the user knows, as the files are gone in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onnx_repfuse.errors import RepfuseError, quoted
from onnx_repfuse.records.verdict import Verification

__all__ = ["SpokenPaths"]


class SpokenPaths:
    """The paths of one run that are temporary, and what messages call them."""

    def __init__(self, original: str, output: Path, *, in_memory: bool) -> None:
        """Args:
        original: the input's name; "" of a model in memory.
        output: the file to write.
        in_memory: whether that is a temporary file, too, of which the caller gets the model.
        """
        self._original = original
        self._output = output
        self._in_memory = in_memory
        self._result = "the result" if in_memory else str(output)
        self._place = str(output.parent.parent if in_memory else output.parent)
        self._names = [(str(output), self._result), (str(output.parent), self._place)] if in_memory else []

    def add(self, folder: Path) -> None:
        """Note the work folder: the copy of the input, the result before it is published, and other files."""
        copy = folder / "original" / (Path(self._original).name or "model.onnx")
        inner = [(str(copy), self._original or "the model"), (str(folder / self._output.name), self._result)]
        self._names = [*inner, (f"{folder}{os.sep}", ""), (str(folder), self._place), *self._names]

    def text(self, text: str) -> str:
        """A message without temporary paths; in quotes a long path may have been shortened."""
        for path, name in self._names:
            text = text.replace(quoted(path), quoted(name)).replace(path, name)
        return text

    def verification(self, verification: Verification) -> Verification:
        """The same verdicts without temporary paths."""
        outputs = [replace(verdict, message=self.text(verdict.message)) for verdict in verification.outputs]
        return replace(verification, outputs=tuple(outputs), notes=tuple(map(self.text, verification.notes)))

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Say what is raised inside without temporary paths."""
        try:
            yield
        except RepfuseError as error:
            text = self.text(str(error))
            if text == str(error):
                raise
            spoken = type(error)(text)
            spoken.__dict__.update(error.__dict__)  # the figures of a failed proof
            raise spoken from error
        except OSError as error:
            if isinstance(error.filename, str):
                error.filename = self.text(error.filename)
            raise
