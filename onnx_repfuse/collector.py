"""The cyclic garbage collector, kept from walking a growing plan again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]

LARGE = 200_000  # objects; fewer are looked at in less time than a full collection takes
_left_over = -1  # full collections there had been when a pause made objects old that may be garbage


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector: planning makes many small objects, and hardly a cycle.

    Much that was made meanwhile then counts as old: the next round of collecting, which would come at once, need not
    look at all of it. Nor would a later one for long, and graphs are full of cycles; so the next pause begins with a
    full collection, unless there was one, and never more than one pause is left over.
    """
    global _left_over
    enabled = gc.isenabled()
    if enabled and _left_over == _full_collections():
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # not a handful, and not if somebody's frozen objects would thaw
            if gc.get_count()[0] > LARGE and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
                _left_over = _full_collections()
            gc.enable()


def _full_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])
