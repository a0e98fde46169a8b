"""A document at a newer ONNX opset, converted by onnx's own version converter, without its weights.

The converter takes a whole ModelProto. It gets the skeleton, in which large weights are inputs for that time, since
conversion reads no weight but small ones (axes, bounds, scales). What the converter forgets, as notes of the file that
do not concern it, is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx
from onnx import version_converter

from onnx_repfuse.errors import ConversionError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.node_order import inner_graphs, sort_nodes
from onnx_repfuse.modelfile.weightless import mark_of

__all__ = ["at_opset", "opset_of"]

ONNX_DOMAINS = ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ONNX operator set that a model imports; 0 if none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)


def at_opset(document: Document, opset: int | None) -> Document:
    """The document with the nodes of another opset; itself if it has that one, or a newer one, or `opset` is None.

    The result reads the same files. It is remembered, so that a second call costs nothing.

    Raises:
        ConversionError: onnx's converter cannot convert it.
    """
    if opset is None or opset_of(document.model) >= opset:
        return document
    if opset not in document.converted:
        result = copy.copy(document)
        result.model, result.unconverted = _convert(document.model, opset), document
        document.converted[opset] = result
    return document.converted[opset]


def _convert(original: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    for what in _unconvertible(original):
        raise ConversionError(f"the model cannot be converted to opset {opset}: it has {what}")
    model = onnx.ModelProto()
    model.CopyFrom(original)
    constants = _set_weights_apart(model.graph)
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError, TypeError) as error:  # what the converter raises is of C++
        text = " ".join(str(error).split())
        raise ConversionError(f"the model cannot be converted to opset {opset}: {text}") from error
    _put_back(converted, original, constants)
    sort_nodes(converted)
    return converted


def _unconvertible(model: onnx.ModelProto) -> Iterator[str]:
    """What the converter would pass over, or forget."""
    if model.functions:
        yield "functions"
    if model.training_info:
        yield "training information"
    if model.graph.sparse_initializer:
        yield "sparse initializers"
    if any(True for node in model.graph.node for _ in inner_graphs(node)):
        yield "subgraphs"


def _set_weights_apart(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Make large weights inputs; the Constant nodes among them are returned."""
    inputs = {value.name for value in graph.input}
    constants = [node for node in graph.node if _large_value(node) is not None]
    weights = [(tensor.name, tensor) for tensor in graph.initializer if mark_of(tensor) is not None]
    weights += [(node.output[0], tensor) for node in constants if (tensor := _large_value(node)) is not None]
    for name, tensor in weights:
        if name not in inputs:
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            graph.input.append(value)
    _keep(graph.initializer, [tensor for tensor in graph.initializer if mark_of(tensor) is None])
    apart = {node.output[0] for node in constants}
    _keep(graph.node, [node for node in graph.node if not apart.intersection(node.output)])
    return constants


def _large_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node whose elements are not in the skeleton."""
    if node.op_type != "Constant" or len(node.output) != 1:
        return None
    tensors = (attribute.t for attribute in node.attribute if attribute.HasField("t"))
    return next((tensor for tensor in tensors if mark_of(tensor) is not None), None)


def _put_back(converted: onnx.ModelProto, original: onnx.ModelProto, constants: list[onnx.NodeProto]) -> None:
    """Large weights, and what the converter does not know."""
    known = {tensor.name for tensor in original.graph.initializer}
    added = [tensor for tensor in converted.graph.initializer if tensor.name not in known]
    before = {_identity(node): node for node in original.graph.node}
    for node in converted.graph.node:
        same = before.get(_identity(node))
        if same is not None:
            node.doc_string = same.doc_string
            if "metadata_props" in node.DESCRIPTOR.fields_by_name:  # since IR version 10
                _keep(node.metadata_props, list(same.metadata_props))
    _keep(converted.graph.node, [*constants, *converted.graph.node])
    _keep(converted.graph.initializer, [*original.graph.initializer, *added])
    for name in ("input", "output", "quantization_annotation"):
        _keep(getattr(converted.graph, name), list(getattr(original.graph, name)))
    imports = converted.opset_import[:]
    graph = onnx.GraphProto()
    graph.CopyFrom(converted.graph)
    converted.CopyFrom(original)
    _keep(graph.value_info, list(original.graph.value_info))
    graph.name, graph.doc_string = original.graph.name, original.graph.doc_string
    converted.graph.CopyFrom(graph)
    _keep(converted.opset_import, imports)


def _identity(node: onnx.NodeProto) -> tuple[str, ...]:
    return (node.op_type, node.name, *node.output)


def _keep(messages: object, kept: list[object]) -> None:
    """Let a repeated field hold these."""
    copies = [copy.copy(message) for message in kept]
    del messages[:]  # type: ignore[attr-defined]
    messages.extend(copies)  # type: ignore[attr-defined]
