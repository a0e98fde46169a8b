"""The numbers of an affine convolution, computed late and by blocks of output channels.

A `Kernel` gives rows `lo..hi` of a weight of shape `geometry.weight_shape` in float64. Nothing is read or
multiplied before `rows` is called, so a plan is made without weights and a layer of any size is folded with
temporaries bounded by one block. Rounding to the model's data type happens once, by the caller.

Row `o` of a grouped weight holds only the input channels of its group. The last functions say which these are, and
write rows for fewer groups, which is what operators of unlike groups need before they compose or add.
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
    "Derived",
    "DerivedFromOne",
    "Kernel",
    "Scaled",
    "Stored",
    "Total",
    "Vector",
    "input_channels",
    "into_groups",
    "largest",
    "push",
    "repeated",
    "streams",
]

Array = NDArray[np.float64]


PUSHED_ELEMENTS = 1 << 20  # of a block of rows that is multiplied with a bias: 8 MB


class Kernel(Protocol):
    """Rows of a weight. `depth` is how deep the kernels it is computed from nest, `size` how many there are."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def depth(self) -> int: ...

    @property
    def size(self) -> int: ...

    def rows(self, lo: int, hi: int) -> Array:
        """Rows lo..hi, shape (hi - lo, c_in / groups, *kernel), float64: an array that the caller may change."""
        ...


class Derived:
    """A kernel that is computed from others."""

    def operands(self) -> tuple[Kernel, ...]:
        """The kernels it is computed from."""
        raise NotImplementedError

    @cached_property
    def depth(self) -> int:
        return max([operand.depth for operand in self.operands()]) + 1

    @cached_property
    def size(self) -> int:
        return sum([operand.size for operand in self.operands()]) + 1


