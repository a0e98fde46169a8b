"""A side of a fold without its names and weights: what is left is equal where two folds have one structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.session import subgraphs

__all__ = ["Anonymous", "anonymous"]

# Their kernels read every operand when they run. Others may want a constant, as the runtime's Upsample does.
_TAKE_WEIGHTS = {
    "Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul", "PRelu", "Sub", "Sum",
}  # fmt: skip


@dataclass(frozen=True)
class Anonymous:
    """A model whose weights are inputs, and which tensors they are.

    Attributes:
        key: the model, serialized; names are numbers, and of sizes only the ranks are declared.
        names: of the tensors of the fold -> of the model.
        weights: by name in the model.
    """

    key: bytes
    names: Mapping[str, str]
    weights: Mapping[str, Array]

    @property
    def structure(self) -> tuple[object, ...]:
        """What it has in common with others that differ in numbers of channels: hashable.

        The weights count by their types, kernel sizes and where they broadcast. One group per channel is one structure
        whatever the number of channels.
        """
        kernels = (
            (weight.dtype.name, *(min(size, 2) for size in weight.shape[:2]), *weight.shape[2:])
            for weight in self.weights.values()
        )
        return (_without_depthwise_groups(self.key, self.weights), *kernels)


def anonymous(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> Anonymous:
    """The model without names and weights.

    Args:
        model: one side of a fold.
        arrays: its initializers.
    """
    graph = model.graph
    weights, sources = _weights(graph), [value for value in graph.input if value.name not in arrays]
    numbers = _numbers(graph, sources)
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    result.graph.name = "fold"
    result.graph.input.extend(_without_sizes(value, numbers[value.name]) for value in sources)
    result.graph.output.extend(_without_sizes(value, numbers[value.name]) for value in graph.output)
    for node in graph.node:
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.ClearField("doc_string")
        copy.input[:] = [numbers.get(name, "") for name in node.input]
        copy.output[:] = [numbers.get(name, "") for name in node.output]
    for tensor in graph.initializer:
        name = numbers.get(tensor.name)
        if name is None:
            continue
        if tensor.name in weights:
            elements = onnx.helper.make_tensor_value_info(name, tensor.data_type, None)
            result.graph.input.append(elements)
        else:
            result.graph.initializer.append(_stored(tensor, name, arrays[tensor.name]))
    given = {numbers[name]: arrays[name] for name in arrays if name in weights and name in numbers}
    return Anonymous(result.SerializeToString(deterministic=True), numbers, given)


def _numbers(graph: onnx.GraphProto, sources: Sequence[onnx.ValueInfoProto]) -> dict[str, str]:
    """Names by number, in the order in which the tensors come up."""
    names = [value.name for value in sources]
    for node in graph.node:
        names += [*node.input, *node.output]
    names += [value.name for value in graph.output]
    return {name: f"t{number}" for number, name in enumerate(dict.fromkeys(filter(None, names)))}


def _stored(tensor: onnx.TensorProto, name: str, value: Array) -> onnx.TensorProto:
    """A constant under another name; its bytes are written in one way, in which equal ones are equal."""
    if tensor.data_type in FLOAT_FORMATS and not tensor.HasField("raw_data"):
        return onnx.numpy_helper.from_array(value, name)
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _without_depthwise_groups(key: bytes, weights: Mapping[str, Array]) -> bytes:
    """The model, in which a Conv of one channel per group and output does not say how many groups there are."""
    if b"group" not in key:
        return key
    model = onnx.ModelProto.FromString(key)
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        for attribute in node.attribute:
            is_depthwise = weight is not None and (len(weight), 1) == (attribute.i, weight.shape[1])
            if attribute.name == "group" and is_depthwise:
                attribute.i = 0
    return bytes(model.SerializeToString(deterministic=True))


def _weights(graph: onnx.GraphProto) -> set[str]:
    """The float initializers that may be inputs. None of a graph with subgraphs, which may read any by name."""
    if any(subgraphs(node) for node in graph.node):
        return set()
    kept = {value.name for value in graph.output}
    kept.update(name for node in graph.node if node.op_type not in _TAKE_WEIGHTS for name in node.input)
    return {t.name for t in graph.initializer if t.data_type in FLOAT_FORMATS and t.name not in kept}


def _without_sizes(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """A graph input or output with its type and rank."""
    result = onnx.ValueInfoProto()
    result.CopyFrom(value)
    result.name = name
    for dim in result.type.tensor_type.shape.dim:
        dim.Clear()
    return result
