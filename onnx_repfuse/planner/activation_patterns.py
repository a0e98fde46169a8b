"""Activations written out, as the one operator they are.

    c * Clip(p*x + q, 0, m)  =  HardSigmoid(x; alpha = c*p, beta = c*q)               if c*m = 1
    z * Clip(p*x + q, 0, m) * c  =  z * HardSigmoid(x; alpha = c*p, beta = c*q)       likewise

HardSigmoid(x) is max(0, min(1, alpha*x + beta)) (ONNX spec). With p = 1, q = 3, m = 6, c = 1/6 and z = x the second is
HardSwish, an operator of its own from opset 14 on. Before that its parts stay: OpenVINO fuses them, and is slower with
HardSigmoid and Mul (docs/benchmarks.md). float32 only: that is what runtimes have it for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.load import new_node
from onnx_repfuse.graph.operators import OPERATORS, operator
from onnx_repfuse.graph.scope import Scope

__all__ = ["Activation", "activations"]

LONGEST = 4  # scalar operators before the Clip
ULP = 2.0**-23


@dataclass(frozen=True, eq=False)
class Activation:
    """One activation: `absorbed` go, `created` come and compute `root`, written where `place` stood.

    Nothing is created, and nothing goes, where the opset has no operator for it.
    """

    root: str
    place: gs.Node
    absorbed: list[gs.Node]
    created: list[gs.Node]


def activations(
    scope: Scope, kept: Callable[[gs.Node], bool], banned: frozenset[str]
) -> Iterator[Activation]:
    """Every HardSigmoid and HardSwish that is written out; `kept` nodes and `banned` roots stay."""
    if scope.opset < 6:
        return
    for node in scope.nodes:
        if node.op == "Clip" and _is_float(scope, node):
            found = _hard_sigmoid(scope, node)
            if found and found.root not in banned and not any(kept(one) for one in found.absorbed):
                yield found


def _is_float(scope: Scope, node: gs.Node) -> bool:
    names = (node.inputs[0].name, node.outputs[0].name)
    return any(scope.data_type(name) == onnx.TensorProto.FLOAT for name in names)


def _hard_sigmoid(scope: Scope, clip: gs.Node) -> Activation | None:
    limits = _limits(scope, clip)
    if limits is None or limits[0] != 0 or not 0 < limits[1] < float("inf"):
        return None
    shape = scope.shape(clip.inputs[0].name)
    if shape is not None and len(shape) < 2:
        return None  # verification wants channels
    source, p, q, before = _scalars_before(scope, clip)
    after, factor, other = _factor_after(scope, clip, limits[1])
    absorbed = [*before, clip, *after]
    if len(absorbed) < 2 + (other is not None):
        return None
    last = absorbed[-1]
    root = last.outputs[0].name
    attrs = {"alpha": p * factor, "beta": q * factor}
    if not all(np.isfinite(np.float32(value)) for value in attrs.values()) or attrs["alpha"] == 0:
        return None
    if _is_hard_swish(attrs):
        product = last if other == source else None if other is not None else _product(scope, root, source)
        if product is not None:
            if scope.opset < OPERATORS["HardSwish"].since:
                return Activation(root, clip, [*before, clip], [])  # what scales behind it may still fold
            absorbed += [] if product is last else [product]
            root = product.outputs[0].name
            return Activation(root, product, absorbed, [_node(scope, "HardSwish", [source], root, {})])
    gate = root if other is None else scope.fresh(f"{root}_gate")
    created = [_node(scope, "HardSigmoid", [source], gate, attrs)]
    if other is not None:
        created.append(_node(scope, "Mul", [other, gate], root, {}))
        scope.types[gate] = scope.types.get(root, (onnx.TensorProto.FLOAT, None))
        if root in scope.assumed:
            scope.assumed[gate] = scope.assumed[root]
    return Activation(root, last, absorbed, created)


def _product(scope: Scope, gate: str, source: str) -> gs.Node | None:
    """The node that multiplies `source` with its gate, if that alone reads the gate."""
    consumer = scope.consumers[gate][0] if scope.is_private(gate) else None
    if consumer is None or consumer.op != "Mul" or {t.name for t in consumer.inputs} != {gate, source}:
        return None
    return consumer


def _is_hard_swish(attrs: dict[str, float]) -> bool:
    return abs(attrs["alpha"] * 6 - 1) <= ULP and abs(attrs["beta"] * 2 - 1) <= ULP


def _node(scope: Scope, op: str, inputs: list[str], output: str, attrs: dict[str, float]) -> gs.Node:
    return new_node(op, scope.fresh(f"{output}_{op.lower()}"), attrs, inputs, [output])


def _limits(scope: Scope, clip: gs.Node) -> tuple[float, float] | None:
    if operator(clip).uses_attributes(scope.opset):
        return float(clip.attrs.get("min", -np.inf)), float(clip.attrs.get("max", np.inf))
    if len(clip.inputs) < 3:
        return None
    least, most = (scope.scalar(tensor.name) for tensor in clip.inputs[1:3])
    return None if least is None or most is None else (least, most)


def _scalar(scope: Scope, node: gs.Node) -> tuple[str, float, float] | None:
    """`p*x + q` of a node with one scalar constant: (x, p, q)."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    consts = [scope.const(tensor.name) for tensor in node.inputs]
    place = 0 if consts[0] is not None else 1
    const, name = consts[place], node.inputs[1 - place].name
    if const is None or scope.const(name) is not None:
        return None
    if len(const.shape) > min(1, len(scope.shape(name) or ())):  # it may add an axis
        return None
    value = scope.scalar(node.inputs[place].name)
    if value is None or not np.isfinite(value):
        return None
    if node.op == "Add":
        return name, 1.0, value
    if node.op == "Sub":
        return (name, 1.0, -value) if place == 1 else (name, -1.0, value)
    if node.op == "Mul":
        return name, value, 0.0
    return (name, 1.0 / value, 0.0) if place == 1 and value != 0 else None


