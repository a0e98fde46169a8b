"""What is known of a kernel that is not computed: which channels it connects, and how large its numbers may be.

    reached(W @ V, x)  =  reached(W, reached(V, x))         reached(W + V, x)  =  reached(W, x) or reached(V, x)

Stored weights are read, but those that nodes compute. What cancels when numbers are multiplied and added is not seen,
but for a kernel that is added to itself with other factors: such a channel counts as connected, and sums may be as
large as their parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, singledispatch

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.choice import ColumnsAt, Picked, RowsAt
from onnx_repfuse.algebra.kernel_slices import Block, Grouped, InLayout, Stacked
from onnx_repfuse.algebra.kernels import (
    Array,
    Composed,
    Kernel,
    Scaled,
    Stored,
    Total,
    Vector,
    input_channels,
)

__all__ = ["Mask", "has_rows_below", "largest_rows", "reached", "zero_channels"]

Mask = NDArray[np.bool_]
BLOCK = 1 << 18  # elements that are read at once


def zero_channels(kernel: Kernel) -> tuple[Mask, Mask]:
    """Output channels that no input reaches, shape (c_out,), and input channels that reach no output, (c_in,)."""
    g = kernel.geometry
    rows = reached(kernel, np.ones(g.c_in, np.bool_), False)
    columns = reached(kernel, np.ones(g.c_out, np.bool_), True)
    return ~rows, ~columns


@singledispatch
def reached(kernel: Kernel, start: Mask, backwards: bool) -> Mask:
    """The channels on the other side of a kernel that those in `start` may reach.

    Args:
        start: of the inputs, shape (c_in,); of the outputs, (c_out,), if `backwards`.
    """
    g = kernel.geometry  # of a kernel that is not known here, any channel may reach any other
    return np.full(g.c_in if backwards else g.c_out, bool(start.any()))


@reached.register
def _(kernel: Stored, start: Mask, backwards: bool) -> Mask:
    g = kernel.geometry
    if kernel.least > 0:
        return np.repeat(
            start.reshape(g.groups, -1).any(axis=1), (g.c_in if backwards else g.c_out) // g.groups
        )
    is_nonzero, inputs = _pattern(kernel), input_channels(g, 0, g.c_out)
    if not backwards:
        return np.asarray(np.any(is_nonzero & start[inputs], axis=1))
    return _scattered(g.c_in, inputs, is_nonzero & start[:, None])


@reached.register
def _(kernel: Vector, start: Mask, backwards: bool) -> Mask:
    return np.asarray(start & (kernel.scale != 0))


@reached.register
def _(kernel: Scaled, start: Mask, backwards: bool) -> Mask:
    first, last = (kernel.outer, kernel.inputs) if backwards else (kernel.inputs, kernel.outer)
    return _nonzero(reached(kernel.inner, _nonzero(start, first), backwards), last)


@reached.register
def _(kernel: Composed, start: Mask, backwards: bool) -> Mask:
    first, last = (kernel.g, kernel.f) if backwards else (kernel.f, kernel.g)
    return reached(last, reached(first, start, backwards), backwards)


@reached.register
def _(kernel: Total, start: Mask, backwards: bool) -> Mask:
    found = []
    for part, rows in _different_parts(kernel):
        first, last = (rows, None) if backwards else (None, rows)
        found.append(_nonzero(reached(part, _nonzero(start, first), backwards), last))
    return np.asarray(np.any(found, axis=0))


def _different_parts(kernel: Total) -> Iterator[tuple[Kernel, Array | None]]:
    """The parts of a sum; of one kernel with several factors the sum of these: x - x is nothing."""
    groups: dict[tuple[int, bytes], list[Kernel]] = {}
    for part in kernel.parts:
        base, inputs = (part.inner, part.inputs) if isinstance(part, Scaled) else (part, None)
        key = id(base), b"" if inputs is None else inputs.tobytes()
        groups.setdefault(key, []).append(part)
    for same in groups.values():
        if len(same) == 1:
            yield same[0], None
            continue
        factors = [1.0 if not isinstance(p, Scaled) or p.outer is None else p.outer for p in same]
        total = np.zeros(kernel.geometry.c_out)
        for factor in factors:
            total = total + factor
        bare = min(same, key=lambda part: isinstance(part, Scaled))
        if isinstance(bare, Scaled):
            bare = Scaled(bare.geometry, bare.inner, None, bare.inputs)
        yield bare, total


@reached.register
def _(kernel: InLayout, start: Mask, backwards: bool) -> Mask:
    return reached(kernel.inner, start, backwards)


@reached.register
def _(kernel: Stacked, start: Mask, backwards: bool) -> Mask:
    if not backwards:
        return np.concatenate([reached(part, start, False) for part in kernel.parts])
    ends = np.cumsum([part.geometry.c_out for part in kernel.parts])[:-1]
    pieces = zip(kernel.parts, np.split(start, ends), strict=True)
    return np.asarray(np.any([reached(part, piece, True) for part, piece in pieces], axis=0))


@reached.register
def _(kernel: Grouped, start: Mask, backwards: bool) -> Mask:
    pieces = zip(kernel.parts, np.split(start, len(kernel.parts)), strict=True)
    return np.concatenate([reached(part, piece, backwards) for part, piece in pieces])


@reached.register
def _(kernel: Block, start: Mask, backwards: bool) -> Mask:
    g, whole = kernel.geometry, kernel.inner.geometry
    here, size, there = (kernel.column, whole.c_in, kernel.row)
    if backwards:
        here, size, there = (kernel.row, whole.c_out, kernel.column)
    wide = np.zeros(size, np.bool_)
    wide[here : here + len(start)] = start
    count = g.c_in if backwards else g.c_out
    return reached(kernel.inner, wide, backwards)[there : there + count]


@reached.register
def _(kernel: Picked, start: Mask, backwards: bool) -> Mask:
    if not backwards:
        return reached(kernel.taps, start[kernel.index], False)
    return _scattered(kernel.geometry.c_in, kernel.index, reached(kernel.taps, start, True))


@reached.register
def _(kernel: RowsAt, start: Mask, backwards: bool) -> Mask:
    if not backwards:
        return reached(kernel.inner, start, False)[kernel.index]
    return reached(kernel.inner, _scattered(kernel.inner.geometry.c_out, kernel.index, start), True)


@reached.register
def _(kernel: ColumnsAt, start: Mask, backwards: bool) -> Mask:
    if not backwards:
        return reached(kernel.inner, start[kernel.index], False)
    return _scattered(kernel.geometry.c_in, kernel.index, reached(kernel.inner, start, True))


@lru_cache(maxsize=8)  # rows and columns are asked one after the other
def _pattern(kernel: Stored) -> Mask:
    """Where a weight has a tap that is not zero, shape (c_out, c_in / groups)."""
    shape = kernel.geometry.weight_shape
    weight = kernel.read()
    return np.asarray(np.any(weight.reshape(*shape[:2], -1) != 0, axis=2))


def _nonzero(mask: Mask, factors: NDArray[np.float64] | None) -> Mask:
    return mask if factors is None else np.asarray(mask & (factors != 0))


def _scattered(count: int, places: NDArray[np.intp], values: Mask) -> Mask:
    """Shape (count,): where a value that is true is put."""
    result = np.zeros(count, np.bool_)
    result[places[values]] = True
    return result


def has_rows_below(kernel: Kernel, limit: float) -> bool:
    """Whether a value of `largest_rows` may be below a limit: mostly what is known of stored weights excludes that."""
    rows = largest_rows(kernel, _least_stored)
    return rows is not None and not bool((rows >= limit).all())


def largest_rows(kernel: Kernel, of_stored: Callable[[Stored], Array] | None = None) -> Array | None:
    """At least the largest magnitude of each output channel, (channels,); None if the kernel would have to be computed.

    Reads stored weights. It is exact but for a sum, of which the parts may cancel, and for factors of input channels.

    Args:
        kernel: the kernel.
        of_stored: what to take for a stored weight; None: what it is.
    """
    if isinstance(kernel, Vector):
        return np.abs(kernel.scale)
    if isinstance(kernel, InLayout):
        return largest_rows(kernel.inner, of_stored)
    if isinstance(kernel, Stored):
        return None if kernel.is_computed else (of_stored or _largest_stored)(kernel)
    if isinstance(kernel, Scaled):
        rows = largest_rows(kernel.inner, of_stored)
        if rows is None:
            return None
        with np.errstate(all="ignore"):  # weights that are not finite are refused later
            rows = rows if kernel.outer is None else rows * np.abs(kernel.outer)
            return rows if kernel.inputs is None else rows * np.abs(kernel.inputs).max(initial=0.0)
    if isinstance(kernel, Total):
        parts = [largest_rows(part, of_stored) for part in kernel.parts]
        known = [part for part in parts if part is not None]
        return np.sum(known, axis=0) if len(known) == len(parts) else None
    return None


def _least_stored(kernel: Stored) -> Array:
    return np.full(kernel.geometry.c_out, kernel.least)


def _largest_stored(kernel: Stored) -> Array:
    weight, channels = kernel.read(), kernel.geometry.c_out
    step = max(1, BLOCK * channels // max(weight.size, 1))
    largest = np.zeros(channels)
    for lo in range(0, channels, step):
        block = weight[lo : lo + step]
        largest[lo : lo + step] = np.abs(block.reshape(len(block), -1)).max(axis=1, initial=0.0)
    return largest
