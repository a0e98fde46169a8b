"""AffineConv: a frozen value with `@` and `+`, and a slow, obviously right call.

    (g @ f)(x) == g(f(x))        (f + g)(x) == f(x) + g(x)        whenever the operator does not raise Inexact

`laws` says when; `kernels` says what the numbers are; the call is the oracle that both are tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Composed, Kernel, Stored, Total, push

__all__ = ["AffineConv"]


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
        weight = Composed(geometry, self.kernel, f.kernel).rows(0, geometry.c_out) if _plain(self, f) else None
        if weight is None:  # a transposed operand meets one value per channel
            outer = self.weight.reshape(-1, *(1,) * (f.weight.ndim - 1))
            weight = outer * f.weight if self.geometry.is_diagonal else _scale_inputs(self, f.weight.ravel())
        return AffineConv(geometry, weight, self.bias + push(self.kernel, f.bias))

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
            x = np.moveaxis(x, -1, 0).reshape(1, g.c_in, *x.shape[:-1])
        size = x.shape[2 : 2 + g.rank]
        rest = x.shape[2 + g.rank :]
        out = np.zeros((x.shape[0], g.c_out, *g.output(size), *rest)) + self.bias.reshape(
            -1, *(1,) * (g.rank + len(rest))
        )
        rows, cols = g.c_out // g.groups, g.c_in // g.groups
        moving = size if g.transposed else g.output(size)
        for position in product(*(range(n) for n in moving)):
            for tap in product(*(range(k) for k in g.kernel)):
                other = tuple(
                    s * i + o + d * t
                    for s, i, o, d, t in zip(g.strides, position, g.origin, g.dilations, tap, strict=True)
                )
                source, target = (position, other) if g.transposed else (other, position)
                limit = out.shape[2 : 2 + g.rank] if g.transposed else size
                if not all(0 <= p < n for p, n in zip(other, limit, strict=True)):
                    continue
                for group in range(g.groups):
                    o, i = slice(group * rows, (group + 1) * rows), slice(group * cols, (group + 1) * cols)
                    weight = self.weight[(o, slice(None), *tap)]
                    out[(slice(None), o, *target)] += np.einsum(
                        "oi,ni...->no...", weight, x[(slice(None), i, *source)]
                    )
        return np.moveaxis(out[0], 0, -1) if g.channel_axis == -1 else out


def _plain(g: AffineConv, f: AffineConv) -> bool:
    return not (g.geometry.transposed or f.geometry.transposed)


def _scale_inputs(g: AffineConv, scale: Array) -> Array:
    cols = g.geometry.c_in // g.geometry.groups
    group = np.arange(g.geometry.c_out) // (g.geometry.c_out // g.geometry.groups)
    factor = scale[group[:, None] * cols + np.arange(cols)]
    return g.weight * factor.reshape(*factor.shape, *(1,) * g.geometry.rank)
