"""The verifier's own oracle: a small graph evaluated in float64, with the size of what was summed.

Beside each value v it carries its magnitude m = sum |w| |x| over all terms that made it up (a Sub adds,
nothing cancels), or, when asked for squares, sum w^2 x^2. Rounding errors of any evaluation in a shorter
format scale with these, not with |v|. It shares no code with the algebra that made the fold, and ONNX Runtime
checks it: what the runtime makes of the nodes before must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

__all__ = [
    "OPS",
    "Context",
    "Oracle",
    "Truth",
    "Unsupported",
    "Value",
    "Weight",
    "attributes",
    "load_operators",
    "register",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Unsupported(Exception):  # noqa: N818 - an outcome: another judge takes over
    """The oracle does not know this operator, or this form of it."""


@dataclass(frozen=True)
class Value:
    """A tensor: `v` in float64 (integers and booleans as they are), `m` its magnitude in float32, v.shape."""

    v: Array
    m: Array

    @staticmethod
    def of(array: Array, power: int = 1) -> Value:
        """A value whose magnitude is its own size, to a power."""
        v = array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array
        if v.dtype.kind != "f":
            return Value(v, v)
        return Value(v, (np.abs(v) if power == 1 else np.square(v)).astype(np.float32))


@dataclass(frozen=True)
class Weight(Value):
    """A large kernel as it is stored, in both `v` and `m`: `values` and `sizes` make blocks of it what they mean."""

    power: int = 1

    @staticmethod
    def view(tensor: onnx.TensorProto, power: int) -> Weight:
        stored = onnx.numpy_helper.to_array(tensor)
        return Weight(stored, stored, power)

    def values(self, block: Array) -> Array:
        """In float64."""
        return Value.of(block).v

    def sizes(self, block: Array) -> Array:
        """In float32, to the power."""
        if self.power == 1 and block.dtype == np.float32:
            return np.asarray(np.abs(block))
        return Value.of(block, self.power).m


@dataclass(frozen=True)
class Truth:
    """The oracle's answer for one tensor.

    Attributes:
        value: float64.
        magnitude: float32, of the same shape.
        terms: the number of non-zero terms an element sums, over all nodes on its way: one per row of axis 0
            where rows are independent, else one for all; float64, broadcastable to `value`.
    """

    value: Array
    magnitude: Array
    terms: Array


@dataclass
class Context:
    """What an operator sees of its node: attributes, opset, number of outputs, a place to count terms, and
    the power the magnitudes are summed in."""

    attributes: dict[str, Any]
    opset: int
    outputs: int
    counted: list[Array]
    power: int = 1

    def count(self, fan_in: int, operand: Array) -> None:
        """Note that this node sums `fan_in` products of `operand`, whose axis 0 may be rows."""
        if operand.ndim < 2:
            self.counted.append(np.array([float(fan_in)]))
            return
        rows = np.count_nonzero(operand.reshape(operand.shape[0], -1), axis=1)
        self.counted.append(np.minimum(rows, fan_in).astype(np.float64))


Op = Callable[..., Any]
OPS: dict[str, Op] = {}
_LARGE = 1 << 22  # elements; converting blocks anew for each stimulus takes twice the time
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
_ROUNDING = frozenset(
    [
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Div",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "HardSwish",
        "MatMul",
        "Mean",
        "Mul",
        "Pow",
        "Reciprocal",
        "ReduceMean",
        "ReduceSum",
        "Sqrt",
        "Sub",
        "Sum",
    ]
)


def register(*names: str) -> Callable[[Op], Op]:
    """Add an operator: f(context, *values) -> Value or a list of them; an absent input is None."""

    def add(function: Op) -> Op:
        for name in names:
            OPS[name] = function
        return function

    return add


def load_operators() -> None:
    """Fill OPS."""
    from onnx_repfuse.verify import truth_linear, truth_pointwise, truth_shape  # noqa: F401


class Oracle:
    """A small model, ready to be evaluated many times.

    Args:
        model: nodes of the default domain, constants as initializers.
        power: 1 for magnitudes sum |w| |x|, 2 for sum w^2 x^2.
        storage: with power 2, start from exact inputs and add the square of each node's result instead: what
            rounding every stored tensor adds up to.

    Raises:
        Unsupported: it holds an operator the oracle does not know.
    """

    def __init__(self, model: onnx.ModelProto, power: int = 1, storage: bool = False) -> None:
        load_operators()
        graph = model.graph
        self.power = power
        self.storage = storage
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.nodes = list(graph.node)
        for node in self.nodes:
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPS:
                raise Unsupported(f"{node.domain + '.' if node.domain else ''}{node.op_type}")
        self.output = graph.output[0].name
        large = _large_weights(graph)
        self.constants = {
            t.name: Weight.view(t, power)
            if t.name in large
            else Value.of(onnx.numpy_helper.to_array(t), power)
            for t in graph.initializer
        }
        self._attributes = [attributes(node) for node in self.nodes]

    def __call__(self, feed: Mapping[str, Array]) -> Truth:
        """Evaluate. Raises Unsupported, or ValueError where shapes do not fit."""
        values: dict[str, Value] = dict(self.constants)
        for name, array in feed.items():
            value = Value.of(np.asarray(array), self.power)
            values[name] = Value(value.v, np.zeros_like(value.m)) if self.storage else value
        counted: list[Array] = []
        for node, given in zip(self.nodes, self._attributes, strict=True):
            context = Context(given, self.opset, len(node.output), counted, self.power)
            operands = [values[name] if name else None for name in node.input]
            with np.errstate(all="ignore"):
                results = OPS[node.op_type](context, *operands)
            produced = results if isinstance(results, list) else [results]
            if self.storage and node.op_type in _ROUNDING:
                produced = [Value(one.v, (one.m + np.square(one.v)).astype(np.float32)) for one in produced]
            values.update(zip(node.output, produced, strict=False))
        found = values[self.output]
        return Truth(found.v, found.m, _total(counted, found.v))


def _large_weights(graph: onnx.GraphProto) -> set[str]:
    """Float constants that are read as kernels of convolutions alone, and worth evaluating block by block."""
    large = {
        tensor.name
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) > _LARGE and tensor.data_type in _FLOATS
    }
    for node in graph.node:
        large -= {name for at, name in enumerate(node.input) if node.op_type != "Conv" or at != 1}
    return large


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _total(counted: list[Array], value: Array) -> Array:
    rows = value.shape[0] if value.ndim >= 2 else 1
    if any(len(one) not in (rows, 1) for one in counted):
        counted = [np.array([one.max() if one.size else 0.0]) for one in counted]
    total = np.ones(1) + sum((one for one in counted), np.zeros(1))
    return total.reshape((-1,) + (1,) * max(value.ndim - 1, 0)) if value.ndim else total.max()
