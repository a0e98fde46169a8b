"""The verifier's own oracle: a small graph evaluated in float64, with the size of what was summed.

Beside each value it carries its magnitude (`operators`): rounding errors of any evaluation in a shorter format scale
with that. It shares no code with the algebra that made the fold, and ONNX Runtime checks it: what the runtime makes of
the nodes before must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.oracle import conv, linear, pointwise, shape  # noqa: F401 - they fill OPS
from onnx_repfuse.verifier.oracle.registry import OPS, Context, Unsupported, Value, Weight, attributes

__all__ = ["OPS", "Oracle", "Truth"]

Array = np.ndarray[Any, np.dtype[Any]]


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


_LARGE = 1 << 22  # elements; converting blocks anew for each stimulus takes twice the time
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
        if np.prod(tensor.dims, dtype=np.int64) > _LARGE and tensor.data_type in FLOAT_FORMATS
    }
    for node in graph.node:
        large -= {name for at, name in enumerate(node.input) if node.op_type != "Conv" or at != 1}
    return large


def _total(counted: list[Array], value: Array) -> Array:
    rows = value.shape[0] if value.ndim >= 2 else 1
    if any(len(one) not in (rows, 1) for one in counted):
        counted = [np.array([one.max() if one.size else 0.0]) for one in counted]
    total = np.ones(1) + sum((one for one in counted), np.zeros(1))
    return total.reshape((-1,) + (1,) * max(value.ndim - 1, 0)) if value.ndim else total.max()
