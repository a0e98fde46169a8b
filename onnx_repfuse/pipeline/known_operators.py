"""Misspelled operators: no model has them, so whatever is asked of them would be done."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from onnx_repfuse.errors import UsageError

__all__ = ["check_operators"]


def check_operators(flag: str, ops: Collection[str]) -> None:
    """Raise UsageError for an operator that `flag` misspells; others may be the user's own."""
    if not ops:
        return  # to list all operators takes as long as a small plan
    import onnx  # takes its time, and is needed only where operators are named

    # with the history, since old operators such as Upsample may be asked for, too
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    for op in ops:
        near = None if op in names else _misspelled(op, names)
        if near:
            raise UsageError(f"{flag}: there is no operator '{op}'; did you mean '{near}'?")


def _misspelled(op: str, names: set[str]) -> str | None:
    """The ONNX operator that was meant; None if it seems to be an operator of the user's own."""
    by_lower = {name.lower(): name for name in sorted(names)}
    short = op.lower()
    if len(op) > 3:  # BatchNorm for BatchNormalization; an "Op" is the beginning of anything
        for name in by_lower:
            if name.startswith(short):
                return by_lower[name]
    close = difflib.get_close_matches(short, by_lower, 1, 0.8)
    return by_lower[close[0]] if close else None
