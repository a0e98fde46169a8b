"""From a form to the operators that compute it: the cheapest straight writing, or None when there is none.

The output channels fall into consecutive segments (`algebra.segments`). A segment is a sum of terms; a term is nothing
(an identity), a factor per channel, or a convolution; the bias rides on a convolution where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from onnx_repfuse.algebra.affine_form import Form, Shifted, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Kernel, Vector
from onnx_repfuse.algebra.segments import segmented
from onnx_repfuse.graph.views import View
from onnx_repfuse.planner.cost import CostModel, Price, multiply_adds, view_cost
from onnx_repfuse.planner.view_sources import Viewed, common_view

__all__ = ["Step", "Surroundings", "Written", "asked", "estimate", "lower", "viewed_last"]


@dataclass(eq=False)
class Step:
    """One operator to write.

    Attributes:
        op: "Slice", "Mul", "Shift" (add a constant), "Norm" (both), "Conv", "Add", "Concat", "View" or "Identity".
        inputs: sources (anything hashable but int), or numbers of earlier steps.
        channels: of its output.
        kernel, bias: what it computes, where it has one.
        lo: first channel of a Slice.
        layout: channel axis and rank of its output.
        like: a tensor whose shape its output has, but for the channels; '' for the result's.
        matrix: its input is known to be two-dimensional.
        view: what to copy, for a View.
    """

    op: str
    inputs: tuple[Hashable, ...]
    channels: int
    kernel: Kernel | None = None
    bias: Bias | None = None
    lo: int = 0
    layout: tuple[int, int] = (1, 2)
    like: str = ""
    matrix: bool = False
    view: View | None = None


@dataclass(eq=False)  # not frozen, see `algebra.form`
class Written:
    """Steps in order, the last one being the result (an alias of `result` if there are none), and their cost."""

    steps: tuple[Step, ...]
    result: Hashable
    cost: int
    macs: int

    @property
    def price(self) -> Price:
        """What is paid for it."""
        axes = [step.layout[0] for step in self.steps if step.op == "Conv"]
        return Price(self.cost, self.macs, len(self.steps), axes.count(1), axes.count(-1))


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What forms are written among.

    Attributes:
        model: the prices.
        elements, channels: of a source; its channels in a layout.
        matrix: whether a source is known to be two-dimensional, so that Gemm can take the bias.
        prices: of segments, by what they ask for: a network repeats itself.
    """

    model: CostModel
    elements: Callable[[Hashable], int]
    channels: Callable[[Hashable, tuple[int, int]], int]
    matrix: Callable[[Hashable], bool]
    prices: dict[tuple[Hashable, ...], Price] = field(default_factory=dict)


