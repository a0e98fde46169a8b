"""Views as sources of forms: a form may read `Viewed` tensors, as it may read `Shifted` ones (`algebra.affine_form`).

Pointwise operators commute with views: A view(x) = view(A x). So forms carry every view down to their sources. There
two that undo each other cancel, and `pricing.lowering` decides, term by term, whether it is cheaper to take a view
first or last. What is viewed may be a form, too: then the view is taken last, of what the form computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnx_repfuse.algebra.affine_form import Form, Shifted, Term, in_layout
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.algebra.spread import Spreading, spread
from onnx_repfuse.graph.views import View, is_identity

__all__ = [
    "Viewed",
    "common_view",
    "is_viewed_form",
    "seen_through",
    "taken_last",
    "tensors_read",
    "under",
    "viewed_form",
]


@dataclass(frozen=True)
class Viewed:
    """`view` of `inner`: a tensor's name, another `Viewed`, or a form. The channels are those of `inner`."""

    inner: Hashable
    view: View

    def __hash__(self) -> int:  # asked of every term: a chain of views is hashed once
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.inner, self.view))

    def __str__(self) -> str:
        return str(self.inner)


def tensors_read(form: Form) -> Iterator[str]:
    """The names of the tensors that a form reads, through its views."""
    for source in form.sources:
        yield from _tensors_behind(source)


def _tensors_behind(source: Hashable) -> Iterator[str]:
    while isinstance(source, (Viewed, Shifted)):
        source = source.inner if isinstance(source, Viewed) else source.source
    if isinstance(source, Form):
        yield from tensors_read(source)
    else:
        yield str(source)


def is_viewed_form(source: Hashable) -> bool:
    """Whether a source is a view of a form, or a view of such a view."""
    while isinstance(source, Viewed):
        source = source.inner
    return isinstance(source, Form)


def viewed_form(form: Form, views: Sequence[View], lo: int) -> Term:
    """The term that writes a form, seen through views, the last one first, to the channels from `lo` on."""
    source, channels = Viewed(form, views[-1]), views[-1].behind(form.channels)
    for view in reversed(views[:-1]):
        source, channels = Viewed(source, view), view.behind(channels)
    return Term(source, Vector.unit(channels, views[0].after), 0, lo)


def seen_through(form: Form, view: View) -> Form | None:
    """The form of a view's output, given a form of its operand; None if that is not pointwise."""
    if not _may_pass(form, view):
        return None
    moved = in_layout(form, view.after, lambda source: _viewed(source, view))
    if moved is None or view.channels_behind == view.channels:
        return moved
    if view.channels_behind > view.channels:
        return spread(moved, _spreading(view), view.channels)
    unit = Vector.unit(view.channels_behind, view.after)
    term = Term(moved.terms[0].source, unit)
    return Form(view.channels_behind, view.after, (term,), Bias.zeros(view.channels_behind))


def _may_pass(form: Form, view: View) -> bool:
    """Whether a pointwise form and a view may change places."""
    if any(isinstance(source, Shifted) for source in form.sources) or not _keeps_bias(form, view):
        return False
    if view.channels_behind < view.channels:
        # another form would have to do the same to all channels that stand for one
        return _is_tensor(form, view.channels)
    # where channels stand for several, a dense map would be large
    return view.channels_behind == view.channels or all(map(_is_factor, form.terms))


def _keeps_bias(form: Form, view: View) -> bool:
    """Whether the bias of a form, if it has any, is the same on the other side of a view."""
    return view.keeps_constants or form.bias.is_zero


def _spreading(view: View) -> Spreading:
    return Spreading(view.times, view.parts_are_neighbours)


def _is_tensor(form: Form, channels: int) -> bool:
    """Whether it is one tensor, with all its channels as they are."""
    (term, *others) = form.terms
    kernel = term.kernel
    is_copy = isinstance(kernel, Vector) and kernel.is_one and kernel.geometry.c_out == channels
    return is_copy and not others and term.lo_in == term.lo_out == 0 and form.bias.is_zero


def _is_factor(term: Term) -> bool:
    return isinstance(term.kernel, Vector)


def _viewed(source: Hashable, view: View) -> Hashable:
    """A view of a source; what the source's own views were taken of, where it undoes the last of them.

    Flatten of a tensor, then Reshape to the tensor's Shape -> the tensor
    """
    chain, base = [view], source
    while True:
        if is_identity(chain):
            return base
        if not isinstance(base, Viewed):
            return Viewed(source, view)
        chain.insert(0, base.view)
        base = base.inner


def common_view(form: Form) -> tuple[Form, View] | None:
    """A form as `view(form of what is viewed)`: (that form, the view), if all its sources share the view."""
    views = {source.view if isinstance(source, Viewed) else None for source in form.sources}
    view = views.pop() if len(views) == 1 else None
    inner = None if view is None else under(form, view)
    return None if view is None or inner is None else (inner, view)


def under(form: Form, view: View) -> Form | None:
    """The form below a view that all sources of `form` share; None if it cannot be written."""
    if any(map(is_viewed_form, form.sources)) or view.channels_behind > view.channels:
        return None
    if not view.fits(form.channels) or not _keeps_bias(form, view):
        return None
    inner = in_layout(form, view.before, _inside)
    if inner is None or view.channels_behind == view.channels:
        return inner
    if not (view.parts_are_neighbours or all(source == view.operand for source in inner.sources)):
        return None  # another source may have other channels
    return spread(inner, _spreading(view), view.channels_behind)


def _inside(source: Hashable) -> Hashable:
    return source.inner if isinstance(source, Viewed) else source


def taken_last(terms: Sequence[Term], bias: Bias, view: View) -> Form | None:
    """The sum of terms that share a view, and a bias, as the form below the view; None if it cannot be written.

    Args:
        terms: all of them write the same channels.
        bias: of these channels.
    """
    alone = tuple(Term(term.source, term.kernel, term.lo_in) for term in terms)
    geometry = terms[0].kernel.geometry
    return under(Form(geometry.c_out, geometry.layout, alone, bias), view)
