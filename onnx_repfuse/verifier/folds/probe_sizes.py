"""The sizes at which a fold is probed: small ones where padding is everywhere, and a few that show all weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from onnx_repfuse.verifier.folds.fold_case import FoldCase, reach, total_extent, total_stride
from onnx_repfuse.verifier.folds.windows import pads_half

__all__ = [
    "MAX_PRODUCTS",
    "MOST_REMAINDERS",
    "border_sizes",
    "budget_of",
    "further_sizes",
    "impulse_size",
    "ordinary_size",
    "sees_half",
    "sizes_of_border",
    "sizes_of_remainders",
]

# Products that all stimuli of a fold take together: a network has up to some hundred folds.
MAX_PRODUCTS = 60_000_000
# Positions of all stimuli together: enough for every kind even where weights are many, and no more than help where few.
_MIN_POSITIONS, _MAX_POSITIONS = 110, 2000
_MOST_POSITIONS = 1 << 16  # of one probe, that strides and their remainders may ask for
_LARGE_KERNEL = 8  # extent from which on a kernel gets fewer and smaller sizes (RepLKNet has 31x31)
MOST_REMAINDERS = 8  # of sizes by strides that are tried for the weights of a later fold
_ALL_REMAINDERS = 32  # those of larger strides are tried as far as the sizes above have them


def sizes_of_border(case: FoldCase) -> frozenset[tuple[int, ...]]:
    """The small sizes at which all stimuli of a fold are tried: of many weights, not all of them."""
    axes = max((len(source.space) for source in case.sources), default=0)
    extents, _ = reach(case)
    extents = (extents + (extents[-1:] or (1,)) * axes)[:axes]
    return frozenset(size for size, _ in border_sizes(extents, budget_of(case) // 3)) if axes else frozenset()


def budget_of(case: FoldCase) -> int:
    """The positions that all stimuli of a fold take together."""
    return int(np.clip(MAX_PRODUCTS // max(case.weights, 1), _MIN_POSITIONS, _MAX_POSITIONS))


def border_sizes(extents: tuple[int, ...], budget: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """(sizes from 1 to k + 2 on every axis, rows for each), until the budget of positions is spent.

    The axes are out of step with each other, so that one is small where another is large.
    """
    choices = []
    for axis, extent in enumerate(extents):
        sizes = list(range(1, extent + 3))
        if extent > 5:  # a choice of them: the smallest, around the half, around the extent
            sizes = sorted({1, 2, 3, extent // 2 + 1, extent - 1, extent, extent + 1, extent + 2})
        shift = axis % len(sizes)
        choices.append(sizes[shift:] + sizes[:shift])
    longest = max(len(sizes) for sizes in choices)
    combined = [tuple(sizes[i % len(sizes)] for sizes in choices) for i in range(longest)]
    spent = 0
    for i, size in enumerate(dict.fromkeys(sorted(combined, key=math.prod))):
        rows = 2 if i % 2 == 0 else 1  # the first of two is zeros
        cost = math.prod(size) * rows
        # The two smallest are cheap. The last but one, k + 1, is the first with two outputs that meet no padding.
        is_due = i < 2 or (i == longest - 2 and max(extents) < _LARGE_KERNEL)
        if is_due or spent + cost <= budget:
            spent += cost
            yield size, rows


def sizes_of_remainders(case: FoldCase, tried: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """Sizes with the remainders by the strides that none of the sizes `tried` has where windows fit without padding.

    On the remainder depends what a strided window reads at the end, and how many there are.
    """
    stride, least = total_stride(case), total_extent(case)
    if not 1 < stride <= _ALL_REMAINDERS or not tried:
        return
    seen = [{size % stride for size in sizes if size >= least} for sizes in zip(*tried, strict=True)]
    missing = sorted(
        {(size - least) % stride for size in range(stride) if any(size not in axis for axis in seen)}
    )
    for more in missing:
        if (least + more) ** len(seen) <= _MOST_POSITIONS:
            yield (least + more,) * len(seen)


def impulse_size(extents: tuple[int, ...], budget: int) -> tuple[int, ...]:
    """2k - 1 per axis, where every tap reads the middle from an output that meets no padding; else k."""
    size = tuple(2 * extent - 1 if extent < _LARGE_KERNEL else extent + 2 for extent in extents)
    if math.prod(size) * 4 <= budget:
        return size
    return tuple(max(1, extent) for extent in extents)


def ordinary_size(
    case: FoldCase, extents: tuple[int, ...], strides: tuple[int, ...], budget: int
) -> tuple[int, ...]:
    """A size with more inner positions than padded ones, different on each axis; smaller where that is too many."""
    axes = list(enumerate(zip(extents, strides, strict=True)))
    size = tuple(extent + 2 * stride + 4 + axis for axis, (extent, stride) in axes)
    if math.prod(size) <= budget:
        return size
    size = _small_size(extents, strides)
    if pads_half(case.before) and pads_half(case.after):
        return size
    # A large kernel with less padding would not fit, or have taps that read nothing but padding.
    return tuple(max(pair) for pair in zip(size, extents, strict=True))


def sees_half(case: FoldCase) -> bool:
    """Whether a window sees half of an image of fixed size at once: then some of its taps read some positions alone."""
    extents, _ = reach(case)
    fixed = (dim for source in case.sources for dim in source.dims[2:] if dim is not None)
    return 2 * max(extents, default=1) > min(fixed, default=math.inf)


def further_sizes(
    case: FoldCase, size: tuple[int, ...], extents: tuple[int, ...], strides: tuple[int, ...], budget: int
) -> Iterator[tuple[int, ...]]:
    """Sizes at which the weights of a later fold are tried, too, where one size does not show all that they meet."""
    if case.pads:
        # Whether a strided window reaches the padding behind the input depends on the remainder of its size.
        for more in range(1, min(total_stride(case), MOST_REMAINDERS)):
            yield tuple(count + more * case.block for count in size)
    if case.mixes_without_window:  # where the kernels have one tap, `size` is 1
        yield ordinary_size(case, extents, strides, budget)


def _small_size(extents: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """One more stride than the extent, different on each axis; half the extent of large kernels.

    Without the strides that would take more positions than are worth it, as those of a million.
    """
    reach = [extent if extent < _LARGE_KERNEL else extent // 2 for extent in extents]
    steps = list(strides)
    while True:
        size = tuple(start + step + axis for axis, (start, step) in enumerate(zip(reach, steps, strict=True)))
        if math.prod(size) <= _MOST_POSITIONS or max(steps, default=1) == 1:
            return size
        steps[steps.index(max(steps))] = 1
