"""Kernels that hold the numbers of others: some of their channels, several one after the other, or at another rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Derived, Kernel, input_channels, into_groups

__all__ = ["Columns", "InLayout", "Rows", "Stacked"]


@dataclass(frozen=True, eq=False)
class Rows(Derived):
    """Output channels `start ..` of `inner`; they read its inputs `first_column ..` (see `laws.select_outputs`)."""

    geometry: Geometry
    inner: Kernel
    start: int
    first_column: int

    def operands(self) -> tuple[Kernel, ...]:
        return (self.inner,)

    def rows(self, lo: int, hi: int) -> Array:
        first, last = self.start + lo, self.start + hi
        # Inner groups that the range cuts become one: `into_groups` lays their rows side by side.
        channels = input_channels(self.inner.geometry, first, last) - self.first_column
        return into_groups(self.inner.rows(first, last), channels, self.geometry, lo)


@dataclass(frozen=True, eq=False)
class Columns(Derived):
    """`inner` fed only input channels `start ..`: its output channels `first_row ..` (`laws.select_inputs`)."""

    geometry: Geometry
    inner: Kernel
    start: int
    first_row: int

    def operands(self) -> tuple[Kernel, ...]:
        return (self.inner,)

    def rows(self, lo: int, hi: int) -> Array:
        first, last = self.first_row + lo, self.first_row + hi
        channels = input_channels(self.inner.geometry, first, last) - self.start
        return into_groups(self.inner.rows(first, last), channels, self.geometry, lo)


@dataclass(frozen=True, eq=False)
class InLayout(Derived):
    """A pointwise kernel on another number of spatial axes: the same numbers."""

    geometry: Geometry
    inner: Kernel

    def operands(self) -> tuple[Kernel, ...]:
        return (self.inner,)

    @cached_property
    def depth(self) -> int:
        return self.inner.depth  # nothing is computed: the array is reshaped

    @cached_property
    def size(self) -> int:
        return self.inner.size

    def rows(self, lo: int, hi: int) -> Array:
        return self.inner.rows(lo, hi).reshape(-1, *self.geometry.weight_shape[1:])


@dataclass(frozen=True, eq=False)
class Stacked(Derived):
    """Kernels of one input, their output channels one after the other."""

    geometry: Geometry
    parts: tuple[Kernel, ...]

    def operands(self) -> tuple[Kernel, ...]:
        return self.parts

    def rows(self, lo: int, hi: int) -> Array:
        blocks, start = [], 0  # `start`: the first row of a part
        for part in self.parts:
            end = start + part.geometry.c_out
            if start < hi and end > lo:
                blocks.append(part.rows(max(lo, start) - start, min(hi, end) - start))
            start = end
        return np.concatenate(blocks)
