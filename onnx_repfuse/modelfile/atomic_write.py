"""Files that appear whole or not at all.

A file is written under a temporary name in the folder where it is to appear, brought to the disk, and only
then given its name, in one step of the file system. Whatever happens before that step leaves the folder as
it was.

`workspace` is a temporary folder beside the output, so that a model that was verified in it can be given its name in
one step, too. A run that is killed leaves its folder behind; the next one in the same place removes it. A folder in use
holds a locked file (the folder itself is locked by whoever publishes in it), and the lock ends with the process,
whatever ends it.
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

from onnx_repfuse.errors import OutputError, quoted

__all__ = ["Staging", "workspace"]

BUFFER_BYTES = 1 << 20
FOLDER_PREFIX = ".repfuse-"
LOCK_NAME = ".lock"
UNLOCKED_SECONDS = 60.0  # a folder as young as this may not be locked yet by the run that made it


def _copy_permissions(path: Path, beside: Path) -> None:
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
            raise OutputError(f"cannot write {quoted(self.target)}: there is no folder {quoted(folder)}")
        if self.target.exists() and not self.target.is_file():
            kind = "a folder" if self.target.is_dir() else "not a regular file"
            raise OutputError(f"cannot write {quoted(self.target)}: it is {kind}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._temporary:  # whatever was published is no longer among them
            with contextlib.suppress(OSError):
                path.unlink()
        for folder in reversed(self._folders if kind else []):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {quoted(self.target)}: {error.strerror or error}") from error
        # Python's own message for a path with a NUL; any other ValueError is a fault of ours.
        if isinstance(error, ValueError) and "null byte" in str(error):
            raise OutputError(f"cannot write {quoted(self.target)}: a NUL in its name") from error

    def write(self, fill: Callable[[BinaryIO], None], beside: Path) -> Path:
        """Write a temporary file in the folder of `beside`, whose permissions it takes if that exists."""
        # In the same folder, as a file can be given its name in one step on one file system only.
        path = beside.parent / f".{beside.name[:200]}.{secrets.token_hex(6)}.tmp"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._temporary.append(path)
        with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            fill(file)
            file.flush()
            # Readable by those who could read the file that is replaced, and by nobody else.
            _copy_permissions(path, beside)
            os.fsync(file.fileno())
        return path

    def take_over(self, path: Path, beside: Path) -> Path:
        """Take charge of a file that another context wrote on this file system; as for `write`."""
        self._temporary.append(path)
        _copy_permissions(path, beside)
        return path

    def make_folder(self, path: Path) -> None:
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
    def lock(self) -> Iterator[None]:
        """Keep other runs from publishing in this folder meanwhile, where the system has such locks."""
        descriptor = _lock(self.target.parent, os.O_RDONLY, wait=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


@contextlib.contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """An empty folder on the output's file system, removed in the end.

    Raises:
        OutputError: it cannot be made.
    """
    parent = output.parent
    if not parent.is_dir():
        raise OutputError(f"there is no folder {quoted(parent)} to write to")
    _remove_abandoned(parent)  # of runs that were killed here: nobody else would
    try:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    except OSError as error:
        raise OutputError(f"cannot write to {quoted(parent)}: {error.strerror}") from error
    lock = _lock(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, wait=False)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of runs that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            with contextlib.suppress(OSError):
                folder = parent / name
                if name.startswith(FOLDER_PREFIX) and _may_be_abandoned(folder):
                    lock = _lock(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, wait=False)
                    if lock is not None:
                        shutil.rmtree(folder, ignore_errors=True)
                        os.close(lock)


def _may_be_abandoned(folder: Path) -> bool:
    """Not a link, whose target is not ours; nor a folder so young that its run may not have locked it yet."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return time.time() - folder.stat().st_mtime >= UNLOCKED_SECONDS


def _lock(path: Path, flags: int, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed; the lock ends with the process, too.

    Returns:
        None if another process has it and we do not wait, or if the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return None
