"""A Form: what a tensor is, as a sum of linear maps of other tensors plus one bias.

    t = bias + sum_i  place_i( kernel_i( source_i[channels lo_in ..] ) )          place: at channels lo_out ..

Slicing channels and concatenating tensors are such sums too, with kernels that are the identity: that is why
terms carry the range of channels they read and the range they write. Forms are closed under `apply`, the
substitution of forms for the operands of an operator; it raises Inexact where a law of the algebra says no.
The bias stands once, whatever the number of terms.

Nothing here is changed once made. The classes are not declared frozen because a plan makes hundreds of thousands of
their objects, and a frozen one takes several times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache

import numpy as np

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.kernels import (
    Array,
    Columns,
    Composed,
    Kernel,
    Relaid,
    Rows,
    Scaled,
    Total,
    Vector,
    push,
)
from onnx_repfuse.errors import Inexact
from onnx_repfuse.reasons import Reason

__all__ = [
    "MAX_DEPTH",
    "MAX_TERMS",
    "Bias",
    "Form",
    "Shifted",
    "Term",
    "add_kernels",
    "apply",
    "compose_kernels",
    "identity",
    "relaid",
    "scale_out",
]

MAX_TERMS = 32  # a form with more terms is cut at a tensor: keeps sums of many sources linear in time
TAME = 2.0**-12, 2.0**12  # factors and shifts of a `Shifted` source: normal in every float type
MAX_DEPTH = 64  # likewise for the nesting of kernels, which are evaluated recursively


@dataclass(eq=False)
class Bias:
    """One value per channel: a part known while planning, and parts that need a kernel.

    Attributes:
        known: float64, (channels,).
        late: functions that return more of the same shape, called when weights are folded.
        noise: what rounding in the model's data type may have done to `known`, (channels,) or one for all. Exporters
            and we fold the same bias in different orders and precisions.
    """

    known: Array
    late: tuple[Callable[[], Array], ...] = ()
    noise: Array | float = 0.0

    @classmethod
    def rounded(cls, known: Array, ulp: float, terms: Array | None = None) -> Bias:
        """A value that was summed from `terms` (their magnitudes; itself, if it was not) in a data type whose unit in
        the last place of 1 is `ulp`: two of those are its noise."""
        return cls(known, (), 2 * ulp * np.abs(known if terms is None else terms))

    @classmethod
    @lru_cache(maxsize=1024)
    def zeros(cls, channels: int) -> Bias:
        """No bias."""
        return cls(np.broadcast_to(0.0, channels))

    @cached_property
    def is_zero(self) -> bool:
        """Zero for certain."""
        return not self.late and not self.known.any()

    @cached_property
    def vanishes(self) -> bool:
        """Zero, but for what rounding may have left."""
        return self.is_zero or (not self.late and not (np.abs(self.known) > self.noise).any())

    def value(self) -> Array:
        """The whole bias; reads kernels."""
        result: Array = self.known.copy()
        for part in self.late:
            result += part()
        return result

    def __add__(self, other: Bias) -> Bias:
        if isinstance(other.noise, float) and other.is_zero:
            return self
        return Bias(self.known + other.known, self.late + other.late, self.noise + other.noise)

    def channels(self, lo: int, hi: int) -> Bias:
        """The bias of channels lo..hi."""
        if lo == 0 and hi == len(self.known):
            return self
        if isinstance(self.noise, float) and self.is_zero:
            return Bias.zeros(hi - lo)
        noise = self.noise if isinstance(self.noise, float) else self.noise[lo:hi]
        return Bias(self.known[lo:hi], tuple(_sliced(part, lo, hi) for part in self.late), noise)

    def placed(self, lo: int, total: int) -> Bias:
        """The same bias as channels lo.. of `total`, zero elsewhere."""
        if lo == 0 and total == len(self.known):
            return self
        hi = lo + len(self.known)
        noise = self.noise if isinstance(self.noise, float) else _padded(self.noise, lo, hi, total)
        late = tuple(_placed(part, lo, hi, total) for part in self.late)
        return Bias(_padded(self.known, lo, hi, total), late, noise)

    def through(self, kernel: Kernel) -> Bias:
        """What `kernel` makes of it. One value per channel is multiplied now, anything else when folding."""
        if self.is_zero:
            return Bias.zeros(kernel.geometry.c_out)
        if isinstance(kernel, Vector):
            if kernel.is_one:
                return self
            scale = kernel.scale
            late = tuple(_scaled(part, scale) for part in self.late)
            return Bias(self.known * scale, late, self.noise * np.abs(scale))
        return Bias(np.zeros(kernel.geometry.c_out), (cache(lambda: push(kernel, self.value())),))


def _sliced(part: Callable[[], Array], lo: int, hi: int) -> Callable[[], Array]:
    return lambda: part()[lo:hi]


def _scaled(part: Callable[[], Array], scale: Array) -> Callable[[], Array]:
    return lambda: part() * scale


def _padded(value: Array, lo: int, hi: int, total: int) -> Array:
    result = np.zeros(total)
    result[lo:hi] = value
    return result


def _placed(part: Callable[[], Array], lo: int, hi: int, total: int) -> Callable[[], Array]:
    return lambda: _padded(part(), lo, hi, total)


@dataclass(eq=False)
class Term:
    """One linear map: reads channels `lo_in ..` of `source`, writes channels `lo_out ..`."""

    source: Hashable
    kernel: Kernel
    lo_in: int = 0
    lo_out: int = 0

    @property
    def key(self) -> tuple[Hashable, int, int, int, int]:
        """Terms of one key add up."""
        g = self.kernel.geometry
        return self.source, self.lo_in, g.c_in, self.lo_out, g.c_out


@dataclass(frozen=True, eq=False)
class Shifted:
    """The source `name` plus a constant per channel, shape (channels,)."""

    name: str
    shift: Array

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Form:
    """See the module's docstring. `layout` is (channel axis, rank)."""

    channels: int
    layout: tuple[int, int]
    terms: tuple[Term, ...]
    bias: Bias

    @cached_property
    def sources(self) -> tuple[Hashable, ...]:
        """The distinct sources, in order."""
        return tuple(dict.fromkeys(term.source for term in self.terms))


