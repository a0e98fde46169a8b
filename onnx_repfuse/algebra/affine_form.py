"""A Form: what a tensor is, as a sum of linear maps of other tensors plus one bias.

    t[channels lo_out_i ..] += kernel_i( source_i[channels lo_in_i ..] )  for each term i,  then  t += bias

Slicing channels and concatenating tensors are such sums too, with kernels that are the identity: that is why
terms carry the range of channels they read and the range they write. Forms are closed under substitution for the
operands of an operator: `substitute` says what one of its terms becomes, `gather` adds these up; both raise Inexact
where a law of the algebra says no. The bias is added once, whatever the number of terms.

Forms, terms, biases and kernels are never changed. Those that a plan makes by the hundred thousand are not declared
frozen, because creating a frozen object takes several times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Picked, picked, taps_of
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_products import (
    columns,
    composed,
    in_layout_of,
    is_one,
    narrowed,
    rows,
    sums_of,
)
from onnx_repfuse.algebra.kernels import Array, Kernel, Vector
from onnx_repfuse.algebra.laws import Size
from onnx_repfuse.errors import Inexact
from onnx_repfuse.records.reasons import Reason

__all__ = [
    "MAX_TERMS",
    "TOO_LONG",
    "Apart",
    "Form",
    "Part",
    "Shifted",
    "Term",
    "apart",
    "fits",
    "gather",
    "identity",
    "in_layout",
    "key_of",
    "scale_out",
    "side_by_side",
    "substitute",
]

MAX_TERMS = 32  # a longer sum is computed in parts: keeps planning linear in the number of sources
MAX_DEPTH = 64  # of kernels, which are evaluated recursively
# Of the factors and shifts of a `Shifted` source: well within the normal numbers of float16, 2**-14 to 2**16.
MIN_FACTOR, MAX_FACTOR = 2.0**-12, 2.0**12
TOO_LONG = "the expression is too long to be taken as a whole"


@dataclass(eq=False, slots=True)
class Term:
    """One linear map: reads channels `lo_in ..` of `source`, writes channels `lo_out ..`."""

    source: Hashable
    kernel: Kernel
    lo_in: int = 0
    lo_out: int = 0


@dataclass(frozen=True, eq=False)
class Shifted:
    """A tensor, or a view of one, plus a constant per channel, shape (channels,).

    `normalizes`: a BatchNormalization computed it, or one like it. Runtimes keep their blocked layouts over that, but
    not over an Add.
    """

    source: Hashable
    shift: Array
    normalizes: bool = False

    def __str__(self) -> str:
        return str(self.source)


@dataclass(frozen=True)
class Apart:
    """The source `name`, read by a term that does not add up with those of another `number`."""

    name: str
    number: int

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False, slots=True)
class Form:
    """See the module's docstring. `channels` and `layout`, (channel axis, rank), are those of the tensor."""

    channels: int
    layout: tuple[int, int]
    terms: tuple[Term, ...]
    bias: Bias
    sources: tuple[Hashable, ...] = field(init=False)  # the distinct ones, in order

    def __post_init__(self) -> None:
        # asked of every form: a cached property, which takes a lock, would take longer
        terms = self.terms
        if len(terms) == 1:
            self.sources = (terms[0].source,)
        else:
            self.sources = tuple(dict.fromkeys([term.source for term in terms]))

    @property
    def reads_tensors(self) -> bool:
        """Whether all sources are tensors as they are: names, not views, shifted ones or such that are kept apart."""
        return set(map(type, self.sources)) == {str}  # asked of every form


@lru_cache(maxsize=1 << 12)
def identity(source: Hashable, channels: int, layout: tuple[int, int]) -> Form:
    """`t = source`."""
    return Form(channels, layout, (Term(source, Vector.unit(channels, layout)),), Bias.zeros(channels))


def apart(form: Form, number: int) -> Form:
    """The same form, whose terms do not add up with those of other forms."""
    terms = [
        replace(term, source=Apart(term.source, number)) if isinstance(term.source, str) else term
        for term in form.terms
    ]
    return replace(form, terms=tuple(terms))


