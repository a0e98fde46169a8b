"""Files that appear whole or not at all.

A file is written under a temporary name in the folder where it is to appear, brought to the disk, and only
then given its name, in one step of the file system. Whatever happens before that step leaves the folder as
it was.

A temporary folder beside the output, so that what was verified in it can be given its name in one step.

A run that is killed leaves its folder behind; the next one in the same place removes it. A folder in use holds a
locked file, and the lock ends with the process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from onnx_repfuse.errors import OutputError
from onnx_repfuse.modelfile.protobuf_wire import shown

__all__ = ["Staging", "workspace"]

_BUFFER = 1 << 20
PREFIX = ".repfuse-"
LOCK = ".lock"
GRACE = 60.0  # seconds in which a new folder may not be locked yet


def _allow(path: Path, beside: Path) -> None:
    """Give a file the permissions of the one it will replace, if there is one."""
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IMODE(beside.stat().st_mode))


class Staging:
    """A context in which files are written and published; what was not published is removed at its end."""

    def __init__(self, target: Path) -> None:
        """`target` is the file that errors are about."""
        self.target = target
        self._temporary: list[Path] = []
        self._folders: list[Path] = []

    def __enter__(self) -> Staging:
        folder = self.target.parent
        if not folder.is_dir():
            raise OutputError(f"cannot write {shown(self.target)}: there is no folder {shown(folder)}")
        if self.target.exists() and not self.target.is_file():
            kind = "a folder" if self.target.is_dir() else "not a regular file"
            raise OutputError(f"cannot write {shown(self.target)}: it is {kind}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._temporary:
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in reversed(self._folders if kind else []):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {shown(self.target)}: {error.strerror or error}") from error
        if isinstance(error, ValueError) and "null byte" in str(error):
            raise OutputError(f"cannot write {shown(self.target)}: a NUL in its name") from error

    def write(self, fill: Callable[[BinaryIO], None], beside: Path) -> Path:
        """Write a temporary file in the folder of `beside`, whose permissions it takes if that exists."""
        path = beside.parent / f".{beside.name[:200]}.{secrets.token_hex(6)}.tmp"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._temporary.append(path)
        with open(descriptor, "wb", buffering=_BUFFER) as file:
            fill(file)
            file.flush()
            _allow(path, beside)
            os.fsync(file.fileno())
        return path

    def adopt(self, path: Path, beside: Path) -> Path:
        """Take charge of a file that another context wrote on this file system; as for `write`."""
        self._temporary.append(path)
        _allow(path, beside)
        return path

    def folder(self, path: Path) -> None:
        """Make a folder and those above it; they go again if the context fails."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._folders.append(folder)

    def publish(self, temporary: Path, final: Path) -> None:
        """Give a written file its name."""
        os.replace(temporary, final)
        self._temporary.remove(temporary)
        with contextlib.suppress(OSError):  # not every system can bring a folder to the disk
            descriptor = os.open(final.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from publishing in this folder meanwhile, where the system has such locks."""
        descriptor = -1
        try:
            import fcntl

            with contextlib.suppress(OSError):
                descriptor = os.open(self.target.parent, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except ImportError:
            pass
        try:
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)


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
