"""The small graphs that the cost model is fitted to, with the features of each.

A unit is a piece of network that maps a tensor to one of the same shape, so it can be chained. Its time is the
difference between a long and a short chain, divided by the difference in length. So the session, the input and the
layout conversions at the ends cancel out, and the runtime fuses and reorders as in a real network. Every convolution
is followed by a Relu, as in real networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.planner.pricing.cost import mac_price

FEATURES = (
    "dense_mac",
    "grouped_mac",
    "depthwise_mac",
    "weight",
    "conv_element",
    "element",
    "arithmetic",
    "node",
)  # the prices of onnx_repfuse.planner.pricing.cost.CostModel
LARGEST_LAYER = 400_000_000  # multiply-adds
SMALLEST_LAYER = 200_000


@dataclass
class Chain:
    """A graph under construction; `bill` counts the features of the nodes added."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    bill: dict[str, float] = field(default_factory=dict)

    def charge(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.bill[name] = self.bill.get(name, 0) + amount

    def const(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        values = (scale * self.rng.standard_normal(shape)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self,
        x: str,
        c_in: int,
        c_out: int,
        size: int,
        kernel: tuple[int, ...] = (1, 1),
        groups: int = 1,
        *,
        relu: bool = True,
    ) -> str:
        """A Conv that keeps the size, and a Relu that costs nothing, because the runtime fuses it."""
        fan = c_in // groups * int(np.prod(kernel))
        weight, bias = (
            self.const(c_out, c_in // groups, *kernel, scale=fan**-0.5),
            self.const(c_out, scale=0.1),
        )
        pads = [k // 2 for k in kernel] * 2
        y = self.op("Conv", x, weight, bias, kernel_shape=list(kernel), group=groups, pads=pads)
        positions = size ** len(kernel)
        geometry = Geometry.conv(c_in, c_out, kernel, groups=groups)
        self.charge(**{mac_price(geometry): fan * c_out * positions}, weight=fan * c_out)
        self.charge(conv_element=(c_in + c_out) * positions, node=1)
        return self.op("Relu", y) if relu else y

    def elementwise(self, elements: float, operations: float) -> None:
        self.charge(element=elements, arithmetic=elements * operations, node=1)


Unit = Callable[[Chain, str], str]


@dataclass(frozen=True)
class Case:
    """A unit, its group in the tables, and the shape it runs at."""

    group: str
    name: str
    unit: Unit
    channels: int
    size: int
    rank: int = 2

    def model(self, length: int) -> tuple[onnx.ModelProto, dict[str, float]]:
        """A chain of `length` units, and the features of one unit."""
        chain, x = Chain(), "x"
        for _ in range(length):
            x = self.unit(chain, x)
        shape = [1, self.channels, *[self.size] * self.rank] if self.rank else [self.size, self.channels]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
        graph = helper.make_graph(chain.nodes, "chain", ends[:1], ends[1:], chain.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model, {name: amount / length for name, amount in chain.bill.items()}


def _conv(channels: int, size: int, kernel: int, groups: int) -> Unit:
    return lambda chain, x: chain.conv(x, channels, channels, size, (kernel, kernel), groups)


def convolutions() -> Iterator[Case]:
    """Dense, grouped and depthwise over kernel, channels and size."""
    for channels in (16, 32, 64, 128, 256, 512):
        for size in (7, 14, 28, 56, 112):
            area = channels * size * size
            shapes = [("dense 1x1", 1, 1), ("dense kxk", 3, 1), ("dense kxk", 5, 1)]
            shapes += [("depthwise", k, channels) for k in (3, 5, 7)]
            if size == 14:
                shapes += [("depthwise, large", k, channels) for k in (9, 13)]
            shapes += [("grouped, wide", 3, channels // per) for per in (16, 32) if per < channels]
            shapes += [("grouped, narrow", 3, channels // per) for per in (4, 8) if size in (14, 28)]
            for group, kernel, groups in dict.fromkeys(shapes):
                macs = area * (channels // groups) * kernel**2
                if SMALLEST_LAYER <= macs <= LARGEST_LAYER and area <= 1 << 20:
                    name = f"{channels}x{size}x{size} k{kernel} g{groups}"
                    yield Case(group, name, _conv(channels, size, kernel, groups), channels, size)
    for channels in (12, 20, 36, 100):  # not a multiple of the vector length
        for kernel in (1, 3):
            name = f"{channels}x28x28 k{kernel} g1"
            yield Case("dense, odd channels", name, _conv(channels, 28, kernel, 1), channels, 28)


def operators_between() -> Iterator[Case]:
    """Units of operators between convolutions, folded or not."""
    for channels, size in ((32, 56), (64, 28), (64, 56), (128, 14), (128, 28), (256, 14), (512, 7)):
        for group, unit in _between(channels, size).items():
            yield Case(group, f"{channels}x{size}x{size}", unit, channels, size)
    for width, rows in (
        (128, 49),
        (192, 196),
        (384, 49),
        (512, 64),
        (1024, 16),
        (256, 1),
        (512, 1),
        (1024, 1),
    ):
        group = "Gemm, one row" if rows == 1 else "Gemm"
        yield Case(group, f"{rows}x{width}x{width}", _gemm(width, rows), width, rows, 0)


def _between(channels: int, size: int) -> dict[str, Unit]:
    area = channels * size * size

    def behind(make: Callable[[Chain, str], str]) -> Unit:
        """The operator after a 1x1 Conv and its Relu, where the runtime cannot fold it."""
        return lambda chain, x: make(chain, chain.conv(x, channels, channels, size))

    def norm(chain: Chain, x: str) -> str:
        chain.elementwise(2 * area, 2)
        scale, shift, mean = (chain.const(channels) for _ in range(3))
        chain.weights.append(numpy_helper.from_array(np.ones(channels, np.float32), f"v{len(chain.weights)}"))
        return chain.op("BatchNormalization", x, scale, shift, mean, chain.weights[-1].name)

    def scaled(kind: str) -> Callable[[Chain, str], str]:
        def make(chain: Chain, x: str) -> str:
            chain.elementwise(2 * area, 1)
            return chain.op(kind, x, chain.const(channels, 1, 1))

        return make

    def pool(chain: Chain, x: str) -> str:
        chain.charge(element=2 * area, arithmetic=2 * area + 9 * area, node=1)
        settings: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
        return chain.op("AveragePool", x, count_include_pad=1, **settings)

    def residual(chain: Chain, x: str) -> str:
        chain.elementwise(3 * area, 1)
        return chain.op("Add", chain.conv(x, channels, channels, size, relu=False), x)

    def branches(chain: Chain, x: str) -> str:
        chain.elementwise(3 * area, 1)
        convs = [chain.conv(x, channels, channels, size, (k, k), relu=False) for k in (3, 1)]
        return chain.op("Relu", chain.op("Add", *convs))

    def add(chain: Chain, x: str) -> str:
        chain.elementwise(3 * area, 1)
        return chain.op("Add", chain.conv(x, channels, channels, size), x)

    def concat(chain: Chain, x: str) -> str:
        chain.elementwise(4 * area, 0)
        both = [chain.conv(x, channels, channels, size) for _ in range(2)]
        return chain.conv(chain.op("Concat", *both, axis=1), 2 * channels, channels, size)

    return {
        "BatchNormalization": behind(norm),
        "Mul by channel": behind(scaled("Mul")),
        "Add by channel": behind(scaled("Add")),
        "AveragePool 3x3": behind(pool),
        "Conv + x": residual,
        "Conv 3x3 + Conv 1x1": branches,
        "Relu(Conv) + x": add,
        "Concat of two Convs": concat,
    }


def _gemm(width: int, rows: int) -> Unit:
    def make(chain: Chain, x: str) -> str:
        chain.charge(
            dense_mac=rows * width * width, weight=width * width, conv_element=2 * rows * width, node=1
        )
        weight = chain.const(width, width, scale=width**-0.5)
        return chain.op("Relu", chain.op("Gemm", x, weight, chain.const(width, scale=0.1)))

    return make
