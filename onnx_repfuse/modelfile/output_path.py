"""Files that no model is written to: an input, a folder, a stream."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnx_repfuse.errors import UsageError

__all__ = ["check_output", "is_same_file"]


def check_output(output: str, models: Iterable[str], *, to_overwrite: str, for_folder: str = "") -> None:
    """Raise UsageError, before anything is read, if a model cannot be meant to be written there.

    Args:
        output: the file.
        models: the inputs of the run, which it must not be.
        to_overwrite: what the caller would say to overwrite an input.
        for_folder: and to write into a folder.
    """
    if any(is_same_file(output, model) for model in models):
        raise UsageError(f"the output '{output}' is an input: {to_overwrite} overwrites it, if you want that")
    if Path(output).is_dir():
        raise UsageError(f"the output '{output}' is a folder: give a file{for_folder}")
    if _is_stream(output):
        raise UsageError(f"the output '{output}' is a stream: a model is written to a file")


def _is_stream(output: str) -> bool:
    """Whether it is a link into /proc, as /dev/stdout is, even where the stream is a file.

    Renaming the finished model onto such a link would replace the link.
    """
    folder = os.path.realpath(os.path.dirname(os.path.abspath(output)))
    return os.path.islink(output) and "/proc/" in f"{folder}/{os.readlink(output)}"


def is_same_file(first: str, second: str) -> bool:
    """Whether two names are one file; of files that do not exist, whether they would be."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))
