"""Which inner tensors two models share, in topological order, and where a difference may have come from."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import onnx

from onnx_repfuse.records.comparison import Layer, Producer
from onnx_repfuse.verifier.outputs.interfaces import Side
from onnx_repfuse.verifier.session import Model, load, reads

__all__ = ["SharedTensor", "in_topological_order", "shared_tensors", "trace"]


class SharedTensor(NamedTuple):
    """A tensor of the main graphs of two models.

    Attributes:
        first, second: its names; they differ only for outputs that were paired.
        producer, other_producer: the nodes that compute it.
    """

    first: str
    second: str
    producer: Producer
    other_producer: Producer


def shared_tensors(first: Model, second: Model, outputs: Side) -> list[SharedTensor]:
    """The node outputs that both have, in topological order of the first.

    What depends on constants alone is left out: exporters number such tensors, so that one name stands for different
    ones, and what is wrong with a constant shows where it is used.

    Raises:
        DoesNotRun: a model cannot be read.
    """
    graph, other = (load(model, weights=False).graph for model in (first, second))
    theirs = {name: node for node in other.node for name in node.output if name}
    constant = {tensor.name for tensor in graph.initializer}
    shared = []
    for node in in_topological_order(graph.node):
        if constant.issuperset(reads(node)):
            constant.update(node.output)
        for name in filter(None, node.output):
            if name in constant and name not in outputs.paired:
                continue
            paired = outputs.paired.get(name, name)
            if paired in theirs:
                shared.append(SharedTensor(name, paired, _producer(node), _producer(theirs[paired])))
    return shared


def trace(model: Model, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers, told where differences come from and whether they matter.

    One that diverges has the status "agrees again" if none of the ways from it to an output leads through differing
    tensors only. Two exporters may give one name to different tensors: to a Conv, and to the same Conv with its
    normalization folded in. `is_origin` holds for one that diverges where nothing that it is computed from does.

    Args:
        model: the first model.
        layers: all of its tensors that were compared.
    """
    graph = load(model, weights=False).graph
    nodes = in_topological_order(graph.node)
    agreeing = {layer.tensor for layer in layers if layer.status == "agrees"}
    reaching = {value.name for value in graph.output} - agreeing
    for node in reversed(nodes):
        if not reaching.isdisjoint(node.output):
            reaching.update(set(reads(node)) - agreeing)
    diverging = {layer.tensor for layer in layers if layer.status == "diverges"} & reaching
    behind = _behind(nodes, diverging)
    return tuple(_traced(layer, diverging, diverging - behind) for layer in layers)


def _behind(nodes: Sequence[onnx.NodeProto], tensors: Collection[str]) -> set[str]:
    """What nodes, in topological order, compute from some tensors."""
    affected, behind = set(tensors), set[str]()
    for node in nodes:
        if not affected.isdisjoint(reads(node)):
            behind.update(node.output)
            affected.update(node.output)
    return behind


def _traced(layer: Layer, diverging: Collection[str], origins: Collection[str]) -> Layer:
    if layer.status != "diverges":
        return layer
    if layer.tensor not in diverging:
        return replace(layer, status="agrees again")
    return replace(layer, is_origin=layer.tensor in origins)


def in_topological_order(nodes: Collection[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes of a graph, each behind what it reads; in the file's own order, where that is such an order.

    A graph with a cycle, which no runtime accepts, stays as it is.
    """
    nodes = list(nodes)
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for index, node in enumerate(nodes):
        sorter.add(index, *{producer[name] for name in reads(node) if name in producer})
    try:
        sorter.prepare()
    except CycleError:
        return nodes
    ready: list[int] = []
    order = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, index)
        first = heapq.heappop(ready)
        order.append(nodes[first])
        sorter.done(first)
    return order


def _producer(node: onnx.NodeProto) -> Producer:
    return Producer(node.name or next(filter(None, node.output), ""), node.op_type)
