"""All that the price of a form depends on, without a name: forms of one key have one price.

A network repeats its blocks, and a plan weighs the same forms in every round. Looking a price up takes a fraction of
the time of writing the steps.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from onnx_repfuse.algebra.affine_form import Apart, Form, Shifted, Term
from onnx_repfuse.algebra.choice import Picked, Sampled
from onnx_repfuse.algebra.kernels import Kernel, Vector
from onnx_repfuse.graph.views import Layout, View
from onnx_repfuse.planner.forms.view_sources import Viewed
from onnx_repfuse.planner.pricing.sizes import Sizes

__all__ = ["PriceKeys"]

Key = tuple[Hashable, ...]


@dataclass(frozen=True, eq=False)
class PriceKeys:
    """The keys of the forms of one scope, in one round."""

    sizes: Sizes
    _views: dict[View, Key] = field(default_factory=dict)
    _tensors: dict[tuple[str, Layout], Key] = field(default_factory=dict)

    def key(self, form: Form, seen: dict[Hashable, int] | None = None) -> Key:
        """What tells a form from those of another price.

        Args:
            seen: numbers of the sources and views of the form around it, as steps are shared by those that are equal.
        """
        seen = {} if seen is None else seen
        terms = [self._term(term, form.layout, seen) for term in form.terms]
        return form.channels, form.layout, _biased(form), *terms

    def _term(self, term: Term, layout: Layout, seen: dict[Hashable, int]) -> Key:
        read = self._source(term.source, layout, seen)
        return read, term.kernel.geometry, _kind(term.kernel), term.lo_in, term.lo_out

    def _tensor(self, name: str, layout: Layout, seen: dict[Hashable, int]) -> Key:
        facts = self._tensors.get((name, layout))
        if facts is None:
            sizes = self.sizes
            # only a Gemm asks whether a tensor is a matrix
            is_matrix = layout[0] == -1 and sizes.is_matrix(name)
            facts = sizes.elements(name), sizes.operand_channels[name, layout], is_matrix
            self._tensors[name, layout] = facts
        return seen.setdefault(name, len(seen)), facts

    def _source(self, source: Hashable, layout: Layout, seen: dict[Hashable, int]) -> Key:
        if isinstance(source, str):
            return self._tensor(source, layout, seen)
        number = seen.setdefault(source, len(seen))
        if isinstance(source, Viewed):
            inner, view = source.inner, source.view
            if isinstance(inner, Form):
                below = True, *self.key(inner, seen)
            else:
                below = False, *self._source(inner, view.before, seen)
            return number, seen.setdefault(view, len(seen)), self._view(view), below
        if isinstance(source, Shifted):
            return number, source.normalizes, self._source(source.source, layout, seen)
        assert isinstance(source, Apart)
        return number, self._tensor(source.name, layout, seen)

    def _view(self, view: View) -> Key:
        """What the price of a view depends on, beside what is viewed."""
        facts = self._views.get(view)
        if facts is None:
            facts = self._views[view] = (
                (view.sort, view.work, view.multiply_adds, view.keeps_constants, view.parts_are_neighbours),
                (view.channels, view.channels_behind, view.before, view.after, view.dims),
                (view.entry is None, view.target is None, bool(view.listed_in)),
                (self.sizes.elements(view.operand), self.sizes.elements(view.output)),
            )
        return facts


def _kind(kernel: Kernel) -> int:
    """What a kernel is written as: a Mul, or nothing; a Slice of space; a Gather, and one of these; else a Conv."""
    if isinstance(kernel, Vector):
        return 2 if kernel.is_one else 1
    if isinstance(kernel, Picked):
        return 4 + _kind(kernel.taps)
    return 3 if isinstance(kernel, Sampled) else 0


def _biased(form: Form) -> Hashable:
    """Which segments of a form have a bias."""
    if form.bias.is_zero:
        return False
    starts = {term.lo_out for term in form.terms}
    return len(starts) == 1 or tuple(form.bias.nonzero_in(sorted(starts)))
