"""A Form: what a tensor is, as a sum of linear maps of other tensors plus one bias.

    t = bias + sum_i  place_i( kernel_i( source_i[channels lo_in ..] ) )          place: at channels lo_out ..

Slicing channels and concatenating tensors are such sums too, with kernels that are the identity: that is why
terms carry the range of channels they read and the range they write. Forms are closed under substitution for the
operands of an operator: `substitute` says what one of its terms becomes, `gather` adds these up; both raise Inexact
where a law of the algebra says no. The bias stands once, whatever the number of terms.

Nothing here is changed once made. The classes are not declared frozen because a plan makes hundreds of thousands of
their objects, and a frozen one takes several times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernel_slices import Columns, InLayout, Rows
from onnx_repfuse.algebra.kernels import Array, Composed, Kernel, Scaled, Total, Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.records.reasons import Reason

__all__ = [
    "MAX_TERMS",
    "TOO_LONG",
    "Form",
    "Part",
    "Shifted",
    "Term",
    "add_kernels",
    "compose_kernels",
    "fits",
    "gather",
    "identity",
    "in_layout",
    "scale_out",
    "substitute",
]

MAX_TERMS = 32  # a form with more terms is cut at a tensor: keeps sums of many sources linear in time
TAME = 2.0**-12, 2.0**12  # factors and shifts of a `Shifted` source: normal in every float type
MAX_DEPTH = 64  # likewise for the nesting of kernels, which are evaluated recursively
_TENSOR = {str}
TOO_LONG = "the expression is too long to be taken as a whole"


@dataclass(eq=False)
class Term:
    """One linear map: reads channels `lo_in ..` of `source`, writes channels `lo_out ..`."""

    source: Hashable
    kernel: Kernel
    lo_in: int = 0
    lo_out: int = 0


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
        return tuple(dict.fromkeys([term.source for term in self.terms]))

    @property
    def reads_tensors(self) -> bool:
        """Its sources are tensors as they are."""
        return set(map(type, self.sources)) == _TENSOR


@lru_cache(maxsize=1 << 12)
def identity(source: Hashable, channels: int, layout: tuple[int, int]) -> Form:
    """`t = source`."""
    return Form(channels, layout, (Term(source, Vector.unit(channels, layout)),), Bias.zeros(channels))


def scale_out(form: Form) -> Form | None:
    """`s*x + t` as `s*(x + t/s)`: without a bias, so that padding does not matter to what reads it,

        conv(s*x + t) = conv_s(x + t/s)     at every border, as both pad the same positions with zero

    None unless the form is that, no s is zero, and s and t/s are far from overflow and underflow.
    """
    if len(form.terms) != 1 or form.bias.deferred or form.bias.is_zero:
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


def in_layout(form: Form, layout: tuple[int, int], rename: Callable[[Hashable], Hashable]) -> Form | None:
    """A pointwise form in another layout, of sources renamed; None if it is not pointwise."""
    terms = []
    for term in form.terms:
        geometry = term.kernel.geometry.in_layout(layout)
        if geometry is None:
            return None
        kernel = term.kernel
        fresh: Kernel = (
            Vector(geometry, kernel.scale) if isinstance(kernel, Vector) else InLayout(geometry, kernel)
        )
        terms.append(replace(term, source=rename(term.source), kernel=fresh))
    return replace(form, layout=layout, terms=tuple(terms))


Part = tuple[Sequence[Term], Bias]


def substitute(outer: Term, operand: Form, channels: int, border: Bias | None = None) -> Part:
    """What one term of an operator becomes when it reads a form: terms of its sources, and what is added to the bias.

    Args:
        channels: of the operator's output.
        border: the value the term pads with instead of zero. An operand whose bias equals it commutes with the
            padding: with f = f0 + v, pad_v(f) = pad_0(f0) + v.

    Raises:
        Inexact: when no form equals it for every input.
    """
    kernel = outer.kernel
    g = kernel.geometry
    inner_bias = operand.bias.channels(outer.lo_in, outer.lo_in + g.c_in)
    added = Bias.zeros(channels)
    if border is not None:
        if inner_bias.deferred:
            raise Inexact(Reason.BORDER, "the padding value is not known to equal the inner bias")
        inner_bias = inner_bias + Bias(-border.known, (), border.noise)
        added = border
    vanishes = inner_bias.vanishes
    if g.reads_padding and not vanishes:
        raise Inexact(Reason.BORDER, "" if border is None else "the padding value is not the inner bias")
    if not inner_bias.is_zero:
        added = added + inner_bias.through(kernel).placed(outer.lo_out, channels)
    whole = outer.lo_in == outer.lo_out == 0 and g.c_in == operand.channels and g.layout == operand.layout
    if whole and isinstance(kernel, Vector) and kernel.is_one:
        return operand.terms, added
    composed = [_compose_term(outer, inner, vanishes) for inner in operand.terms]
    return [term for term in composed if term is not None], added


def gather(
    channels: int,
    layout: tuple[int, int],
    bias: Bias,
    parts: Sequence[Part],
    size_of: Callable[[Hashable], tuple[int, ...] | None],
) -> Form:
    """The sum of what the terms of an operator became, and of its bias.

    `size_of` gives a source's positions per axis, where proved; it lets terms of unlike slack add.

    Raises:
        Inexact: terms that do not add, or too many of them.
    """
    if len(parts) > 4 and sum(len(terms) for terms, _ in parts) > 4 * MAX_TERMS:
        raise Inexact(Reason.COST, TOO_LONG)
    collected: dict[Hashable, Term] = {}
    for terms, added in parts:
        for term in terms:
            g = term.kernel.geometry
            key = term.source, term.lo_in, g.c_in, term.lo_out, g.c_out  # terms of one key add up
            known = collected.get(key)
            if known is not None:
                kernel = add_kernels(known.kernel, term.kernel, size_of(term.source))
                term = Term(term.source, kernel, term.lo_in, term.lo_out)
            collected[key] = term
        bias = bias + added
    if not fits(collected.values()):
        raise Inexact(Reason.COST, TOO_LONG)
    return Form(channels, layout, tuple(collected.values()), bias)


def fits(terms: Collection[Term]) -> bool:
    """Whether they are few and shallow enough for one form."""
    return len(terms) <= MAX_TERMS and max([term.kernel.depth for term in terms], default=0) <= MAX_DEPTH


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
            if lo_out == begin_g:
                return inner
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
