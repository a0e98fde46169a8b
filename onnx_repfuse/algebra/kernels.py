"""The numbers of an affine convolution, computed late and by blocks of output channels.

A `Kernel` gives rows `lo..hi` of a weight of shape `geometry.weight_shape` in float64. Nothing is read or
multiplied before `rows` is called, so a plan is made without weights and a layer of any size is folded with
temporaries bounded by one block. Rounding to the model's data type happens once, by the caller.

Weights of grouped convolutions: which input channels a row reads, and rows written for other groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.geometry import Geometry

__all__ = [
    "Array",
    "Composed",
    "Kernel",
    "Scaled",
    "Stored",
    "Total",
    "Vector",
    "columns_of",
    "place",
    "push",
    "regroup",
    "repeated",
    "streams",
]

Array = NDArray[np.float64]


class Kernel(Protocol):
    """Rows of a weight; `depth` bounds the nesting of lazily evaluated kernels, `size` how many are evaluated."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def depth(self) -> int: ...

    @property
    def size(self) -> int: ...

    def rows(self, lo: int, hi: int) -> Array:
        """Rows lo..hi, shape (hi - lo, c_in / groups, *kernel), float64: an array that the caller may change."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight that exists; `read` returns it in `geometry.weight_shape`, in any dtype."""

    geometry: Geometry
    read: Callable[[], NDArray[Any]]
    depth: int = field(default=0, init=False)
    size: int = field(default=1, init=False)

    def rows(self, lo: int, hi: int) -> Array:
        return np.asarray(self.read()[lo:hi]).astype(np.float64)


def repeated(value: float, count: int) -> Array:
    """So many times the same value, in the room of one: read-only, shape (count,)."""
    result: Array = np.ndarray((count,), np.float64, np.float64(value).tobytes(), 0, (0,))
    return result


@dataclass(eq=False)  # not frozen, see `form`
class Vector:
    """One value per channel, in memory: shape (channels,), float64."""

    geometry: Geometry
    scale: Array
    depth: int = field(default=0, init=False)
    size: int = field(default=1, init=False)

    @classmethod
    @lru_cache(maxsize=1 << 13)
    def unit(cls, channels: int, layout: tuple[int, int]) -> Vector:
        """The identity on so many channels; `layout` is that of a `Form`."""
        axis, rank = layout
        made = cls(Geometry.diagonal(channels, rank, axis), repeated(1.0, channels))
        made.is_one = True  # known without looking at every channel
        return made

    @cached_property
    def is_one(self) -> bool:
        """The identity."""
        return not np.count_nonzero(self.scale != 1)

    def rows(self, lo: int, hi: int) -> Array:
        return np.array(self.scale[lo:hi].reshape(-1, *(1,) * (self.geometry.rank + 1)))


@dataclass(eq=False)  # not frozen, see `form`
class Scaled:
    """`diag(outer) @ inner @ diag(inputs)`: factors per output channel and, if given, per input channel."""

    geometry: Geometry
    inner: Kernel
    outer: Array | None
    inputs: Array | None = None

    @cached_property
    def depth(self) -> int:
        return self.inner.depth + 1

    @cached_property
    def size(self) -> int:
        return self.inner.size + 1

    def rows(self, lo: int, hi: int) -> Array:
        weight = self.inner.rows(lo, hi)
        shape = (-1, *(1,) * (weight.ndim - 1))
        if self.outer is not None:
            weight *= self.outer[lo:hi].reshape(shape)
        if self.inputs is not None:
            columns = columns_of(self.geometry, lo, hi)
            weight *= self.inputs[columns].reshape(*columns.shape, *(1,) * self.geometry.rank)
        return weight


