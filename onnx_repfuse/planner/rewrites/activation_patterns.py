"""Decomposed activations, as the one operator they are.

    c * Clip(p*x + q, 0, m)  =  HardSigmoid(x; alpha = c*p, beta = c*q)               if c*m = 1
    z * Clip(p*x + q, 0, m) * c  =  z * HardSigmoid(x; alpha = c*p, beta = c*q)       likewise

HardSigmoid(x) is max(0, min(1, alpha*x + beta)) (ONNX spec). With p = 1, q = 3, m = 6, c = 1/6 and z = x the second is
HardSwish, an operator of its own from opset 14 on. Before that its parts stay: OpenVINO fuses them, and is slower with
HardSigmoid and Mul (docs/benchmarks.md). The factor may be at z, and the Clip be `Min(Relu(.), m)`. A product of x with
a HardSigmoid of x that the file itself has is the same. float32 only: that is what runtimes have it for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import OPERATORS, operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.limits.refusals import opset_refusal
from onnx_repfuse.records.float_formats import epsilon
from onnx_repfuse.records.report import Kind

__all__ = ["fold_activations"]

MAX_NODES_BEFORE = 4  # scalar operators before the Clip
HARD_SIGMOID_OPSET = 6  # before it, HardSigmoid has another attribute
ULP = epsilon(onnx.TensorProto.FLOAT)  # what exporters round the constants of an activation to


@dataclass(frozen=True, eq=False)
class _Activation:
    """One activation.

    Attributes:
        output: the tensor that it computes.
        place: the node in whose place it is written.
        absorbed, created: the nodes that go and come; nothing is created, and nothing goes, where the opset has no
            operator for it.
    """

    output: str
    place: gs.Node
    absorbed: list[gs.Node]
    created: list[gs.Node]


class _ScalarAffine(NamedTuple):
    """`factor * source + offset`."""

    source: str
    factor: float
    offset: float


class _Scaling(NamedTuple):
    """What brings a Clip's upper limit to 1.

    Attributes:
        nodes: the product with the factor, and before it that with `other`, if there is one.
        other: the tensor z in `z * Clip(...) * factor`.
    """

    nodes: list[gs.Node]
    factor: float
    other: str | None = None


def fold_activations(
    plan: ScopePlan,
    is_kept: Callable[[gs.Node], bool],
    banned: frozenset[str],
    avoided: frozenset[str],
) -> bool:
    """Write decomposed activations as one operator each; whether there were any.

    Args:
        plan: of the scope, which is changed.
        is_kept: whether a node stays.
        banned: outputs that must stay computed as they are.
        avoided: operators that the target cannot run.
    """
    replacements = Replacements(plan)
    for activation in _activations(plan.scope, is_kept, banned):
        if any(node.op in avoided for node in activation.created):
            continue
        if not activation.created:
            refusal = opset_refusal(plan.scope, activation.place, activation.absorbed)
            if refusal not in plan.refusals:  # of an earlier reading
                plan.refusals.append(refusal)
            continue
        kinds = {Kind.ACTIVATION}
        replacements.fold(activation.output, kinds, activation.absorbed, activation.created)
    return replacements.write()


def _activations(
    scope: Scope, is_kept: Callable[[gs.Node], bool], banned: frozenset[str]
) -> Iterator[_Activation]:
    """Every decomposed HardSigmoid and HardSwish; kept nodes and banned outputs stay."""
    if scope.opset < HARD_SIGMOID_OPSET:
        return
    for node in scope.nodes:
        rule = _RULES.get(node.op)
        activation = None if rule is None else rule(scope, node)
        if activation is None or activation.output in banned:
            continue
        if not any(is_kept(absorbed) for absorbed in activation.absorbed):
            yield activation


def _is_float32(scope: Scope, node: gs.Node) -> bool:
    names = (node.inputs[0].name, node.outputs[0].name)
    return any(scope.data_type(name) == onnx.TensorProto.FLOAT for name in names)


def _product_with_gate(scope: Scope, gate: gs.Node) -> _Activation | None:
    """`x * HardSigmoid(x)` as HardSwish."""
    alpha, beta = (float(np.float32(gate.attrs.get(*default))) for default in (("alpha", 0.2), ("beta", 0.5)))
    if not _is_float32(scope, gate) or not _is_hard_swish(alpha, beta) or not _has_channels(scope, gate):
        return None
    source = gate.inputs[0].name
    product = _product_with_source(scope, gate, source, None)
    if product is None:
        return None
    if scope.opset < OPERATORS["HardSwish"].since:
        return _Activation(gate.outputs[0].name, gate, [gate, product], [])
    return _hard_swish(scope, source, [gate], product)


def _activation(scope: Scope, clip: gs.Node) -> _Activation | None:
    """A Clip and what scales it, as HardSigmoid or HardSwish; it may be the Min of a ReLU and a number."""
    relu = _relu_before(scope, clip) if clip.op == "Min" else None
    first = clip if relu is None else relu
    largest = _upper_limit(scope, clip, relu) if _is_float32(scope, first) else None
    if largest is None or not _has_channels(scope, first):
        return None
    argument, before = _affine_before(scope, first)
    before += [] if relu is None else [relu]
    scaling = _scaling_after(scope, clip, largest) or _scaling_beside(scope, clip, largest, argument.source)
    if scaling is None:
        return None
    if len(before) + len(scaling.nodes) == (scaling.other is not None):
        return None  # a Clip from 0 to 1, or its product with another tensor: there is nothing to save
    alpha, beta = argument.factor * scaling.factor, argument.offset * scaling.factor
    if not _are_attributes(alpha, beta):
        return None
    absorbed = [*before, clip, *scaling.nodes]
    product = _product_with_source(scope, absorbed[-1], argument.source, scaling.other)
    product = product if _is_hard_swish(alpha, beta) else None
    if product is None:
        return _hard_sigmoid(scope, argument.source, absorbed, scaling.other, {"alpha": alpha, "beta": beta})
    if scope.opset < OPERATORS["HardSwish"].since:
        # what scales behind the Clip is not absorbed, so that it may still fold
        return _Activation(absorbed[-1].outputs[0].name, clip, [*before, clip], [])
    return _hard_swish(scope, argument.source, absorbed, product)


def _are_attributes(alpha: float, beta: float) -> bool:
    """Whether a HardSigmoid may have these: its attributes are float32."""
    return alpha != 0 and all(np.isfinite(np.float32(value)) for value in (alpha, beta))


def _is_hard_swish(alpha: float, beta: float) -> bool:
    """HardSwish(x) = x * HardSigmoid(x; 1/6, 1/2) (ONNX spec); exporters round 1/6."""
    return max(abs(alpha * 6 - 1), abs(beta * 2 - 1)) <= ULP


def _hard_swish(scope: Scope, source: str, absorbed: list[gs.Node], product: gs.Node) -> _Activation:
    output = product.outputs[0].name
    nodes = absorbed if product is absorbed[-1] else [*absorbed, product]
    return _Activation(output, product, nodes, [_node(scope, "HardSwish", [source], output, {})])


def _hard_sigmoid(
    scope: Scope, source: str, absorbed: list[gs.Node], other: str | None, attributes: dict[str, float]
) -> _Activation:
    last = absorbed[-1]
    output = last.outputs[0].name
    if other is None:
        gate = _node(scope, "HardSigmoid", [source], output, attributes)
        return _Activation(output, last, absorbed, [gate])
    name = scope.fresh(f"{output}_gate")
    gate = _node(scope, "HardSigmoid", [source], name, attributes)
    product = _node(scope, "Mul", [other, name], output, {})
    # of the shape of what it is a function of, beside which the other factor may be larger
    scope.declare_like(name, source)
    scope.types[name] = onnx.TensorProto.FLOAT, scope.shape(source)
    return _Activation(output, last, absorbed, [gate, product])


def _node(scope: Scope, op: str, inputs: list[str], output: str, attributes: dict[str, float]) -> gs.Node:
    return new_node(op, scope.fresh(f"{output}_{op.lower()}"), attributes, inputs, [output])


def _has_channels(scope: Scope, node: gs.Node) -> bool:
    """Verification compares per channel, so a scalar or a vector stays."""
    shape = scope.shape(node.inputs[0].name)
    return shape is None or len(shape) >= 2


def _relu_before(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The ReLU of which a Min takes what is below a number."""
    names = [tensor.name for tensor in node.inputs if scope.const(tensor.name) is None]
    relu = scope.private_producer(names[0]) if len(names) == 1 and len(node.inputs) == 2 else None
    return relu if relu is not None and relu.op == "Relu" else None


