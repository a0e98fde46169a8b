"""A private folder beside the output, for what is not proved yet.

It is on the output's file system, so that a file in it can be given its final name in one step. A run that is killed
leaves its folder; the next run in the same place removes it. A folder is removed only if it is ours without doubt:
a real folder with exactly such a name, of this user, and in it a `.lock` of this user that no process holds.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from onnx_repfuse.errors import OutputError, quoted
from onnx_repfuse.modelfile.locks import acquire

__all__ = ["is_work_folder", "work_folder"]

LOCK_NAME = ".lock"
UNLOCKED_SECONDS = 60.0  # a folder as young as this may not be locked yet by the run that made it
_NAME = re.compile(r"\.repfuse-[0-9a-f]{16}")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows: links are recognised by `_is_ours`


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """An empty folder on the output's file system, removed in the end.

    Raises:
        OutputError: it cannot be made.
    """
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"there is no folder {quoted(parent)} to write to")
    _remove_abandoned(parent)  # of runs that were killed here: nobody else would
    folder = parent / f".repfuse-{secrets.token_hex(8)}"
    try:
        folder.mkdir(0o700)
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise OutputError(f"cannot write to {quoted(parent)}: {error.strerror}") from error
    try:
        acquire(lock, wait=False)
        yield folder
    finally:
        _remove(folder, lock)


def is_work_folder(path: Path) -> bool:
    """Whether a folder has the name of a work folder, in which only its run writes."""
    return _NAME.fullmatch(path.name) is not None


def _remove(folder: Path, lock: int) -> None:
    """Remove a folder whose lock is ours, and give the lock back."""
    if sys.platform == "win32":  # where an open file cannot be removed
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of runs that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(parent / name)


def _remove_if_abandoned(folder: Path) -> None:
    """Raises OSError for what is none of our folders."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or not _is_ours(status):
        return
    if time.time() - status.st_mtime < UNLOCKED_SECONDS:
        return
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | _NO_LINK)
    except FileNotFoundError:
        folder.rmdir()  # its run was killed at once; a folder with anything in it stays
        return
    status = os.fstat(lock)
    if stat.S_ISREG(status.st_mode) and _is_ours(status) and acquire(lock, wait=False):
        _remove(folder, lock)
    else:
        os.close(lock)


def _is_ours(status: os.stat_result) -> bool:
    """Of this user, where the system says so, and on Windows no link of any kind."""
    if getattr(status, "st_reparse_tag", 0):
        return False
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
