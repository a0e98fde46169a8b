"""The operators that compute a form, in order: what `lowering` prices, and what `folds.emit` writes as nodes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Index
from onnx_repfuse.algebra.kernels import Kernel
from onnx_repfuse.graph.views import Layout, View
from onnx_repfuse.planner.pricing.cost import NOTHING, Price

__all__ = ["Lowered", "Step", "Wanted"]


@dataclass(eq=False, slots=True)
class Step:
    """One operator to write.

    Attributes:
        op: "SizesMul", then "SizesAdd" (a list of sizes, with another number of channels),
            "Slice", "Gather", "Mul", "Shift" (add a constant), "Norm" (both), "Conv", "Add", "Concat", "View" or
            "Identity".
        inputs: sources (anything hashable but int), or numbers of earlier steps.
        channels: of its output.
        kernel, bias: what it computes, where it has one.
        lo: first channel of a Slice, unless it has a kernel: the positions it takes.
        index: channels of a Gather.
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
    layout: Layout = (1, 2)
    like: str = ""
    matrix: bool = False
    view: View | None = None
    index: Index | None = None


class Written(Protocol):
    """Steps, their cost, and the price of what is below them but not among them."""

    @property
    def steps(self) -> Sequence[Step]: ...

    @property
    def cost(self) -> int: ...

    @property
    def below(self) -> Price: ...


class Wanted(NamedTuple):
    """What steps are to be like.

    Attributes:
        elements: of the result.
        may_normalize: a BatchNormalization may be among them.
        keeps_products: matrix products rather than Convs, though they be more expensive.
    """

    elements: int
    may_normalize: bool
    keeps_products: bool = False

    def rank(self, written: Written) -> tuple[int, int]:
        """What is least for the best steps."""
        if not self.keeps_products:
            return 0, written.cost
        return written.below.convolutions + _convolved_axes(written.steps).count(1), written.cost


@dataclass(eq=False, slots=True)  # not frozen, see `algebra.affine_form`
class Lowered:
    """Steps in order, the last one being the result (an alias of `result` if there are none), and their cost.

    `below` is the price of steps that were not written, as only the price was asked for; `cost` and `macs` include it.
    """

    steps: tuple[Step, ...]
    result: Hashable
    cost: int
    macs: int
    below: Price = NOTHING

    @property
    def price(self) -> Price:
        """That of all steps."""
        axes, below = _convolved_axes(self.steps), self.below
        nodes = len(self.steps) + below.nodes
        return Price(
            self.cost, self.macs, nodes, axes.count(1) + below.convolutions, axes.count(-1) + below.products
        )

    @property
    def copied(self) -> str:
        """The tensor that the result is a mere copy of; "" if it is none."""
        if not self.steps:
            return str(self.result)
        only = self.steps[0] if len(self.steps) == 1 else None
        return str(only.inputs[0]) if only is not None and only.op == "Identity" else ""

    @property
    def only(self) -> str:
        """The ONNX operator that is all it takes; "" if it takes several, or none.

        What is written as the operator that it is must not be written: prices may differ all the same, where sizes are
        assumed that contradict each other, as of a tensor that is read along two axes. Every round would write it anew.
        """
        if len(self.steps) != 1:
            return ""
        (step,) = self.steps
        name = step.op if step.view is None else str(step.view.node.op)
        return {"Shift": "Add", "Norm": "BatchNormalization"}.get(name, name)


def _convolved_axes(steps: Iterable[Step]) -> list[int]:
    """The channel axis of each convolution (1) and matrix product (-1)."""
    return [step.layout[0] for step in steps if step.op == "Conv" or (step.view and step.view.convolves)]
