"""Rules by which one operator is written as others that compute the same, but for rounding.

The operators are those by which ONNX defines it, in the forms that exporters write and runtimes fuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Array
from onnx_repfuse.graph.scope import Const, Scope, Shape
from onnx_repfuse.planner.rewrites.slopes import common_slope, keeps_shape
from onnx_repfuse.planner.weights.rounding import rounded
from onnx_repfuse.records.report import Kind

__all__ = ["KINDS", "LATE_RULES", "RULES", "Op", "Rewriting", "Rule"]

_CLIP_READS_LIMITS_SINCE = 11
MAX_SLOPE = 4.0
_AXES_ARE_INPUT_SINCE = 18  # of ReduceMean


class Op(NamedTuple):
    """An operator to be written; `attrs` are its attributes."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Any]


@dataclass(eq=False)
class Rewriting:
    """Of one node: the new tensors' names, and the constants that are added once all is possible."""

    scope: Scope
    node: gs.Node
    data_type: int
    constants: dict[str, Const] = field(default_factory=dict)
    inner: dict[str, Shape | None] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return str(self.node.outputs[0].name)

    def tensor(self) -> str:
        """A new tensor between two operators, of the type and shape of the output."""
        return self._inner(self.scope.shape(self.output))

    def like(self, *names: str) -> str:
        """A new tensor that an elementwise operator makes of these, and perhaps of constants."""
        shapes = {self.inner.get(name, self.scope.shape(name)) for name in names}
        return self._inner(shapes.pop() if len(shapes) == 1 else None)

    def reduced(self, axes: list[int]) -> str:
        """A new tensor of the output's type, and its shape but for these axes, which have one position."""
        shape = self.scope.shape(self.output)
        if shape is None:
            return self._inner(None)
        ones = {axis % len(shape) for axis in axes}
        return self._inner(tuple(1 if axis in ones else size for axis, size in enumerate(shape)))

    def _inner(self, shape: Shape | None) -> str:
        name = self.scope.fresh(f"{self.output}_inner")
        self.inner[name] = shape
        return name

    def constant(self, value: Array | float) -> str:
        """An initializer of the output's type."""
        values, data_type = np.asarray(value, np.float64), self.data_type
        name = self.scope.fresh(f"{self.output}_constant")
        self.constants[name] = Const(values.shape, data_type, lambda: rounded(values, data_type))
        return name

    def axes(self, values: list[int]) -> str:
        """An initializer of axes."""
        name = self.scope.fresh(f"{self.output}_axes")
        array = np.asarray(values, np.int64)
        self.constants[name] = Const(array.shape, onnx.TensorProto.INT64, lambda: array)
        return name

    def value(self, name: str) -> Array | None:
        """The elements of a constant of the file or of this rewriting."""
        const = self.constants.get(name) or self.scope.const(name)
        return None if const is None else const.read().astype(np.float64)


Rule = Callable[[Rewriting, Op], list[Op] | None]


def _sub(new: Rewriting, one: Op) -> list[Op] | None:
    """`a - c = a + (-c)`, and `a - b = a + b * (-1)`: both exact."""
    first, second = one.inputs
    value = new.value(second)
    if value is not None:
        return [Op("Add", (first, new.constant(-value)), one.output, {})]
    negative = new.like(second)
    product = Op("Mul", (second, new.constant(-1.0)), negative, {})
    return [product, Op("Add", (first, negative), one.output, {})]


def _div(new: Rewriting, one: Op) -> list[Op] | None:
    """`a / c = a * (1 / c)`, for constants alone."""
    value = new.value(one.inputs[1])
    if value is None or not value.all() or not np.isfinite(1.0 / value).all():
        return None
    return [Op("Mul", (one.inputs[0], new.constant(1.0 / value)), one.output, {})]


def _neg(new: Rewriting, one: Op) -> list[Op]:
    return [Op("Mul", (one.inputs[0], new.constant(-1.0)), one.output, {})]


