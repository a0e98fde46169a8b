"""A model as one graph, for what is read off nodes: calls of its functions and subgraphs are nodes among the others."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import onnx
from onnx.inliner import inline_local_functions

from onnx_repfuse.verifier.session import subgraphs

__all__ = ["constant_shapes", "flat_graph"]

_MAX_ELEMENTS = 64  # of an initializer that keeps its elements
_Key = tuple[str, str]  # domain and name of a function


def flat_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """The main graph, in which the nodes of subgraphs stand before those that hold them, and functions are inlined.

    Names are unique among a graph and its subgraphs. Large initializers are declared only, unless the main graph is all
    there is, which is handed back as it is.
    """
    has_subgraphs = any(subgraphs(node) for node in model.graph.node)
    if not model.functions and not has_subgraphs:
        return model.graph
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    _copy(model.graph, result.graph)
    if model.functions and not _calls_itself(model.functions):
        result.functions.extend(model.functions)
        # Where the inliner refuses, calls stay nodes that tell nothing of the inputs: hints are lost, no more.
        with contextlib.suppress(RuntimeError, ValueError):
            result = inline_local_functions(result)
    flat = onnx.GraphProto(input=result.graph.input, output=result.graph.output)
    for graph in _graphs(result.graph):
        flat.initializer.extend(graph.initializer)
    flat.node.extend(_nodes(result.graph))
    return flat


def constant_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The shapes of initializers, and of what Constant nodes hold."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                is_list = attribute.type in (onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS)
                listed = (len(attribute.floats) + len(attribute.ints),) if is_list else ()
                shapes[node.output[0]] = tuple(attribute.t.dims) if attribute.name == "value" else listed
    return shapes


def _copy(graph: onnx.GraphProto, result: onnx.GraphProto) -> None:
    for field, value in graph.ListFields():
        if field.name != "initializer":
            result.MergeFrom(onnx.GraphProto(**{field.name: value}))
    result.initializer.extend(map(_declared, graph.initializer))


def _declared(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if math.prod(tensor.dims) <= _MAX_ELEMENTS:
        return tensor
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _calls_itself(functions: Iterable[onnx.FunctionProto]) -> bool:
    """Whether inlining would not end."""
    by_key = {(function.domain, function.name): function for function in functions}
    calls = {
        key: {(node.domain, node.op_type) for node in _nodes(function)} & by_key.keys()
        for key, function in by_key.items()
    }
    while leaves := {key for key, called in calls.items() if not called & calls.keys()}:
        calls = {key: called for key, called in calls.items() if key not in leaves}
    return bool(calls)


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _nodes(inner)
        yield node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)
