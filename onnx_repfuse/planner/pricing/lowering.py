"""From a form to the operators that compute it: the cheapest straight way, or None when there is none.

The output channels fall into consecutive segments (`algebra.segments`). A segment is a sum of terms. A term is nothing
(an identity), a factor per channel, or a convolution. The bias rides on a convolution where there is one:

    bias + conv3x3(x) + 2 * x   ->   t = Conv(x, w, bias);  u = Mul(x, 2);  Add(t, u)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from onnx_repfuse.algebra.affine_form import Form
from onnx_repfuse.algebra.choice import Picked, Sampled
from onnx_repfuse.algebra.segments import Segment, grouped, segmented
from onnx_repfuse.graph.operators.channel_rules import NEGATIVE_AXES_SINCE
from onnx_repfuse.planner.forms.view_sources import common_view
from onnx_repfuse.planner.pricing.cost import CostModel, Price
from onnx_repfuse.planner.pricing.price_keys import PriceKeys
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.pricing.steps import Lowered, Step, Wanted
from onnx_repfuse.planner.pricing.write_steps import Writer

STEPS_SINCE = 10  # the opset that brought steps to Slice

_UNKNOWN = Price()

__all__ = ["Lowering", "Prices"]

Prices = dict[tuple[Hashable, ...], Price | None]  # by all that the price of a form depends on


@dataclass(eq=False)
class Lowering:
    """Lowers the forms of one scope, or says what that would cost.

    Attributes:
        prices: what was found in earlier rounds, to be continued.
    """

    model: CostModel
    sizes: Sizes
    prices: Prices
    keys: PriceKeys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = PriceKeys(self.sizes)

    def lower(self, form: Form, wanted: Wanted, *, like: str = "") -> Lowered | None:
        """Write a form: each view before or after the terms that read it, whichever is cheaper.

        Args:
            form: the form.
            wanted: what the result must be.
            like: see `Step`.
        """
        apart = self._by_segments(form, wanted, like)
        is_weighed = apart is not None and len(form.terms) == 1
        common = None if is_weighed or form.reads_tensors else common_view(form)
        if common is None:
            return apart
        # one view of all segments, in place of one view of each
        writer = Writer(self, wanted, form.channels, form.layout, like)
        result = writer.view_last(*common, wanted.elements)
        if result is None:
            return apart
        whole = writer.lowered(result)
        if apart is not None and wanted.rank(whole.steps, whole.cost) >= wanted.rank(apart.steps, apart.cost):
            return apart
        return whole

    def _by_segments(self, form: Form, wanted: Wanted, like: str) -> Lowered | None:
        segments = segmented(form)
        if segments is None or not self._can_choose(form):
            return None
        apart, in_groups = self._stacked(segments, form, wanted, like), grouped(segments)
        together = None if in_groups is None else self._stacked(in_groups, form, wanted, like)
        if apart is None or together is None:
            return apart or together
        return min(apart, together, key=lambda one: wanted.rank(one.steps, one.cost))

    def _stacked(self, segments: Sequence[Segment], form: Form, wanted: Wanted, like: str) -> Lowered | None:
        """Segments one after the other."""
        writer = Writer(self, wanted, form.channels, form.layout, like)
        parts = []
        for (lo, hi), terms in segments:
            part = writer.segment(terms, form.bias.channels(lo, hi), hi - lo)
            if part is None:
                return None
            parts.append(part)
        if len(parts) > 1:
            step = Step("Concat", tuple(parts), form.channels)
            parts = [writer.add(step, self.model.elementwise(2 * wanted.elements, 0))]
        return writer.lowered(parts[0])

    def price(self, form: Form, wanted: Wanted) -> Price | None:
        """What `lower` would ask for, without the steps."""
        key = wanted, self.keys.key(form)
        price = self.prices.get(key, _UNKNOWN)
        if price is _UNKNOWN:  # to hash a key takes its time
            lowered = self.lower(form, wanted)
            price = self.prices[key] = None if lowered is None else lowered.price
        return price

    def can_slice(self, kernel: Sampled) -> bool:
        """Whether a Slice can take these positions: it has steps since opset 10."""
        return self.sizes.context.scope.opset >= STEPS_SINCE or max(kernel.geometry.strides) == 1

    def _can_choose(self, form: Form) -> bool:
        """Whether its choices of channels can be written: an axis of a Gather counts from the end since opset 11."""
        if form.layout[0] == 1 or self.sizes.context.scope.opset >= NEGATIVE_AXES_SINCE:
            return True
        return not any(isinstance(term.kernel, Picked) for term in form.terms)