def _scalars_before(scope: Scope, clip: gs.Node) -> tuple[str, float, float, list[gs.Node]]:
    name, p, q = clip.inputs[0].name, 1.0, 0.0
    nodes: list[gs.Node] = []
    while len(nodes) < LONGEST and scope.is_private(name):
        producer = scope.producer.get(name)
        found = _scalar(scope, producer) if producer is not None else None
        if producer is None or found is None:
            break
        name, q, p = found[0], q + p * found[2], p * found[1]
        nodes.insert(0, producer)
    return name, p, q, nodes


def _factor_after(scope: Scope, clip: gs.Node, largest: float) -> tuple[list[gs.Node], float, str | None]:
    """Nodes after the Clip that scale it to 1, the factor, and what it is multiplied with in between."""
    if largest == 1.0:
        return [], 1.0, None
    output = clip.outputs[0].name
    if not scope.is_private(output):
        return [], 0.0, None
    consumer = scope.consumers[output][0]
    factor = _scales_to_one(scope, consumer, largest)
    if factor is not None:
        return [consumer], factor, None
    if consumer.op != "Mul" or not scope.is_private(consumer.outputs[0].name):
        return [], 0.0, None
    names = [tensor.name for tensor in consumer.inputs]
    other = names[1 - names.index(output)]
    last = scope.consumers[consumer.outputs[0].name][0]
    factor = _scales_to_one(scope, last, largest)
    if factor is None or scope.const(other) is not None or other == output:
        return [], 0.0, None
    return [consumer, last], factor, other


def _scales_to_one(scope: Scope, node: gs.Node, largest: float) -> float | None:
    found = _scalar(scope, node)
    if found is None or found[2] != 0 or abs(found[1] * largest - 1) > ULP:
        return None
    return found[1]
