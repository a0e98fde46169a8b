"""AffineConv: an immutable value with `@`, `+` and a slow, obviously right call.

    (g @ f)(x) == g(f(x))        (f + g)(x) == f(x) + g(x)        whenever the operator does not raise Inexact

`laws` says when, `kernels` what the numbers are. The tests hold both against the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Composed, Kernel, Scaled, Stored, Total, push

__all__ = ["AffineConv"]

Position = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class AffineConv:
    """An affine convolution with its numbers.

    Attributes:
        geometry: channels and sampling.
        weight: float64, `geometry.weight_shape` = (c_out, c_in / groups, *kernel), also when transposed.
        bias: float64, (c_out,).

    Raises:
        ValueError: shapes that do not fit the geometry.

    >>> import numpy as np
    >>> point = AffineConv(Geometry.conv(1, 1, (1,)), np.full((1, 1, 1), 2.0), np.zeros(1))
    >>> three = AffineConv(Geometry.conv(1, 1, (3,), pads=(1, 1)), np.ones((1, 1, 3)), np.ones(1))
    >>> (three + point)(np.ones((1, 1, 3))).tolist()
    [[[5.0, 6.0, 5.0]]]
    >>> (three @ point).weight.tolist()
    [[[2.0, 2.0, 2.0]]]
    """

    geometry: Geometry
    weight: Array
    bias: Array

    def __post_init__(self) -> None:
        if self.weight.shape != self.geometry.weight_shape or self.bias.shape != (self.geometry.c_out,):
            raise ValueError(
                f"weight {self.weight.shape} and bias {self.bias.shape} do not fit {self.geometry}"
            )

    @property
    def kernel(self) -> Kernel:
        """The weight as a lazily read kernel."""
        return Stored(self.geometry, lambda: self.weight)

    def __matmul__(self, f: AffineConv) -> AffineConv:
        """`x -> self(f(x))`. Raises Inexact when no single convolution equals it for every input."""
        geometry = laws.compose(self.geometry, f.geometry, zero_bias=not f.bias.any())
        kernel: Kernel
        if self.geometry.is_diagonal:
            kernel = Scaled(geometry, f.kernel, self.weight.ravel())
        elif f.geometry.is_diagonal:
            kernel = Scaled(geometry, self.kernel, None, f.weight.ravel())
        else:
            kernel = Composed(geometry, self.kernel, f.kernel)
        return AffineConv(geometry, kernel.rows(0, geometry.c_out), self.bias + push(self.kernel, f.bias))

    def __add__(self, g: AffineConv) -> AffineConv:
        """`x -> self(x) + g(x)`. Raises Inexact when no single convolution equals it for every input."""
        geometry = laws.total(self.geometry, g.geometry)
        if geometry == self.geometry == g.geometry:
            return AffineConv(geometry, self.weight + g.weight, self.bias + g.bias)
        weight = Total(geometry, (self.kernel, g.kernel)).rows(0, geometry.c_out)
        return AffineConv(geometry, weight, self.bias + g.bias)

    def __call__(self, x: Array) -> Array:
        """Evaluate, slowly: x is (N, c_in, *size), or (..., c_in) when the channel axis is last."""
        g = self.geometry
        if g.channel_axis == -1:
            x = np.moveaxis(x, -1, 0)[None]  # (..., c_in) -> (1, c_in, ...)
        size, batch_axes = x.shape[2 : 2 + g.rank], x.shape[2 + g.rank :]
        out = np.zeros((x.shape[0], g.c_out, *g.output(size), *batch_axes))
        out += self.bias.reshape(-1, *(1,) * (out.ndim - 2))
        for source, target, tap in self._pairs(size):
            for outputs, inputs in zip(_groups(g.c_out, g.groups), _groups(g.c_in, g.groups), strict=True):
                weight = self.weight[_at(outputs, slice(None), tap)]
                values = x[_at(slice(None), inputs, source)]
                products = np.tensordot(weight, values, axes=(1, 1))
                out[_at(slice(None), outputs, target)] += np.moveaxis(products, 0, 1)
        return np.moveaxis(out[0], 0, -1) if g.channel_axis == -1 else out

    def _pairs(self, size: tuple[int, ...]) -> Iterator[tuple[Position, Position, Position]]:
        """(position in x, position in y, tap) wherever a tap connects two positions that exist."""
        g = self.geometry
        # A Conv gathers: it takes output positions and reads at s*i + o + d*k. A ConvTranspose scatters.
        here, there = (size, g.output(size)) if g.transposed else (g.output(size), size)
        for position in product(*(range(n) for n in here)):
            for tap in product(*(range(k) for k in g.kernel)):
                axes = zip(g.strides, position, g.origin, g.dilations, tap, strict=True)
                other = tuple(s * i + o + d * t for s, i, o, d, t in axes)
                if all(0 <= p < n for p, n in zip(other, there, strict=True)):
                    yield (position, other, tap) if g.transposed else (other, position, tap)


def _groups(channels: int, groups: int) -> list[slice]:
    width = channels // groups
    return [slice(group * width, (group + 1) * width) for group in range(groups)]


def _at(first: slice, second: slice, position: Position) -> tuple[slice | int, ...]:
    return (first, second, *position)
