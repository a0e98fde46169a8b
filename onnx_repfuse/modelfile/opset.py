"""A document at a newer ONNX opset, converted by onnx's own version converter, without its weights.

The converter takes a whole ModelProto. It gets the skeleton, in which large weights are inputs for that time, since
conversion reads no weight but small ones (axes, bounds, scales). What the converter forgets, as notes of the file that
do not concern it, is put back. So is what it changes silently, where that can be said at the newer opset: what a Resize
takes for a position (`_keep_sampling`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import numpy_helper, version_converter

from onnx_repfuse.errors import ConversionError
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.node_order import inner_graphs, sort_nodes
from onnx_repfuse.modelfile.weightless import mark_of

__all__ = ["at_opset", "opset_of"]

ONNX_DOMAINS = ("", "ai.onnx")
SAMPLING_SINCE = 11  # the opset in which a Resize says what it takes for a position
HARDMAX_OF_ONE_AXIS_SINCE = 13  # before, it is of all axes from one on


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
        result.model = _convert(document.model, opset)
        document.converted[opset] = result
    return document.converted[opset]


def _convert(original: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    for what in _unconvertible(original, opset):
        raise ConversionError(f"the model cannot be converted to opset {opset}: it has {what}")
    model = onnx.ModelProto()
    model.CopyFrom(original)
    constants = _set_weights_apart(model.graph)
    try:
        converted: onnx.ModelProto = version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError, TypeError) as error:  # what the converter raises is of C++
        text = " ".join(str(error).split())
        raise ConversionError(f"the model cannot be converted to opset {opset}: {text}") from error
    if opset_of(original) < SAMPLING_SINCE <= opset:
        _keep_sampling(converted, original)
    _put_back(converted, original, constants)
    sort_nodes(converted)
    return converted


def _unconvertible(model: onnx.ModelProto, opset: int) -> Iterator[str]:
    """What the converter would pass over, or forget, on the way to an opset."""
    if model.functions:
        yield "functions"
    if model.training_info:
        yield "training information"
    if model.graph.sparse_initializer:
        yield "sparse initializers"
    if any(True for node in model.graph.node for _ in inner_graphs(node)):
        yield "subgraphs"
    if opset_of(model) < HARDMAX_OF_ONE_AXIS_SINCE <= opset:
        for node in model.graph.node:
            if node.op_type == "Hardmax" and _attribute(node, "axis", 1) != -1:
                yield "a Hardmax of several axes"
    if opset_of(model) < SAMPLING_SINCE <= opset:
        for node in model.graph.node:
            if node.op_type == "Resize" and _nearest_mode(model, node) is None:
                yield "a Resize of which it is not known whether it enlarges"


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    found = next((one for one in node.attribute if one.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _nearest_mode(model: onnx.ModelProto, node: onnx.NodeProto) -> str | None:
    """How a Resize or Upsample before opset 11 rounds a position; None where no single mode is that.

    ONNX Runtime rounds up along the axes that it makes shorter, and down along all others.
    """
    if node.op_type != "Resize" or _attribute(node, "mode", b"nearest") != b"nearest":
        return "floor"  # an Upsample makes none shorter
    values = {tensor.name: tensor for tensor in model.graph.initializer if mark_of(tensor) is None}
    for constant in model.graph.node:
        value = _attribute(constant, "value", None) if constant.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto):
            values[constant.output[0]] = value
    if any(value.name in values for value in model.graph.input if value.name == node.input[1]):
        return None  # the caller may give others
    if node.input[1] not in values:
        return None
    scales = numpy_helper.to_array(values[node.input[1]])
    if not (scales < 1).any():
        return "floor"
    return None if (scales > 1).any() else "ceil"


def _keep_sampling(converted: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Let what was an Upsample or Resize before opset 11 take position i from i / scale, as it did.

    From opset 11 on, that is an attribute with another default, which the converter leaves out.
    """
    before = {node.output[0]: node for node in original.graph.node if node.output}
    for node in converted.graph.node:
        if node.op_type != "Resize":
            continue
        mode = _nearest_mode(original, before.get(node.output[0], node)) or "floor"
        given = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": mode}
        _keep(node.attribute, [one for one in node.attribute if one.name not in given])
        node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in given.items())


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
