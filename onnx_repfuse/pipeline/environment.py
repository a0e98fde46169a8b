"""The environment of a run, for reports."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnx_repfuse.options import Options
from onnx_repfuse.records.environment import Environment, FileDigest

__all__ = ["Surroundings", "digest", "environment"]

_PACKAGES = (
    *("onnx", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    *("onnx-graphsurgeon", "numpy", "onnxsim", "onnxslim"),
)
_BLOCK = 1 << 20  # bytes, that are read at once
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class _File:
    """A model file at the time of a run; `identity` changes when it is written to, or another gets its name."""

    role: str
    path: Path
    identity: tuple[int, ...] | None

    @classmethod
    def now(cls, role: str, path: Path) -> _File:
        return cls(role, path, _identity(path))

    def digest(self) -> FileDigest | None:
        """Size and SHA-256 of the file; None if it is not what it was."""
        found = digest(self.role, self.path)
        return found if self.identity is not None and self.identity == _identity(self.path) else None


@dataclass(frozen=True)
class Surroundings:
    """The environment of a run that ended, whose files are looked at only when somebody wants their digests."""

    ended: Environment
    files: tuple[_File, ...] = ()
    digests: tuple[FileDigest, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, options: Options, **files: str | Path) -> Surroundings:
        """Those of a run that begins now; `files` are role -> path, "" for a model in memory."""
        found = tuple(_File.now(role, Path(path)) for role, path in files.items() if path)
        return cls(environment(options), found)

    def with_digests(self) -> Surroundings:
        """The digests of the files as they are now: for files that the run is to replace."""
        return replace(self, files=(), digests=tuple(filter(None, (file.digest() for file in self.files))))

    def after(self, **files: str | Path) -> Surroundings:
        """The same at the end of the run, which wrote these files."""
        made = tuple(_File.now(role, Path(path)) for role, path in files.items() if path)
        return replace(self, ended=replace(self.ended, date=_now()), files=(*self.files, *made))

    def environment(self) -> Environment:
        """With the digests of the files that are what they were."""
        digests = filter(None, (file.digest() for file in self.files))
        return replace(self.ended, files=(*self.digests, *digests))


def environment(options: Options, files: tuple[FileDigest, ...] = ()) -> Environment:
    """The environment of this process, now.

    >>> found = environment(Options(opset=17, keep=("/head/*",)))
    >>> found.options, sorted(found.versions)[-1]
    ({'keep': '/head/*', 'opset': '17'}, 'python')
    """
    return Environment(
        _now(),
        f"{platform.system()} {platform.machine()}",
        _processor(),
        _cores(),
        {"python": platform.python_version(), **_versions()},
        dict(_chosen(options)),
        files,
    )


def digest(role: str, path: Path) -> FileDigest | None:
    """Size and SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            found, size = hashlib.sha256(), 0
            while block := file.read(_BLOCK):
                found.update(block)
                size += len(block)
            return FileDigest(role, size, found.hexdigest())
    except OSError:
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _identity(path: Path) -> tuple[int, ...] | None:
    """None of a file that cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@cache
def _versions() -> dict[str, str]:
    """Package -> version, of those that are installed; this one says itself what it is."""
    from onnx_repfuse import (
        __version__,  # not of the package's metadata, which an editable install keeps as it was
    )

    found = {"onnx-repfuse": __version__}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _processor() -> str:
    """Its name. `platform.processor` gives the machine type, or nothing, on Linux."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _cores() -> int:
    # where a container or taskset gives a process fewer cores than there are
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(options: Options) -> Iterator[tuple[str, str]]:
    """Options that differ from their defaults, as text."""
    default = Options()
    for entry in fields(options):
        value = getattr(options, entry.name)
        if value != getattr(default, entry.name):
            yield entry.name, _text(value)


def _text(value: object) -> str:
    """A value in words: lists with commas, sets in order, shapes as on the command line.

    >>> _text(frozenset({"b", "a"})), _text({"x": (1, 3)}), _text(((None, Path("x.npz")),)), _text(True)
    ('a, b', 'x:1,3', 'x.npz', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in value.items())
    if isinstance(value, frozenset):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, tuple):
        return ", ".join(_text(item) for item in value if item is not None)
    return str(value)
