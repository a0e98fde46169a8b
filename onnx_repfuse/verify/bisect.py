"""Which of many changes breaks the whole, when each alone looked right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["culprits"]

T = TypeVar("T")


def culprits(items: Sequence[T], passes: Callable[[Sequence[T]], bool], limit: int = 16) -> list[T]:
    """The items to leave out so that the rest passes, in the order they were found.

    Each is found by halving: the shortest prefix (of what is left) that fails ends in one. That takes
    log2(len(items)) + 1 calls of `passes` per culprit.

    Args:
        items: the changes, in the order they build on each other.
        passes: whether the result with only these changes, a subsequence of `items`, is right. It is assumed
            to pass without any.
        limit: give up after so many culprits, and name all that is left as well.

    >>> culprits(range(10), lambda kept: 3 not in kept and 7 not in kept)
    [3, 7]
    """
    left = list(items)
    found: list[T] = []
    while left and not passes(left):
        if len(found) >= limit:
            return [*found, *left]
        low, high = 0, len(left)  # left[:low] passes, left[:high] fails
        while high - low > 1:
            middle = (low + high) // 2
            if passes(left[:middle]):
                low = middle
            else:
                high = middle
        found.append(left.pop(high - 1))
    return found
