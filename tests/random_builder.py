"""A graph under construction that is evaluated while it grows, so that each step knows at once whether it can run."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.build import Net
from tests.reference import InvalidError, Tally, Value, exact, step

Array = NDArray[Any]


class Builder:
    """A `Net` that evaluates its tensors while it grows, at several sizes at once; the last size is the largest."""

    def __init__(self, net: Net, feeds: list[dict[str, Array]]) -> None:
        self.net, self.rng = net, net.rng
        self.evaluated: list[dict[str, Value]] = [{n: exact(a) for n, a in f.items()} for f in feeds]
        self.alive = set(range(len(feeds)))
        self.tensors = list(feeds[0])
        self.nodes_as_constants = False
        self.style = 0
        self.kept: dict[tuple[int, ...], str] = {}

    def attempt(self, function: Callable[..., None], arguments: dict[str, Any]) -> None:
        """Do a step; undo it if it cannot run."""
        net = self.net
        before = len(net.nodes), len(net.tensors), len(net.functions)
        kept = list(self.tensors), set(self.alive), dict(self.kept)
        try:
            function(self, **arguments)
        except InvalidError:
            del net.nodes[before[0] :], net.tensors[before[1] :], net.functions[before[2] :]
            self.tensors, self.alive, self.kept = kept

    def const(self, value: Any) -> str:
        array = np.asarray(value)
        if self.nodes_as_constants and array.size < 8:
            array = array.astype(self.net.dtype) if array.dtype.kind == "f" else array
            name = str(self.net.op("Constant", value=numpy_helper.from_array(array)))
        else:
            name = self.net.const(array)
            array = numpy_helper.to_array(self.net.tensors[-1])
        for values in self.evaluated:
            values[name] = exact(array)
        return name

    def op(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """Add a node. Later steps may read its outputs."""
        results = self.net.op(op, *inputs, outputs=outputs, **attrs)
        node = self.net.nodes[-1]
        self.alive = {i for i in sorted(self.alive) if self._runs(node, i)}
        names = [results] if outputs == 1 else results
        if any(
            not np.isfinite(self.evaluated[-1][n].x).all() or self.evaluated[-1][n].x.size > 6000
            for n in names
        ):
            raise InvalidError("too large")
        self.tensors += names
        return results

    def _runs(self, node: onnx.NodeProto, i: int) -> bool:
        try:
            step(node, self.evaluated[i], Tally(1e-7, opset=self.net.opset, functions=self.net.functions))
        except InvalidError:
            if i == len(self.evaluated) - 1:
                raise
            return False
        return True

    def pick(self, back: int) -> str:
        return self.tensors[-1 - back % len(self.tensors)]

    def like(self, name: str, back: int) -> str:
        """A tensor of the same shape at every size."""
        alike = [t for t in self.tensors if all(self.shape(t, i) == self.shape(name, i) for i in self.alive)]
        return alike[-1 - back % len(alike)]

    def shape(self, name: str, i: int = -1) -> tuple[int, ...]:
        return self.evaluated[i][name].x.shape

    def image(self, back: int) -> str:
        """A tensor with channels on axis 1 and space after it."""
        name = self.pick(back)
        if len(self.shape(name)) < 3:
            raise InvalidError("no image")
        self.fixed(name, 1)
        return name

    def fixed(self, name: str, axis: int) -> int:
        sizes = {self.shape(name, i)[axis] for i in self.alive}
        if len(sizes) != 1:
            raise InvalidError("a dim that varies")
        return sizes.pop()

    def weight(self, *shape: int, style: int = 0) -> str:
        """A weight: random, sparse, of few or equal values, an earlier one of its shape, or a single middle tap."""
        scale = 1 / np.sqrt(max(1, prod(shape[1:])))
        value = self.rng.standard_normal(shape) * scale
        if style == 1:
            value *= self.rng.random(shape) < 0.5
        elif style == 2:
            value = self.rng.integers(-2, 3, shape) * scale
        elif style == 3 and shape in self.kept:
            return self.kept[shape]
        elif style == 5:
            value[:] = scale
        elif style == 4 and len(shape) > 2:
            mask = np.zeros(shape[2:])
            mask[tuple(k // 2 for k in shape[2:])] = 1
            value = value * mask
        self.kept[shape] = name = self.const(value)
        return name

    def vector(self, channels: int, style: int = 0) -> Array:
        value = self.rng.uniform(0.5, 1.5, channels) * np.where(self.rng.random(channels) < 0.3, -1, 1)
        if style == 1:
            value[0] = 0
        elif style == 2:
            value[:] = value[0]
        elif style == 3:
            value[:] = 1
        elif style == 4:
            value *= 300
        elif style == 5:
            value /= 300
        return np.asarray(value)

    def conv(
        self, x: str, c_out: int, kernel: tuple[int, ...], *, bias: bool = True, style: int = 0, **attrs: Any
    ) -> str:
        group = attrs.get("group", 1)
        c_in = self.fixed(x, 1)
        if c_in % group or c_out % group:
            raise InvalidError("groups")
        more = [self.const(self.rng.standard_normal(c_out))] if bias else []
        return str(
            self.op("Conv", x, self.weight(c_out, c_in // group, *kernel, style=style), *more, **attrs)
        )

    def norm(self, x: str, style: int = 0) -> str:
        channels = self.fixed(x, 1)
        values = [self.vector(channels, style), self.rng.standard_normal(channels)]
        values += [self.rng.standard_normal(channels), self.rng.uniform(0.3, 2, channels)]
        old = {"is_test": 1} if self.net.opset < 7 else {}
        return str(self.op("BatchNormalization", x, *map(self.const, values), **old))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def pad(
        self, x: str, begin: list[int], end: list[int], value: float = 0.0, mode: str = "constant"
    ) -> str:
        pads = [0, 0, *begin, 0, 0, *end]
        if self.net.opset < 11:
            return str(self.op("Pad", x, pads=pads, value=float(value), mode=mode))
        more = [self.const(np.float32(value))] if value else []
        return str(self.op("Pad", x, self.ints(*pads), *more, mode=mode))

    def slice(self, x: str, axis: int, lo: int, hi: int) -> str:
        if self.net.opset < 10:
            return str(self.op("Slice", x, axes=[axis], starts=[lo], ends=[hi]))
        return str(self.op("Slice", x, self.ints(lo), self.ints(hi), self.ints(axis)))

    def split(self, x: str, axis: int, sizes: list[int]) -> list[str]:
        if self.net.opset < 13:
            return list(self.op("Split", x, outputs=len(sizes), axis=axis, split=sizes))
        return list(self.op("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis))

    def clip(self, x: str, lo: float, hi: float) -> str:
        if self.net.opset < 11:
            return str(self.op("Clip", x, min=lo, max=hi))
        return str(self.op("Clip", x, self.const(np.float32(lo)), self.const(np.float32(hi))))

    def mean(self, x: str, axes: list[int], keep: int) -> str:
        if self.net.opset < 18:
            return str(self.op("ReduceMean", x, axes=axes, keepdims=keep))
        return str(self.op("ReduceMean", x, self.ints(*axes), keepdims=keep))
