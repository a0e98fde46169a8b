"""An order of a graph's nodes that depends neither on their order in the file nor on names.

The planner meets some choices that are equally good, and takes the first. So that a graph whose nodes stand in another
order, or whose tensors have other names, is folded in the same way, nodes are planned in an order that the graph itself
gives: what the first output needs comes first, and of that what the first input needs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.modelfile.node_order import inner_graphs

__all__ = ["canonical_order", "captures_in_order"]


def canonical_order(
    nodes: Sequence[gs.Node], outputs: Iterable[str], captures: Mapping[int, Sequence[str]]
) -> list[gs.Node]:
    """The nodes in topological order: depth first from the outputs, then from the nodes that no output needs.

    Args:
        nodes: of one graph.
        outputs: names of the graph's outputs, in order.
        captures: id() of a node -> the tensors that its subgraphs read.
    """
    producer = {tensor.name: node for node in nodes for tensor in node.outputs if tensor.name}
    placed: list[gs.Node] = []
    entered: set[int] = set()
    starts = [producer[name] for name in outputs if name in producer]
    for start in (*starts, *nodes):
        if id(start) in entered:
            continue
        entered.add(id(start))
        # a stack of nodes, each with what is left of its inputs: a chain of thousands is deeper than Python may call
        pending = [(start, _inputs(start, captures))]
        while pending:
            node, names = pending[-1]
            below = _next_below(names, producer, entered)
            if below is None:
                placed.append(node)
                pending.pop()
            else:
                entered.add(id(below))
                pending.append((below, _inputs(below, captures)))
    return placed


def _next_below(
    names: Iterator[str], producer: Mapping[str, gs.Node], entered: Container[int]
) -> gs.Node | None:
    """The first of the nodes that compute these tensors which was not entered yet; takes the names up to it."""
    for name in names:
        node = producer.get(name)
        if node is not None and id(node) not in entered:
            return node
    return None


def _inputs(node: gs.Node, captures: Mapping[int, Sequence[str]]) -> Iterator[str]:
    yield from (tensor.name for tensor in node.inputs)
    yield from captures.get(id(node), ())


def captures_in_order(graph: onnx.GraphProto) -> Iterator[str]:
    """Every name that a subgraph may read from the graphs around it, in the order in which it does."""
    for node in graph.node:
        yield from node.input
        for _, inner in inner_graphs(node):
            yield from captures_in_order(inner)
    yield from (value.name for value in graph.output)