class DerivedFromOne(Derived):
    """A kernel that is computed from one other."""

    inner: Kernel

    def operands(self) -> tuple[Kernel, ...]:
        return (self.inner,)


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight that exists: `read` returns it in `geometry.weight_shape`, in any dtype, from `origin`.

    Attributes:
        is_computed: nodes of the graph compute it when it is read.
        least: no element has a smaller magnitude; 0 where that is not known.
    """

    geometry: Geometry
    read: Callable[[], NDArray[Any]]
    origin: object = None
    is_computed: bool = False
    least: float = 0.0
    depth: int = field(default=0, init=False)
    size: int = field(default=1, init=False)

    def rows(self, lo: int, hi: int) -> Array:
        return np.asarray(self.read()[lo:hi]).astype(np.float64)


def largest(values: Array) -> float:
    """The greatest magnitude; NaN where one is none."""
    return float(np.maximum.reduce(np.abs(values), initial=0.0))  # `max` takes twice as long for a few


def repeated(value: float, count: int) -> Array:
    """The same value `count` times, in the memory of one: read-only, shape (count,)."""
    result: Array = np.ndarray((count,), np.float64, np.float64(value).tobytes(), 0, (0,))
    return result


@dataclass(eq=False)  # not frozen: a plan makes many, see `affine_form`
class Vector:
    """One value per channel, in memory: shape (channels,), float64."""

    geometry: Geometry
    scale: Array
    depth: int = field(default=0, init=False)
    size: int = field(default=1, init=False)

    @classmethod
    @lru_cache(maxsize=1 << 13)
    def unit(cls, channels: int, layout: tuple[int, int]) -> Vector:
        """The identity on that many channels; `layout` is (channel axis, rank)."""
        axis, rank = layout
        unit = cls(Geometry.diagonal(channels, rank, axis), repeated(1.0, channels))
        unit.is_one = True  # known without looking at every channel
        return unit

    @cached_property
    def is_one(self) -> bool:
        """The identity."""
        return not np.count_nonzero(self.scale != 1)

    @cached_property
    def largest(self) -> float:
        """See `largest`."""
        return largest(self.scale)

    def rows(self, lo: int, hi: int) -> Array:
        return np.array(self.scale[lo:hi].reshape(-1, *(1,) * (self.geometry.rank + 1)))


@dataclass(eq=False)  # not frozen: a plan makes many, see `affine_form`
class Scaled(DerivedFromOne):
    """`diag(outer) @ inner @ diag(inputs)`: factors per output channel and per input channel, where given."""

    geometry: Geometry
    inner: Kernel
    outer: Array | None
    inputs: Array | None = None

    @cached_property
    def largest(self) -> float:
        """That of all factors; see `largest`."""
        factors = [values for values in (self.outer, self.inputs) if values is not None]
        return largest(np.concatenate(factors))

    def rows(self, lo: int, hi: int) -> Array:
        weight = self.inner.rows(lo, hi)  # ours to change, by the protocol
        shape = (-1, *(1,) * (weight.ndim - 1))
        if self.outer is not None:
            weight *= self.outer[lo:hi].reshape(shape)
        if self.inputs is not None:
            factors = self.inputs[input_channels(self.geometry, lo, hi)]
            weight *= factors.reshape(*factors.shape, *(1,) * self.geometry.rank)
        return weight


@dataclass(frozen=True, eq=False)
class Composed(Derived):
    """`g @ f` on the grid of `geometry`, the geometry that `laws.compose` gave.

    With strides s and dilations d, taps a of g and b of f meet at `s_f*d_g*a + d_f*b`, counted from the first tap:

        W[o, c] at s_f*d_g*a + d_f*b  =  sum over all such (a, b) and m of  W_g[o, m, a] * W_f[m, c, b]
    """

    geometry: Geometry
    g: Kernel
    f: Kernel

    def operands(self) -> tuple[Kernel, ...]:
        return self.g, self.f

    def rows(self, lo: int, hi: int) -> Array:
        g, f, out = self.g.geometry, self.f.geometry, self.geometry
        result = np.zeros((hi - lo, *out.weight_shape[1:]))
        grid = _grid(f, out)
        # On an axis where g has one tap, its dilation does not matter; 1 need not be a multiple of the grid's step.
        steps = [
            stride * dilation // step if k > 1 else 0
            for stride, dilation, step, k in zip(f.strides, g.dilations, out.dilations, g.kernel, strict=True)
        ]
        # f's taps are added at the offset of each tap of g.
        for tap, product_of_tap in self._products(lo, hi):
            offset = [position * step for position, step in zip(tap, steps, strict=True)]
            result[_moved(grid, offset)] += product_of_tap
        return result

    def _products(self, lo: int, hi: int) -> Iterator[tuple[tuple[int, ...], Array]]:
        """For each tap a of g, `W_g[:, :, a] @ W_f`: rows lo..hi, in the groups of the result, on f's taps."""
        g, f, out = self.g.geometry, self.f.geometry, self.geometry
        taps = product(*(range(k) for k in g.kernel))
        outer = self.g.rows(lo, hi)
        ones = (1,) * f.rank
        if _is_depthwise(g):  # output channel o of g reads output channel o of f only
            inner = self.f.rows(lo, hi)
            for tap in taps:
                yield tap, outer[_at(tap)].reshape(-1, 1, *ones) * inner
            return
        if _is_depthwise(f):  # output channel m of f reads its input channel m only
            inner = self.f.rows(0, f.c_out)[:, 0][input_channels(g, lo, hi)]
            for tap in taps:
                yield tap, outer[_at(tap)].reshape(*inner.shape[:2], *ones) * inner
            return
        # Both in the groups of the result: block by block, a matrix product over the channels between f and g.
        outer = _regrouped(outer, g, lo, out.groups)
        inner = _regrouped(self.f.rows(0, f.c_out), f, 0, out.groups)
        blocks = list(_group_blocks(out, g.c_in, lo, hi))
        for tap in taps:
            weight = outer[_at(tap)]
            yield tap, np.concatenate([np.tensordot(weight[o], inner[m], axes=1) for o, m in blocks])


