"""Kernels that choose channels or positions: permutations, choices and repetitions, and kernels around them.

A choice is a matrix of zeros with a single 1 in each row. It is kept as the list of the channels it chooses. So a
choice of c channels takes c numbers where the matrix has c*c, and is never multiplied out:

    (W P)[:, index[m]] += W[:, m]        in front of a kernel it moves columns  (`ColumnsAt`)
    (P W)[o]            = W[index[o]]    behind a kernel it moves rows          (`RowsAt`)
    P D                 = D' P           it passes what keeps channels apart    (`Picked`)

`Sampled` chooses positions, the same of every channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Derived, DerivedFromOne, Kernel, Vector, input_channels

__all__ = [
    "ColumnsAt",
    "Index",
    "Picked",
    "RowsAt",
    "Sampled",
    "columns_at",
    "picked",
    "rows_at",
    "taps_at",
    "taps_of",
]

Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Picked(Derived):
    """Channel `index[o]` of the input, under row o of `taps`: one channel read for each one written.

    Attributes:
        geometry: that of `taps`, but without groups and with any number of input channels.
        index: (c_out,), from 0 to c_in - 1, in any order and with repetitions.
        taps: one kernel per output channel, a geometry with as many groups as channels. A `Vector` of ones where the
            operator does nothing but choose.
    """

    geometry: Geometry
    index: Index
    taps: Kernel

    @property
    def is_choice(self) -> bool:
        """Nothing is computed: channels are copied."""
        return isinstance(self.taps, Vector) and self.taps.is_one

    @property
    def is_permutation(self) -> bool:
        """Every input channel is read once."""
        count = self.geometry.c_in
        return len(self.index) == count and not np.count_nonzero(np.sort(self.index) != np.arange(count))

    def operands(self) -> tuple[Kernel, ...]:
        return (self.taps,)

    def rows(self, lo: int, hi: int) -> Array:
        taps = self.taps.rows(lo, hi)
        result = np.zeros((hi - lo, self.geometry.c_in, *taps.shape[2:]))
        result[np.arange(hi - lo), self.index[lo:hi]] = taps[:, 0]
        return result


@dataclass(frozen=True, eq=False)
class Sampled:
    """Every channel at the positions `stride*i + origin`: a single tap, of 1, which does not read padding."""

    geometry: Geometry
    depth: int = field(default=0, init=False)
    size: int = field(default=1, init=False)

    def rows(self, lo: int, hi: int) -> Array:
        return np.ones((hi - lo, *self.geometry.weight_shape[1:]))


@dataclass(frozen=True, eq=False)
class RowsAt(DerivedFromOne):
    """Row o is row `index[o]` of `inner`: `P @ inner`."""

    geometry: Geometry
    index: Index
    inner: Kernel

    def rows(self, lo: int, hi: int) -> Array:
        wanted = self.index[lo:hi]
        first, last = int(wanted.min()), int(wanted.max()) + 1
        weight = self.inner.rows(first, last)[wanted - first]
        inner, out = self.inner.geometry, self.geometry
        if inner.groups == out.groups or weight.shape[1] == out.c_in // out.groups:
            return weight
        return _in_columns(weight, input_channels(inner, first, last)[wanted - first], out, lo)


@dataclass(frozen=True, eq=False)
class ColumnsAt(DerivedFromOne):
    """What `inner` reads from channel m is read from channel `index[m]`: `inner @ P`. Columns of one channel add up."""

    geometry: Geometry
    index: Index
    inner: Kernel

    def rows(self, lo: int, hi: int) -> Array:
        channels = self.index[input_channels(self.inner.geometry, lo, hi)]
        return _in_columns(self.inner.rows(lo, hi), channels, self.geometry, lo)


def _in_columns(weight: Array, channels: Index, out: Geometry, lo: int) -> Array:
    """Rows lo.. of `out`, given entries (rows, n, *kernel) and the input channel (rows, n) of each; they add up."""
    width = out.c_in // out.groups
    start = np.arange(lo, lo + len(weight)) // (out.c_out // out.groups) * width
    result = np.zeros((len(weight), width, *weight.shape[2:]))
    np.add.at(result, (np.arange(len(weight))[:, None], channels - start[:, None]), weight)
    return result


def picked(index: Index, taps: Kernel, c_in: int) -> Kernel:
    """The channels `index` of c_in, under `taps`; `taps` alone where each channel stays where it is."""
    if len(index) == c_in and np.array_equal(index, np.arange(c_in)):
        return taps
    return Picked(replace(taps.geometry, c_in=c_in, groups=1), index, taps)


def taps_of(kernel: Kernel) -> Kernel:
    """What is left to compute once channels are chosen."""
    return kernel.taps if isinstance(kernel, Picked) else kernel


def taps_at(taps: Kernel, index: Index) -> Kernel:
    """The rows `index` of a kernel with one input channel per output channel."""
    if isinstance(taps, Vector):
        return Vector(Geometry.diagonal(len(index), *_rank_axis(taps.geometry)), taps.scale[index])
    count = len(index)
    geometry = replace(taps.geometry, c_in=count, c_out=count, groups=count)
    return Sampled(geometry) if isinstance(taps, Sampled) else RowsAt(geometry, index, taps)


def _rank_axis(geometry: Geometry) -> tuple[int, int]:
    return geometry.rank, geometry.channel_axis


def rows_at(kernel: Kernel, index: Index) -> Kernel:
    """`P @ kernel`; the groups stay where each new one has the rows of one old one, in the same order."""
    f = kernel.geometry
    groups = _groups_kept(f, index // (f.c_out // f.groups), len(index))
    return RowsAt(replace(f, c_out=len(index), groups=groups), index, kernel)


def columns_at(kernel: Kernel, index: Index, c_in: int) -> Kernel:
    """`kernel @ P`; as many groups as both have, those that P does not mix."""
    g = kernel.geometry
    groups = gcd(g.groups, c_in)
    width, blocks = c_in // groups, len(index) // groups
    is_kept = np.array_equal(index // width, np.arange(len(index)) // blocks)
    return ColumnsAt(replace(g, c_in=c_in, groups=groups if is_kept else 1), index, kernel)


def _groups_kept(f: Geometry, group: Index, count: int) -> int:
    """f's groups, if `count` rows of these groups are divided among them evenly and in order; else 1."""
    if count % f.groups:
        return 1
    in_order = np.arange(count) // (count // f.groups)
    return f.groups if np.array_equal(group, in_order) else 1
