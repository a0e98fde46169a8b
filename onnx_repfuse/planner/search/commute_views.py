"""Ways to compute what reads views, besides looking through them: an operator moves before the view.

Conv1x1(GlobalAveragePool(u))  =  GlobalAveragePool(Conv1x1(u)),  and the Conv1x1 may go into what computes u

Likewise before several views, one behind another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from onnx_repfuse.planner.forms.view_sources import (
    Viewed,
    common_view,
    seen_through,
    taken_last,
    tensors_read,
    viewed_form,
)
from onnx_repfuse.planner.search.candidates import Candidate, Entry, absorbing
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["MEANS", "restoring", "under_view", "why_not_before_average"]

MEANS = (SpaceMapSort.AVERAGES, SpaceMapSort.INTERPOLATES)
ENLARGED = "in half precision, what it enlarges could overflow in front of the average"


@dataclass(frozen=True, eq=False)
class _Group:
    """Terms of a form that share views.

    Attributes:
        terms: all of them write the same channels, unless they are all terms of the form.
        views: the last one first; none where they have cancelled.
        inner: the form below the views, of one tensor.
        lo: the first channel they write.
        is_whole: they are all there is, and the bias of the form is in `inner`.
    """

    terms: tuple[Term, ...]
    views: tuple[View, ...]
    inner: Form
    lo: int
    is_whole: bool = False

    @property
    def source(self) -> str:
        """The tensor that the views are taken of."""
        return str(self.inner.sources[0])

    @property
    def channels(self) -> int:
        """How many they write."""
        return self.terms[0].kernel.geometry.c_out


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
    ways = {
        group: _ways_below(candidate, group, entries[group.source], cost_below)
        for group in _that_may_move(candidate, entries, is_free)
    }
    for chosen in _side_by_side(ways):
        if any(way.absorbed is not None for way in chosen.values()):
            yield _moved(candidate, chosen, entries)


def _that_may_move(
    candidate: Candidate, entries: Mapping[str, Entry], is_free: Callable[[str], bool]
) -> list[_Group]:
    """The groups of terms that alone read a tensor; nothing else needs it, and no other group."""
    free = {name for name in tensors_read(candidate.form) if name in entries and is_free(name)}
    if not free:
        return []  # as of most candidates: to find the groups takes long
    groups = [group for group in _groups(candidate) if group.source in free]
    # what several groups read would be computed once for each
    read = Counter(group.source for group in groups)
    return [group for group in groups if read[group.source] == 1]


def _side_by_side(ways: Mapping[_Group, Sequence[_Below]]) -> Iterator[dict[_Group, _Below]]:
    """The cheapest ways of all groups, then the next ones; of a group that has fewer, the last."""
    for number in range(max(map(len, ways.values()), default=0)):
        yield {group: below[min(number, len(below) - 1)] for group, below in ways.items() if below}


def _groups(candidate: Candidate) -> Iterator[_Group]:
    """The groups of terms that read one tensor through the same views."""
    form = candidate.form
    inner, views = _below_common_views(form)
    if views or (form.reads_tensors and Kind.COMMUTE in candidate.roles):
        if _reads_one_tensor(inner):
            yield _Group(form.terms, views, inner, 0, is_whole=True)
        return
    for (view, lo, channels), terms in _by_view(form).items():
        below = taken_last(terms, Bias.zeros(channels), view)
        if below is None:
            continue
        inner, views = _below_common_views(below)
        if _reads_one_tensor(inner):
            yield _Group(tuple(terms), (view, *views), inner, lo)


def _by_view(form: Form) -> dict[tuple[View, int, int], list[Term]]:
    """The terms that read views, by the last view and the channels they write: the first one, and how many."""
    groups: dict[tuple[View, int, int], list[Term]] = {}
    for term in form.terms:
        if isinstance(term.source, Viewed):
            key = term.source.view, term.lo_out, term.kernel.geometry.c_out
            groups.setdefault(key, []).append(term)
    return groups


def _reads_one_tensor(form: Form) -> bool:
    return len(form.sources) == 1 and isinstance(form.sources[0], str)


def _below_common_views(form: Form) -> tuple[Form, tuple[View, ...]]:
    """A form below the views that all its sources share, and these views, the last one first."""
    views: list[View] = []
    while (below := common_view(form)) is not None:
        form, view = below
        views.append(view)
    return form, tuple(views)


def _ways_below(
    candidate: Candidate, group: _Group, entry: Entry, cost_below: Callable[[Form, View], int | None]
) -> list[_Below]:
    """The ways to compute what is viewed, the cheapest first."""
    ways: list[_Below] = []
    for below in entry.candidates:
        if _is_weighed(candidate, group, below):
            continue
        form = inline(group.inner, group.source, below.form)
        if form is None:
            continue
        cost = cost_below(form, group.views[-1]) if group.views else 0
        if cost is not None:
            ways.append(_Below(cost + below.setup.cost, form, below))
    if group.views:
        cost = cost_below(group.inner, group.views[-1])
        if cost is not None:
            ways.append(_Below(cost + entry.best.cost, group.inner, None))
    return sorted(ways, key=attrgetter("cost"))


def _is_weighed(candidate: Candidate, group: _Group, below: Candidate) -> bool:
    """Whether another candidate of a view looks through it, at the same form: which was priced in both orders."""
    is_view_alone = candidate.nodes == 1 and group.is_whole and len(group.views) == 1
    return is_view_alone and seen_through(below.form, group.views[0]) is not None


def _moved(candidate: Candidate, chosen: Mapping[_Group, _Below], entries: Mapping[str, Entry]) -> Candidate:
    """A candidate with groups of its terms computed before their views."""
    for group, (_, inner, below) in chosen.items():
        if below is not None:
            setup = candidate.setup.minus(entries[group.source].best).plus(below.setup)
            form = _with_views_last(candidate.form, group, inner) if group.views else inner
            candidate = absorbing(candidate, below, form, setup)
    return candidate


def _with_views_last(form: Form, group: _Group, inner: Form) -> Form:
    """A form with the views of another one in the place of a group of terms.

    The bias of the channels they write goes below the views, too, where there is no convolution beside it to take it.
    """
    others = tuple(term for term in form.terms if term not in group.terms)
    lo, hi = group.lo, group.lo + inner.channels
    bias = form.bias
    if group.is_whole:
        bias = Bias.zeros(form.channels)
    elif _keep_constants(group.views) and group.channels == inner.channels:
        beside = [
            term for term in others if term.lo_out < hi and lo < term.lo_out + term.kernel.geometry.c_out
        ]
        if all(map(_is_factor, beside)):
            inner = replace(inner, bias=inner.bias + bias.channels(lo, hi))
            bias = bias.without(lo, hi)
    return replace(form, terms=(*others, viewed_form(inner, group.views, group.lo)), bias=bias)


def _keep_constants(views: Sequence[View]) -> bool:
    return all(view.keeps_constants for view in views)


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
        if group.source not in entries or not any(view.sort in MEANS for view in group.views):
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
