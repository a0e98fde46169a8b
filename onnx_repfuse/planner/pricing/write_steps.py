"""The steps that compute a form, one after the other, and what they cost: where views are taken first, or last."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from onnx_repfuse.algebra.affine_form import Apart, Form, Shifted, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Picked, Sampled, taps_of
from onnx_repfuse.algebra.kernel_products import is_one
from onnx_repfuse.algebra.kernels import Kernel, Vector
from onnx_repfuse.graph.views import Layout, View
from onnx_repfuse.planner.forms.view_sources import Viewed, taken_last
from onnx_repfuse.planner.pricing.cost import NOTHING, CostModel, Price, multiply_adds, view_cost
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.pricing.steps import Lowered, Step, Wanted

__all__ = ["LowersForms", "Writer", "is_copy"]


class LowersForms(Protocol):
    """What writes the forms below views: `lowering.Lowering`."""

    @property
    def model(self) -> CostModel:
        """Its prices."""

    @property
    def sizes(self) -> Sizes:
        """Of the tensors of its scope."""

    def lower(self, form: Form, wanted: Wanted, *, like: str = "") -> Lowered | None:
        """The steps of a form."""

    def price(self, form: Form, wanted: Wanted) -> Price | None:
        """The price of these steps."""

    def can_slice(self, kernel: Sampled) -> bool:
        """Whether a Slice can take these positions."""


class _State(NamedTuple):
    """How far a writer is: the number of steps, and what they add up to."""

    steps: int
    cost: int
    macs: int
    below: Price


class _Written(NamedTuple):
    """What was taken back: steps, the sources that some of them are, the last one first, and the state behind them."""

    steps: list[Step]
    sources: list[tuple[Hashable, int]]
    end: _State


@dataclass(eq=False)
class Writer:
    """Adds up steps and their cost.

    Attributes:
        only_price: the price is all that is asked for. Then what is below views is priced, not written.
    """

    lowering: LowersForms
    wanted: Wanted
    out_channels: int
    layout: Layout
    like: str
    only_price: bool = False

    def __post_init__(self) -> None:
        self.model, self.sizes = self.lowering.model, self.lowering.sizes
        self.sources: dict[Hashable, int] = {}  # shifted or viewed tensor -> its step
        self.steps: list[Step] = []
        self.below = NOTHING  # of what is priced, not written
        self.cost = 0
        self.macs = 0

    def add(self, step: Step, cost: int, written: int = 0) -> int:
        """The number of the step, which writes so many elements."""
        if step.view is not None:
            self.macs += step.view.multiply_adds * written
        else:
            step.layout, step.like = self.layout, step.like or self.like
        self.steps.append(step)
        self.cost += cost
        return len(self.steps) - 1

    def lowered(self, result: Hashable) -> Lowered:
        return Lowered(tuple(self.steps), result, self.cost, self.macs, self.below)

    @property
    def rank(self) -> tuple[int, int]:
        """What is least for the best steps; see `Wanted.rank`."""
        return self.wanted.rank(self)

    def segment(self, terms: Sequence[Term], bias: Bias, channels: int) -> Hashable | None:
        """A sum of terms plus a bias; its step, or the source that it is; None if a view of it cannot be written."""
        groups = _by_view(terms)
        if groups.keys() == {None}:
            return self.sum(terms, bias, channels)
        owner = None if bias.is_zero else self.takes_bias_of_sum(groups)
        parts: list[Hashable] = []
        for view, members in groups.items():
            part = self.group(view, members, bias if view is owner else Bias.zeros(channels), channels)
            if part is None:
                return None
            parts.append(part)
        return self.added(parts, channels)

    def takes_bias_of_sum(self, groups: Mapping[View | None, Sequence[Term]]) -> View | None:
        """The view of the group that the bias of a sum goes into, where possible with a convolution, which takes it."""
        for view, terms in groups.items():
            if view is not None and not view.keeps_constants:
                continue
            if any(not is_copy(term) and self.takes_bias(term) for term in terms):
                return view
        return next(iter(groups))

    def group(self, view: View | None, terms: Sequence[Term], bias: Bias, channels: int) -> Hashable | None:
        """The terms that share a view, with the view before or after them; None if neither can be written."""
        if view is None or (bias.is_zero and self.copies(terms)):
            return self.sum(terms, bias, channels)
        start = self.state
        first, rank_of_first = None, (0, 0)
        if all(self.can_read(term.source) for term in terms):
            first = self.sum(terms, bias, channels)
            rank_of_first = self.rank
        # a bias stays behind a view that does not keep constants
        inside = bias if view.keeps_constants else Bias.zeros(channels)
        inner = taken_last(terms, inside, view)
        if inner is None:
            return first
        with_first = self.taken_back(start)
        last: Hashable | None = self.view_last(inner, view, self.size(channels))
        if last is not None and inside is not bias:
            last = self.shifted(last, bias, channels)
        if first is None or (last is not None and self.rank < rank_of_first):
            return last
        self.taken_back(start)
        self.put_back(with_first)
        return first

    def copies(self, terms: Sequence[Term]) -> bool:
        """Whether terms are a tensor, or a view of one, with all its channels as they are: nothing could move."""
        (term, *others) = terms
        if others or not is_one(term.kernel) or not self.can_read(term.source):
            return False
        return self.sizes.channels(term.source, self.layout) == term.kernel.geometry.c_in

    @property
    def state(self) -> _State:
        """What tells what was written so far."""
        return _State(len(self.steps), self.cost, self.macs, self.below)

    def taken_back(self, start: _State) -> _Written:
        """Forget what was written since then; it is returned."""
        sources: list[tuple[Hashable, int]] = []
        written = _Written(self.steps[start.steps :], sources, self.state)
        del self.steps[start.steps :]
        _, self.cost, self.macs, self.below = start
        # in the order in which they were written
        while self.sources and next(reversed(self.sources.values())) >= start.steps:
            sources.append(self.sources.popitem())
        return written

    def put_back(self, written: _Written) -> None:
        """Write again what was taken back, where it was."""
        self.steps += written.steps
        self.sources.update(reversed(written.sources))
        _, self.cost, self.macs, self.below = written.end

    def view_last(self, inner: Form, view: View, size: int) -> int | None:
        """The view of a form, of `size` elements; None if the form cannot be written."""
        elements = self.sizes.elements
        below = max(1, size * elements(view.operand) // elements(view.output))
        source = self.inner(inner, self.wanted._replace(elements=below), view.operand)
        return None if source is None else self.view(view, source, view.behind(inner.channels), below, size)

    def inner(self, form: Form, wanted: Wanted, like: str) -> Hashable | None:
        """What computes a form below a view; None if it cannot be written."""
        if self.only_price:
            price = self.lowering.price(form, wanted)
            if price is None:
                return None
            self.below = self.below.plus(price)
            self.cost += price.cost
            self.macs += price.macs
            return like
        lowered = self.lowering.lower(form, wanted, like=like)
        return None if lowered is None else self.splice(lowered)

    def view(self, view: View, source: Hashable, channels: int, read: int, written: int) -> int:
        """A view of so many channels."""
        inputs: tuple[Hashable, ...] = (source,)
        if view.listed_in and channels != view.channels:
            # times 0, plus the channels: shape inference follows both
            is_channels = (np.arange(view.listed) == view.entry).astype(np.int64)
            others = self.add(Step("SizesMul", (view.listed_in,), 1, index=1 - is_channels), self.model.node)
            sizes = Step("SizesAdd", (others,), channels, index=channels * is_channels)
            inputs = (source, self.add(sizes, self.model.node))
        step = Step("View", inputs, channels, layout=view.after, like=view.output, view=view)
        return self.add(step, view_cost(self.model, view, read, written), written)

    def splice(self, lowered: Lowered) -> Hashable:
        """The result of steps that were written apart."""
        offset = len(self.steps)

        def moved(source: Hashable) -> Hashable:
            return source + offset if isinstance(source, int) else source

        for step in lowered.steps:
            step.inputs = tuple(map(moved, step.inputs))
            self.steps.append(step)
        self.cost += lowered.cost
        self.macs += lowered.macs
        return moved(lowered.result)

    def size(self, channels: int) -> int:
        """Elements of so many channels of the result."""
        return self.wanted.elements * channels // self.out_channels

    def added(self, parts: Sequence[Hashable], channels: int) -> Hashable:
        """The sum of what steps computed."""
        result = parts[0]
        for part in parts[1:]:
            result = self.add(
                Step("Add", (result, part), channels), self.model.elementwise(3 * self.size(channels))
            )
        return result

    def sum(self, terms: Sequence[Term], bias: Bias, channels: int) -> Hashable:
        """A sum of terms plus a bias, views first; its step, or the source that it is."""
        size = self.size(channels)
        if len(terms) > 1:
            terms = sorted(terms, key=is_copy)  # convolutions first
        pending: Bias | None = None if bias.is_zero else bias
        parts: list[Hashable] = []
        for term in terms:
            kernel = taps_of(term.kernel)
            if isinstance(kernel, Sampled) and self.lowering.can_slice(kernel):
                parts.append(self.sample(term, kernel, size))
            elif not isinstance(kernel, Vector):
                parts.append(self.convolution(term, kernel, size, pending))
                pending = None if self.takes_bias(term) else pending
            elif pending is not None and self.normalizes(terms):
                parts.append(self.factor(term, kernel, size, pending))
                pending = None
            else:
                parts.append(self.factor(term, kernel, size, None))
        result = self.added(parts, channels)
        return result if pending is None else self.shifted(result, pending, channels)

    def shifted(self, source: Hashable, bias: Bias, channels: int) -> Hashable:
        """A step plus a bias."""
        if bias.is_zero:
            return source
        step = Step("Shift", (source,), channels, bias=bias)
        return self.add(step, self.model.per_channel(2 * self.size(channels)))

    def normalizes(self, terms: Sequence[Term]) -> bool:
        """Whether one BatchNormalization may compute the sum. ONNX's has the channels on axis 1."""
        return self.wanted.may_normalize and len(terms) == 1 and self.takes_bias(terms[0])

    def takes_bias(self, term: Term) -> bool:
        """Whether Conv or Gemm computes it, which take a bias; MatMul does not, and Gemm reads matrices only."""
        return term.kernel.geometry.channel_axis == 1 or self.sizes.is_matrix(term.source)

    def factor(self, term: Term, kernel: Vector, size: int, bias: Bias | None) -> Hashable:
        """A Mul; with a bias, a BatchNormalization; nothing where all factors are 1."""
        source, elements = self.read(term)
        if kernel.is_one and bias is None:
            return source
        channels = kernel.geometry.c_out
        if bias is None:
            step = Step("Mul", (source,), channels, kernel)
            return self.add(step, self.model.per_channel(elements + size))
        step = Step("Norm", (source,), channels, kernel, bias)
        return self.add(step, self.model.per_channel(elements + size))

    def sample(self, term: Term, kernel: Sampled, size: int) -> Hashable:
        """A Slice of space."""
        source, _ = self.read(term)
        step = Step("Slice", (source,), kernel.geometry.c_out, kernel)
        return self.add(step, self.model.elementwise(2 * size, 0))

    def convolution(self, term: Term, kernel: Kernel, size: int, pending: Bias | None) -> int:
        source, elements = self.read(term)
        geometry = kernel.geometry.grown()
        macs = multiply_adds(geometry, elements, size)
        self.macs += macs
        bias = pending if self.takes_bias(term) else None
        step = Step("Conv", (source,), geometry.c_out, kernel, bias, matrix=self.sizes.is_matrix(term.source))
        return self.add(step, self.model.convolution(geometry, macs, elements + size))

    def read(self, term: Term) -> tuple[Hashable, int]:
        """The channels a term reads, sliced or gathered if they are not all there are; and their elements."""
        kernel = term.kernel
        total, wanted = self.sizes.channels(term.source, self.layout), taps_of(kernel).geometry.c_in
        elements = self.sizes.elements(term.source)
        source = self.source(term.source)
        part = elements * wanted // total
        like = _like(term.source)
        if isinstance(kernel, Picked):
            step = Step("Gather", (source,), wanted, index=kernel.index + term.lo_in, like=like)
        elif wanted == total:
            return source, elements
        else:
            step = Step("Slice", (source,), wanted, lo=term.lo_in, like=like)
        return self.add(step, self.model.elementwise(2 * part, 0)), part

    def can_read(self, source: Hashable) -> bool:
        """Whether its views can be written for its channels."""
        if isinstance(source, Shifted):
            return self.can_read(source.source)
        if not isinstance(source, Viewed):
            return True
        fits = source.view.fits(self.sizes.channels(source, self.layout))
        return fits and (isinstance(source.inner, Form) or self.can_read(source.inner))

    def source(self, source: Hashable) -> Hashable:
        """A tensor, or the step that shifts or views one; every such step is written once."""
        if isinstance(source, Apart):
            return source.name
        if not isinstance(source, (Shifted, Viewed)):
            return source
        if source not in self.sources:
            self.sources[source] = self.derived(source)
        return self.sources[source]

    def derived(self, source: Shifted | Viewed) -> int:
        """The step that shifts or views a tensor, or views a form."""
        size, channels = self.sizes.elements(source), self.sizes.channels(source, self.layout)
        if isinstance(source, Shifted):
            shifted, like, bias = self.source(source.source), _like(source.source), Bias(source.shift)
            unit = Vector.unit(channels, self.layout) if source.normalizes else None
            step = Step("Shift" if unit is None else "Norm", (shifted,), channels, unit, bias, like=like)
            return self.add(step, self.model.per_channel(2 * size))
        view, inner = source.view, source.inner
        if isinstance(inner, Form):
            result = self.view_last(inner, view, size)
            assert result is not None, "priced before, in `commute_views`"
            return result
        return self.view(view, self.source(inner), channels, self.sizes.elements(inner), size)


def _by_view(terms: Sequence[Term]) -> dict[View | None, list[Term]]:
    """Terms by their outermost view; first those that have none."""
    groups: dict[View | None, list[Term]] = {}
    for term in terms:
        if not isinstance(term.source, Viewed):
            groups.setdefault(None, []).append(term)
    for term in terms:
        if isinstance(term.source, Viewed):
            groups.setdefault(term.source.view, []).append(term)
    return groups


def _like(source: Hashable) -> str:
    """The tensor whose shape a source has."""
    if isinstance(source, Shifted):
        return _like(source.source)
    return source.view.output if isinstance(source, Viewed) else str(source)


def is_copy(term: Term) -> bool:
    """Whether it takes no multiply-adds."""
    return isinstance(taps_of(term.kernel), (Vector, Sampled))
