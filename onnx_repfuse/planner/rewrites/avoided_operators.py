"""Operators that the user's target cannot run, or is slow with, written as others: a Sum as Adds, a HardSwish as
HardSigmoid and Mul.

A rule writes one operator as others that compute the same, but for rounding. Where one of these is to be avoided, too,
its own rule is asked; where there is none, the node stays. `cover` does the same for BatchNormalization and Gemm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Array
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.limits.avoided import rises
from onnx_repfuse.planner.rewrites.slopes import common_slope, keeps_shape
from onnx_repfuse.planner.weights.rounding import rounded
from onnx_repfuse.records.report import Kind

__all__ = ["creators_of_avoided", "rewrite_avoided"]

# In half precision, two roundings instead of one may show.
_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_CLIP_READS_LIMITS_SINCE = 11
MAX_SLOPE = 4.0
_AXES_ARE_INPUT_SINCE = 18  # of ReduceMean


class _Op(NamedTuple):
    """An operator to be written; `attrs` are its attributes."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: dict[str, Any]


@dataclass(eq=False)
class _Rewriting:
    """Of one node: the new tensors' names, and the constants that are added once all is possible."""

    scope: Scope
    node: gs.Node
    data_type: int
    constants: dict[str, Const] = field(default_factory=dict)
    inner: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return str(self.node.outputs[0].name)

    def tensor(self) -> str:
        """A new tensor between two operators, of the type of the output."""
        self.inner.append(self.scope.fresh(f"{self.output}_inner"))
        return self.inner[-1]

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


def rewrite_avoided(
    plan: ScopePlan,
    avoided: Set[str],
    is_free: Callable[[gs.Node], bool],
    is_slow: Callable[[gs.Node], bool] = lambda node: False,
) -> bool:
    """Write nodes of avoided operators, and slow ones, as others where there is a way; whether there were any.

    Args:
        plan: of the scope; folds are added.
        avoided: operators.
        is_free: whether a node may be replaced.
        is_slow: whether a node of an operator that is not avoided should be replaced.
    """
    scope = plan.scope
    replacements = Replacements(plan)
    for node in scope.nodes:
        if node.op not in _RULES or not is_free(node) or not (node.op in avoided or is_slow(node)):
            continue
        rewriting = _begin(scope, node)
        written = None if rewriting is None else _expanded(rewriting, avoided | {node.op})
        if rewriting is None or written is None:
            continue
        kind = _KINDS.get(node.op, Kind.AFFINE)
        replacements.fold(rewriting.output, {kind}, [node], _created(rewriting, written))
    return replacements.write()


def creators_of_avoided(plan: ScopePlan, avoided: Set[str]) -> set[str]:
    """The names of the folds by which a scope got more nodes of an avoided operator than they took away.

    Where each took away as many, but two took the same, all that wrote the operator are named.
    """
    if not avoided:
        return set()
    left = {id(node) for node in plan.scope.nodes}
    created = {fold.name: [node.op for node in fold.created if id(node) in left] for fold in plan.folds}
    before = [node.op_type for node in plan.scope.proto.node]
    rising = {op for op in avoided if rises(op, (node.op for node in plan.scope.nodes), before)}
    return {
        fold.name
        for fold in plan.folds
        if rising.intersection(created[fold.name])
        or any(rises(op, created[fold.name], [node.op for node in fold.absorbed]) for op in avoided)
    }


def _begin(scope: Scope, node: gs.Node) -> _Rewriting | None:
    data_type = scope.data_type(node.outputs[0].name)
    if data_type not in _TYPES or scope.opset < NUMPY_BROADCAST_SINCE:
        return None
    return _Rewriting(scope, node, data_type)


def _expanded(rewriting: _Rewriting, avoided: Set[str]) -> list[_Op] | None:
    """Operators, none of them avoided, that compute the node's output; None if there is no way."""
    node = rewriting.node
    pending = [_Op(node.op, tuple(t.name for t in node.inputs), rewriting.output, dict(node.attrs))]
    result: list[_Op] = []
    seen: set[str] = set()
    while pending:
        one = pending.pop(0)
        if one.op not in avoided:
            result.append(one)
            continue
        if one.op in seen or one.op not in _RULES:  # a rule that comes back to its operator leads nowhere
            return None
        seen.add(one.op)
        parts = _RULES[one.op](rewriting, one)
        if parts is None:
            return None
        pending = [*parts, *pending]
    return result


def _created(rewriting: _Rewriting, written: Iterable[_Op]) -> list[gs.Node]:
    scope, output = rewriting.scope, rewriting.output
    scope.add_constants(rewriting.constants)
    shapes = {scope.shape(t.name) for t in (*rewriting.node.inputs, *rewriting.node.outputs)}
    for name in rewriting.inner:
        scope.declare_like(name, output)
        if (
            len(shapes) > 1
        ):  # an operand may be smaller than the result, and what is computed of it alone, too
            scope.types[name] = rewriting.data_type, None
    return [
        new_node(one.op, scope.fresh(f"{output}_{one.op.lower()}"), one.attrs, one.inputs, [one.output])
        for one in written
    ]