def identity(source: Hashable, channels: int, layout: tuple[int, int]) -> Form:
    """`t = source`."""
    return Form(channels, layout, (Term(source, Vector.unit(channels, layout)),), Bias.zeros(channels))


def scale_out(form: Form) -> Form | None:
    """`s*x + t` as `s*(x + t/s)`: without a bias, so that padding does not matter to what reads it,

        conv(s*x + t) = conv_s(x + t/s)     at every border, as both pad the same positions with zero

    None unless the form is that, no s is zero, and s and t/s are far from overflow and underflow.
    """
    if len(form.terms) != 1 or form.bias.late or form.bias.is_zero:
        return None
    term = form.terms[0]
    if not isinstance(term.kernel, Vector) or not isinstance(term.source, str) or term.lo_in or term.lo_out:
        return None
    scale = term.kernel.scale
    if len(scale) != form.channels or not TAME[0] <= np.abs(scale).min() <= np.abs(scale).max() <= TAME[1]:
        return None
    shift = form.bias.known / scale
    if np.abs(shift).max() > TAME[1]:
        return None
    moved = replace(term, source=Shifted(term.source, shift))
    return replace(form, terms=(moved,), bias=Bias.zeros(form.channels))


def relaid(form: Form, layout: tuple[int, int], rename: Callable[[Hashable], Hashable]) -> Form | None:
    """A pointwise form in another layout, of sources renamed; None if it is not pointwise."""
    terms = []
    for term in form.terms:
        geometry = term.kernel.geometry.relaid(layout)
        if geometry is None:
            return None
        kernel = term.kernel
        fresh: Kernel = (
            Vector(geometry, kernel.scale) if isinstance(kernel, Vector) else Relaid(geometry, kernel)
        )
        terms.append(replace(term, source=rename(term.source), kernel=fresh))
    return replace(form, layout=layout, terms=tuple(terms))


def apply(
    channels: int,
    layout: tuple[int, int],
    terms: Sequence[Term],
    bias: Bias,
    operands: Sequence[Form],
    *,
    border: Bias | None = None,
    size_of: Callable[[Hashable], tuple[int, ...] | None] = lambda source: None,
) -> Form:
    """Substitute forms into an operator: term `i` reads `operands[i]` in place of its source.

    Args:
        channels, layout, terms, bias: the operator; its output is `bias + sum(terms)`.
        operands: what each term reads, as a form of earlier tensors.
        border: the value the (only) term pads with instead of zero. An operand whose bias equals it commutes with
            the padding: with f = f0 + v, pad_v(f) = pad_0(f0) + v.
        size_of: a source's positions per axis, where proved; lets terms of unlike slack add.

    Raises:
        Inexact: when no form equals it for every input.
    """
    collected: dict[Hashable, Term] = {}
    if sum(len(operand.terms) for operand in operands) > 4 * MAX_TERMS:
        raise Inexact(Reason.COST, "the expression is too long to be taken as a whole")
    for outer, operand in zip(terms, operands, strict=True):
        g = outer.kernel.geometry
        inner_bias = operand.bias.channels(outer.lo_in, outer.lo_in + g.c_in)
        if border is not None:
            if inner_bias.late:
                raise Inexact(Reason.BORDER, "the padding value is not known to equal the inner bias")
            inner_bias = inner_bias + Bias(-border.known, (), border.noise)
            bias = bias + border
        if g.reads_padding and not inner_bias.vanishes:
            raise Inexact(Reason.BORDER, "" if border is None else "the padding value is not the inner bias")
        for inner in operand.terms:
            term = _compose_term(outer, inner, inner_bias.vanishes)
            if term is None:
                continue
            key = term.key
            known = collected.get(key)
            if known is not None:
                term = replace(known, kernel=add_kernels(known.kernel, term.kernel, size_of(term.source)))
            collected[key] = term
        if not inner_bias.is_zero:
            bias = bias + inner_bias.through(outer.kernel).placed(outer.lo_out, channels)
    if len(collected) > MAX_TERMS or any(t.kernel.depth > MAX_DEPTH for t in collected.values()):
        raise Inexact(Reason.COST, "the expression is too long to be taken as a whole")
    return Form(channels, layout, tuple(collected.values()), bias)


