"""A temporary folder beside the output, so that what was verified in it can be given its name in one step.

A run that is killed leaves its folder behind; the next one in the same place removes it. A folder in use holds a
locked file, and the lock ends with the process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from onnx_repfuse.errors import OutputError
from onnx_repfuse.graph.wire import shown

__all__ = ["workspace"]

PREFIX = ".repfuse-"
LOCK = ".lock"
GRACE = 60.0  # seconds in which a new folder may not be locked yet


@contextlib.contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """An empty folder on the output's file system, removed in the end.

    Raises:
        OutputError: it cannot be made.
    """
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"there is no folder {shown(parent)} to write to")
    _sweep(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise OutputError(f"cannot write to {shown(parent)}: {error.strerror}") from error
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove the folders of runs that are no more."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if not name.startswith(PREFIX):
                continue
            folder = parent / name
            with contextlib.suppress(OSError):
                if folder.is_symlink() or not folder.is_dir() or time.time() - folder.stat().st_mtime < GRACE:
                    continue
                lock = _lock(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if another process has it, or there are no such locks.

    The folder itself is locked by whoever publishes in it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
