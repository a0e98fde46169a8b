"""Activations and normalizations that runtimes fuse as a whole: their linear nodes stay where they are.

GELU is written `x * (1 + Erf(x / sqrt(2))) * 0.5`, or with Tanh; folding its 0.5 into the next Conv hides it from
the runtime. LayerNorm is written `(x - mean) / sqrt(var + eps) * gamma + beta`; the same holds for its tail.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope

__all__ = ["protected"]


def protected(scope: Scope) -> frozenset[int]:
    """id() of the nodes that belong to such an idiom."""
    found: set[int] = set()
    for node in scope.nodes:
        if node.op in ("Erf", "Tanh"):
            found |= _gelu(scope, node)
        elif node.op == "Sqrt":
            found |= _layer_norm(scope, node)
    return frozenset(found)


def _scalar(scope: Scope, node: gs.Node) -> float | None:
    """The constant beside a tensor, if it is one number."""
    values = (scope.scalar(tensor.name) for tensor in node.inputs if tensor.name)
    return next((value for value in values if value is not None), None)


def _readers(scope: Scope, node: gs.Node) -> list[gs.Node]:
    return scope.consumers.get(node.outputs[0].name, [])


def _gelu(scope: Scope, node: gs.Node) -> set[int]:
    plus = [r for r in _readers(scope, node) if r.op == "Add" and _scalar(scope, r) == 1.0]
    if not plus:
        return set()
    found = {id(plus[0])}
    before = node
    for _ in range(2):  # x / sqrt(2), or sqrt(2 / pi) * (x + 0.044715 * x**3)
        producer = scope.producer.get(before.inputs[0].name)
        if producer is None or producer.op not in ("Mul", "Div") or _scalar(scope, producer) is None:
            break
        found.add(id(producer))
        before = producer
        cubic = scope.producer.get(next((t.name for t in before.inputs if scope.const(t.name) is None), ""))
        if node.op == "Tanh" and cubic is not None and cubic.op == "Add":
            found.add(id(cubic))
            found |= {
                id(p)
                for t in cubic.inputs
                if (p := scope.producer.get(t.name)) is not None
                and p.op == "Mul"
                and _scalar(scope, p) is not None
            }
            break
    after = plus[0]
    for _ in range(2):
        products = [r for r in _readers(scope, after) if r.op in ("Mul", "Div")]
        if len(products) != 1:
            break
        after = products[0]
        found.add(id(after))
        for tensor in after.inputs:
            half = scope.producer.get(tensor.name)
            if half is not None and half.op in ("Mul", "Div") and _scalar(scope, half) in (0.5, 2.0):
                found.add(id(half))
        if _scalar(scope, after) is None and not any(
            _scalar(scope, r) in (0.5, 2.0) for r in _readers(scope, after) if r.op in ("Mul", "Div")
        ):
            break
    return found


def _layer_norm(scope: Scope, node: gs.Node) -> set[int]:
    for division in _readers(scope, node):
        if division.op != "Div":
            continue
        centred = scope.producer.get(division.inputs[0].name)
        if centred is None or centred.op != "Sub":
            continue
        mean = scope.producer.get(centred.inputs[1].name)
        if mean is None or mean.op != "ReduceMean":
            continue
        found = {id(centred), id(division)}
        epsilon = scope.producer.get(node.inputs[0].name)
        if epsilon is not None:
            found.add(id(epsilon))
        after = division
        for op in ("Mul", "Add"):
            following = [r for r in _readers(scope, after) if r.op == op]
            if len(following) != 1:
                break
            after = following[0]
            found.add(id(after))
        return found
    return set()
