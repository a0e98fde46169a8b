"""Segmentation heads over maps of one image, as two exporters write them for sizes that are not known."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.build import Net

__all__ = ["conv_head", "mlp_head", "multiply_adds", "pyramid", "shapes_at"]


def pyramid(net: Net, channels: tuple[int, ...]) -> list[str]:
    """Maps of the image "x" of a half, a fourth, ... of its size; each is kept by an activation."""
    result, x, c_in = [], "x", 3
    for c_out in channels:
        x = net.op("Relu", net.conv(x, c_in, c_out, 3, pad=1, strides=[2, 2]))
        result.append(x)
        c_in = c_out
    return result


def mlp_head(
    net: Net, maps: list[str], channels: tuple[int, ...], width: int, exporter: str, **resize: Any
) -> str:
    """SegFormer's: each map as rows, a Linear, a map again, resized to the first; Concat and a 1x1 Conv."""
    sizes = _sizes(net, exporter)
    images = []
    for number, (x, c_in) in enumerate(zip(maps, channels, strict=True)):
        rows = net.op("Transpose", net.op("Reshape", x, sizes.rows(x, c_in, number)), perm=[0, 2, 1])
        linear = net.op("Add", net.op("MatMul", rows, net.random(c_in, width)), net.random(width))
        columns = net.op("Transpose", linear, perm=[0, 2, 1])
        images.append(str(net.op("Reshape", columns, sizes.image(x, width, number))))
    return _merged(net, images, maps[0], width, sizes, **resize)


def conv_head(
    net: Net, maps: list[str], channels: tuple[int, ...], width: int, exporter: str, **resize: Any
) -> str:
    """The same with a 1x1 Conv for each map, which needs no rows."""
    images = [net.conv(x, c_in, width, 1) for x, c_in in zip(maps, channels, strict=True)]
    return _merged(net, images, maps[0], width, _sizes(net, exporter), **resize)


def _sizes(net: Net, exporter: str) -> _Asked | _Computed:
    return _Asked(net) if exporter == "legacy" else _Computed(net)


def _merged(
    net: Net, images: list[str], like: str, width: int, sizes: _Asked | _Computed, **resize: Any
) -> str:
    """Images of so many channels resized to the size of the first map, joined, and a 1x1 Conv."""
    parts = []
    for image in images:
        wanted = net.op("Concat", sizes.of(image, 0, 2), sizes.space(like, 0), axis=0)
        parts.append(net.op("Resize", image, "", "", wanted, **{"mode": "linear", **resize}))
    return net.conv(str(net.op("Concat", *parts[::-1], axis=1)), width * len(images), width, 1)


class _Asked:
    """The TorchScript exporter asks the tensors for their sizes, and leaves the channels to a -1."""

    def __init__(self, net: Net) -> None:
        self.net = net

    def of(self, x: str, first: int, last: int) -> str:
        net = self.net
        ends = [net.const(np.array([k])) for k in (first, last, 0)]
        return str(net.op("Slice", net.op("Shape", x), *ends))

    def space(self, x: str, _: int) -> str:
        net = self.net
        zero = net.const(np.array([0]))
        both = [net.op("Gather", net.op("Shape", x), net.const(np.array(axis))) for axis in (2, 3)]
        return str(net.op("Concat", *(net.op("Unsqueeze", one, zero) for one in both), axis=0))

    def rows(self, x: str, _channels: int, _: int) -> str:
        return str(self.net.op("Concat", self.of(x, 0, 2), self.net.const(np.array([-1])), axis=0))

    def image(self, x: str, _channels: int, number: int) -> str:
        hole = self.net.const(np.array([-1]))
        return str(self.net.op("Concat", self.of(x, 0, 1), hole, self.space(x, number), axis=0))


class _Computed:
    """The newer exporter computes all sizes from those of the image: `(n - 1) // 4 + 1`."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.batch = self.of("x", 0, 1)
        self.image_size = self.of("x", 2, 4)

    def of(self, x: str, first: int, last: int) -> str:
        return str(self.net.op("Shape", x, start=first, end=last))

    def space(self, _: str, number: int) -> str:
        net = self.net
        before = net.op("Add", self.image_size, net.const(np.array([-1])))
        halved = net.op("Div", before, net.const(np.array([2 ** (number + 1)])))
        return str(net.op("Add", halved, net.const(np.array([1]))))

    def rows(self, x: str, channels: int, number: int) -> str:
        net = self.net
        space = self.space(x, number)
        height, width = (net.op("Gather", space, net.const(np.array([place]))) for place in (0, 1))
        area = net.op("Mul", height, width)
        return str(net.op("Concat", self.batch, net.const(np.array([channels])), area, axis=0))

    def image(self, x: str, channels: int, number: int) -> str:
        net = self.net
        return str(
            net.op("Concat", self.batch, net.const(np.array([channels])), self.space(x, number), axis=0)
        )


def shapes_at(model: onnx.ModelProto, **dims: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that nodes compute, and of the inputs."""
    everything = onnx.ModelProto()
    everything.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(everything.SerializeToString(), options)
    results = session.run(names, {name: np.zeros(shape, np.float32) for name, shape in dims.items()})
    return {**dims, **{name: result.shape for name, result in zip(names, results, strict=True)}}


def multiply_adds(model: onnx.ModelProto, **dims: tuple[int, ...]) -> int:
    """Of all Conv and MatMul nodes at one size of the inputs."""
    shapes = shapes_at(model, **dims)
    shapes.update((tensor.name, tuple(tensor.dims)) for tensor in model.graph.initializer)
    total = 0
    for node in model.graph.node:
        written = prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            total += written * prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += written * shapes[node.input[0]][-1]
    return total
