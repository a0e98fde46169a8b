"""Locks between processes. Each ends with the process that holds it, whatever ends that.

POSIX locks an open file or folder (flock). Windows cannot open folders, so a folder is represented there by a file of
the user's temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["acquire", "folder_lock"]

if sys.platform == "win32":
    import hashlib
    import msvcrt
    import tempfile

    def acquire(descriptor: int, *, wait: bool) -> bool:
        """Lock an open file until it is closed; False if another process has it, or the system cannot."""
        while True:
            os.lseek(descriptor, 0, os.SEEK_SET)  # the byte at the current place is locked
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if wait and error.errno == 36:  # EDEADLOCK: after ten attempts, a second apart
                    continue
                return False
            return True

    def _open_folder(folder: Path) -> int:
        place = os.path.normcase(os.path.realpath(folder))
        name = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return os.open(Path(tempfile.gettempdir(), f"onnx_repfuse-{name}.lock"), os.O_RDWR | os.O_CREAT)

else:
    import fcntl

    def acquire(descriptor: int, *, wait: bool) -> bool:
        """Lock an open file until it is closed; False if another process has it, or the system cannot."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        return True

    def _open_folder(folder: Path) -> int:
        return os.open(folder, os.O_RDONLY)  # through links: they lead to the same folder


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, and hold it.

    Some file systems have no locks, and a folder that we may write to may not be readable. Then there is no lock: what
    is done under it has to be safe without.
    """
    try:
        descriptor = _open_folder(folder)
    except OSError:
        yield
        return
    try:
        acquire(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
