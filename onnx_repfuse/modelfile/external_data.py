"""External data: which bytes of which file a tensor means, and whether it may.

A model file may come from a stranger, and `location` must not make us read or publish other files of this machine. It
must be relative, stay in the model's folder also after symbolic links are followed, and name a regular file in which
offset and length lie. When the model itself is reached through a link (as in the cache of a model hub), the folder of
the link's target counts as the model's folder, too. The format: onnx/docs/ExternalData.md.
"""

from __future__ import annotations

import ntpath
import os
import re
from collections.abc import Mapping
from pathlib import Path

from onnx_repfuse.errors import InputError, UnsafePathError, quoted
from onnx_repfuse.modelfile.byte_source import Source

__all__ = ["ExternalFiles"]

MAX_OPEN_FILES = 64  # one file per tensor is a common layout, and a process has few file descriptors
_NUMBER = re.compile(r"[0-9]{1,18}")


class ExternalFiles:
    """The data files of one model, each looked up once.

    Attributes:
        by_location: location, normalised and relative to the model's folder -> the file.
        as_written: location as the model writes it -> the file.
    """

    def __init__(self, model: Path | None) -> None:
        """`model`: its file; None: it came from memory, and external data is refused."""
        self.by_location: dict[str, Source] = {}
        self.as_written: dict[str, Source] = {}
        self._ranges: dict[int, set[tuple[int, int]]] = {}  # by id() of the file
        self._model = model
        self._folders: list[str] = []
        if model is not None:
            self._folders = [os.path.realpath(model.parent), os.path.dirname(os.path.realpath(model))]
        self._open: list[Source] = []

    def find(self, label: str, entries: Mapping[str, str], expected: int | None) -> tuple[Source, int, int]:
        """The file, and begin and end in it, that `external_data` means.

        Args:
            label: how errors call the tensor.
            entries: its `external_data`.
            expected: the bytes its type and shape ask for; None: unknown.

        Raises:
            UnsafePathError: the file is not in the model's folder.
            InputError: there is no such file, or no such range in it.
        """
        location = entries.get("location", "")
        if location not in self.as_written:
            self.as_written[location] = self._look_up(label, location)
        source = self.as_written[location]
        begin = _number(label, "offset", entries.get("offset", "0"))
        if "length" in entries:  # optional, as is the offset
            size = _number(label, "length", entries["length"])
        else:
            size = max(0, source.size - begin) if expected is None else expected
        if begin + size > source.size:
            raise InputError(
                f"{label}: bytes {begin} to {begin + size} lie outside of its data file"
                f" {quoted(source.path)} of {source.size} bytes"
            )
        self._ranges.setdefault(id(source), set()).add((begin, begin + size))
        return source, begin, begin + size

    def ranges_of(self, source: Source) -> list[tuple[int, int]]:
        """The parts of a file that tensors mean, (begin, end), in order and apart from each other."""
        joined: list[tuple[int, int]] = []
        for begin, end in sorted(self._ranges.get(id(source), ())):
            if joined and begin <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((begin, end))
        return joined

    def touch(self, source: Source) -> None:
        """Note that a file is about to be read; of many files only the latest stay open."""
        if source not in self._open:
            self._open.append(source)
            if len(self._open) > MAX_OPEN_FILES:
                self._open.pop(0).close()

    def close(self) -> None:
        """Close every file."""
        for source in self.by_location.values():
            source.close()
        self._open.clear()

    def _look_up(self, label: str, location: str) -> Source:
        clean = _relative(label, location)
        if clean not in self.by_location:
            if self._model is None:
                raise InputError(
                    f"{label} is external data, in the file {quoted(location)}, which does not come with a model from "
                    "memory or standard input: give the model's path"
                )
            path = self._model.parent / clean
            real = os.path.realpath(path)
            if (
                os.path.realpath(self._model.parent / location) != real
            ):  # runtimes read what the system finds there
                raise UnsafePathError(f"{label}: its data file is behind a link and '..': {quoted(location)}")
            if not any(real.startswith(folder.rstrip(os.sep) + os.sep) for folder in self._folders):
                raise UnsafePathError(
                    f"{label}: its data file is a link that leaves the model's folder: {quoted(location)}"
                )
            self.by_location[clean] = Source(f"{label}: its data file", path=path)
        return self.by_location[clean]


def _relative(label: str, location: str) -> str:
    """A location, normalised. It is refused if any system would take it for a path out of the folder."""
    if not location or "\0" in location:
        raise InputError(f"{label}: external data without a file name")
    # The paths of Windows are refused everywhere, so that a model means the same on every system.
    if os.path.isabs(location) or ntpath.isabs(location) or ntpath.splitdrive(location)[0]:
        raise UnsafePathError(f"{label}: the path of its data file is absolute: {quoted(location)}")
    clean = os.path.normpath(location)
    if clean.split(os.sep)[0] == ".." or ntpath.normpath(location).split("\\")[0] == "..":
        raise UnsafePathError(
            f"{label}: its data file lies outside of the model's folder: {quoted(location)}"
        )
    return clean


def _number(label: str, what: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InputError(f"{label}: the {what} of its external data is not a number: {text[:40]!r}")
    return int(text)
