"""What a node costs: multiply-adds, elements moved, and the fixed price of a node, in picoseconds.

The figures of `ORT_CPU` describe ONNX Runtime on one x86-64 core; `MACS` counts multiply-adds and lets elements
and nodes only break ties. All are integers: a step is taken only if it lowers the total, so plans end.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_repfuse.algebra.geometry import Geometry

__all__ = ["MACS", "ORT_CPU", "CostModel", "cost_model"]


@dataclass(frozen=True)
class CostModel:
    """Prices in picoseconds: of a multiply-add in a dense and in a depthwise convolution, of an element read or
    written, of an element's arithmetic, of a node."""

    name: str
    dense_mac: int
    depthwise_mac: int
    element: int
    arithmetic: int
    node: int

    def convolution(self, geometry: Geometry, macs: int, elements: int) -> int:
        """A Conv, ConvTranspose, MatMul or Gemm that moves `elements` in and out."""
        narrow = geometry.groups > 1 and geometry.c_in // geometry.groups == 1
        return macs * (self.depthwise_mac if narrow else self.dense_mac) + elements * self.element + self.node

    def elementwise(self, elements: int, operations: int = 1) -> int:
        """A node that reads and writes `elements` in total, with `operations` per element."""
        return elements * (self.element + self.arithmetic * operations) + self.node


ORT_CPU = CostModel("ort-cpu", dense_mac=25, depthwise_mac=80, element=150, arithmetic=20, node=2_000_000)
MACS = CostModel("macs", dense_mac=1 << 20, depthwise_mac=1 << 20, element=8, arithmetic=1, node=16)


def cost_model(name: str) -> CostModel:
    """The model of that name: "ort-cpu" or "macs"."""
    return {"ort-cpu": ORT_CPU, "macs": MACS}[name]
