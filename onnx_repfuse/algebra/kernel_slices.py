"""Kernels that hold the numbers of others: some of their channels, several one after the other, or at another rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Derived, DerivedFromOne, Kernel, input_channels, into_groups

__all__ = ["Block", "Grouped", "InLayout", "Stacked"]


@dataclass(frozen=True, eq=False)
class Block(DerivedFromOne):
    """The part of `inner` that begins at an output channel, `row`, and at an input channel, `column`.

    Some output channels, with the inputs that they read (`laws.select_outputs`); or some input channels, with the
    outputs that they reach (`laws.select_inputs`).
    """

    geometry: Geometry
    inner: Kernel
    row: int
    column: int

    def rows(self, lo: int, hi: int) -> Array:
        first, last = self.row + lo, self.row + hi
        # Inner groups that the block cuts become one: `into_groups` lays their rows side by side.
        channels = input_channels(self.inner.geometry, first, last) - self.column
        return into_groups(self.inner.rows(first, last), channels, self.geometry, lo)


@dataclass(frozen=True, eq=False)
class InLayout(DerivedFromOne):
    """A kernel with the same numbers: a pointwise one on another number of spatial axes, or one that is cropped."""

    geometry: Geometry
    inner: Kernel

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


@dataclass(frozen=True, eq=False)
class Grouped(Stacked):
    """Kernels of one geometry, each of the next input channels, as the groups of one kernel."""
