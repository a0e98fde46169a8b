"""Prices: what a way to compute a tensor costs, and what must not rise."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from onnx_repfuse.graph.lift import Lifted
from onnx_repfuse.plan.cost import CostModel, multiply_adds
from onnx_repfuse.plan.sources import view_cost

__all__ = ["Price", "keep"]


class Price(NamedTuple):
    """What is paid for a tensor: picoseconds, multiply-adds, nodes, convolutions, matrix products.

    Each output of a Split is a fraction of a node.
    """

    cost: int = 0
    macs: int = 0
    nodes: float = 0
    convolutions: int = 0
    products: int = 0

    def plus(self, other: Price) -> Price:
        """Both together."""
        a, b, c, d, e = self
        f, g, h, i, j = other
        return Price(a + f, b + g, c + h, d + i, e + j)

    def minus(self, other: Price) -> Price:
        """Without the other."""
        a, b, c, d, e = self
        f, g, h, i, j = other
        return Price(a - f, b - g, c - h, d - i, e - j)

    def improves(self, cost: int, limit: Price) -> bool:
        """Cheaper than `cost`, and nothing else above `limit`."""
        if self.cost >= cost:
            return False
        _, a, b, c, d = self
        _, e, f, g, h = limit
        return a <= e and b <= f and c <= g and d <= h


def keep(
    lifted: Lifted, model: CostModel, elements: Callable[[Hashable], int], is_used: Callable[[str], bool]
) -> Price:
    """The node as it is."""
    out = elements(lifted.output)
    moved = elements(lifted.operands[0].name) + out
    if len(lifted.operands) > 1:  # as new ones are priced, whatever is assumed of the operands
        moved = (2 if lifted.node.op == "Concat" else 1 + len(lifted.operands)) * out
    if lifted.view is not None:
        return Price(view_cost(model, lifted.view, moved - out, out), 0, 1)
    geometry = lifted.terms[0].kernel.geometry
    if lifted.also:
        count = 1 + len(lifted.also)
        return Price(count * model.elementwise(moved, 0), 0, count)
    if lifted.node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        macs = multiply_adds(geometry, elements(lifted.operands[0].name), out)
        product = geometry.channel_axis == -1
        return Price(model.convolution(geometry, macs, moved), macs, 1, not product, product)
    if lifted.node.op == "Split":
        count = sum(1 for tensor in lifted.node.outputs if is_used(tensor.name))
        return Price(0, 0, 1 / max(1, count))  # a whole node is saved where all of them are absorbed
    if lifted.node.op == "Slice":
        return Price(model.elementwise(2 * out, 0), 0, 1)
    if lifted.node.op == "AveragePool":
        taps = geometry.macs(max(1, out // geometry.c_out))
        return Price(model.elementwise(moved) + taps * model.arithmetic, 0, 1)
    operations = {"BatchNormalization": 2, "Concat": 0, "Identity": 0, "Pad": 0}
    return Price(model.elementwise(moved, operations.get(lifted.node.op, 1)), 0, 1)