def _sub(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """`a - c = a + (-c)`, and `a - b = a + b * (-1)`: both exact."""
    first, second = one.inputs
    value = new.value(second)
    if value is not None:
        return [_Op("Add", (first, new.constant(-value)), one.output, {})]
    negative = new.tensor()
    product = _Op("Mul", (second, new.constant(-1.0)), negative, {})
    return [product, _Op("Add", (first, negative), one.output, {})]


def _div(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """`a / c = a * (1 / c)`, for constants alone."""
    value = new.value(one.inputs[1])
    if value is None or not value.all() or not np.isfinite(1.0 / value).all():
        return None
    return [_Op("Mul", (one.inputs[0], new.constant(1.0 / value)), one.output, {})]


def _neg(new: _Rewriting, one: _Op) -> list[_Op]:
    return [_Op("Mul", (one.inputs[0], new.constant(-1.0)), one.output, {})]


def _sum(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """`a + b + c` in the order of the inputs."""
    if len(one.inputs) < 2:
        return None
    parts: list[_Op] = []
    total = one.inputs[0]
    for number, name in enumerate(one.inputs[1:], 2):
        output = one.output if number == len(one.inputs) else new.tensor()
        parts.append(_Op("Add", (total, name), output, {}))
        total = output
    return parts


def _hard_swish(new: _Rewriting, one: _Op) -> list[_Op]:
    """`x * HardSigmoid(x; 1/6, 1/2)`, by which ONNX defines it."""
    gate = new.tensor()
    (source,) = one.inputs
    attributes = {"alpha": 1.0 / 6.0, "beta": 0.5}
    return [_Op("HardSigmoid", (source,), gate, attributes), _Op("Mul", (source, gate), one.output, {})]


def _hard_sigmoid(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """`max(0, min(1, alpha * x + beta))`, by which ONNX defines it."""
    if new.scope.opset < _CLIP_READS_LIMITS_SINCE:
        return None
    scaled, shifted = new.tensor(), new.tensor()
    alpha, beta = one.attrs.get("alpha", 0.2), one.attrs.get("beta", 0.5)
    return [
        _Op("Mul", (one.inputs[0], new.constant(alpha)), scaled, {}),
        _Op("Add", (scaled, new.constant(beta)), shifted, {}),
        _Op("Clip", (shifted, new.constant(0.0), new.constant(1.0)), one.output, {}),
    ]


def _global_average(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """The mean over all axes but the first two."""
    shape = new.scope.shape(one.inputs[0])
    if shape is None or len(shape) < 3:
        return None
    axes = list(range(2, len(shape)))
    if new.scope.opset >= _AXES_ARE_INPUT_SINCE:
        return [_Op("ReduceMean", (one.inputs[0], new.axes(axes)), one.output, {"keepdims": 1})]
    return [_Op("ReduceMean", one.inputs, one.output, {"axes": axes, "keepdims": 1})]


def _prelu(new: _Rewriting, one: _Op) -> list[_Op] | None:
    """One slope: the LeakyRelu that it is. Several: as there, if the slopes do not enlarge the tensor."""
    source, name = one.inputs
    const = new.scope.const(name)
    if const is None or not keeps_shape(new.scope.shape(source), const.shape):
        return None
    slope = common_slope(const)
    if slope is not None and new.data_type == onnx.TensorProto.FLOAT:
        return [_Op("LeakyRelu", (source,), one.output, {"alpha": slope})]
    return _two_sided(new, source, const.read().astype(np.float64), one.output)


def _leaky_relu(new: _Rewriting, one: _Op) -> list[_Op] | None:
    slope = np.float64(np.float32(one.attrs.get("alpha", 0.01)))
    return _two_sided(new, one.inputs[0], np.asarray(slope), one.output)


def _two_sided(new: _Rewriting, source: str, slope: Array, output: str) -> list[_Op] | None:
    """`s*x + (1 - s)*Relu(x)`, which is x above zero and s*x below."""
    if not np.all(np.abs(slope) <= MAX_SLOPE):  # above zero, what the two add would cancel
        return None
    positive, below, above = new.tensor(), new.tensor(), new.tensor()
    return [
        _Op("Relu", (source,), positive, {}),
        _Op("Mul", (source, new.constant(slope)), below, {}),
        _Op("Mul", (positive, new.constant(1.0 - slope)), above, {}),
        _Op("Add", (below, above), output, {}),
    ]


_RULES: dict[str, Callable[[_Rewriting, _Op], list[_Op] | None]] = {
    "Div": _div,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Neg": _neg,
    "PRelu": _prelu,
    "Sub": _sub,
    "Sum": _sum,
}
_KINDS = {
    "GlobalAveragePool": Kind.POOL,
    "HardSigmoid": Kind.ACTIVATION,
    "HardSwish": Kind.ACTIVATION,
    "LeakyRelu": Kind.ACTIVATION,
    "PRelu": Kind.ACTIVATION,
    "Sum": Kind.BRANCHES,
}
