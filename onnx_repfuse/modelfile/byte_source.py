"""Source: bytes that are read where they lie, and copied to another file in blocks.

Files are read, never mapped. Another program may shorten a file while we look at it. A read then ends early and can be
reported; a mapping would end the process (SIGBUS).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from onnx_repfuse.errors import InputError, quoted
from onnx_repfuse.modelfile.protobuf_wire import Buffer

__all__ = ["Sink", "Source"]

CHUNK_BYTES = 4 << 20
SMALL_BYTES = 16 << 20  # model files up to this size are read once, and then no more
WINDOW_BYTES = 16 << 10  # read at once while a large model is scanned: between its weights, a few bytes each


class Sink(Protocol):
    """Where bytes are appended."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append."""


class Source:
    """A regular file that must not change while it is in use, or bytes in memory.

    The file stays open until `close()`, so it can be read on when its name is given to another file.

    Attributes:
        path: the file; None: bytes in memory.
        size: its bytes.
    """

    _file: BinaryIO | None = None
    _data: bytes | None = None

    def __init__(
        self, what: str, *, path: Path | None = None, data: bytes = b"", in_memory: bool = False
    ) -> None:
        """Only look a file up; it is opened when it is read.

        Args:
            what: how errors call it.
            path: the file; None: the bytes are `data`.
            in_memory: whether a small file is read once, as a whole, so that later changes cannot reach us.

        Raises:
            InputError: there is no such regular file.
        """
        self._what = what
        self.path = path
        self.size = len(data)
        if path is None:
            self._data = data
            return
        # Looked up now, so that errors about the tensors of a file come before anything is read or written.
        self._found = self._status()
        if not stat.S_ISREG(self._found.st_mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(self._found.st_mode) else "not a regular file"
            raise InputError(f"{what} {quoted(path)} is {kind}")
        self.size = self._found.st_size
        if in_memory and self.size <= SMALL_BYTES:
            self._data = self._read_file(0, self.size)
            self.close()

    @property
    def buffer(self) -> Buffer:
        """The bytes, to be looked at one by one."""
        return _Window(self) if self._data is None else self._data

    @property
    def file_path(self) -> Path:
        """The file of a source that is one."""
        if self.path is None:
            raise AssertionError("bytes in memory have no file")
        return self.path

    def __del__(self) -> None:
        """A document that nobody closed closes its files when it is forgotten."""
        if self._file is not None:
            self._file.close()

    def read(self, begin: int, end: int) -> bytes | memoryview:
        """The bytes `begin:end`, read-only; of a file, read now. Raises InputError."""
        if self._data is not None:
            return memoryview(self._data)[begin:end]
        return self._read_file(begin, end)

    def write(self, out: Sink) -> None:
        """Append all bytes to `out`."""
        self.copy_to(out, 0, self.size)

    def copy_to(self, out: Sink, begin: int, end: int) -> None:
        """Append the bytes `begin:end` to `out`. Raises InputError."""
        was_open = self._file is not None
        for at in range(begin, end, CHUNK_BYTES):
            out.write(self.read(at, min(end, at + CHUNK_BYTES)))
        if not was_open:  # of a model with a file per tensor, thousands would be open in the end
            self.close()

    def check_unchanged(self) -> None:
        """Raise InputError if the file under that name is not what was opened, or was written to since."""
        if self.path is None:
            return
        if self._data is None:
            if _identity(self._status()) != _identity(self._found):
                raise self._changed()
            return
        # Its clock is too coarse to show every change, but a small file is soon read again.
        again = Source(self._what, path=self.path)
        try:
            if again.size != self.size or again.read(0, again.size) != self._data:
                raise self._changed()
        finally:
            again.close()

    def close(self) -> None:
        """Close the file. A later look opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _status(self) -> os.stat_result:
        with self._errors():
            return os.stat(self.file_path)

    def _read_file(self, begin: int, end: int) -> bytes:
        file = self._open()
        parts: list[bytes] = []
        with self._errors():
            file.seek(begin)
            while begin < end:
                part = file.read(end - begin)
                if not part:  # it became shorter
                    raise self._changed()
                parts.append(part)
                begin += len(part)
            self._check_open_file(file)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _open(self) -> BinaryIO:
        if self._file is None:
            with self._errors():
                file = open(self.file_path, "rb", buffering=0)  # noqa: SIM115
                try:
                    self._check_open_file(file)
                except BaseException:
                    file.close()
                    raise
                self._file = file
        return self._file

    def _check_open_file(self, file: BinaryIO) -> None:
        """Raise InputError if it is not as it was found, or was written to since."""
        now = os.fstat(file.fileno())
        # Not the inode: on Windows an open file and a name may give different ones.
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(f"{self._what} {quoted(self.path)} changed while it was read")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._what} {quoted(self.path)} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a NUL in the name
            raise InputError(f"{self._what} {quoted(self.path)} cannot be read: {error}") from error


class _Window:
    """The bytes of a large file, of which those around the one that was asked for last are in memory."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._begin = 0
        self._block: bytes | memoryview = b""

    def __getitem__(self, at: int, /) -> int:
        place = at - self._begin
        if not 0 <= place < len(self._block):
            self._begin, place = at, 0
            self._block = self._source.read(at, min(at + WINDOW_BYTES, self._source.size))
        return self._block[place]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to, or its name is given to another file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