def _upper_limit(scope: Scope, clip: gs.Node, relu: gs.Node | None) -> float | None:
    """The limit m of a Clip from 0 to m; attributes in old opsets, inputs later. Of a Min, which reads `relu`."""
    limits: tuple[float | None, float | None]
    if clip.op == "Min":
        names = [tensor.name for tensor in clip.inputs if scope.const(tensor.name) is not None]
        limits = 0.0, None if relu is None else _scalar_beside(scope, names[0], relu.outputs[0].name)
    elif operator(clip).uses_attributes(scope.opset):
        limits = clip.attrs.get("min"), clip.attrs.get("max")
    elif len(clip.inputs) == 3:
        limits = scope.scalar(clip.inputs[1].name), scope.scalar(clip.inputs[2].name)
    else:
        return None
    lower, upper = limits
    if lower is None or upper is None or float(lower) != 0:
        return None
    return float(upper) if 0 < float(upper) < float("inf") else None


def _affine_before(scope: Scope, clip: gs.Node) -> tuple[_ScalarAffine, list[gs.Node]]:
    """What a Clip reads as `p*x + q` of the farthest possible x, and the nodes between them in topological order."""
    result = _ScalarAffine(clip.inputs[0].name, 1.0, 0.0)
    nodes: list[gs.Node] = []
    while len(nodes) < MAX_NODES_BEFORE:
        producer = scope.private_producer(result.source)
        inner = None if producer is None else _scalar_affine(scope, producer)
        if inner is None:
            break
        offset = result.offset + result.factor * inner.offset
        result = _ScalarAffine(inner.source, result.factor * inner.factor, offset)
        nodes.insert(0, producer)
    return result, nodes


