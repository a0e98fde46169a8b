"""SymbolicTensor: which value a tensor holds at each position, whatever its size.

Along each axis there is a cell for each of the first few positions, one cell for all positions between, and a cell for
each of the last few. A cell holds a number, the same at each of its positions, or elements of the *source*: another
tensor whose axes lie on those of this one, at fixed distances from both ends.

Every cell needs at least one position. Constants are split so that this holds. A source has at least one position
along each axis, so where the size is not known there may be no more cells before and after than lie around the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AxisRange",
    "Cells",
    "NotProved",
    "SourceBox",
    "SymbolicTensor",
    "aligned",
    "assigned",
    "concatenated",
    "from_constant",
    "from_source",
    "padded",
    "uniform",
]

Cells = NDArray[Any]
# positions of a padding or a concatenated part, each of which gets a cell: none in use is wider
MAX_PADDING = 64
MAX_CELLS = 1 << 20  # of a tensor; DBB with 2048 channels, padded for 15x15 kernels, takes nearly a half


class NotProved(Exception):  # noqa: N818 - an outcome, not a fault
    """What a tensor holds, or its size, cannot be told for every size at which the model runs."""


@dataclass(frozen=True)
class SourceBox:
    """Where the source lies: its name, which of its axes lies on each axis, positions before and after it."""

    name: str
    axes: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SymbolicTensor:
    """See the module's docstring.

    Attributes:
        values: a number for each cell; of no meaning where `is_source`.
        leading: per axis, how many cells stand before the middle one.
        is_source: which cells hold elements of the source.
        source: where the source lies, if there is one.
    """

    values: Cells
    leading: tuple[int, ...]
    is_source: NDArray[np.bool_]
    source: SourceBox | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return self.values.ndim

    @property
    def trailing(self) -> tuple[int, ...]:
        """Per axis, how many cells stand after the middle one."""
        return tuple(n - 1 - k for n, k in zip(self.values.shape, self.leading, strict=True))

    def transposed(self, perm: Sequence[int]) -> SymbolicTensor:
        """As `np.transpose`."""

        def reordered(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[axis] for axis in perm)

        box = self.source
        if box is not None:
            box = SourceBox(box.name, reordered(box.axes), reordered(box.before), reordered(box.after))
        return SymbolicTensor(
            self.values.transpose(perm), reordered(self.leading), self.is_source.transpose(perm), box
        )

    def split(self, leading: Sequence[int], trailing: Sequence[int]) -> SymbolicTensor:
        """With at least so many cells before and after the middle one, which then stands for fewer positions.

        Raises NotProved if these are too many.
        """
        rest = zip(self.leading, self.trailing, leading, trailing, strict=True)
        _check_cells([1 + max(a, before) + max(b, after) for a, b, before, after in rest])
        result = self
        for axis, (before, after) in enumerate(zip(leading, trailing, strict=True)):
            old_before, old_after = result.leading[axis], result.trailing[axis]
            counts = [1] * result.values.shape[axis]
            # The middle cell is repeated as often as cells are missing.
            counts[old_before] += max(0, before - old_before) + max(0, after - old_after)
            result = SymbolicTensor(
                np.repeat(result.values, counts, axis),
                (*result.leading[:axis], max(before, old_before), *result.leading[axis + 1 :]),
                np.repeat(result.is_source, counts, axis),
                result.source,
            )
        return result

    def broadcast_to_rank(self, rank: int) -> SymbolicTensor:
        """With axes of size one added in front. Raises NotProved if there is a source, or fewer axes are wanted."""
        extra = rank - self.rank
        if extra == 0:
            return self
        if extra < 0 or self.source is not None:
            raise NotProved
        shape = (*(1,) * extra, *self.values.shape)
        return SymbolicTensor(
            self.values.reshape(shape), (*(0,) * extra, *self.leading), self.is_source.reshape(shape)
        )


def _check_cells(shape: Sequence[int]) -> None:
    """Raise NotProved if a tensor of that many cells per axis would take more memory and time than it is worth."""
    if prod(shape) > MAX_CELLS:
        raise NotProved


def from_source(name: str, rank: int) -> SymbolicTensor:
    """A tensor we know nothing about: it is its own source."""
    ones, zeros = (1,) * rank, (0,) * rank
    return SymbolicTensor(
        np.zeros(ones), zeros, np.ones(ones, bool), SourceBox(name, tuple(range(rank)), zeros, zeros)
    )


def uniform(value: Any, rank: int) -> SymbolicTensor:
    """The same value at all positions."""
    ones = (1,) * rank
    return SymbolicTensor(np.full(ones, value), (0,) * rank, np.zeros(ones, bool))


def from_constant(array: Cells) -> SymbolicTensor | None:
    """A constant: along each axis, neighbours that equal the middle row share its cell. None if it is empty."""
    if array.size == 0:
        return None
    leading = []
    for axis, count in enumerate(array.shape):
        rows = np.moveaxis(array, axis, 0).reshape(count, -1)
        # From the middle outwards, as far as the rows are equal: rows low..high become the middle cell.
        low = high = count // 2
        same = (rows == rows[low]).all(axis=1)
        while low > 0 and same[low - 1]:
            low -= 1
        while high + 1 < count and same[high + 1]:
            high += 1
        array = np.take(array, [*range(low), count // 2, *range(high + 1, count)], axis)
        leading.append(low)
    return SymbolicTensor(array, tuple(leading), np.zeros(array.shape, bool))


def aligned(tensors: Sequence[SymbolicTensor], but: int | None = None) -> list[SymbolicTensor]:
    """Tensors of one rank and equal sizes (or size one) with equal cells, along all axes or all `but` one."""
    leading = [max(counts) for counts in zip(*(t.leading for t in tensors), strict=True)]
    trailing = [max(counts) for counts in zip(*(t.trailing for t in tensors), strict=True)]
    if but is not None:
        leading[but] = trailing[but] = 0
    return [tensor.split(leading, trailing) for tensor in tensors]


def _surrounded(box: SourceBox | None, before: Sequence[int], after: Sequence[int]) -> SourceBox | None:
    """The box with so many positions more on both sides of each axis."""
    if box is None:
        return None
    return replace(
        box,
        before=tuple(a + b for a, b in zip(box.before, before, strict=True)),
        after=tuple(a + b for a, b in zip(box.after, after, strict=True)),
    )


def padded(tensor: SymbolicTensor, begin: Sequence[int], end: Sequence[int], value: float) -> SymbolicTensor:
    """As `np.pad` with a constant value, `begin` and `end` positions per axis. Raises NotProved if they are many."""
    if max((*begin, *end), default=0) > MAX_PADDING:
        raise NotProved
    _check_cells([sum(counts) for counts in zip(tensor.values.shape, begin, end, strict=True)])
    pads = list(zip(begin, end, strict=True))
    return SymbolicTensor(
        np.pad(tensor.values, pads, constant_values=value),
        tuple(a + b for a, b in zip(tensor.leading, begin, strict=True)),
        np.pad(tensor.is_source, pads, constant_values=False),
        _surrounded(tensor.source, begin, end),
    )


def concatenated(parts: Sequence[SymbolicTensor], sizes: Sequence[int | None], axis: int) -> SymbolicTensor:
    """As `np.concatenate`. Raises NotProved unless all parts but one are constants of known size along `axis`."""
    # The middle cell of the result is that of the only part whose size may vary.
    is_open = [part.source is not None or size is None for part, size in zip(parts, sizes, strict=True)]
    if sum(is_open) != 1 or len({part.rank for part in parts}) != 1:
        raise NotProved
    number = is_open.index(True)
    detailed = [
        part if index == number else _cell_per_position(part, axis, sizes[index])
        for index, part in enumerate(parts)
    ]
    detailed = aligned(detailed, but=axis)
    before, after = [0] * parts[0].rank, [0] * parts[0].rank
    before[axis] = sum(part.values.shape[axis] for part in detailed[:number])
    after[axis] = sum(part.values.shape[axis] for part in detailed[number + 1 :])
    middle = detailed[number]
    shape = list(middle.values.shape)
    shape[axis] += before[axis] + after[axis]
    _check_cells(shape)
    return SymbolicTensor(
        np.concatenate([part.values for part in detailed], axis),
        tuple(a + b for a, b in zip(middle.leading, before, strict=True)),
        np.concatenate([part.is_source for part in detailed], axis),
        _surrounded(middle.source, before, after),
    )


def _cell_per_position(part: SymbolicTensor, axis: int, size: int | None) -> SymbolicTensor:
    """A part of known size with one cell for each position along `axis`."""
    if size is None or not part.values.shape[axis] <= size <= MAX_PADDING:
        raise NotProved
    leading = [0] * part.rank
    leading[axis] = size - 1 - part.trailing[axis]
    return part.split(leading, [0] * part.rank)


@dataclass(frozen=True)
class AxisRange:
    """Consecutive positions along an axis of unknown size.

        AxisRange(before=b, after=a)                        b : size - a
        AxisRange(before=b, length=k)                       b : b + k
        AxisRange(after=a, length=k, from_end=True)         size - a - k : size - a

    Attributes:
        before, after: positions before and after the range, as far as they matter.
        length: number of positions; None: all between `before` and `after`.
        from_end: a range of that length lies before the last `after` positions.
    """

    before: int = 0
    length: int | None = None
    after: int = 0
    from_end: bool = False

    def as_slice(self, count: int) -> slice:
        """The cells of the range, along an axis of `count` cells that is split for it."""
        if self.length is None:
            return slice(self.before, count - self.after)
        if self.from_end:
            return slice(count - self.after - self.length, count - self.after)
        return slice(self.before, self.before + self.length)


def assigned(
    target: SymbolicTensor,
    ranges: Sequence[AxisRange],
    updates: SymbolicTensor,
    sizes: Sequence[int | None],
) -> SymbolicTensor:
    """`target[ranges] = updates`; `sizes` are the target's, where known.

    Raises NotProved if both have a source, or a cell would have no position at some size.
    """
    if target.rank != updates.rank:
        raise NotProved
    splits = [_split_for_range(target, updates, axis, span) for axis, span in enumerate(ranges)]
    box = _source_after_assignment(target, ranges, updates)
    # The middle cell needs a position, too: of a known size one is left over, of an unknown one the source has it.
    for axis, (size, (leading, trailing, _, _)) in enumerate(zip(sizes, splits, strict=True)):
        around = 0 if box is None else box.before[axis] + box.after[axis]
        if leading + trailing > (around if size is None else size - 1):
            raise NotProved
    whole = target.split([split[0] for split in splits], [split[1] for split in splits])
    part = updates.split([split[2] for split in splits], [split[3] for split in splits])
    index = tuple(span.as_slice(n) for span, n in zip(ranges, whole.values.shape, strict=True))
    values, is_source = whole.values.copy(), whole.is_source.copy()
    values[index], is_source[index] = part.values, part.is_source
    return SymbolicTensor(values, whole.leading, is_source, box)


def _source_after_assignment(
    target: SymbolicTensor, ranges: Sequence[AxisRange], updates: SymbolicTensor
) -> SourceBox | None:
    if updates.source is None:
        return target.source
    if target.source is not None or any(span.length is not None for span in ranges):
        raise NotProved
    return _surrounded(updates.source, [span.before for span in ranges], [span.after for span in ranges])


def _split_for_range(
    target: SymbolicTensor, updates: SymbolicTensor, axis: int, span: AxisRange
) -> tuple[int, int, int, int]:
    """Leading and trailing cells of the target, then of the updates, along an axis: so that they lie on each other."""
    leading, trailing = target.leading[axis], target.trailing[axis]
    new_leading, new_trailing = updates.leading[axis], updates.trailing[axis]
    if span.length is None:
        leading = max(leading, span.before + new_leading)
        trailing = max(trailing, span.after + new_trailing)
        return leading, trailing, leading - span.before, trailing - span.after
    if updates.values.shape[axis] > span.length:
        raise NotProved
    if span.from_end:
        trailing = max(trailing, span.after + span.length)
    else:
        leading = max(leading, span.before + span.length)
    return leading, trailing, span.length - 1 - new_trailing, new_trailing
