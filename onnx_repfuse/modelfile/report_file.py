"""Writing a report: whole or not at all, and over no file that is no report."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["is_precious", "write_report"]


def is_precious(path: Path) -> bool:
    """Whether a file is not text, as every report is: the external data of a model, for example."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        begin = file.read(1 << 16)  # a binary file has zero bytes early on
    return b"\0" in begin


def write_report(path: Path, text: str) -> None:
    """Write a whole file or none. A link stays a link, and a pipe or device (/dev/stdout) is written to.

    Raises:
        OSError: it cannot be written; of those, FileExistsError: there is a file that is no report.
    """
    data = text.encode("utf-8", "backslashreplace")
    if is_precious(path):
        raise FileExistsError(0, "the file that is there is no report")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}."[:50])
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's file is for its owner only
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
