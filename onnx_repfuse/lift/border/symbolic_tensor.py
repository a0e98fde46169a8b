"""Canvas: what a tensor holds at every position, whatever its size.

Per axis a canvas has cells for the first few positions, one cell for all positions between, and cells for the last
few. A cell holds a number, the same wherever it stands for several positions, or a part of the *core*: another
tensor, whose axes lie on those of the canvas at fixed distances from both ends. Exporters write "pad, then assign the
border" as dozens of nodes that only move and place values; on a canvas each of them is a small array operation, and
exact at every size at which the nodes run.

A split into cells needs a position for each of them. Constants are split so that there is one; a core has at least
one position, so cells beyond those around it are refused where the size is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Place",
    "Span",
    "SymbolicTensor",
    "aligned",
    "assigned",
    "blank",
    "concatenated",
    "constant",
    "padded",
]

Cells = NDArray[Any]


@dataclass(frozen=True)
class Place:
    """Where the core lies: its name, which of its axes is on each axis of the canvas, distances to both ends."""

    name: str
    axes: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SymbolicTensor:
    """See the module's docstring.

    Attributes:
        values: a number for each cell; of no meaning where `inside`.
        first: per axis, how many cells stand before the one between; the rest stand after it.
        inside: which cells belong to the core.
        place: where the core lies, if there is one.
    """

    values: Cells
    first: tuple[int, ...]
    inside: NDArray[np.bool_]
    place: Place | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.values.ndim

    @property
    def last(self) -> tuple[int, ...]:
        """Per axis, how many cells stand after the one between."""
        return tuple(n - 1 - f for n, f in zip(self.values.shape, self.first, strict=True))

    def transposed(self, perm: Sequence[int]) -> SymbolicTensor:
        """With its axes in another order."""
        place = self.place
        if place is not None:
            place = Place(
                place.name, *(tuple(p[a] for a in perm) for p in (place.axes, place.before, place.after))
            )
        first = tuple(self.first[a] for a in perm)
        return SymbolicTensor(self.values.transpose(perm), first, self.inside.transpose(perm), place)

    def split(self, first: Sequence[int], last: Sequence[int]) -> SymbolicTensor:
        """With at least so many cells before and after: the one between stands for fewer positions."""
        result = self
        for axis, (f, b) in enumerate(zip(first, last, strict=True)):
            old_first, old_last = result.first[axis], result.last[axis]
            counts = [1] * result.values.shape[axis]
            counts[old_first] += max(0, f - old_first) + max(0, b - old_last)
            result = SymbolicTensor(
                np.repeat(result.values, counts, axis),
                (*result.first[:axis], max(f, old_first), *result.first[axis + 1 :]),
                np.repeat(result.inside, counts, axis),
                result.place,
            )
        return result

    def widened(self, rank: int) -> SymbolicTensor | None:
        """With axes added in front, as numpy broadcasts; not for a canvas with a core."""
        extra = rank - self.rank
        if extra < 0 or (extra and self.place is not None):
            return None
        shape = (*(1,) * extra, *self.values.shape)
        return replace(
            self,
            values=self.values.reshape(shape),
            first=(*(0,) * extra, *self.first),
            inside=self.inside.reshape(shape),
        )


def blank(name: str, rank: int) -> SymbolicTensor:
    """A tensor we know nothing about: all core."""
    ones, zeros = (1,) * rank, (0,) * rank
    place = Place(name, tuple(range(rank)), zeros, zeros)
    return SymbolicTensor(np.zeros(ones), zeros, np.ones(ones, bool), place)


def constant(array: Cells) -> SymbolicTensor | None:
    """A constant, with the fewest cells around the middle of each axis."""
    if array.size == 0:
        return None
    first = []
    for axis, count in enumerate(array.shape):
        rows = np.moveaxis(array, axis, 0).reshape(count, -1)
        low = high = count // 2
        same = (rows == rows[low]).all(axis=1)
        while low > 0 and same[low - 1]:
            low -= 1
        while high + 1 < count and same[high + 1]:
            high += 1
        array = np.take(array, [*range(low), count // 2, *range(high + 1, count)], axis)
        first.append(low)
    return SymbolicTensor(array, tuple(first), np.zeros(array.shape, bool))


def aligned(canvases: Sequence[SymbolicTensor]) -> list[SymbolicTensor]:
    """Canvases of one rank and equal sizes (or size one), with equal cells."""
    first = [max(n) for n in zip(*(c.first for c in canvases), strict=True)]
    last = [max(n) for n in zip(*(c.last for c in canvases), strict=True)]
    return [c.split(first, last) for c in canvases]


def padded(canvas: SymbolicTensor, begin: Sequence[int], end: Sequence[int], value: float) -> SymbolicTensor:
    """With cells of `value` around it."""
    pads = list(zip(begin, end, strict=True))
    place = canvas.place
    if place is not None:
        before, after = (
            tuple(a + b for a, b in zip(old, new, strict=True))
            for old, new in ((place.before, begin), (place.after, end))
        )
        place = replace(place, before=before, after=after)
    return SymbolicTensor(
        np.pad(canvas.values, pads, constant_values=value),
        tuple(f + b for f, b in zip(canvas.first, begin, strict=True)),
        np.pad(canvas.inside, pads, constant_values=False),
        place,
    )


def concatenated(
    parts: Sequence[SymbolicTensor], counts: Sequence[int | None], axis: int
) -> SymbolicTensor | None:
    """One after the other along `axis`; all but one have a known number of positions there."""
    open_ends = [i for i, (part, n) in enumerate(zip(parts, counts, strict=True)) if part.place or n is None]
    if len(open_ends) != 1 or len({part.rank for part in parts}) != 1:
        return None
    middle = open_ends[0]
    whole = []
    for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
        if i != middle and (count is None or count > 64 or count < part.values.shape[axis]):
            return None
        spread = [0] * part.rank
        spread[axis] = 0 if i == middle or count is None else count - 1 - part.last[axis]
        whole.append(part.split(spread, [0] * part.rank))
    first = [max(n) for n in zip(*(c.first for c in whole), strict=True)]
    last = [max(n) for n in zip(*(c.last for c in whole), strict=True)]
    first[axis] = last[axis] = 0
    whole = [part.split(first, last) for part in whole]
    ahead = sum(part.values.shape[axis] for part in whole[:middle])
    behind = sum(part.values.shape[axis] for part in whole[middle + 1 :])
    place = whole[middle].place
    if place is not None:
        before, after = list(place.before), list(place.after)
        before[axis] += ahead
        after[axis] += behind
        place = replace(place, before=tuple(before), after=tuple(after))
    start = list(whole[middle].first)
    start[axis] += ahead
    return SymbolicTensor(
        np.concatenate([part.values for part in whole], axis),
        tuple(start),
        np.concatenate([part.inside for part in whole], axis),
        place,
    )


@dataclass(frozen=True)
class Span:
    """Consecutive positions of an axis, `skip` from the beginning, `keep` of them (None: all but the last `drop`)."""

    skip: int = 0
    keep: int | None = None
    drop: int = 0
    from_end: bool = False


def assigned(
    canvas: SymbolicTensor, spans: Sequence[Span], updates: SymbolicTensor, sizes: Sequence[int | None]
) -> SymbolicTensor | None:
    """`canvas[spans] = updates`; `sizes` are the canvas's, where known."""
    if canvas.rank != updates.rank or (canvas.place and updates.place):
        return None
    place = canvas.place
    if updates.place is not None:
        before = tuple(b + s.skip for b, s in zip(updates.place.before, spans, strict=True))
        after = tuple(a + s.drop for a, s in zip(updates.place.after, spans, strict=True))
        place = replace(updates.place, before=before, after=after)
    first, last = list(canvas.first), list(canvas.last)
    new_first, new_last = list(updates.first), list(updates.last)
    for axis, span in enumerate(spans):
        if span.keep is None:
            first[axis] = max(first[axis], span.skip + updates.first[axis])
            last[axis] = max(last[axis], span.drop + updates.last[axis])
            new_first[axis], new_last[axis] = first[axis] - span.skip, last[axis] - span.drop
            continue
        if updates.place is not None or updates.values.shape[axis] > span.keep:
            return None
        new_first[axis], new_last[axis] = span.keep - 1 - updates.last[axis], updates.last[axis]
        if span.from_end:
            last[axis] = max(last[axis], span.drop + span.keep)
        else:
            first[axis] = max(first[axis], span.skip + span.keep)
    for axis, size in enumerate(sizes):
        around = place.before[axis] + place.after[axis] if place else 0
        if first[axis] + last[axis] > (around if size is None else size - 1):
            return None  # some size would not have a position for every cell
    whole, part = canvas.split(first, last), updates.split(new_first, new_last)
    index = []
    for axis, span in enumerate(spans):
        count = whole.values.shape[axis]
        if span.keep is None:
            index.append(slice(span.skip, count - span.drop))
        elif span.from_end:
            index.append(slice(count - span.drop - span.keep, count - span.drop))
        else:
            index.append(slice(span.skip, span.skip + span.keep))
    values, inside = whole.values.copy(), whole.inside.copy()
    values[tuple(index)], inside[tuple(index)] = part.values, part.inside
    return SymbolicTensor(values, whole.first, inside, place)
