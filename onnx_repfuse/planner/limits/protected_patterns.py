"""Nodes of patterns that runtimes fuse as a whole: they stay where they are, linear or not.

Exporters decompose GELU into `x * (1 + Erf(x / sqrt(2))) * 0.5`, or its approximation with Tanh, and LayerNorm into
`(x - mean) / sqrt(var + eps) * gamma + beta`. Runtimes recognise these nodes and run one kernel. Folding GELU's 0.5 or
LayerNorm's gamma into the next Conv would hide the pattern from them, and cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope

__all__ = ["protected_nodes"]

_PRODUCTS = ("Mul", "Div")


def protected_nodes(scope: Scope) -> frozenset[int]:
    """id() of the nodes that belong to a pattern; it is found once, as long as the nodes stay as they are."""
    if scope.protected is None:
        scope.protected = frozenset(map(id, _nodes_of_patterns(scope)))
    return scope.protected


def _nodes_of_patterns(scope: Scope) -> list[gs.Node]:
    nodes: list[gs.Node] = []
    for node in scope.nodes:
        if node.op in ("Erf", "Tanh"):
            nodes += _gelu(scope, node)
        elif node.op == "Sqrt":
            nodes += _layer_norm(scope, node)
    return nodes


def _gelu(scope: Scope, node: gs.Node) -> Iterator[gs.Node]:
    """The linear nodes of `x * (1 + Erf(x / sqrt(2))) * 0.5`, the Erf or Tanh being `node`."""
    for consumer in _consumers(scope, node):
        if consumer.op == "Add" and _scalar(scope, consumer) == 1.0:
            yield consumer
            yield from _scaled_argument(scope, node)
            yield from _halved_product(scope, consumer)
            return


def _scaled_argument(scope: Scope, node: gs.Node) -> Iterator[gs.Node]:
    """`x / sqrt(2)` before an Erf; `sqrt(2 / pi) * (x + 0.044715 * x**3)` before a Tanh."""
    argument = node
    for _ in range(2):
        producer = scope.producer.get(argument.inputs[0].name)
        scaling = next(_scalings(scope, [producer] if producer is not None else [], _PRODUCTS), None)
        if scaling is None:
            return
        yield scaling
        variable = next((tensor.name for tensor in scaling.inputs if scope.const(tensor.name) is None), "")
        cubic = scope.producer.get(variable)
        if node.op == "Tanh" and cubic is not None and cubic.op == "Add":
            yield cubic
            yield from _scalings(scope, _producers(scope, cubic), ("Mul",))
            return
        argument = scaling


def _halved_product(scope: Scope, plus_one: gs.Node) -> Iterator[gs.Node]:
    """The products with x and 0.5 behind the Add of 1, in either order; and a 0.5 beside them: `(0.5 * x) * ...`."""
    node = plus_one
    for _ in range(2):
        products = [consumer for consumer in _consumers(scope, node) if consumer.op in _PRODUCTS]
        if len(products) != 1:
            return
        node = products[0]
        yield node
        yield from _halvings(scope, _producers(scope, node))
        if _scalar(scope, node) is None and not any(_halvings(scope, _consumers(scope, node))):
            return


def _layer_norm(scope: Scope, root: gs.Node) -> list[gs.Node]:
    """The linear nodes of `(x - mean) / sqrt(var + eps) * gamma + beta`, the Sqrt being `root`."""
    for division in _consumers(scope, root):
        centred = scope.producer.get(division.inputs[0].name)
        if division.op != "Div" or centred is None or not _subtracts_mean(scope, centred):
            continue
        nodes = [centred, division]
        epsilon = scope.producer.get(root.inputs[0].name)
        if epsilon is not None:
            nodes.append(epsilon)
        node = division
        for op in ("Mul", "Add"):
            following = [consumer for consumer in _consumers(scope, node) if consumer.op == op]
            if len(following) != 1:
                break
            node = following[0]
            nodes.append(node)
        return nodes
    return []


def _subtracts_mean(scope: Scope, node: gs.Node) -> bool:
    mean = scope.producer.get(node.inputs[1].name) if node.op == "Sub" else None
    return mean is not None and mean.op == "ReduceMean"


def _scalar(scope: Scope, node: gs.Node) -> float | None:
    """The constant a node reads, if it is one number."""
    for tensor in node.inputs:
        value = scope.scalar(tensor.name) if tensor.name else None
        if value is not None:
            return value
    return None


def _scalings(scope: Scope, nodes: Iterable[gs.Node], ops: Sequence[str]) -> Iterator[gs.Node]:
    """Those of these operators that have a scalar constant."""
    return (node for node in nodes if node.op in ops and _scalar(scope, node) is not None)


def _halvings(scope: Scope, nodes: Iterable[gs.Node]) -> Iterator[gs.Node]:
    """Those that multiply by 0.5 or divide by 2."""
    return (node for node in nodes if node.op in _PRODUCTS and _scalar(scope, node) in (0.5, 2.0))


def _consumers(scope: Scope, node: gs.Node) -> list[gs.Node]:
    return scope.consumers.get(node.outputs[0].name, [])


def _producers(scope: Scope, node: gs.Node) -> list[gs.Node]:
    return [scope.producer[tensor.name] for tensor in node.inputs if tensor.name in scope.producer]
