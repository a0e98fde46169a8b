"""Outputs that depend on random numbers: no run is like another, so they can be neither passed nor failed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from onnx_repfuse.verifier.session import reads, subgraphs

__all__ = ["random_tensors"]

# With the attribute `seed`, every run draws the same numbers.
_RANDOM = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"]
)
_RATIO, _TRAINING = 1, 2  # inputs of Dropout


def random_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """The tensors of the main graph that depend on random numbers. Large weights need not be loaded."""
    random_functions: set[tuple[str, str]] = set()
    for _ in model.functions:  # one may call another that stands behind it
        random_functions |= {
            (function.domain, function.name)
            for function in model.functions
            if any(_is_random(node, {}, random_functions) for node in function.node)
        }
    constants = _scalars(model.graph)
    found: set[str] = set()
    for node in model.graph.node:
        if not found.isdisjoint(reads(node)) or _is_random(node, constants, random_functions):
            found.update(node.output)
    return frozenset(found)


def _is_random(node: onnx.NodeProto, constants: dict[str, float], functions: set[tuple[str, str]]) -> bool:
    """Whether a node draws random numbers, itself or in a subgraph or function; `constants` are those known."""
    if (node.domain, node.op_type) in functions:
        return True
    if node.op_type in _RANDOM:
        return all(attribute.name != "seed" for attribute in node.attribute)
    if node.op_type == "Dropout":
        return _drops(list(node.input), constants)
    return any(
        _is_random(inner, {**constants, **_scalars(graph)}, functions)
        for graph in subgraphs(node)
        for inner in graph.node
    )


def _drops(inputs: list[str], constants: dict[str, float]) -> bool:
    """Whether a Dropout may be in training mode, with a ratio above zero. Up to opset 11, it has no such input."""
    if len(inputs) <= _TRAINING or not inputs[_TRAINING]:
        return False
    return constants.get(inputs[_TRAINING], 1.0) != 0 and constants.get(inputs[_RATIO], 1.0) != 0


def _scalars(graph: onnx.GraphProto) -> dict[str, float]:
    """Constants of one element, by name. Those that callers may set are not among them."""
    inputs = {value.name for value in graph.input}
    tensors = [(tensor.name, tensor) for tensor in graph.initializer if tensor.name not in inputs]
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return dict(_values(tensors))


def _values(tensors: Iterable[tuple[str, onnx.TensorProto]]) -> Iterable[tuple[str, float]]:
    for name, tensor in tensors:
        if np.prod(tensor.dims) != 1 or tensor.data_location == onnx.TensorProto.EXTERNAL:
            continue
        try:
            yield name, float(onnx.numpy_helper.to_array(tensor).ravel()[0])
        except (ValueError, TypeError, IndexError):  # text, or damaged; then it is not known
            continue