def scale_out(form: Form, *, normalizes: bool = False) -> Form | None:
    """`s*x + t` as `s*(x + t/s)`, which has no bias: a convolution that reads it may pad with zeros,

        conv(s*x + t) = conv_s(x + t/s)     also at the edges, as both see zero at the same positions

    None unless the form is that, no s is zero, and s and t/s are far from overflow and underflow. The channels of x
    may be permuted, too.
    """
    scale = _whole_scale(form)
    if scale is None or form.bias.deferred or form.bias.is_zero:
        return None
    if not MIN_FACTOR <= np.abs(scale).min() <= np.abs(scale).max() <= MAX_FACTOR:
        return None
    shift = form.bias.known / scale  # in float64: rounded once, when it is written
    if np.abs(shift).max() > MAX_FACTOR:
        return None
    term = form.terms[0]
    if isinstance(term.kernel, Picked):
        shift = shift[np.argsort(term.kernel.index)]  # of each channel of x
    shifted = replace(term, source=Shifted(term.source, shift, normalizes))
    return replace(form, terms=(shifted,), bias=Bias.zeros(form.channels))


def _whole_scale(form: Form) -> Array | None:
    """The factors of a form that is `s*x + t` of all channels of one tensor, in any order."""
    if len(form.terms) != 1:
        return None
    term = form.terms[0]
    kernel = term.kernel
    if isinstance(kernel, Picked) and kernel.is_permutation:
        kernel = kernel.taps
    if not isinstance(kernel, Vector) or isinstance(term.source, Shifted):
        return None
    return kernel.scale if term.lo_in == term.lo_out == 0 and len(kernel.scale) == form.channels else None


def in_layout(form: Form, layout: tuple[int, int], rename: Callable[[Hashable], Hashable]) -> Form | None:
    """A pointwise form in another (channel axis, rank), of renamed sources; None if it is not pointwise."""
    terms = []
    for term in form.terms:
        kernel = in_layout_of(term.kernel, layout)
        if kernel is None:
            return None
        terms.append(Term(rename(term.source), kernel, term.lo_in, term.lo_out))
    return Form(form.channels, layout, tuple(terms), form.bias)


Part = tuple[Sequence[Term], Bias]  # what one term of an operator becomes: `substitute`


def substitute(outer: Term, operand: Form, channels: int, padding_value: Bias | None = None) -> Part:
    """What one term of an operator becomes when it reads a form: terms of its sources, and what is added to the bias.

    Args:
        channels: of the operator's output.
        padding_value: the value the term pads with instead of zero. An operand whose bias equals it commutes with
            the padding: with f = f0 + v, pad_v(f) = pad_0(f0) + v.

    Raises:
        Inexact: when no form equals it for every input.
    """
    kernel = outer.kernel
    g = kernel.geometry
    inner_bias = operand.bias.channels(outer.lo_in, outer.lo_in + g.c_in)
    added = Bias.zeros(channels)
    if padding_value is not None:  # f0 = f - v takes the place of f, and v is added behind
        if inner_bias.deferred:
            raise Inexact(Reason.BORDER, "the padding value is not known to equal the inner bias")
        inner_bias = inner_bias + Bias(-padding_value.known, (), padding_value.noise)
        added = padding_value
    # On padding, an operator sees zeros where the formula of the interior takes the bias: they agree if it vanishes.
    vanishes = inner_bias.vanishes
    if g.reads_padding and not vanishes:
        detail = "" if padding_value is None else "the padding value is not the inner bias"
        raise Inexact(Reason.BORDER, detail)
    if not inner_bias.is_zero:
        added = added + inner_bias.through(kernel).placed(outer.lo_out, channels)
    if _is_identity_of(outer, operand):
        return operand.terms, added
    terms = [_compose_term(outer, inner, vanishes) for inner in operand.terms]
    return [term for term in terms if term is not None], added


def _is_identity_of(outer: Term, operand: Form) -> bool:
    """Whether a term copies all channels of a form."""
    kernel = outer.kernel
    if not isinstance(kernel, Vector) or outer.lo_in != 0 or outer.lo_out != 0:
        return False
    g = kernel.geometry
    return g.c_in == operand.channels and g.layout == operand.layout and kernel.is_one


def gather(
    channels: int,
    layout: tuple[int, int],
    bias: Bias,
    parts: Sequence[Part],
    size_of: Callable[[Hashable], Size | None],
) -> Form:
    """The sum of what the terms of an operator became, and of its bias.

    `size_of` gives a source's positions per axis, where proved; it lets terms of unlike slack add.

    Raises:
        Inexact: terms that do not add, or too many of them.
    """
    if len(parts) == 1 == len(parts[0][0]):  # nothing adds up, as in most operators of one operand
        terms, added = parts[0]
        if not fits(terms):
            raise Inexact(Reason.COST, TOO_LONG)
        return Form(channels, layout, (terms[0],), bias + added)
    collected: dict[Key, list[Term]] = {}
    for terms, added in parts:
        for term in terms:
            collected.setdefault(key_of(term), []).append(term)
        bias = bias + added
    if len(collected) > MAX_TERMS:  # before the work, not after it
        raise Inexact(Reason.COST, TOO_LONG)
    result: list[Term] = []
    for key, alike in collected.items():
        if len(alike) == 1:
            result += alike
            continue
        sums = sums_of([term.kernel for term in alike], size_of(key[0]))
        result += [Term(key[0], kernel, key[1], key[3]) for kernel in sums]
    if not fits(result):
        raise Inexact(Reason.COST, TOO_LONG)
    return Form(channels, layout, tuple(result), bias)


