"""The float32 twin of a model in half precision: the same nodes and the same weights, computed in float32.

Half precision rounds so coarsely that a whole network's own noise hides most of what it computes. Its twin shows how
far the original is from what its weights say. The result may be as far from that as the noise, or twice as far as the
original is itself, whichever is more (see `tolerance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, FloatFormat
from onnx_repfuse.verifier.arithmetic_weights import behind_weights, with_cast_weights
from onnx_repfuse.verifier.noise import WEIGHTS_LIMIT, file_bytes
from onnx_repfuse.verifier.session import Model, load, subgraphs

__all__ = [
    "behind_short_weights",
    "coarsest_float",
    "float32_twin",
    "is_short",
    "uses_short_floats",
    "widened",
]

_FLOAT = onnx.TensorProto.FLOAT
# float16 and bfloat16: the types with a coarser rounding than float32's.
_SHORT = {
    data_type: limits.dtype
    for data_type, limits in FLOAT_FORMATS.items()
    if limits.epsilon > FLOAT_FORMATS[_FLOAT].epsilon
}
# Attributes whose value is an element type: of Cast, EyeLike and Random*, QuantizeLinear, windows, Attention.
_TYPE_ATTRIBUTES = frozenset(["to", "dtype", "output_dtype", "output_datatype", "softmax_precision"])


def is_short(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type are in half precision."""
    return dtype in _SHORT.values()


def uses_short_floats(model: onnx.ModelProto) -> bool:
    """Whether anything in the model is in half precision. Weights are not read."""
    return not _SHORT.keys().isdisjoint(_float_types(model))


def coarsest_float(model: onnx.ModelProto) -> FloatFormat:
    """The float type of the lowest precision that anything in the model has; float32 if nothing is a float."""
    types = _float_types(model) or {_FLOAT}
    return max((FLOAT_FORMATS[data_type] for data_type in types), key=lambda limits: limits.epsilon)


def behind_short_weights(model: onnx.ModelProto) -> set[str]:
    """The tensors of the main graph that depend on a half-precision weight of its arithmetic.

    Only these have the noise of such weights. A float32 network whose file stores its weights as float16, behind a
    Cast, has the noise of float32.
    """
    return behind_weights(model, _SHORT)


def float32_twin(model: Model) -> onnx.ModelProto | None:
    """A copy of the model with float32 in the place of float16 and bfloat16.

    Returns:
        None if the model is too large to copy.

    Raises:
        DoesNotRun: it cannot be read.
    """
    if isinstance(model, Path | str) and file_bytes(Path(model)) > WEIGHTS_LIMIT:
        return None
    twin = onnx.ModelProto()
    twin.CopyFrom(with_cast_weights(load(model)))  # whose rounding is the weights', not the network's
    _widen_graph(twin.graph)
    for function in twin.functions:
        _widen_values(function.value_info)
        _widen_nodes(function.node)
        for attribute in function.attribute_proto:
            _widen_attribute(attribute)
    return twin


def widened(feed: Mapping[str, Any]) -> dict[str, Any]:
    """A feed as the twin takes it: half-precision tensors, also those in sequences, as float32."""

    def widen(value: Any) -> Any:
        if isinstance(value, list):
            return [widen(item) for item in value]
        return value.astype(np.float32) if isinstance(value, np.ndarray) and is_short(value.dtype) else value

    return {name: widen(value) for name, value in feed.items()}


def _float_types(model: onnx.ModelProto) -> set[int]:
    """The float types of inputs, outputs, constants and attributes, wherever they stand."""
    types = set(_types_of_graph(model.graph))
    for function in model.functions:
        types.update(_types_of_nodes(function.node))
    return types & FLOAT_FORMATS.keys()


def _types_of_graph(graph: onnx.GraphProto) -> Iterator[int]:
    yield from (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    yield from (tensor.data_type for tensor in graph.initializer)
    yield from (sparse.values.data_type for sparse in graph.sparse_initializer)
    yield from _types_of_nodes(graph.node)


def _types_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[int]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES:
                yield attribute.i
            yield attribute.t.data_type
        for graph in subgraphs(node):
            yield from _types_of_graph(graph)


def _widen_graph(graph: onnx.GraphProto) -> None:
    _widen_values((*graph.input, *graph.output, *graph.value_info))
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    _widen_nodes(graph.node)


def _widen_values(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        _widen_type(value.type)


def _widen_type(value_type: onnx.TypeProto) -> None:
    kind = value_type.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor_type = getattr(value_type, kind)
        if tensor_type.elem_type in _SHORT:
            tensor_type.elem_type = _FLOAT
    elif kind in ("sequence_type", "optional_type"):
        _widen_type(getattr(value_type, kind).elem_type)
    elif kind == "map_type":
        _widen_type(value_type.map_type.value_type)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _widen_attribute(attribute)


def _widen_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _SHORT:
        attribute.i = _FLOAT
    for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
        _widen_tensor(tensor)
    for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
        _widen_graph(graph)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _SHORT:
        return
    try:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    except (ValueError, TypeError):  # malformed; the runtime will say so, if anything reads it
        return
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
