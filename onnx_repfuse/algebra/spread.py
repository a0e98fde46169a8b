"""Maps of channels that each stand for several: `A (x) I`, the same pointwise map of each of r parts.

DepthToSpace makes one channel of r*r, Flatten makes H*W of one. What a pointwise A does to the few, `A (x) I` does to
the many. The parts of a channel are neighbours, as Flatten and DepthToSpace (CRD) have them, or part k of all channels
comes before part k + 1 of any, as in DepthToSpace (DCR).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.choice import Index, Picked, picked, taps_of
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, DerivedFromOne, Kernel, Vector

__all__ = ["Spread", "Spreading", "spread"]


@dataclass(frozen=True)
class Spreading:
    """How few channels become many: `times` as many, whose parts are neighbours or not."""

    times: int
    are_neighbours: bool

    def vector(self, values: Array) -> Array:
        """The value of each channel for all of its parts: shape (channels,) -> (channels * times,)."""
        return np.repeat(values, self.times) if self.are_neighbours else np.tile(values, self.times)

    def parts(self, index: Index, channels: int) -> Index:
        """All parts of the chosen ones among so many channels: shape (n,) -> (n * times,), in the order of `vector`."""
        part = np.arange(self.times)
        if self.are_neighbours:
            return (index[:, None] * self.times + part).ravel()
        return (index + part[:, None] * channels).ravel()


@dataclass(frozen=True, eq=False)
class Spread(DerivedFromOne):
    """`inner (x) I`; `inner` is pointwise."""

    geometry: Geometry
    inner: Kernel
    spreading: Spreading

    def rows(self, lo: int, hi: int) -> Array:
        numbers, times = np.arange(lo, hi), self.spreading.times
        if not self.spreading.are_neighbours:  # each part is a group of its own
            return self._inner_rows(numbers % self.inner.geometry.c_out)
        weight = self._inner_rows(numbers // times)
        result = np.zeros((hi - lo, weight.shape[1] * times, *weight.shape[2:]))
        columns = np.arange(weight.shape[1]) * times + (numbers % times)[:, None]
        result[np.arange(hi - lo)[:, None], columns] = weight
        return result

    def _inner_rows(self, numbers: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Array:
        first, last = int(numbers.min()), int(numbers.max()) + 1
        return self.inner.rows(first, last)[numbers - first]


def spread(form: Form, spreading: Spreading, channels: int) -> Form | None:
    """A pointwise form of few channels as that of the many; None where one of its terms cannot be written so.

    Args:
        form: its sources are taken for tensors with `spreading.times` as many channels.
        channels: of its sources. Where parts are no neighbours, they say how far apart these are.
    """
    terms = []
    for term in form.terms:
        kernel = _spread_kernel(term.kernel, spreading)
        g = term.kernel.geometry
        is_whole = term.lo_in == term.lo_out == 0 and (g.c_in, g.c_out) == (channels, form.channels)
        if not (is_whole or spreading.are_neighbours):
            # the rest is between the parts of the channels that it reads
            term, kernel = replace(term, lo_in=0), _spread_choice(term, spreading, channels, form.channels)
        if kernel is None:
            return None
        lo_in, lo_out = term.lo_in * spreading.times, term.lo_out * spreading.times
        terms.append(Term(term.source, kernel, lo_in, lo_out))
    bias = form.bias.mapped(spreading.vector)
    return replace(form, channels=form.channels * spreading.times, terms=tuple(terms), bias=bias)


def _spread_choice(term: Term, spreading: Spreading, channels: int, written: int) -> Kernel | None:
    """A choice of channels, with a factor each, that is all that is written; None for any other term."""
    taps, count = taps_of(term.kernel), term.kernel.geometry.c_out
    if not isinstance(taps, Vector) or term.lo_out or count != written:
        return None
    index = term.kernel.index if isinstance(term.kernel, Picked) else np.arange(count)
    many = Geometry.diagonal(count * spreading.times, taps.geometry.rank, taps.geometry.channel_axis)
    factors = Vector(many, spreading.vector(taps.scale))
    return picked(spreading.parts(term.lo_in + index, channels), factors, channels * spreading.times)


def _spread_kernel(kernel: Kernel, spreading: Spreading) -> Kernel | None:
    g, times = kernel.geometry, spreading.times
    if not g.is_pointwise:
        return None
    c_in, c_out = g.c_in * times, g.c_out * times
    if isinstance(kernel, Vector):
        return Vector(replace(g, c_in=c_in, c_out=c_out, groups=c_out), spreading.vector(kernel.scale))
    groups = g.groups if spreading.are_neighbours else g.groups * times
    return Spread(replace(g, c_in=c_in, c_out=c_out, groups=groups), kernel, spreading)
