"""Models that must not be run: at the smallest size of their inputs, a tensor takes more memory than we may use."""

from __future__ import annotations

import math

import onnx

from onnx_repfuse.verifier.session import NoImplementation, input_names

__all__ = ["MOST_ELEMENTS", "refuse_huge"]

MOST_ELEMENTS = 1 << 29  # of one tensor: 2 GiB in float32
# How much a Pad adds to an axis from which on shapes are inferred, which takes time.
_MUCH_PADDING = 1 << 10


def refuse_huge(model: onnx.ModelProto) -> None:
    """Raise NoImplementation for a model with Pads that make a tensor too large to be run; weights are not read."""
    if not _pads_much(model.graph):
        return
    smallest = onnx.ModelProto()
    smallest.CopyFrom(model)
    given = set(input_names(smallest.graph))
    del smallest.graph.value_info[:]
    for value in smallest.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in smallest.graph.input:
        for dim in value.type.tensor_type.shape.dim if value.name in given else ():
            dim.dim_value = max(1, dim.dim_value)
    try:
        graph = onnx.shape_inference.infer_shapes(smallest, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # the runtime says what is wrong with it
        return
    for value in (*graph.value_info, *graph.output):
        elements = math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        if elements > MOST_ELEMENTS:
            raise NoImplementation(
                f"'{value.name}' has at least {elements:.2g} elements, which is more than is run to compare them"
            )


def _pads_much(graph: onnx.GraphProto) -> bool:
    lists = {tensor.name: tensor for tensor in graph.initializer if math.prod(tensor.dims) < _MUCH_PADDING}
    for node in graph.node:
        if node.op_type != "Pad":
            continue
        pads = [amount for a in node.attribute if a.name in ("pads", "paddings") for amount in a.ints]
        if len(node.input) > 1 and node.input[1] in lists:
            pads += onnx.numpy_helper.to_array(lists[node.input[1]]).ravel().tolist()
        if max(pads, default=0) >= _MUCH_PADDING:
            return True
    return False