def _scaling_after(scope: Scope, clip: gs.Node, largest: float) -> _Scaling | None:
    """What scales a Clip to 1, with nothing or one product with another tensor in between; None if nothing does."""
    if largest == 1.0:
        return _Scaling([], 1.0)
    output = clip.outputs[0].name
    consumer = scope.only_consumer(output)
    if consumer is None:
        return None
    factor = _factor_to_one(scope, consumer, largest)
    if factor is not None:
        return _Scaling([consumer], factor)
    last = scope.only_consumer(consumer.outputs[0].name) if consumer.op == "Mul" else None
    factor = None if last is None else _factor_to_one(scope, last, largest)
    if factor is None:
        return None
    names = [tensor.name for tensor in consumer.inputs]
    other = names[1 - names.index(output)]
    if other == output or scope.const(other) is not None:
        return None
    return _Scaling([consumer, last], factor, other)


def _scaling_beside(scope: Scope, clip: gs.Node, largest: float, source: str) -> _Scaling | None:
    """A product with the Clip's own argument, scaled: `(x / 6) * Clip(x + 3, 0, 6)`."""
    output = clip.outputs[0].name
    product = scope.only_consumer(output)
    if product is None or product.op != "Mul":
        return None
    name = next((tensor.name for tensor in product.inputs if tensor.name != output), "")
    scaled = scope.private_producer(name)
    factor = None if scaled is None else _factor_to_one(scope, scaled, largest)
    if scaled is None or factor is None or source not in [tensor.name for tensor in scaled.inputs]:
        return None
    return _Scaling([scaled, product], factor, source)


def _factor_to_one(scope: Scope, node: gs.Node, largest: float) -> float | None:
    """The factor of a node that scales `largest` to 1."""
    affine = _scalar_affine(scope, node)
    if affine is None or affine.offset != 0 or abs(affine.factor * largest - 1) > ULP:
        return None
    return affine.factor


def _product_with_source(scope: Scope, last: gs.Node, source: str, other: str | None) -> gs.Node | None:
    """The node that multiplies a gate with its own argument, which makes a HardSwish of a HardSigmoid.

    `last` computes the gate or, where `other` is not None, already the product with `other`.
    """
    if other is not None:
        return last if other == source else None
    gate = last.outputs[0].name
    consumer = scope.only_consumer(gate)
    if consumer is None or consumer.op != "Mul" or {t.name for t in consumer.inputs} != {gate, source}:
        return None
    return consumer


def _scalar_affine(scope: Scope, node: gs.Node) -> _ScalarAffine | None:
    """What a node with one scalar constant computes."""
    if len(node.inputs) != 2:
        return None
    first, second = (tensor.name for tensor in node.inputs)
    constant_first = scope.const(first) is not None
    name, constant = (second, first) if constant_first else (first, second)
    value = _scalar_beside(scope, constant, name)
    if value is None:
        return None
    pair = _factor_and_offset(node.op, value, constant_first=constant_first)
    return None if pair is None else _ScalarAffine(name, *pair)


def _scalar_beside(scope: Scope, constant: str, name: str) -> float | None:
    """The finite number that is combined with a tensor, unless its axis makes the result larger than the tensor."""
    const = scope.const(constant)
    if const is None or scope.const(name) is not None:
        return None
    if len(const.shape) > min(1, len(scope.shape(name) or ())):
        return None
    value = scope.scalar(constant)
    return value if value is not None and np.isfinite(value) else None


def _factor_and_offset(op: str, value: float, *, constant_first: bool) -> tuple[float, float] | None:
    """p and q of the operator as `p*x + q`."""
    if op == "Add":
        return 1.0, value
    if op == "Sub":
        return (-1.0, value) if constant_first else (1.0, -value)
    if op == "Mul":
        return value, 0.0
    if op == "Div" and not constant_first and value != 0:
        return 1.0 / value, 0.0
    return None


_RULES: dict[str, Callable[[Scope, gs.Node], _Activation | None]] = {
    "Clip": _activation,
    "HardSigmoid": _product_with_gate,
    "Min": _activation,
}
