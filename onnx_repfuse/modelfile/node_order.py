"""The order of nodes: each behind those that compute what it reads, as the standard demands and runtimes do not.

ONNX Runtime sorts the nodes of a model that is not sorted, so such models run. Their skeletons are sorted when they are
read, and everything behind relies on it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence, Set
from graphlib import CycleError, TopologicalSorter
from typing import Any

import onnx

from onnx_repfuse.errors import InputError, quoted

__all__ = ["all_nodes", "check_acyclic", "in_order", "inner_graphs", "outer_names", "sort_nodes"]


def inner_graphs(node: onnx.NodeProto) -> Iterator[tuple[tuple[str | int, ...], onnx.GraphProto]]:
    """The subgraphs of a node, with the tail of their scope key."""
    for attr in node.attribute[:]:
        if attr.type == onnx.AttributeProto.GRAPH:
            yield (attr.name,), attr.g
        elif attr.type == onnx.AttributeProto.GRAPHS:
            for number, graph in enumerate(attr.graphs):
                yield (attr.name, number), graph


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for _, inner in inner_graphs(node):
            yield from all_nodes(inner.node)


def outer_names(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph, or one nested in it, reads from the scopes around it."""
    inside = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    inside |= {i.values.name for i in graph.sparse_initializer}
    wanted = {o.name for o in graph.output}
    for node in graph.node:
        inside.update(node.output)
        wanted.update(node.input)
        for _, inner in inner_graphs(node):
            wanted |= outer_names(inner)
    return wanted - inside - {""}


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of every graph and function in topological order, in place.

    Sorted nodes stay as they are, and so do those with a cycle, which `check_acyclic` refuses.
    """
    _sort_graph(model.graph, frozenset())
    for function in model.functions:
        _sort(function.node, set(function.input))


def _sort_graph(graph: onnx.GraphProto, outside: Set[str]) -> None:
    given = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    given |= {i.values.name for i in graph.sparse_initializer}
    _sort(graph.node, outside | given)


def _sort(nodes: Any, given: Set[str]) -> None:
    """Sort a repeated field of nodes; `given` are the names that exist before the first of them."""
    producer: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in node.output[:]:
            producer.setdefault(name, position)
    # what is there before is taken from there: to move the node behind another of that name would change that
    for name in (*(given & producer.keys()), ""):
        producer.pop(name, None)
    if any(
        producer.get(name, -1) >= position for position, node in enumerate(nodes) for name in _reads(node)
    ):
        needed = [{producer[name] for name in _reads(node) if name in producer} for node in nodes]
        order = _order(needed)
        if len(order) == len(needed):
            _rearrange(nodes, order)
    visible: Set[str] | None = None
    for node in nodes:
        for _, inner in inner_graphs(node):
            visible = given | producer.keys() if visible is None else visible
            _sort_graph(inner, visible)


def check_acyclic(model: onnx.ModelProto) -> None:
    """Raise InputError if a node of the main graph, a subgraph or a function needs its own output.

    At once or by way of others, in any order of the nodes.
    """
    _check_acyclic(model.graph.node)
    for function in model.functions:
        _check_acyclic(function.node)


def _check_acyclic(nodes: Iterable[onnx.NodeProto]) -> None:
    nodes = list(nodes)
    needed = _needed(nodes)
    is_sorted = all(max(others, default=-1) < place for place, others in enumerate(needed))
    if not is_sorted:  # a document's nodes are, unless they cannot be
        _refuse_cycle(nodes, needed)
    for node in nodes:
        for _, inner in inner_graphs(node):
            _check_acyclic(inner.node)


def _refuse_cycle(nodes: Sequence[onnx.NodeProto], needed: Sequence[set[int]]) -> None:
    try:
        TopologicalSorter(dict(enumerate(needed))).prepare()
    except CycleError as error:
        _, cycle = error.args
        node = nodes[min(cycle)]
        name = quoted(node.name or ", ".join(node.output))
        raise InputError(f"the graph has a cycle: {node.op_type} {name} waits for its own output") from error


def in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes in topological order, as near to their own order as may be; without those in or behind a cycle."""
    return [nodes[place] for place in _order(_needed(nodes))]


def _needed(nodes: Sequence[onnx.NodeProto]) -> list[set[int]]:
    """For each node the places of those that compute what it reads."""
    producer = {name: place for place, node in enumerate(nodes) for name in node.output[:] if name}
    return [{producer[name] for name in _reads(node) if name in producer} for node in nodes]


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set[str](node.input[:])
    for _, inner in inner_graphs(node):
        names |= outer_names(inner)
    return names


def _order(needed: list[set[int]]) -> list[int]:
    """Positions in topological order, as near to their own order as may be; without those in or behind a cycle."""
    missing = [len(others) for others in needed]
    behind: dict[int, list[int]] = {}
    for position, others in enumerate(needed):
        for other in others:
            behind.setdefault(other, []).append(position)
    ready = [position for position, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        position = heapq.heappop(ready)
        order.append(position)
        for consumer in behind.get(position, ()):
            missing[consumer] -= 1
            if not missing[consumer]:
                heapq.heappush(ready, consumer)
    return order


def _rearrange(nodes: Any, order: list[int]) -> None:
    copies = [onnx.NodeProto() for _ in order]
    for copy, position in zip(copies, order, strict=True):
        copy.CopyFrom(nodes[position])
    del nodes[:]
    nodes.extend(copies)