@dataclass(frozen=True, eq=False)
class Composed:
    """`g @ f` on the grid of `geometry`, the geometry that `laws.compose` gave."""

    geometry: Geometry
    g: Kernel
    f: Kernel

    @cached_property
    def depth(self) -> int:
        return max(self.g.depth, self.f.depth) + 1

    @cached_property
    def size(self) -> int:
        return self.g.size + self.f.size + 1

    def rows(self, lo: int, hi: int) -> Array:
        g, f, out = self.g.geometry, self.f.geometry, self.geometry
        result = np.zeros((hi - lo, *out.weight_shape[1:]))
        place = _grid(f, out)
        for tap, term in self._terms(lo, hi):
            shift = [
                t * s * dg // d if k > 1 else 0
                for t, s, dg, d, k in zip(tap, f.strides, g.dilations, out.dilations, g.kernel, strict=True)
            ]
            result[_shifted(place, shift)] += term
        return result

    def _terms(self, lo: int, hi: int) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Per tap of g, what it makes of f's taps: rows lo..hi, for the groups of the result."""
        g, f, out = self.g.geometry, self.f.geometry, self.geometry
        taps = product(*(range(k) for k in g.kernel))
        outer = self.g.rows(lo, hi)
        ones = (1,) * f.rank
        if _is_depthwise(g):  # row o of g meets row o of f only
            inner = self.f.rows(lo, hi)
            for tap in taps:
                yield tap, outer[_at(tap)].reshape(-1, 1, *ones) * inner
            return
        if _is_depthwise(f):  # entry c of g meets row c of f only
            inner = self.f.rows(0, f.c_out)[:, 0][columns_of(g, lo, hi)]
            for tap in taps:
                yield tap, outer[_at(tap)].reshape(*inner.shape[:2], *ones) * inner
            return
        outer = regroup(outer, g, lo, out.groups)
        inner = regroup(self.f.rows(0, f.c_out), f, 0, out.groups)
        rows, middle = out.c_out // out.groups, g.c_in // out.groups
        blocks = [
            (slice(max(group * rows, lo) - lo, min((group + 1) * rows, hi) - lo), group * middle)
            for group in range(lo // rows, (hi - 1) // rows + 1)
        ]
        for tap in taps:
            weight = outer[_at(tap)]
            yield (
                tap,
                np.concatenate([np.tensordot(weight[b], inner[m : m + middle], axes=1) for b, m in blocks]),
            )


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of `parts`, each laid on the grid of `geometry`, the geometry that `laws.total` gave."""

    geometry: Geometry
    parts: tuple[Kernel, ...]

    @cached_property
    def depth(self) -> int:
        return max(part.depth for part in self.parts) + 1

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.parts) + 1

    def rows(self, lo: int, hi: int) -> Array:
        out = self.geometry
        shape = (hi - lo, *out.weight_shape[1:])
        result: Array | None = None
        for part in sorted(self.parts, key=lambda part: part.geometry.weight_shape != out.weight_shape):
            f = part.geometry
            weight = regroup(part.rows(lo, hi), f, lo, out.groups)
            if result is None and weight.shape == shape:  # it has every tap: the others are added to it
                result = weight
                continue
            if result is None:
                result = np.zeros(shape)
            shift = [(o - o0) // d for o, o0, d in zip(f.origin, out.origin, out.dilations, strict=True)]
            result[_shifted(_grid(f, out), shift)] += weight
        return np.zeros(shape) if result is None else result


def streams(kernel: Kernel) -> bool:
    """Whether rows cost their share: a dense composition reads the whole inner kernel for every block of rows."""
    if isinstance(kernel, Composed):
        f, g = kernel.f.geometry, kernel.g.geometry
        return (_is_depthwise(g) or _is_depthwise(f)) and streams(kernel.f) and streams(kernel.g)
    inner = getattr(kernel, "parts", None) or (getattr(kernel, "inner", None),)
    return all(part is None or streams(part) for part in inner)


def push(kernel: Kernel, bias: Array) -> Array:
    """What `kernel` makes of the constant `bias` (one value per input channel) away from every border."""
    g = kernel.geometry
    result = np.empty(g.c_out)
    step = max(1, (1 << 20) // max(1, int(np.prod(g.weight_shape[1:]))))
    for lo in range(0, g.c_out, step):
        hi = min(lo + step, g.c_out)
        weight = kernel.rows(lo, hi)
        weight = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
        result[lo:hi] = (weight * bias[columns_of(g, lo, hi)]).sum(axis=1)
    return result


def _grid(f: Geometry, out: Geometry) -> list[slice]:
    """Where f's taps lie on out's grid, counted from f's first tap."""
    result = []
    for k, d, step in zip(f.kernel, f.dilations, out.dilations, strict=True):
        stride = d // step if k > 1 else 1
        result.append(slice(0, stride * (k - 1) + 1, stride))
    return result


def _shifted(place: Sequence[slice], shift: Sequence[int]) -> tuple[slice, ...]:
    moved = (slice(p.start + n, p.stop + n, p.step) for p, n in zip(place, shift, strict=True))
    return (slice(None), slice(None), *moved)


def _at(tap: tuple[int, ...]) -> tuple[slice | int, ...]:
    return (slice(None), slice(None), *tap)


def _is_depthwise(f: Geometry) -> bool:
    return f.groups == f.c_in == f.c_out


def columns_of(f: Geometry, lo: int, hi: int) -> NDArray[np.intp]:
    """The input channels that rows lo..hi read: shape (hi - lo, c_in / groups)."""
    width = f.c_in // f.groups
    group = np.arange(lo, hi) // (f.c_out // f.groups)
    return group[:, None] * width + np.arange(width)


def place(weight: Array, columns: NDArray[np.intp], target: Geometry, lo: int) -> Array:
    """Lay rows, whose entries belong to the input channels `columns`, into the groups of `target`."""
    width = target.c_in // target.groups
    start = (np.arange(lo, lo + len(weight)) // (target.c_out // target.groups)) * width
    local = columns - start[:, None]
    inside = (local >= 0) & (local < width)
    if weight.shape[1] == width and inside.all():
        return weight
    result = np.zeros((len(weight), width, *weight.shape[2:]))
    row, entry = np.nonzero(inside)
    result[row, local[row, entry]] = weight[row, entry]
    return result


def regroup(weight: Array, f: Geometry, lo: int, groups: int) -> Array:
    """Rows of `f` written for fewer groups, with zeros where a group did not look."""
    if f.groups == groups:
        return weight
    wide = Geometry.conv(f.c_in, f.c_out, (), groups=groups)
    return place(weight, columns_of(f, lo, lo + len(weight)), wide, lo)
