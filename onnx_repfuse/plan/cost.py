"""What a node costs: multiply-adds, elements and weights moved, and the fixed price of a node, in picoseconds.

The figures of `ORT_CPU` describe ONNX Runtime on one core; `python -m benchmarks --only calibrate --write-constants`
measures and writes them (docs/cost-model.md). `MACS` counts multiply-adds and lets the rest only break ties. All are
integers: a step is taken only if it lowers the total, so plans end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx_repfuse.algebra.geometry import Geometry

__all__ = ["MACS", "ORT_CPU", "CostModel", "cost_model", "mac_price", "multiply_adds"]

MacPrice = Literal["dense_mac", "grouped_mac", "depthwise_mac"]

_WIDE = (
    16  # channels per group from which a grouped convolution keeps vector units about as busy as a dense one
)


def mac_price(geometry: Geometry) -> MacPrice:
    """The field of `CostModel` that prices a convolution's multiply-adds."""
    width = geometry.c_in // geometry.groups
    if geometry.groups == 1 or width >= _WIDE:
        return "dense_mac"
    return "depthwise_mac" if width == 1 else "grouped_mac"


def multiply_adds(geometry: Geometry, read: int, written: int) -> int:
    """Of a convolution or matrix product that reads and writes so many elements; at least one position's.

    What pads by more than its window takes has more positions than it reads, whatever is assumed of unknown sizes.
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


def cost_model(name: str) -> CostModel:
    """The model of that name: "ort-cpu" or "macs"."""
    return {"ort-cpu": ORT_CPU, "macs": MACS}[name]
