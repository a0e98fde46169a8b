"""Files that appear whole or not at all, and are what was meant.

A file is written in a folder of our own beside the output, brought to the disk, and only then given its name, in one
step of the file system. Whatever happens before that step leaves the folder of the output as it was. While a file is
written, its checksum is computed. Once it has its name, what is there is read again and compared with it. A checksum is
enough there, as nothing but an accident can have changed a file of ours; where a file of somebody else may have the
same bytes, the two are compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from onnx_repfuse.errors import OutputError, quoted
from onnx_repfuse.modelfile.byte_source import Sink
from onnx_repfuse.modelfile.locks import folder_lock
from onnx_repfuse.modelfile.work_folder import is_work_folder, work_folder

__all__ = ["Staging", "Written"]

BUFFER_BYTES = 1 << 20
CHUNK_BYTES = 4 << 20
# What `os.link` says on a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Written:
    """A file that was written under a temporary name.

    Attributes:
        path: where it is.
        size, checksum: of the bytes that were meant to be written: their number and CRC-32.
    """

    path: Path
    size: int
    checksum: int

    def is_at(self, path: Path) -> bool:
        """Whether a regular file of exactly these bytes is there; a link to one is another file."""
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.size:
                return False
            found = 0
            # Another file is there as long as this one has its first name.
            with contextlib.ExitStack() as stack:
                other = None
                with contextlib.suppress(FileNotFoundError):
                    other = stack.enter_context(_Blocks(self.path))
                for block in stack.enter_context(_Blocks(path)):
                    found = zlib.crc32(block, found)
                    if other is not None and block != next(other, None):
                        return False
        except FileNotFoundError:
            return False
        return found == self.checksum


class _Checked:
    """A file being written, and the checksum of what was meant to be in it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.checksum = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self.checksum = zlib.crc32(data, self.checksum)
        self.size += len(data)
        self._file.write(data)


class _Blocks:
    """The bytes of a file, block by block; each block is gone when the next one is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the context
        self._buffer = memoryview(bytearray(CHUNK_BYTES))

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        count = self._file.readinto(self._buffer)
        if not count:
            raise StopIteration
        return self._buffer[:count]


class Staging:
    """A context in which files are written and published; what was not published is removed at its end."""

    def __init__(self, target: Path) -> None:
        """`target` is the model: errors are about it, and once it is published, the context has succeeded."""
        self.target = target
        self._stack = ExitStack()
        self._count = 0
        self._new: list[Path] = []  # data files and folders that were given their names
        self._model: Path | None = None  # where the model was written, once it is about to get its name

    def __enter__(self) -> Staging:
        folder = self.target.parent
        if not folder.is_dir():
            raise OutputError(f"cannot write {quoted(self.target)}: there is no folder {quoted(folder)}")
        if self.target.exists() and not self.target.is_file():
            kind = "a folder" if self.target.is_dir() else "not a regular file"
            raise OutputError(f"cannot write {quoted(self.target)}: it is {kind}")
        self._folder = self._stack.enter_context(work_folder(self.target))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_model_published():
            for path in reversed(self._new):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
        self._stack.close()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {quoted(self.target)}: {error.strerror or error}") from error
        # What Python raises for a path with a NUL, in words that differ; any other ValueError is a fault of ours.
        if isinstance(error, ValueError) and "\0" in str(self.target):
            raise OutputError(f"cannot write {quoted(self.target)}: a NUL in its name") from error

    def lock(self) -> AbstractContextManager[None]:
        """Keep other runs from publishing in this folder meanwhile, where the system has such locks."""
        return folder_lock(self.target.parent)

    def write(self, fill: Callable[[Sink], None], beside: Path) -> Written:
        """Write a temporary file that takes the permissions of `beside`, if that exists."""
        self._count += 1
        path = self._folder / str(self._count)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            checked = _Checked(file)
            fill(checked)
            file.flush()
            # Readable by those who could read the file that is replaced, and by nobody else.
            _copy_permissions(path, beside)
            os.fsync(file.fileno())
        return Written(path, checked.size, checked.checksum)

    def take_over(self, file: Written, beside: Path) -> Written:
        """Let a file that another context wrote on this file system be published here; as for `write`."""
        _copy_permissions(file.path, beside)
        return file

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it; they go again if the context fails."""
        for folder in reversed((path, *path.parents)):
            if not folder.is_dir():
                # Another run may make it at the same time.
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    self._new.append(folder)

    def publish_data(self, file: Written, final: Path) -> bool:
        """Give a file a name that nobody has, or find the same bytes there.

        Nothing is replaced, not even without a lock. It goes again if the context fails.

        Returns:
            False if the name belongs to something else.

        Raises:
            OutputError: another program changed the file.
        """
        if not _give_new_name(file.path, final):
            return file.is_at(final)
        self._new.append(final)
        _sync_folder(final.parent)
        self._check(file, final)
        return True

    def publish_model(self, model: Written, data: Collection[Path] = ()) -> None:
        """Give the model its name, in place of what had it.

        Args:
            model: as it was written.
            data: its data files. Where locks do not reach (another machine), another run may have removed one.

        Raises:
            OutputError: as for `publish_data`, or a data file is gone.
        """
        self._model = model.path
        os.replace(model.path, self.target)
        _sync_folder(self.target.parent)
        self._check(model, self.target)
        gone = next((path for path in data if not os.path.lexists(path)), None)
        if gone is not None:
            raise OutputError(
                f"{quoted(gone)}, where {quoted(self.target)} has its weights, was removed by another program"
            )

    def _is_model_published(self) -> bool:
        """Whether the model has its name. Its first name is asked, as an interrupt may come right after renaming."""
        return self._model is not None and not os.path.lexists(self._model)

    def _check(self, file: Written, final: Path) -> None:
        # What is proved in a work folder is compared when it leaves it.
        if not is_work_folder(self.target.parent) and not file.is_at(final):
            raise OutputError(
                f"{quoted(final)} is not what was written: another program changed it in the meantime"
            )


def _copy_permissions(path: Path, beside: Path) -> None:
    """Give a file the permissions of the one it will replace, if there is one."""
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IMODE(beside.stat().st_mode))


def _give_new_name(path: Path, final: Path) -> bool:
    """Rename a file, in one step and without replacing anything; False if the name is taken."""
    try:
        if sys.platform == "win32":
            os.rename(path, final)  # refuses there what is taken
        else:
            os.link(path, final)
            os.unlink(path)
    except FileExistsError:
        return False
    except OSError as error:
        if sys.platform == "win32" or error.errno not in _NO_LINKS:
            raise
        return _claim_name(path, final)
    return True


def _claim_name(path: Path, final: Path) -> bool:
    """As `_give_new_name`, where there are no hard links: an empty file takes the name first."""
    try:
        os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    os.replace(path, final)
    return True


def _sync_folder(folder: Path) -> None:
    """Bring a new name to the disk; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
