"""Memory that was freed, given back to the system.

The C library keeps what is freed below its top for later. A closed session leaves holes of most of its weights, which
the next one, with weights of other sizes, fills only in part.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

__all__ = ["give_back"]


def give_back() -> None:
    """Return free memory to the system, where the C library can."""
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return None
