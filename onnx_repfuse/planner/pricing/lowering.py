"""From a form to the operators that compute it: the cheapest straight way, or None when there is none.

The output channels fall into consecutive segments (`algebra.segments`). A segment is a sum of terms. A term is nothing
(an identity), a factor per channel, or a convolution. The bias rides on a convolution where there is one:

    bias + conv3x3(x) + 2 * x   ->   t = Conv(x, w, bias);  u = Mul(x, 2);  Add(t, u)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Picked, Sampled, taps_of
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.algebra.segments import segmented
from onnx_repfuse.graph.views import Layout
from onnx_repfuse.planner.forms.view_sources import common_view
from onnx_repfuse.planner.pricing.cost import CostModel, Price
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.pricing.steps import Lowered, Step
from onnx_repfuse.planner.pricing.write_steps import Writer, is_copy

STEPS_SINCE = 10  # the opset that brought steps to Slice
NEGATIVE_AXES_SINCE = 11  # the opset from which every operator counts a negative axis from the end

__all__ = ["Lowering"]


@dataclass(frozen=True, eq=False)
class Lowering:
    """Lowers the forms of one scope, or says what that would cost.

    Attributes:
        segment_prices: by all that the price of a segment depends on, as a network repeats its blocks.
    """

    model: CostModel
    sizes: Sizes
    segment_prices: dict[tuple[Hashable, ...], Price] = field(default_factory=dict)

    def lower(self, form: Form, *, out_elements: int, may_normalize: bool, like: str = "") -> Lowered | None:
        """Write a form: each view before or after the terms that read it, whichever is cheaper.

        Args:
            out_elements: of the result.
            may_normalize: whether a BatchNormalization may be written.
            like: see `Step`.
        """
        apart = self._by_segments(form, out_elements, may_normalize, like)
        common = None if form.reads_tensors else common_view(form)
        if common is None or (apart is not None and len(form.terms) == 1):
            return apart
        # one view of all segments, in place of one view of each
        writer = Writer(self, out_elements, form.channels, form.layout, like, may_normalize)
        result = writer.view_last(*common, out_elements)
        if result is None or (apart is not None and writer.cost >= apart.cost):
            return apart
        return writer.lowered(result)

    def _by_segments(self, form: Form, out_elements: int, may_normalize: bool, like: str) -> Lowered | None:
        segments = segmented(form)
        if segments is None or not self._can_choose(form):
            return None
        writer = Writer(self, out_elements, form.channels, form.layout, like, may_normalize)
        parts = []
        for (lo, hi), terms in segments:
            part = writer.segment(terms, form.bias.channels(lo, hi), hi - lo)
            if part is None:
                return None
            parts.append(part)
        if len(parts) > 1:
            step = Step("Concat", tuple(parts), form.channels)
            parts = [writer.add(step, self.model.elementwise(2 * out_elements, 0))]
        return writer.lowered(parts[0])

    def price(self, form: Form, *, out_elements: int, may_normalize: bool) -> Price | None:
        """What `lower` would ask for, without the steps."""
        if not form.reads_tensors:
            lowered = self.lower(form, out_elements=out_elements, may_normalize=may_normalize)
            return None if lowered is None else lowered.price
        segments = segmented(form)
        if segments is None or not self._can_choose(form):
            return None
        if len(segments) == 1:
            terms = segments[0][1]
            return self._segment_price(terms, not form.bias.is_zero, out_elements, form, may_normalize)
        prices = [Price(self.model.elementwise(2 * out_elements, 0), 0, 1)]  # of the Concat
        biased = form.bias.nonzero_in([lo for (lo, _), _ in segments])
        for ((lo, hi), terms), has_bias in zip(segments, biased, strict=True):
            size = out_elements * (hi - lo) // form.channels
            prices.append(self._segment_price(terms, has_bias, size, form, may_normalize))
        return Price(*map(sum, zip(*prices, strict=True)))

    def can_slice(self, kernel: Sampled) -> bool:
        """Whether a Slice can take these positions: it has steps since opset 10."""
        return self.sizes.context.scope.opset >= STEPS_SINCE or max(kernel.geometry.strides) == 1

    def _can_choose(self, form: Form) -> bool:
        """Whether its choices of channels can be written: an axis of a Gather counts from the end since opset 11."""
        if form.layout[0] == 1 or self.sizes.context.scope.opset >= NEGATIVE_AXES_SINCE:
            return True
        return not any(isinstance(term.kernel, Picked) for term in form.terms)

    def _segment_price(
        self, terms: Sequence[Term], has_bias: bool, elements: int, form: Form, may_normalize: bool
    ) -> Price:
        """The price of a segment of `form` that has so many elements."""
        layout = form.layout
        key = elements, has_bias, may_normalize, *[self._demand(term, layout) for term in terms]
        price = self.segment_prices.get(key)
        if price is None:
            channels = terms[0].kernel.geometry.c_out
            writer = Writer(self, elements, channels, layout, "", may_normalize)
            bias = form.bias if has_bias else Bias.zeros(form.channels)
            price = writer.lowered(writer.sum(terms, bias, channels)).price
            self.segment_prices[key] = price
        return price

    def _demand(self, term: Term, layout: Layout) -> tuple[Hashable, ...]:
        """All that the price of a term depends on."""
        source, sizes = term.source, self.sizes
        kernel = taps_of(term.kernel)
        is_one = kernel.is_one if isinstance(kernel, Vector) else None if is_copy(term) else False
        takes_gemm = layout[0] == -1 and sizes.is_matrix(source)
        choice = kernel is not term.kernel
        read = sizes.elements(source), sizes.channels(source, layout)
        return kernel.geometry, is_one, choice, *read, takes_gemm
