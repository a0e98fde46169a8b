"""Synthetic graphs of any size: chains of RepVGG blocks, residuals, wide sums, deep Concats, fan-out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Graph:
    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, *shape: int, scale: float = 1.0) -> str:
        values = self.rng.standard_normal(shape, dtype=np.float32)
        self.weights.append(numpy_helper.from_array(values * np.float32(scale), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def op(self, kind: str, *inputs: str, **attributes: int | list[int]) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, x: str, kernel: int) -> str:
        weight = self.const(self.channels, self.channels, kernel, kernel, scale=self.channels**-0.5 / kernel)
        return self.op("Conv", x, weight, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def norm(self, x: str) -> str:
        scale, shift, mean = (self.const(self.channels, scale=0.5) for _ in range(3))
        variance = numpy_helper.from_array(np.full(self.channels, 1.5, np.float32), f"w{len(self.weights)}")
        self.weights.append(variance)
        return self.op("BatchNormalization", x, scale, shift, mean, variance.name)

    def save(self, x: str, path: Path) -> None:
        shape = [1, self.channels, 14, 14]
        first = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        last = helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, None, 14, 14])
        model = helper.make_model(
            helper.make_graph(self.nodes, "synthetic", [first], [last], self.weights),
            opset_imports=[helper.make_opsetid("", 17)],
        )
        model.ir_version = 8
        onnx.save(model, path)


def blocks(graph: _Graph, nodes: int) -> str:
    """RepVGG blocks, eight nodes each: 3x3, 1x1 and identity with their BatchNormalizations, and a Relu."""
    x = "x"
    while len(graph.nodes) < nodes:
        wide, narrow = graph.norm(graph.conv(x, 3)), graph.norm(graph.conv(x, 1))
        x = graph.op("Relu", graph.op("Add", graph.op("Add", wide, narrow), graph.norm(x)))
    return x


def residuals(graph: _Graph, nodes: int) -> str:
    """One long chain of x + bn(conv(x)) without activations: three nodes a link."""
    x = "x"
    while len(graph.nodes) < nodes:
        x = graph.op("Add", graph.norm(graph.conv(x, 1)), x)
    return x


def sums(graph: _Graph, nodes: int) -> str:
    """Sums of 1,000 branches, half of them convolutions with a BatchNormalization."""
    x = "x"
    while len(graph.nodes) < nodes:
        count = min(1000, max(2, (nodes - len(graph.nodes)) * 2 // 3))
        branches = [graph.norm(graph.conv(x, 1)) if i % 2 else graph.norm(x) for i in range(count)]
        x = graph.op("Relu", graph.op("Sum", *branches))
    return x


def concats(graph: _Graph, nodes: int) -> str:
    """A Concat of a Concat of a Concat: two nodes a level, each with one more Conv of the same tensor."""
    x = graph.conv("x", 1)
    while len(graph.nodes) < nodes:
        x = graph.op("Concat", x, graph.conv("x", 1), axis=1)
    return x


def fan(graph: _Graph, nodes: int) -> str:
    """One tensor that every second node consumes."""
    root = graph.op("Relu", graph.conv("x", 1))
    x = root
    while len(graph.nodes) < nodes:
        x = graph.op("Relu", graph.op("Add", x, graph.conv(root, 1)))
    return x


SHAPES: dict[str, Callable[[_Graph, int], str]] = {
    "blocks": blocks,
    "residuals": residuals,
    "sums": sums,
    "concats": concats,
    "fan": fan,
}


def write(shape: str, nodes: int, channels: int, path: Path) -> None:
    """Write a graph of about that many nodes."""
    graph = _Graph(channels)
    graph.save(SHAPES[shape](graph, nodes), path)
