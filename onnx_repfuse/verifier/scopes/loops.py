"""Whether a model may run for ever: one that holds a Loop without a number of rounds, or with a huge one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_repfuse.verifier.session import all_nodes, input_at, subgraphs

__all__ = ["may_never_end"]

_MOST_ROUNDS = 10_000  # exporters write `while` with the largest integer


def may_never_end(model: onnx.ModelProto) -> bool:
    """Whether a condition alone ends one of its Loops.

    A number of rounds that is computed counts as small: it is one of the model's own, on the model's own tensors.
    """
    numbers = {tensor.name: tensor for tensor in _constants(model)}
    loops = [node for node in all_nodes(model) if node.op_type == "Loop"]
    for node in loops:
        rounds = input_at(node, 0)
        if not rounds:
            return True
        if rounds in numbers and onnx.numpy_helper.to_array(numbers[rounds]).max(initial=0) > _MOST_ROUNDS:
            return True
    return False


def _constants(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers of all graphs, and what Constant nodes hold, by the names of their outputs."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield from graph.initializer
        pending += [inner for node in graph.node for inner in subgraphs(node)]
    for node in all_nodes(model):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                yield _named(attribute.t, node.output[0])
            elif attribute.name == "value_int":
                yield onnx.numpy_helper.from_array(np.array(attribute.i), node.output[0])


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy
