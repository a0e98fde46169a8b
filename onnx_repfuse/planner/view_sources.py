"""Views as sources of forms: a form may read `Viewed` tensors, as it may read `Shifted` ones (`algebra.affine_form`).

Pointwise operators commute with views: A view(x) = view(A x). So forms carry every view down to their sources. There
two that undo each other cancel, and `lowering` decides whether it is cheaper to take a view first or last.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from onnx_repfuse.algebra.affine_form import Form, Shifted, in_layout
from onnx_repfuse.graph.views import View, is_identity

__all__ = ["Viewed", "common_view", "seen_through"]


@dataclass(frozen=True)
class Viewed:
    """`view` of `inner`, a tensor's name or another `Viewed`; the channels are those of `inner`."""

    inner: Hashable
    view: View

    def __str__(self) -> str:
        return str(self.inner)


def seen_through(form: Form, view: View) -> Form | None:
    """The form of a view's output, given a form of its operand; None if that is not pointwise."""
    if any(isinstance(source, Shifted) for source in form.sources):
        return None
    return in_layout(form, view.after, lambda source: _viewed(source, view))


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
    if view is None or not view.fits(form.channels):
        return None
    inner = in_layout(
        form, view.before, lambda source: source.inner if isinstance(source, Viewed) else source
    )
    return None if inner is None else (inner, view)