def lower(
    form: Form, around: Surroundings, *, out_elements: int, norm: bool, like: str = ""
) -> Written | None:
    """Write a form, views first or last, whichever is cheaper.

    Args:
        out_elements: of the result.
        norm: whether BatchNormalization may be written.
        like: see `Step`.
    """
    first = _straight(form, around, out_elements, norm, like)
    viewed = common_view(form)
    if viewed is None:
        return first
    inner, view = viewed
    wide, narrow = around.elements(view.operand), around.elements(view.output)
    size = max(1, out_elements * wide // narrow)
    before = lower(inner, around, out_elements=size, norm=norm, like=view.operand)
    if before is None:
        return first
    cost = view_cost(around.model, view, size, out_elements)
    last = viewed_last(before, view, form.channels, cost, like)
    return last if first is None or last.cost < first.cost else first


def viewed_last(written: Written, view: View, channels: int, cost: int, like: str) -> Written:
    """A view of what was written."""
    result = len(written.steps) - 1 if written.steps else written.result
    step = Step("View", (result,), channels, layout=view.after, like=like, view=view)
    return Written((*written.steps, step), len(written.steps), written.cost + cost, written.macs)


def estimate(form: Form, around: Surroundings, *, out_elements: int, norm: bool) -> Price | None:
    """What `lower` would ask, without the steps."""
    if not form.reads_tensors:
        written = lower(form, around, out_elements=out_elements, norm=norm)
        return None if written is None else written.price
    segments = segmented(form)
    if segments is None:
        return None
    if len(segments) == 1:
        return _segment_price(segments[0][1], not form.bias.is_zero, around, out_elements, form, norm)
    prices = [Price(around.model.elementwise(2 * out_elements, 0), 0, 1)]  # of the Concat
    biased = form.bias.nonzero_in([lo for (lo, _), _ in segments])
    for ((lo, hi), terms), has_bias in zip(segments, biased, strict=True):
        size = out_elements * (hi - lo) // form.channels
        prices.append(_segment_price(terms, has_bias, around, size, form, norm))
    return Price(*map(sum, zip(*prices, strict=True)))


def _segment_price(
    terms: Sequence[Term], has_bias: bool, around: Surroundings, size: int, form: Form, norm: bool
) -> Price:
    """Of a segment of `form`, of so many elements."""
    key = size, has_bias, norm, *[asked(term, around, form.layout) for term in terms]
    found = around.prices.get(key)
    if found is None:
        channels = terms[0].kernel.geometry.c_out
        writer = _Writer(around, size, channels, form.layout, "", norm)
        bias = form.bias if has_bias else Bias.zeros(form.channels)
        found = writer.written(writer.segment(terms, bias, channels)).price
        around.prices[key] = found
    return found


def asked(term: Term, around: Surroundings, layout: tuple[int, int]) -> tuple[Hashable, ...]:
    """All that the price of a term hangs on."""
    source, kernel = term.source, term.kernel
    factor = kernel.is_one if isinstance(kernel, Vector) else None
    gemm = layout[0] == -1 and around.matrix(source)
    return kernel.geometry, factor, around.elements(source), around.channels(source, layout), gemm


def _straight(form: Form, around: Surroundings, out_elements: int, norm: bool, like: str) -> Written | None:
    """Views first."""
    segments = segmented(form)
    writer = _Writer(around, out_elements, form.channels, form.layout, like, norm)
    if segments is None or not all(writer.can_read(source) for source in form.sources):
        return None
    parts = [writer.segment(terms, form.bias.channels(lo, hi), hi - lo) for (lo, hi), terms in segments]
    if len(parts) > 1:
        step = Step("Concat", tuple(parts), form.channels)
        parts = [writer.add(step, around.model.elementwise(2 * out_elements, 0))]
    return writer.written(parts[0])


@dataclass(eq=False)
class _Writer:
    around: Surroundings
    out_elements: int
    out_channels: int
    layout: tuple[int, int]
    like: str
    norm: bool

    def __post_init__(self) -> None:
        self.made: dict[Hashable, Hashable] = {}
        self.steps: list[Step] = []
        self.cost = 0
        self.macs = 0

    def add(self, step: Step, cost: int) -> int:
        if step.view is None:
            step.layout, step.like = self.layout, step.like or self.like
        self.steps.append(step)
        self.cost += cost
        return len(self.steps) - 1

    def written(self, result: Hashable) -> Written:
        return Written(tuple(self.steps), result, self.cost, self.macs)

    def size(self, channels: int) -> int:
        return self.out_elements * channels // self.out_channels

    def segment(self, terms: Sequence[Term], bias: Bias, channels: int) -> Hashable:
        """A sum of terms plus a bias."""
        size = self.size(channels)
        if len(terms) > 1:
            terms = sorted(terms, key=lambda t: isinstance(t.kernel, Vector))  # convolutions first
        pending: Bias | None = None if bias.is_zero else bias
        refs: list[Hashable] = []
        for term in terms:
            kernel = term.kernel
            source, moved = self.read(term)
            if isinstance(kernel, Vector) and kernel.is_one:
                refs.append(source)
            elif isinstance(kernel, Vector) and pending is not None and self.normalizes(terms):
                step = Step("Norm", (source,), channels, kernel, pending)
                refs.append(self.add(step, self.around.model.elementwise(moved + size, 2)))
                pending = None
            elif isinstance(kernel, Vector):
                step = Step("Mul", (source,), channels, kernel)
                refs.append(self.add(step, self.around.model.elementwise(moved + size)))
            else:
                refs.append(self.convolution(term, source, moved, size, pending))
                pending = None if self.takes_bias(term) else pending
        result = refs[0]
        for ref in refs[1:]:
            result = self.add(Step("Add", (result, ref), channels), self.around.model.elementwise(3 * size))
        if pending is not None:
            step = Step("Shift", (result,), channels, bias=pending)
            result = self.add(step, self.around.model.elementwise(2 * size))
        return result

    def normalizes(self, terms: Sequence[Term]) -> bool:
        """Whether a BatchNormalization may be written: its channels are on axis 1."""
        return self.norm and len(terms) == 1 and self.takes_bias(terms[0])

    def takes_bias(self, term: Term) -> bool:
        return term.kernel.geometry.channel_axis == 1 or self.around.matrix(term.source)

    def convolution(self, term: Term, source: Hashable, moved: int, size: int, pending: Bias | None) -> int:
        kernel = term.kernel
        geometry = kernel.geometry.grown()
        macs = multiply_adds(geometry, moved, size)
        self.macs += macs
        bias = pending if self.takes_bias(term) else None
        step = Step("Conv", (source,), geometry.c_out, kernel, bias, matrix=self.around.matrix(term.source))
        return self.add(step, self.around.model.convolution(geometry, macs, moved + size))

    def read(self, term: Term) -> tuple[Hashable, int]:
        """The channels a term reads, sliced if they are not all there are; and their elements."""
        total, wanted = self.around.channels(term.source, self.layout), term.kernel.geometry.c_in
        elements = self.around.elements(term.source)
        source = self.source(term.source)
        if wanted == total:
            return source, elements
        part = elements * wanted // total
        step = Step("Slice", (source,), wanted, lo=term.lo_in, like=_shape_of(term.source))
        return self.add(step, self.around.model.elementwise(2 * part, 0)), part

    def can_read(self, source: Hashable) -> bool:
        """Whether its views can be written for its channels."""
        if not isinstance(source, Viewed):
            return True
        return source.view.fits(self.around.channels(source, self.layout)) and self.can_read(source.inner)

    def source(self, source: Hashable) -> Hashable:
        """A tensor, or the step that shifts or views one; every such step is written once."""
        if not isinstance(source, Shifted | Viewed):
            return source
        if source not in self.made:
            size, channels = self.around.elements(source), self.around.channels(source, self.layout)
            if isinstance(source, Shifted):
                step = Step("Shift", (source.name,), channels, bias=Bias(source.shift), like=source.name)
                self.made[source] = self.add(step, self.around.model.elementwise(2 * size))
            else:
                view, inner = source.view, self.source(source.inner)
                step = Step("View", (inner,), channels, layout=view.after, like=view.output, view=view)
                cost = view_cost(self.around.model, view, self.around.elements(source.inner), size)
                self.made[source] = self.add(step, cost)
        return self.made[source]


def _shape_of(source: Hashable) -> str:
    return source.view.output if isinstance(source, Viewed) else str(source)
