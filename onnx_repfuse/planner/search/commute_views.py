"""Ways to compute what reads views, besides looking through them: an operator moves before the view.

Conv1x1(GlobalAveragePool(u))  =  GlobalAveragePool(Conv1x1(u)),  and the Conv1x1 may go into what computes u
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import taps_of
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators.facts import SpaceMapSort
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.forms.compose import inline
from onnx_repfuse.planner.forms.view_sources import Viewed, common_view, taken_last, viewed_form
from onnx_repfuse.planner.search.candidates import Candidate, Entry, absorbing
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["restoring", "under_view", "why_not_before_average"]

_MEANS = (SpaceMapSort.AVERAGES, SpaceMapSort.INTERPOLATES)
ENLARGED = "in half precision, what it enlarges could overflow in front of the average"


@dataclass(frozen=True, eq=False)
class _Group:
    """Terms of a form that share a view.

    Attributes:
        terms: all of them write the same channels, unless they are all terms of the form.
        view: None where views have cancelled.
        inner: the form below the view, of one tensor.
        lo: the first channel they write.
        is_whole: they are all there is, and the bias of the form is in `inner`.
    """

    terms: tuple[Term, ...]
    view: View | None
    inner: Form
    lo: int
    is_whole: bool = False

    @property
    def source(self) -> str:
        """The tensor that the view is taken of."""
        return str(self.inner.sources[0])


class _Below(NamedTuple):
    """A way to compute what is viewed: its cost, its form, and what that absorbs; None where nothing is absorbed."""

    cost: int
    form: Form
    absorbed: Candidate | None


def under_view(
    candidate: Candidate,
    entries: Mapping[str, Entry],
    is_free: Callable[[str], bool],
    cost_below: Callable[[Form, View], int | None],
) -> Iterator[Candidate]:
    """`A view(u)` as `view(A u)`, with A put into what computes u, pointwise or not; so for each term of a sum.

    Likewise `A u`, where views have cancelled.

    Args:
        candidate: `A view(u)`, or a sum of such terms.
        entries: of the cover.
        is_free: whether nothing else needs a tensor such as u.
        cost_below: what it costs to compute a form before a view.
    """
    groups = [group for group in _groups(candidate) if is_free(group.source) and group.source in entries]
    read = Counter(group.source for group in groups)
    ways = {
        group: _ways_below(group, entries[group.source], cost_below)
        for group in groups
        if read[group.source] == 1  # else it would be computed once for each
    }
    for number in range(max(map(len, ways.values()), default=0)):
        chosen = {group: below[min(number, len(below) - 1)] for group, below in ways.items() if below}
        if any(way.absorbed is not None for way in chosen.values()):
            yield _moved(candidate, chosen, entries)


def _groups(candidate: Candidate) -> Iterator[_Group]:
    """The groups of terms that read one tensor through one view."""
    form = candidate.form
    inner, view = common_view(form) or (form, None)
    if view is not None or (form.reads_tensors and Kind.COMMUTE in candidate.roles):
        if len(inner.sources) == 1 and isinstance(inner.sources[0], str):
            yield _Group(form.terms, view, inner, 0, is_whole=True)
        return
    groups: dict[tuple[View, int, int], list[Term]] = {}
    for term in form.terms:
        if isinstance(term.source, Viewed) and isinstance(term.source.inner, str):
            key = term.source.view, term.lo_out, term.kernel.geometry.c_out
            groups.setdefault(key, []).append(term)
    for (view, lo, channels), terms in groups.items():
        below = taken_last(terms, Bias.zeros(channels), view)
        if below is not None and len(below.sources) == 1:
            yield _Group(tuple(terms), view, below, lo)


def _ways_below(group: _Group, entry: Entry, cost_below: Callable[[Form, View], int | None]) -> list[_Below]:
    """The ways to compute what is viewed, the cheapest first."""
    ways: list[_Below] = []
    for below in entry.candidates:
        form = inline(group.inner, group.source, below.form)
        if form is None:
            continue
        cost = 0 if group.view is None else cost_below(form, group.view)
        if cost is not None:
            ways.append(_Below(cost + below.setup.cost, form, below))
    if group.view is not None:
        cost = cost_below(group.inner, group.view)
        if cost is not None:
            ways.append(_Below(cost + entry.best.cost, group.inner, None))
    return sorted(ways, key=attrgetter("cost"))


def _moved(candidate: Candidate, chosen: Mapping[_Group, _Below], entries: Mapping[str, Entry]) -> Candidate:
    """A candidate with groups of its terms computed before their views."""
    for group, (_, inner, below) in chosen.items():
        if below is not None:
            setup = candidate.setup.minus(entries[group.source].best).plus(below.setup)
            form = inner if group.view is None else _with_view_last(candidate.form, group, inner, group.view)
            candidate = absorbing(candidate, below, form, setup)
    return candidate


def _with_view_last(form: Form, group: _Group, inner: Form, view: View) -> Form:
    """A form with the view of another one in the place of a group of terms.

    The bias goes below the view, too, where there is no convolution beside it to take it.
    """
    others = tuple(term for term in form.terms if term not in group.terms)
    bias = form.bias
    if group.is_whole:
        bias = Bias.zeros(form.channels)
    elif view.keeps_constants and inner.channels == form.channels and all(map(_is_factor, others)):
        inner, bias = replace(inner, bias=inner.bias + bias), Bias.zeros(form.channels)
    return replace(form, terms=(*others, viewed_form(inner, view, group.lo)), bias=bias)


def _is_factor(term: Term) -> bool:
    return isinstance(term.kernel, Vector)


def why_not_before_average(
    candidate: Candidate, entries: Mapping[str, Entry], data_type: int
) -> Inexact | None:
    """Why `A view(u)`, a factor above 1 behind an average, is not moved in front of it; None if it may be.

    In half precision it stays: an average of values up to 1000 may be a small number, of which a thousand times fits,
    but a thousand times each value overflows.
    """
    limits = FLOAT_FORMATS.get(data_type)
    if limits is None or not limits.is_half:
        return None
    for group in _groups(candidate):
        if group.view is None or group.view.sort not in _MEANS or group.source not in entries:
            continue
        kernels = [taps_of(term.kernel) for term in group.terms]
        if any(isinstance(kernel, Vector) and np.abs(kernel.scale).max() > 1.0 for kernel in kernels):
            return Inexact(Reason.PRECISION, ENLARGED)
    return None


def restoring(
    lifted: LinearOp, candidate: Candidate, entries: Mapping[str, Entry], scope: Scope
) -> Iterable[Candidate]:
    """`Reshape(A Flatten(u), Shape(u))` as `A u`: but for the Flatten, u is read for its shape only, and goes."""
    like = lifted.view.like if lifted.view is not None else ""
    entry = entries.get(like)
    if entry is None or candidate.form.sources != (like,) or not _read_for_shape(scope, like, lifted.node):
        return
    for below in entry.candidates:
        form = inline(candidate.form, like, below.form)
        if form is not None:
            setup = candidate.setup.plus(below.setup).minus(entry.best)
            yield replace(absorbing(candidate, below, form, setup), swallowed=like)


def _read_for_shape(scope: Scope, name: str, node: gs.Node) -> bool:
    """Whether all consumers but one are Shape nodes, which `node` alone reads."""
    consumers = scope.consumers.get(name, [])
    shapes = [consumer for consumer in consumers if consumer.op == "Shape"]
    if scope.is_seen(name) or len(consumers) != len(shapes) + 1:
        return False
    names = [shape.outputs[0].name for shape in shapes]
    return all(scope.is_private(shape) and scope.consumers[shape][0] is node for shape in names)
