"""What a node costs: multiply-adds, elements and weights moved, and the fixed price of a node, in picoseconds.

The figures of `ORT_CPU` describe ONNX Runtime on one core; `python -m benchmarks --only calibrate --write-constants`
measures and writes them (docs/cost-model.md). `MACS` counts multiply-adds and lets the rest only break ties. All are
integers, and a fold must lower the total: so planning ends.

A `Price` holds beside the cost what must not rise, whatever the cost model says: multiply-adds, nodes, convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.facts import SpaceMapSort
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.records.report import Kind

__all__ = [
    "MACS",
    "NOTHING",
    "ORT_CPU",
    "CostModel",
    "Price",
    "cost_model",
    "mac_price",
    "multiply_adds",
    "node_price",
    "view_cost",
]

MacPrice = Literal["dense_mac", "grouped_mac", "depthwise_mac"]
# channels per group from which a grouped convolution keeps vector units about as busy as a dense one
MIN_CHANNELS_OF_WIDE_GROUP = 16


def mac_price(geometry: Geometry) -> MacPrice:
    """The field of `CostModel` that prices a convolution's multiply-adds."""
    width = geometry.c_in // geometry.groups
    if geometry.groups == 1 or width >= MIN_CHANNELS_OF_WIDE_GROUP:
        return "dense_mac"
    return "depthwise_mac" if width == 1 else "grouped_mac"