@dataclass(frozen=True, eq=False)
class Total(Derived):
    """The sum of `parts`, each laid on the grid of `geometry`, the geometry that `laws.total` gave."""

    geometry: Geometry
    parts: tuple[Kernel, ...]

    def operands(self) -> tuple[Kernel, ...]:
        return self.parts

    def rows(self, lo: int, hi: int) -> Array:
        out = self.geometry
        shape = (hi - lo, *out.weight_shape[1:])
        result: Array | None = None
        # A part that has every tap comes first: the others are added to it, without a copy.
        for part in sorted(self.parts, key=lambda part: part.geometry.weight_shape != out.weight_shape):
            f = part.geometry
            weight = _regrouped(part.rows(lo, hi), f, lo, out.groups)
            if result is None and weight.shape == shape:
                result = weight
                continue
            if result is None:
                result = np.zeros(shape)
            offset = [(o - o0) // d for o, o0, d in zip(f.origin, out.origin, out.dilations, strict=True)]
            result[_moved(_grid(f, out), offset)] += weight
        return np.zeros(shape) if result is None else result


def streams(kernel: Kernel) -> bool:
    """Whether a block of rows costs its share: a dense composition reads the whole inner kernel for each block."""
    if isinstance(kernel, Composed):
        g, f = kernel.g.geometry, kernel.f.geometry
        if not (_is_depthwise(g) or _is_depthwise(f)):
            return False
    return not isinstance(kernel, Derived) or all(streams(operand) for operand in kernel.operands())


def push(kernel: Kernel, bias: Array) -> Array:
    """What `kernel` makes of a constant input, one value per input channel, where it reads no padding.

    push(W, b)[o] = sum over c and taps k of  W[o, c, k] * b[c]          shape (c_out,)
    """
    g = kernel.geometry
    result = np.empty(g.c_out)
    step = max(1, PUSHED_ELEMENTS // max(1, int(np.prod(g.weight_shape[1:]))))
    for lo in range(0, g.c_out, step):
        hi = min(lo + step, g.c_out)
        weight = kernel.rows(lo, hi)
        weight = weight.reshape(*weight.shape[:2], -1).sum(axis=2)  # over the taps
        result[lo:hi] = (weight * bias[input_channels(g, lo, hi)]).sum(axis=1)
    return result


def _grid(f: Geometry, out: Geometry) -> list[slice]:
    """Per axis, where f's taps lie on the grid of `out`, counted from f's first tap."""
    result = []
    for k, dilation, step in zip(f.kernel, f.dilations, out.dilations, strict=True):
        # a dilation is a multiple of the grid's step, but for one tap
        stride = dilation // step if k > 1 else 1
        result.append(slice(0, stride * (k - 1) + 1, stride))
    return result


def _moved(grid: Sequence[slice], offset: Sequence[int]) -> tuple[slice, ...]:
    """The index of taps in a weight (rows, channels, *kernel), at an offset."""
    axes = zip(grid, offset, strict=True)
    return slice(None), slice(None), *(slice(s.start + n, s.stop + n, s.step) for s, n in axes)


def _at(tap: tuple[int, ...]) -> tuple[slice | int, ...]:
    return (slice(None), slice(None), *tap)


def _is_depthwise(f: Geometry) -> bool:
    return f.groups == f.c_in == f.c_out


def _group_blocks(out: Geometry, middle: int, lo: int, hi: int) -> Iterator[tuple[slice, slice]]:
    """For each group of rows lo..hi: its rows, counted from lo, and its share of the `middle` channels."""
    rows, width = out.c_out // out.groups, middle // out.groups
    for group in range(lo // rows, (hi - 1) // rows + 1):
        first, last = max(group * rows, lo), min((group + 1) * rows, hi)
        yield slice(first - lo, last - lo), slice(group * width, (group + 1) * width)


def input_channels(f: Geometry, lo: int, hi: int) -> NDArray[np.intp]:
    """The input channels that rows lo..hi read: shape (hi - lo, c_in / groups)."""
    width = f.c_in // f.groups
    group = np.arange(lo, hi) // (f.c_out // f.groups)  # of each row
    return group[:, None] * width + np.arange(width)


def into_groups(weight: Array, channels: NDArray[np.intp], target: Geometry, lo: int) -> Array:
    """Rows lo.. as the groups of `target` hold them.

    Args:
        weight: (rows, n, *kernel).
        channels: (rows, n), the input channel of `target` that each entry belongs to. Entries outside the row's
            group are dropped; those that no entry belongs to are zero.
    """
    width = target.c_in // target.groups
    start = (np.arange(lo, lo + len(weight)) // (target.c_out // target.groups)) * width
    local = channels - start[:, None]  # the position within the row's group
    inside = (local >= 0) & (local < width)
    if weight.shape[1] == width and inside.all():
        return weight
    result = np.zeros((len(weight), width, *weight.shape[2:]))
    row, entry = np.nonzero(inside)
    result[row, local[row, entry]] = weight[row, entry]
    return result


def _regrouped(weight: Array, f: Geometry, lo: int, groups: int) -> Array:
    """Rows lo.. of `f` written for fewer groups, which divide its own: zeros where its groups read nothing."""
    if f.groups == groups:
        return weight
    wide = Geometry.conv(f.c_in, f.c_out, (), groups=groups)  # only channels and groups matter here
    return into_groups(weight, input_channels(f, lo, lo + len(weight)), wide, lo)
