"""External data: which bytes of which file a tensor means, and whether it may.

A model file is data from strangers. A location must be relative, stay in the model's folder also after
symbolic links are followed, and name a regular file in which offset and length lie. When the model itself
is reached through a link (as in a download cache), the folder of the link's target counts as the model's
folder, too.
"""

from __future__ import annotations

import ntpath
import os
import re
from collections.abc import Mapping
from pathlib import Path

from onnx_repfuse.errors import InputError, UnsafePathError
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.protobuf_wire import shown

__all__ = ["ExternalFiles"]

_OPEN_AT_ONCE = 64  # one file per tensor is a common layout, and file descriptors are few
_NUMBER = re.compile(r"[0-9]{1,18}")


class ExternalFiles:
    """The data files of one model, each looked up once.

    Attributes:
        files: location, normalised and relative to the model's folder -> the file.
    """

    def __init__(self, base_dir: Path | None, model: Path | None) -> None:
        self.files: dict[str, Source] = {}
        self._base = base_dir
        self._model = model
        self._roots: list[str] = []
        self._open: list[Source] = []

    def find(self, label: str, entries: Mapping[str, str], expected: int | None) -> tuple[Source, int, int]:
        """The file, begin and end that `external_data` means; `expected` is the size its shape asks for."""
        source = self._file(label, entries.get("location", ""))
        begin = _number(label, "offset", entries.get("offset", "0"))
        if "length" in entries:
            size = _number(label, "length", entries["length"])
        else:
            size = max(0, source.size - begin) if expected is None else expected
        if begin + size > source.size:
            raise InputError(
                f"{label}: bytes {begin} to {begin + size} lie outside of its data file"
                f" {shown(source.path)} of {source.size} bytes"
            )
        return source, begin, begin + size

    def touch(self, source: Source) -> None:
        """Note that a file is about to be read; of many files only the latest stay open."""
        if source not in self._open:
            self._open.append(source)
            if len(self._open) > _OPEN_AT_ONCE:
                self._open.pop(0).close()

    def close(self) -> None:
        """Close every file."""
        for source in self.files.values():
            source.close()
        self._open.clear()

    def _file(self, label: str, location: str) -> Source:
        if location in self.files:
            return self.files[location]
        clean = self._clean(label, location)
        if clean not in self.files:
            if self._base is None:
                raise InputError(
                    f"{label} is stored in {shown(location)}, but the model's folder is not known"
                )
            path = self._base / clean
            self._stay_inside(label, location, path)
            self.files[clean] = Source(f"{label}: its data file", path=path)
        self.files[location] = self.files[clean]
        return self.files[clean]

    def _clean(self, label: str, location: str) -> str:
        if not location or "\0" in location:
            raise InputError(f"{label}: external data without a file name")
        if os.path.isabs(location) or ntpath.isabs(location) or ntpath.splitdrive(location)[0]:
            raise UnsafePathError(f"{label}: the path of its data file is absolute: {shown(location)}")
        clean = os.path.normpath(location)
        if clean.split(os.sep)[0] == ".." or ntpath.normpath(location).split("\\")[0] == "..":
            raise UnsafePathError(
                f"{label}: its data file lies outside of the model's folder: {shown(location)}"
            )
        return clean

    def _stay_inside(self, label: str, location: str, path: Path) -> None:
        if not self._roots and self._base is not None:
            self._roots = [os.path.realpath(self._base)]
            if self._model is not None:
                self._roots.append(os.path.dirname(os.path.realpath(self._model)))
        real = os.path.realpath(path)
        if not any(real.startswith(root.rstrip(os.sep) + os.sep) for root in self._roots):
            raise UnsafePathError(
                f"{label}: its data file is a link that leaves the model's folder: {shown(location)}"
            )


def _number(label: str, what: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InputError(f"{label}: the {what} of its external data is not a number: {text[:40]!r}")
    return int(text)
