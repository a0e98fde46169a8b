"""From a form to the operators that compute it: the cheapest straight way, or None when there is none.

The output channels fall into consecutive segments (`algebra.segments`). A segment is a sum of terms. A term is nothing
(an identity), a factor per channel, or a convolution. The bias rides on a convolution where there is one:

    bias + conv3x3(x) + 2 * x   ->   t = Conv(x, w, bias);  u = Mul(x, 2);  Add(t, u)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

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
        return self._lower(form, wanted, like, only_price=False)

    def price(self, form: Form, wanted: Wanted) -> Price | None:
        """What `lower` would ask for, without the steps."""
        key = wanted, self.keys.key(form)
        price = self.prices.get(key, _UNKNOWN)
        if price is _UNKNOWN:  # to hash a key takes its time
            lowered = self._lower(form, wanted, "", only_price=True)
            price = self.prices[key] = None if lowered is None else lowered.price
        return price

    def _lower(self, form: Form, wanted: Wanted, like: str, *, only_price: bool) -> Lowered | None:
        new_writer = partial(Writer, self, wanted, form.channels, form.layout, like, only_price)
        segments = segmented(form) if self._can_choose(form) else None
        apart = None if segments is None else _by_segments(form, segments, new_writer)
        common = None if form.reads_tensors or _is_weighed(form, segments, apart) else common_view(form)
        if common is None:
            return apart
        # one view of all segments, in place of one view of each
        writer = new_writer()
        result = writer.view_last(*common, wanted.elements)
        if result is None or (apart is not None and writer.rank >= wanted.rank(apart)):
            return apart
        return writer.lowered(result)

    def can_slice(self, kernel: Sampled) -> bool:
        """Whether a Slice can take these positions: it has steps since opset 10."""
        return self.sizes.context.scope.opset >= STEPS_SINCE or max(kernel.geometry.strides) == 1

    def _can_choose(self, form: Form) -> bool:
        """Whether its choices of channels can be written: an axis of a Gather counts from the end since opset 11."""
        if form.layout[0] == 1 or self.sizes.context.scope.opset >= NEGATIVE_AXES_SINCE:
            return True
        return not any(isinstance(term.kernel, Picked) for term in form.terms)


def _by_segments(form: Form, segments: Sequence[Segment], new_writer: Callable[[], Writer]) -> Lowered | None:
    """Each segment by itself, or some of them as groups of one."""
    apart, in_groups = _stacked(form, segments, new_writer()), grouped(segments)
    together = None if in_groups is None else _stacked(form, in_groups, new_writer())
    if apart is None or together is None:
        return apart or together
    return min(apart, together, key=new_writer().wanted.rank)


def _stacked(form: Form, segments: Sequence[Segment], writer: Writer) -> Lowered | None:
    """Segments one after the other."""
    parts = []
    for (lo, hi), terms in segments:
        part = writer.segment(terms, form.bias.channels(lo, hi), hi - lo)
        if part is None:
            return None
        parts.append(part)
    if len(parts) > 1:
        step = Step("Concat", tuple(parts), form.channels)
        parts = [writer.add(step, writer.model.elementwise(2 * writer.wanted.elements, 0))]
    return writer.lowered(parts[0])


def _is_weighed(form: Form, segments: Sequence[Segment] | None, apart: Lowered | None) -> bool:
    """Whether the view of all terms was weighed already: they are one segment, and no terms were stacked for that."""
    return apart is not None and segments is not None and len(segments[0][1]) == len(form.terms)
