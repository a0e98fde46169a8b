"""Kernels whose numbers are those of others, elsewhere: some of their channels, several side by side, another rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Kernel, columns_of, place

__all__ = ["Columns", "InLayout", "Rows", "Stacked"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Output channels `start ..` of `inner`, as `laws.select_outputs` selects them."""

    geometry: Geometry
    inner: Kernel
    start: int
    first_column: int

    @cached_property
    def depth(self) -> int:
        return self.inner.depth + 1

    @cached_property
    def size(self) -> int:
        return self.inner.size + 1

    def rows(self, lo: int, hi: int) -> Array:
        f = self.inner.geometry
        weight = self.inner.rows(self.start + lo, self.start + hi)
        return place(
            weight, columns_of(f, self.start + lo, self.start + hi) - self.first_column, self.geometry, lo
        )


@dataclass(frozen=True, eq=False)
class Columns:
    """`inner` fed only input channels `start ..`, as `laws.select_inputs` selects them."""

    geometry: Geometry
    inner: Kernel
    start: int
    first_row: int

    @cached_property
    def depth(self) -> int:
        return self.inner.depth + 1

    @cached_property
    def size(self) -> int:
        return self.inner.size + 1

    def rows(self, lo: int, hi: int) -> Array:
        lo, hi = lo + self.first_row, hi + self.first_row
        weight = self.inner.rows(lo, hi)
        return place(
            weight, columns_of(self.inner.geometry, lo, hi) - self.start, self.geometry, lo - self.first_row
        )


@dataclass(frozen=True, eq=False)
class InLayout:
    """A pointwise kernel on another number of spatial axes: the same numbers."""

    geometry: Geometry
    inner: Kernel

    @cached_property
    def depth(self) -> int:
        return self.inner.depth

    @cached_property
    def size(self) -> int:
        return self.inner.size

    def rows(self, lo: int, hi: int) -> Array:
        return self.inner.rows(lo, hi).reshape(-1, *self.geometry.weight_shape[1:])


@dataclass(frozen=True, eq=False)
class Stacked:
    """Kernels of one input, their output channels one after the other."""

    geometry: Geometry
    parts: tuple[Kernel, ...]

    @cached_property
    def depth(self) -> int:
        return max(part.depth for part in self.parts) + 1

    @cached_property
    def size(self) -> int:
        return sum(part.size for part in self.parts) + 1

    def rows(self, lo: int, hi: int) -> Array:
        blocks, start = [], 0
        for part in self.parts:
            end = start + part.geometry.c_out
            if start < hi and end > lo:
                blocks.append(part.rows(max(lo, start) - start, min(hi, end) - start))
            start = end
        return np.concatenate(blocks)
