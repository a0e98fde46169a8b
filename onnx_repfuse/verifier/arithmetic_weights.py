"""Which float constants of a model are weights of its arithmetic, wherever they stand.

A constant counts also behind nodes that only move its elements (PyTorch writes a product's weight as Transpose of an
initializer), in subgraphs and in the bodies of functions, and as an argument of their calls. It does not count behind
a Cast: a float32 network whose file stores its weights as float16 has the noise of float32. The other way round, as
`torch.autocast` exports, float32 weights behind a Cast to float16 have the noise of float16: `with_cast_weights`
writes them in the type in which they are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.session import reads, subgraphs

__all__ = ["behind_weights", "weights_of_arithmetic", "with_cast_weights"]

# Not others: an ulp of a threshold, a Resize's scale or a shape could mean another branch or another size.
_ARITHMETIC = frozenset(
    ["Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul", "PRelu", "Sub"]
)
_MOVE_FIRST = frozenset(
    ["Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
     "Unsqueeze"]
)  # fmt: skip
_HALF = frozenset(data_type for data_type, limits in FLOAT_FORMATS.items() if limits.is_half)
Owner = onnx.GraphProto | onnx.FunctionProto


def weights_of_arithmetic(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The float initializers and Constants that arithmetic reads; changing them changes the model."""
    arithmetic = _Arithmetic(model)
    for owner in (model.graph, *model.functions):
        yield from arithmetic.weights(owner)


def behind_weights(model: onnx.ModelProto, data_types: Collection[int]) -> set[str]:
    """The tensors of the main graph that depend on weights of these types."""
    arithmetic = _Arithmetic(model)
    weights = {name for name, tensor in _constants(model.graph) if tensor.data_type in data_types}
    weights.update(_constants_cast(model.graph, data_types))
    behind: set[str] = set()
    for node in model.graph.node:
        if not weights.isdisjoint(_moved_by(node)):
            weights.update(node.output)
        depends_on = arithmetic.read_by(node)
        computes = not weights.isdisjoint(depends_on) or arithmetic.has_weights(node, data_types)
        if computes or not behind.isdisjoint(reads(node)):
            behind.update(node.output)
    return behind


def with_cast_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose float constants behind a Cast to half precision are constants of that type.

    Returns:
        The model itself if it has no such Cast; else a copy.
    """
    found = [_constants_cast(owner, _HALF) for owner in _owners(model)]
    if not any(found):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for owner, casts in zip(list(_owners(copy)), found, strict=True):
        for node in owner.node:
            if node.op_type == "Cast" and node.output[0] in casts:
                _store_cast(node, casts[node.output[0]])
    return copy


def _owners(model: onnx.ModelProto) -> Iterator[Owner]:
    """The graph, the bodies of functions, and all subgraphs, always in one order."""
    owners: list[Owner] = [model.graph, *model.functions]
    for owner in owners:  # which grows
        yield owner
        owners += [graph for node in owner.node for graph in subgraphs(node)]


def _constants_cast(owner: Owner, data_types: Collection[int]) -> dict[str, onnx.TensorProto]:
    """By the output of a Cast to one of these types, the float constant of the same graph that it reads."""
    constants = {name: tensor for name, tensor in _constants(owner) if tensor.data_type in FLOAT_FORMATS}
    return {
        node.output[0]: constants[node.input[0]]
        for node in owner.node
        if node.op_type == "Cast" and node.input[0] in constants and _type_after(node) in data_types
    }


def _type_after(cast: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in cast.attribute if attribute.name == "to"), 0)


def _store_cast(cast: onnx.NodeProto, tensor: onnx.TensorProto) -> None:
    """Make a Cast of a constant the Constant that it computes."""
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError):  # malformed; the runtime will say so
        return
    value = onnx.numpy_helper.from_array(array.astype(FLOAT_FORMATS[_type_after(cast)].dtype))
    cast.CopyFrom(onnx.helper.make_node("Constant", [], list(cast.output), name=cast.name, value=value))


class _Arithmetic:
    """What the arithmetic of a model reads."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {(function.domain, function.name): function for function in model.functions}
        self._arguments: dict[tuple[str, str], set[str]] = {}

    def weights(self, owner: Owner) -> Iterator[onnx.TensorProto]:
        """The weights that stand in a graph or in its subgraphs."""
        names = self._read_in(owner)
        yield from (t for name, t in _constants(owner) if name in names and t.data_type in FLOAT_FORMATS)
        for node in owner.node:
            for graph in subgraphs(node):
                yield from self.weights(graph)

    def read_by(self, node: onnx.NodeProto) -> set[str]:
        """The tensors around a node that its own arithmetic reads, or that in its subgraphs or its function."""
        if node.op_type in _ARITHMETIC:
            return set(node.input)
        names: set[str] = set()
        for graph in subgraphs(node):
            inner = {value.name for value in graph.input} | {name for name, _ in _constants(graph)}
            names |= self._read_in(graph) - inner.union(*(other.output for other in graph.node))
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            arguments = self._arguments_read(function)
            given = zip(function.input, node.input, strict=False)
            names.update(outer for name, outer in given if name in arguments)
        return names

    def has_weights(self, node: onnx.NodeProto, data_types: Collection[int]) -> bool:
        """Whether weights of these types stand in a node's subgraphs or in its function."""
        owners: list[Owner] = [*subgraphs(node)]
        if (node.domain, node.op_type) in self._functions:
            owners.append(self._functions[node.domain, node.op_type])
        return any(
            any(t.data_type in data_types for t in self.weights(owner))
            or not self._read_in(owner).isdisjoint(_constants_cast(owner, data_types))
            for owner in owners
        )

    def _read_in(self, owner: Owner) -> set[str]:
        """The tensors that the arithmetic of a graph reads, also through nodes that move elements."""
        names: set[str] = set()
        for node in reversed(owner.node):
            names |= self.read_by(node)
            if not names.isdisjoint(node.output):
                names.update(_moved_by(node))
        return names - {""}

    def _arguments_read(self, function: onnx.FunctionProto) -> set[str]:
        key = (function.domain, function.name)
        if key not in self._arguments:
            self._arguments[key] = set()  # a function cannot call itself, but a file may say so
            self._arguments[key] = self._read_in(function)
        return self._arguments[key]


def _constants(owner: Owner) -> Iterator[tuple[str, onnx.TensorProto]]:
    if isinstance(owner, onnx.GraphProto):
        yield from ((tensor.name, tensor) for tensor in owner.initializer)
    for node in owner.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _moved_by(node: onnx.NodeProto) -> list[str]:
    """The inputs whose elements a node only moves."""
    if node.op_type == "Concat":
        return list(node.input)
    return list(node.input[:1]) if node.op_type in _MOVE_FIRST else []
