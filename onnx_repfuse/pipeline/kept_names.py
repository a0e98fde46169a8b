"""Globs of nodes to keep that match no node: a slip, after which everything would fold."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from onnx_repfuse.errors import UsageError

__all__ = ["check_keep", "matches"]

_WILD = "*?["


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the globs matches the name of a node."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_keep(patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest name, for a glob that matches none of the nodes' names."""
    known = list(dict.fromkeys(names))
    for pattern in patterns:
        if known and not any(fnmatchcase(name, pattern) for name in known):
            near = _nearest(pattern, known)
            hint = f"did you mean '{near}'?" if near else "--list-nodes prints their names"
            raise UsageError(f"no node's name matches '{pattern}', which is to be kept; {hint}")


def _nearest(pattern: str, names: list[str]) -> str | None:
    """The glob that was meant: in other letters, without what is wrong in front, or the nearest in its letters."""
    short = pattern.lower()
    for name in names:
        if fnmatchcase(name.lower(), short):
            return name
    if not any(mark in pattern for mark in _WILD):
        return next(iter(difflib.get_close_matches(pattern, names, 1)), None)
    if any(fnmatchcase(name, f"*{pattern}") for name in names):
        return f"*{pattern}"
    begins = {name[: index + 1] for name in names for index, letter in enumerate(name) if letter in "/._"}
    return next(iter(difflib.get_close_matches(pattern, [f"{begin}*" for begin in begins], 1)), None)