Key = tuple[Hashable, int, int, int, int]


def key_of(term: Term) -> Key:
    """Source, first channel read, channels read, first channel written, channels written: terms of one key add up."""
    g = term.kernel.geometry
    return term.source, term.lo_in, g.c_in, term.lo_out, g.c_out


def fits(terms: Collection[Term]) -> bool:
    """Whether they are few and shallow enough for one form."""
    return len(terms) <= MAX_TERMS and max([term.kernel.depth for term in terms], default=0) <= MAX_DEPTH


def _compose_term(outer: Term, inner: Term, zero_bias: bool) -> Term | None:
    """`outer` after `inner`, over the channels that both touch; None if there are none.

    `zero_bias`: the bias of what `outer` reads vanishes; it does wherever `outer` reads padding.
    """
    g, f = outer.kernel, inner.kernel
    begin_g, end_g = outer.lo_in, outer.lo_in + g.geometry.c_in
    begin_f, end_f = inner.lo_out, inner.lo_out + f.geometry.c_out
    lo, hi = max(begin_g, begin_f), min(end_g, end_f)
    if lo >= hi:
        return None
    lo_in, lo_out = inner.lo_in, outer.lo_out
    f_is_whole, g_is_whole = (lo, hi) == (begin_f, end_f), (lo, hi) == (begin_g, end_g)
    if g.geometry.layout == f.geometry.layout:
        # An identity on more channels than the other one touches only moves it.
        if g_is_whole and is_one(f):
            return Term(inner.source, g, lo_in + lo - begin_f, lo_out)
        if f_is_whole and is_one(g):
            moved = lo_out + lo - begin_g
            return inner if moved == inner.lo_out else Term(inner.source, f, lo_in, moved)
    # Both are cut to the channels lo..hi that they share.
    if not f_is_whole:
        f, first = rows(f, lo - begin_f, hi - begin_f)
        lo_in += first
    if not g_is_whole:
        g, first = columns(g, lo - begin_g, hi - begin_g)
        lo_out += first
    kernel, first = narrowed(composed(g, f, zero_bias=zero_bias))
    return Term(inner.source, kernel, lo_in + first, lo_out)


def side_by_side(terms: Sequence[Term]) -> list[Term]:
    """Terms that write channels one after the other, where neighbours that choose channels of one source are one.

    Split and Concat of the parts in another order -> one choice
    """
    result: list[Term] = []
    run: list[Term] = []
    for term in terms:
        if run and not (_chooses(term) and _follows(run[-1], term)):
            result += _one_choice(run)
            run = []
        run.append(term)
        if not _chooses(term):
            result += run
            run = []
    return result + _one_choice(run)


def _chooses(term: Term) -> bool:
    """Whether it copies channels, under one factor each."""
    return isinstance(taps_of(term.kernel), Vector)


def _follows(before: Term, term: Term) -> bool:
    is_next = term.lo_out == before.lo_out + before.kernel.geometry.c_out
    return is_next and term.source == before.source


def _one_choice(run: list[Term]) -> list[Term]:
    """Choices of one source, each behind the other, as one."""
    if len(run) < 2:
        return run
    first = run[0]
    index, scale = [], []
    for term in run:
        kernel = term.kernel
        taps = taps_of(kernel)
        assert isinstance(taps, Vector)
        chosen = kernel.index if isinstance(kernel, Picked) else np.arange(len(taps.scale))
        index.append(chosen + term.lo_in)
        scale.append(taps.scale)
    channels = np.concatenate(index)
    lo, hi = int(channels.min()), int(channels.max()) + 1
    g = first.kernel.geometry
    taps = Vector(Geometry.diagonal(len(channels), g.rank, g.channel_axis), np.concatenate(scale))
    kernel, start = narrowed(picked(channels - lo, taps, hi - lo))
    return [Term(first.source, kernel, lo + start, first.lo_out)]