def _compose_term(outer: Term, inner: Term, zero_bias: bool) -> Term | None:
    """`outer` after `inner`, over the channels both touch; None if there are none.

    `zero_bias`: the bias of what `outer` reads vanishes; it does wherever `outer` reads padding.
    """
    g, f = outer.kernel, inner.kernel
    begin_g, end_g = outer.lo_in, outer.lo_in + g.geometry.c_in
    begin_f, end_f = inner.lo_out, inner.lo_out + f.geometry.c_out
    lo, hi = max(begin_g, begin_f), min(end_g, end_f)
    if lo >= hi:
        return None
    lo_in, lo_out = inner.lo_in, outer.lo_out
    if (
        g.geometry.layout == f.geometry.layout
    ):  # an identity on more than the other touches leaves it as it is
        if lo == begin_g and hi == end_g and isinstance(f, Vector) and f.is_one:
            return Term(inner.source, g, lo_in + lo - begin_f, lo_out)
        if lo == begin_f and hi == end_f and isinstance(g, Vector) and g.is_one:
            return Term(inner.source, f, lo_in, lo_out + lo - begin_g)
    if lo != begin_f or hi != end_f:
        f, first = _rows(f, lo - begin_f, hi - begin_f)
        lo_in += first
    if lo != begin_g or hi != end_g:
        g, first = _columns(g, lo - begin_g, hi - begin_g)
        lo_out += first
    return Term(inner.source, compose_kernels(g, f, zero_bias=zero_bias), lo_in, lo_out)


def _rows(kernel: Kernel, lo: int, hi: int) -> tuple[Kernel, int]:
    geometry, first, _ = laws.select_outputs(kernel.geometry, lo, hi)
    if isinstance(kernel, Vector):
        return Vector(geometry, kernel.scale[lo:hi]), first
    return Rows(geometry, kernel, lo, first), first


def _columns(kernel: Kernel, lo: int, hi: int) -> tuple[Kernel, int]:
    geometry, first, _ = laws.select_inputs(kernel.geometry, lo, hi)
    if isinstance(kernel, Vector):
        return Vector(geometry, kernel.scale[lo:hi]), first
    return Columns(geometry, kernel, lo, first), first


def compose_kernels(g: Kernel, f: Kernel, *, zero_bias: bool) -> Kernel:
    """`g @ f`; values per channel are multiplied at once, so chains of them do not nest."""
    geometry = laws.compose(g.geometry, f.geometry, zero_bias=zero_bias)
    if isinstance(g, Vector):
        if isinstance(f, Vector):
            return Vector(geometry, g.scale * f.scale)
        if g.is_one:
            return f
        if isinstance(f, Scaled):
            return Scaled(geometry, f.inner, g.scale if f.outer is None else g.scale * f.outer, f.inputs)
        return Scaled(geometry, f, g.scale)
    if isinstance(f, Vector):
        if f.is_one:
            return g
        if isinstance(g, Scaled):
            return Scaled(geometry, g.inner, g.outer, f.scale if g.inputs is None else f.scale * g.inputs)
        return Scaled(geometry, g, None, f.scale)
    return Composed(geometry, g, f)


def add_kernels(f: Kernel, g: Kernel, size: tuple[int, ...] | None = None) -> Kernel:
    """`f + g`; sums of sums stay flat."""
    geometry = laws.total(f.geometry, g.geometry, size)
    if isinstance(f, Vector) and isinstance(g, Vector):
        return Vector(geometry, f.scale + g.scale)
    parts = (*(f.parts if isinstance(f, Total) else (f,)), *(g.parts if isinstance(g, Total) else (g,)))
    return Total(geometry, parts)