def _sum(new: Rewriting, one: Op) -> list[Op] | None:
    """`a + b + c` in the order of the inputs."""
    if len(one.inputs) < 2:
        return None
    parts: list[Op] = []
    total = one.inputs[0]
    for number, name in enumerate(one.inputs[1:], 2):
        output = one.output if number == len(one.inputs) else new.like(total, name)
        parts.append(Op("Add", (total, name), output, {}))
        total = output
    return parts


def _hard_swish(new: Rewriting, one: Op) -> list[Op]:
    """`x * HardSigmoid(x; 1/6, 1/2)`, by which ONNX defines it."""
    gate = new.tensor()
    (source,) = one.inputs
    attributes = {"alpha": 1.0 / 6.0, "beta": 0.5}
    return [Op("HardSigmoid", (source,), gate, attributes), Op("Mul", (source, gate), one.output, {})]


def _hard_sigmoid(new: Rewriting, one: Op) -> list[Op] | None:
    """`max(0, min(1, alpha * x + beta))`, by which ONNX defines it."""
    if new.scope.opset < _CLIP_READS_LIMITS_SINCE:
        return None
    scaled, shifted = new.tensor(), new.tensor()
    alpha, beta = one.attrs.get("alpha", 0.2), one.attrs.get("beta", 0.5)
    return [
        Op("Mul", (one.inputs[0], new.constant(alpha)), scaled, {}),
        Op("Add", (scaled, new.constant(beta)), shifted, {}),
        Op("Clip", (shifted, new.constant(0.0), new.constant(1.0)), one.output, {}),
    ]


def _global_average(new: Rewriting, one: Op) -> list[Op] | None:
    """The mean over all axes but the first two."""
    shape = new.scope.shape(one.inputs[0])
    if shape is None or len(shape) < 3:
        return None
    return [_mean(new, one.inputs[0], one.output, list(range(2, len(shape))))]


def _mean(new: Rewriting, source: str, output: str, axes: list[int]) -> Op:
    if new.scope.opset >= _AXES_ARE_INPUT_SINCE:
        return Op("ReduceMean", (source, new.axes(axes)), output, {"keepdims": 1})
    return Op("ReduceMean", (source,), output, {"axes": axes, "keepdims": 1})


def _gelu(new: Rewriting, one: Op) -> list[Op]:
    """`x * (1 + Erf(x / sqrt(2))) * 0.5`, or its approximation with Tanh, by which ONNX defines them."""
    (x,) = one.inputs
    parts: list[Op] = []

    def then(op: str, *inputs: str) -> str:
        parts.append(Op(op, inputs, new.tensor(), {}))
        return parts[-1].output

    if one.attrs.get("approximate", "none") == "tanh":
        cubic = then("Mul", then("Mul", then("Mul", x, x), x), new.constant(0.044715))
        bent = then("Tanh", then("Mul", then("Add", x, cubic), new.constant(sqrt(2 / pi))))
    else:
        bent = then("Erf", then("Div", x, new.constant(sqrt(2))))
    product = then("Mul", x, then("Add", bent, new.constant(1.0)))
    return [*parts, Op("Mul", (product, new.constant(0.5)), one.output, {})]


