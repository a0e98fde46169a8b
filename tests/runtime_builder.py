"""Graphs that grow node by node, for `runtime_graphs`: a node is kept if ONNX Runtime runs it alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.random_properties import session

Array = NDArray[Any]


class CannotRunError(Exception):
    """ONNX Runtime does not run a step, or what it gives is of no use."""


class Graph:
    """A graph that grows: each node is run alone on the values of its inputs.

    Attributes:
        values: of all tensors, for an input of two images.
        tensors: names that further steps may read, in order.
        read_inside: names that bodies of nodes read.
    """

    def __init__(self, opset: int, x: Array) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.values: dict[str, Array] = {"x": x}
        self.tensors = ["x"]
        self.read_inside: set[str] = set()

    def const(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"c{len(self.values)}"
        self.values[name] = self.constants[name] = (
            array.astype(np.float32) if array.dtype.kind == "f" else array
        )
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def op(self, op: str, *inputs: str, outputs: int = 1, also: Sequence[str] = (), **attrs: Any) -> Any:
        """A node, and the names of its outputs; `also`: what its bodies read. Raises CannotRunError."""
        names = [f"t{len(self.values) + number}" for number in range(outputs)]
        node = helper.make_node(op, list(inputs), names, **attrs)
        read = [name for name in dict.fromkeys((*inputs, *also)) if name]
        given = [name for name in read if name not in self.constants]
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(self.values[n].dtype), None)
            for n in given
        ]
        weights = [numpy_helper.from_array(self.constants[n], n) for n in read if n in self.constants]
        results = [helper.make_empty_tensor_value_info(name) for name in names]
        graph = helper.make_graph([node], "one", infos, results, weights)
        try:
            found = session(self.finished(graph)).run(None, {name: self.values[name] for name in given})
        except Exception as error:
            raise CannotRunError(op) from error
        for name, value in zip(names, found, strict=True):
            if not 0 < value.size <= 20_000 or (value.dtype.kind == "f" and not np.all(np.abs(value) < 1e6)):
                raise CannotRunError("empty, or too large")
            self.values[name] = value
        self.nodes.append(node)
        self.read_inside.update(also)
        self.tensors += names
        return names[0] if outputs == 1 else names

    def finished(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    def pick(self, r: random.Random, rank: int = 2) -> str:
        """A late tensor of floats with that many axes at least."""
        fits = [n for n in self.tensors if self.values[n].dtype == np.float32 and self.values[n].ndim >= rank]
        if not fits:
            raise CannotRunError("no tensor")
        return fits[-1 - min(len(fits) - 1, int(r.expovariate(0.7)))]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def model(self, dims: list[int | str]) -> onnx.ModelProto:
        """The whole graph; its outputs are what nobody reads."""
        read = {name for node in self.nodes for name in node.input} | self.read_inside
        ends = [n for n in self.tensors if n not in read and n != "x"]
        outputs = [
            helper.make_tensor_value_info(
                n, helper.np_dtype_to_tensor_dtype(self.values[n].dtype), [None] * self.values[n].ndim
            )
            for n in ends
        ]
        inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)]
        weights = [numpy_helper.from_array(v, n) for n, v in self.constants.items() if n in read]
        return self.finished(helper.make_graph(self.nodes, "g", inputs, outputs, weights))


def weight(r: random.Random, *shape: int) -> Array:
    rng = np.random.default_rng(r.randrange(1 << 30))
    value = rng.standard_normal(shape) / max(1, np.sqrt(np.prod(shape[1:])))
    return np.asarray(value * (rng.random(shape) < 0.5) if r.random() < 0.15 else value)


def factors(r: random.Random, *shape: int) -> Array:
    rng = np.random.default_rng(r.randrange(1 << 30))
    value = rng.uniform(0.5, 1.5, shape)
    return np.asarray(value if r.random() < 0.6 else value * np.where(rng.random(shape) < 0.3, -1, 1))