def multiply_adds(geometry: Geometry, read: int, written: int) -> int:
    """Multiply-adds of a convolution or matrix product that reads and writes so many elements; at least one position's.

    One that pads by more than its window takes writes more positions than it reads, whatever is assumed for unknown
    sizes.
    """
    positions = read // geometry.c_in if geometry.transposed else written // geometry.c_out
    if geometry.enlarges:
        positions = max(positions, read // geometry.c_in + 1)
    return geometry.macs(max(1, positions))


@dataclass(frozen=True)
class CostModel:
    """Prices in picoseconds.

    Attributes:
        dense_mac, grouped_mac, depthwise_mac: of a multiply-add in a convolution or matrix product without groups or
            with wide ones, with narrow groups, and with one channel per group.
        weight: of a weight of a convolution or matrix product; conv_element: of an element it reads or writes.
        element: of an element another node reads or writes; arithmetic: of an operation on an element.
        node: of a node.
    """

    name: str
    dense_mac: int
    grouped_mac: int
    depthwise_mac: int
    weight: int
    conv_element: int
    element: int
    arithmetic: int
    node: int

    def convolution(self, geometry: Geometry, macs: int, elements: int) -> int:
        """A Conv, ConvTranspose, MatMul or Gemm that moves `elements` in and out."""
        price: int = getattr(self, mac_price(geometry))
        return macs * price + geometry.weights * self.weight + elements * self.conv_element + self.node

    def elementwise(self, elements: int, operations: int = 1) -> int:
        """A node that reads and writes `elements` in total, with `operations` per element."""
        return elements * (self.element + self.arithmetic * operations) + self.node

    def per_channel(self, elements: int) -> int:
        """A node with a factor, a shift, or both for each channel, that reads and writes `elements` in total.

        All three cost a multiply-add per element. So a BatchNormalization is not replaced by a Mul or an Add alone:
        over it, runtimes keep their blocked layouts, over the others they do not (ONNX Runtime: 12 and 7% slower).
        """
        return self.elementwise(elements, 2)


def cost_model(name: str) -> CostModel:
    """The model of that name: "ort-cpu" or "macs"."""
    return {"ort-cpu": ORT_CPU, "macs": MACS}[name]


class Price(NamedTuple):
    """What it takes to compute a tensor: picoseconds, multiply-adds, nodes, convolutions, matrix products.

    Each output of a Split counts as a fraction of a node.
    """

    cost: int = 0
    macs: int = 0
    nodes: float = 0
    convolutions: int = 0
    products: int = 0

    def plus(self, other: Price) -> Price:
        """Both together."""
        if other is NOTHING:  # most tensors that a form reads exist anyway
            return self
        a, b, c, d, e = self
        f, g, h, i, j = other
        return Price(a + f, b + g, c + h, d + i, e + j)

    def minus(self, other: Price) -> Price:
        """Without the other."""
        a, b, c, d, e = self
        f, g, h, i, j = other
        return Price(a - f, b - g, c - h, d - i, e - j)

    def improves(self, cost: int, limit: Price) -> bool:
        """Cheaper than `cost`, and nothing else above `limit`; nodes may be where multiply-adds fall."""
        if self.cost >= cost:
            return False
        _, a, b, c, d = self
        _, e, f, g, h = limit
        return a < e or (a == e and b <= f and c <= g and d <= h)

    def replaces_products(self, limit: Price) -> bool:
        """Whether it has fewer matrix products than `limit`, and more convolutions."""
        return self.products < limit.products and self.convolutions > limit.convolutions


NOTHING = Price()


def node_price(
    lifted: LinearOp, model: CostModel, elements: Callable[[Hashable], int], is_used: Callable[[str], bool]
) -> Price:
    """The price of a node as it is.

    Args:
        elements: of a tensor.
        is_used: whether anybody reads a tensor.
    """
    out = elements(lifted.output)
    moved = _moved_elements(lifted, elements, out)
    if lifted.view is not None:
        return _view_price(lifted.view, model, moved - out, out, inner_nodes=len(lifted.inner_nodes))
    if lifted.also is not None and lifted.also.view is not None:
        return _view_price(lifted.also.view, model, moved - out, out, inner_nodes=0)
    if lifted.inner_nodes:
        return _group_price(lifted, model, moved)
    if operator(lifted.node).weight is not None:
        geometry = lifted.terms[0].kernel.geometry
        macs = multiply_adds(geometry, elements(lifted.operands[0].name), out)
        product = geometry.channel_axis == -1
        return Price(model.convolution(geometry, macs, moved), macs, 1, not product, product)
    if lifted.node.op == "Split":
        count = sum(1 for tensor in lifted.node.outputs if is_used(tensor.name))
        return Price(0, 0, 1 / max(1, count))  # a node is saved once all of its outputs are absorbed
    if lifted.node.op in ("Gather", "Slice"):
        return Price(model.elementwise(2 * out, 0), 0, 1)
    if _is_per_channel(lifted):
        return Price(model.per_channel(moved), 0, 1)
    return Price(model.elementwise(moved, operator(lifted.node).operations), 0, 1)


def _group_price(lifted: LinearOp, model: CostModel, moved: int) -> Price:
    """The price of several nodes that were lifted as one operator, each of which moves as many elements."""
    count = 1 + len(lifted.inner_nodes)
    # A shuffle copies once, as the Gather that it would be: its Reshapes move nothing, but are nodes.
    copies = 1 if lifted.role is Kind.INDEX else count
    return Price(copies * model.elementwise(moved, 0) + (count - copies) * model.node, 0, count)


def _is_per_channel(lifted: LinearOp) -> bool:
    """Whether a node has a factor, a shift, or both for each channel of one tensor: see `CostModel.per_channel`."""
    computes = bool(operator(lifted.node).operations) and len(lifted.operands) == 1
    return computes and lifted.terms[0].kernel.geometry.is_diagonal


def _view_price(view: View, model: CostModel, read: int, written: int, *, inner_nodes: int) -> Price:
    """The price of the nodes that are a view, of which all but one, the inner nodes, move nothing."""
    cost = view_cost(model, view, read, written) + inner_nodes * model.node
    return Price(cost, view.multiply_adds * written, 1 + inner_nodes, view.convolves)


def _moved_elements(lifted: LinearOp, elements: Callable[[Hashable], int], out: int) -> int:
    """Elements that a node reads and writes."""
    if len(lifted.operands) == 1:
        return elements(lifted.operands[0].name) + out
    # as a new Concat or Add is priced, whatever is assumed of the operands
    return (2 if lifted.node.op == "Concat" else 1 + len(lifted.operands)) * out


def view_cost(model: CostModel, view: View, read: int, written: int) -> int:
    """The price of a view that reads and writes so many elements."""
    if view.sort is SpaceMapSort.RESHAPES:
        return model.node
    read = min(read, written) if view.sort is SpaceMapSort.CHOOSES else read
    return model.elementwise(read + written + view.work * written, 0)


# Measured 2026-11-24 with onnxruntime 1.32.0 on AMD EPYC (family 25 model 1, AVX2), 2 cores.
ORT_CPU = CostModel(
    "ort-cpu",
    dense_mac=22,
    grouped_mac=54,
    depthwise_mac=46,
    weight=65,
    conv_element=1,
    element=137,
    arithmetic=1,
    node=1_822_633,
)
MACS = CostModel(
    "macs",
    dense_mac=1 << 20,
    grouped_mac=1 << 20,
    depthwise_mac=1 << 20,
    weight=0,
    conv_element=8,
    element=8,
    arithmetic=1,
    node=16,
)