def _layer_normalization(new: Rewriting, one: Op) -> list[Op] | None:
    """`(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias`, by which ONNX defines it.

    In float32 alone: of other types, the mean may be computed in float32.
    """
    axis = one.attrs.get("axis", -1)
    shape = new.scope.shape(one.inputs[0])
    if new.data_type != onnx.TensorProto.FLOAT or one.attrs.get("stash_type", 1) != 1:
        return None
    if axis >= 0:
        if shape is None:
            return None
        axis -= len(shape)
    axes = list(range(axis, 0))
    mean, variance, above, deviation = (new.reduced(axes) for _ in range(4))
    centred, squares, normal = (new.tensor() for _ in range(3))
    bias = [name for name in one.inputs[2:] if name]
    scaled = new.tensor() if bias else one.output
    parts = [
        _mean(new, one.inputs[0], mean, axes),
        Op("Sub", (one.inputs[0], mean), centred, {}),
        Op("Pow", (centred, new.constant(2.0)), squares, {}),
        _mean(new, squares, variance, axes),
        Op("Add", (variance, new.constant(one.attrs.get("epsilon", 1e-5))), above, {}),
        Op("Sqrt", (above,), deviation, {}),
        Op("Div", (centred, deviation), normal, {}),
        Op("Mul", (normal, one.inputs[1]), scaled, {}),
    ]
    return [*parts, Op("Add", (scaled, bias[0]), one.output, {})] if bias else parts


def _prelu(new: Rewriting, one: Op) -> list[Op] | None:
    """One slope: the LeakyRelu that it is. Several: as there, if the slopes do not enlarge the tensor."""
    source, name = one.inputs
    const = new.scope.const(name)
    if const is None or not keeps_shape(new.scope.shape(source), const.shape):
        return None
    slope = common_slope(const)
    if slope is not None and new.data_type == onnx.TensorProto.FLOAT:
        return [Op("LeakyRelu", (source,), one.output, {"alpha": slope})]
    return _two_sided(new, source, const.read().astype(np.float64), one.output)


def _leaky_relu(new: Rewriting, one: Op) -> list[Op] | None:
    slope = np.float64(np.float32(one.attrs.get("alpha", 0.01)))
    return _two_sided(new, one.inputs[0], np.asarray(slope), one.output)


def _two_sided(new: Rewriting, source: str, slope: Array, output: str) -> list[Op] | None:
    """`s*x + (1 - s)*Relu(x)`, which is x above zero and s*x below."""
    if not np.all(np.abs(slope) <= MAX_SLOPE):  # above zero, what the two add would cancel
        return None
    positive, below, above = new.tensor(), new.tensor(), new.tensor()
    return [
        Op("Relu", (source,), positive, {}),
        Op("Mul", (source, new.constant(slope)), below, {}),
        Op("Mul", (positive, new.constant(1.0 - slope)), above, {}),
        Op("Add", (below, above), output, {}),
    ]


def _batch_normalization(new: Rewriting, one: Op) -> list[Op] | None:
    """A depthwise Conv with one tap, where Mul or Add are to be avoided, too: else `cover` writes these."""
    shape = new.scope.shape(one.inputs[0])
    values = [new.value(name) for name in one.inputs[1:]]
    known = [value for value in values if value is not None and value.ndim == 1]
    if shape is None or len(shape) < 3 or len(known) < 4 or one.attrs.get("training_mode"):
        return None
    scale, bias, mean, variance = known
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + one.attrs.get("epsilon", 1e-5))
        shift = bias - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return None
    kernel = factor.reshape(-1, 1, *(1,) * (len(shape) - 2))
    attributes = {"group": len(factor), "kernel_shape": [1] * (len(shape) - 2)}
    return [Op("Conv", (one.inputs[0], new.constant(kernel), new.constant(shift)), one.output, attributes)]


# Once nothing folds any more: what such an operator becomes folds less well.
LATE_RULES: dict[str, Rule] = {"BatchNormalization": _batch_normalization}
RULES: dict[str, Rule] = {
    "Div": _div,
    "Gelu": _gelu,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "Neg": _neg,
    "PRelu": _prelu,
    "Sub": _sub,
    "Sum": _sum,
}
KINDS = {
    "Gelu": Kind.ACTIVATION,
    "GlobalAveragePool": Kind.POOL,
    "HardSigmoid": Kind.ACTIVATION,
    "HardSwish": Kind.ACTIVATION,
    "LeakyRelu": Kind.ACTIVATION,
    "PRelu": Kind.ACTIVATION,
    "Sum": Kind.BRANCHES,
}
