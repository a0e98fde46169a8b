"""Source: bytes that are read where they lie, and copied to another file without passing through memory."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from onnx_repfuse.errors import InputError, quoted
from onnx_repfuse.modelfile.protobuf_wire import Buffer

__all__ = ["Source"]

CHUNK_BYTES = 4 << 20
MIN_KERNEL_COPY_BYTES = 256 << 10  # shorter ranges are copied from the mapping: one system call less
# What `copy_file_range` says between two file systems, or on one that cannot: then we read and write.
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


class Source:
    """A regular file, mapped read-only when it is first looked at, or bytes in memory.

    The file stays open until `close()`, so it can be read on when its name is given to another file.

    Attributes:
        path: the file; None: bytes in memory.
        size: its bytes.
    """

    _file: BinaryIO | None = None

    def __init__(self, what: str, *, path: Path | None = None, data: bytes = b"") -> None:
        """`what` is how errors call it; a file is only looked up, not opened. Raises InputError."""
        self._what = what
        self.path = path
        self.size = len(data)
        self._data: Buffer | None = data if path is None else None
        if path is None:
            return
        with self._errors():
            # Looked up now, so that errors about the tensors of a file come before anything is read or written.
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise InputError(f"{what} {quoted(path)} is {kind}")
            self.size = status.st_size

    @property
    def buffer(self) -> Buffer:
        """The bytes, indexable; of a file, its mapping."""
        if self._data is None:
            file = self._open()
            with self._errors():
                self._data = (
                    mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else b""
                )
        return self._data

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

    def _open(self) -> BinaryIO:
        if self._file is None:
            with self._errors():
                file = open(self.file_path, "rb", buffering=0)  # noqa: SIM115
                # Ranges were checked against the size: reading a mapping beyond the end would kill the process.
                if os.fstat(file.fileno()).st_size != self.size:
                    file.close()
                    raise InputError(f"{self._what} {quoted(self.path)} changed while it was read")
                self._file = file
        return self._file

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._what} {quoted(self.path)} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a NUL in the name
            raise InputError(f"{self._what} {quoted(self.path)} cannot be read: {error}") from error

    def write(self, out: BinaryIO) -> None:
        """Append all bytes to `out`."""
        self.copy_to(out, 0, self.size)

    def copy_to(self, out: BinaryIO, begin: int, end: int) -> None:
        """Append the bytes `begin:end` to `out`, in the kernel where the system can. Raises InputError."""
        if self.path is None or end - begin < MIN_KERNEL_COPY_BYTES:
            buffer = self.buffer
            for at in range(begin, end, CHUNK_BYTES):
                out.write(buffer[at : min(end, at + CHUNK_BYTES)])
            return
        file = self._open()
        out.flush()  # the kernel appends where the file ends, and knows nothing of Python's buffer
        begin = _copy_in_kernel(file.fileno(), out.fileno(), begin, end)
        file.seek(begin)
        while begin < end:
            block = file.read(min(CHUNK_BYTES, end - begin))
            if not block:
                raise InputError(f"{self._what} {quoted(self.path)} became shorter while it was read")
            out.write(block)
            begin += len(block)

    def release(self) -> None:
        """Give the pages read so far back to the system; they come back when they are looked at again."""
        if isinstance(self._data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError, ValueError):
                self._data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the file; a mapping lives on as long as an array looks into it. A later look opens again."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.path is not None and isinstance(self._data, mmap.mmap):
            with contextlib.suppress(BufferError):  # an array looks into it
                self._data.close()
            self._data = None


def _copy_in_kernel(source: int, target: int, begin: int, end: int) -> int:
    """Copy `begin:end` at the end of `target`; the position reached, `begin` where the kernel cannot."""
    copy: Callable[..., int] | None = getattr(os, "copy_file_range", None)  # Linux only
    while copy is not None and begin < end:
        try:
            done = copy(source, target, min(end - begin, 1 << 30), begin)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            break
        if done == 0:
            break
        begin += done
    return begin
