"""Graphs that are none: a node that needs its own output, at once or by way of others, in any order of the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from onnx_repfuse.errors import InputError, quoted

__all__ = ["check_acyclic"]


def check_acyclic(model: onnx.ModelProto) -> None:
    """Raise InputError if the main graph, a subgraph or a function of the model has a cycle."""
    _check(model.graph.node)
    for function in model.functions:
        _check(function.node)


def _check(nodes: Iterable[onnx.NodeProto]) -> None:
    nodes = list(nodes)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output[:] if name}
    # a document's nodes are sorted, unless they cannot be
    if any(producer.get(name, -1) >= index for index, node in enumerate(nodes) for name in _reads(node)):
        _refuse_cycle(
            nodes, [{producer[name] for name in _reads(node) if name in producer} for node in nodes]
        )
    for node in nodes:
        for graph in _subgraphs(node):
            _check(graph.node)


def _refuse_cycle(nodes: list[onnx.NodeProto], waits: list[set[int]]) -> None:
    """Raise InputError if nodes wait for each other.

    Args:
        waits: for each node the places of those it waits for.
    """
    followers: dict[int, list[int]] = {}
    for index, others in enumerate(waits):
        for other in others:
            followers.setdefault(other, []).append(index)
    ready = [index for index, others in enumerate(waits) if not others]
    while ready:
        done = ready.pop()
        for index in followers.get(done, ()):
            waits[index].discard(done)
            if not waits[index]:
                ready.append(index)
    waiting = next((index for index, others in enumerate(waits) if others), None)
    if waiting is not None:
        node = nodes[waiting]
        name = quoted(node.name or ", ".join(node.output))
        raise InputError(f"the graph has a cycle: {node.op_type} {name} waits for its own output")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Inputs, and the names that subgraphs read; one of their own has no producer outside, or is hidden by it."""
    yield from node.input[:]
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        for inner in graph.node:
            yield from (name for name in _reads(inner) if name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute[:]:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
