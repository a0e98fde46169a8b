"""Models that must not be run: the runtime would never end to open them, or end the process, or take all memory.

Weights are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import onnx

from onnx_repfuse.verifier.session import DoesNotRun, NoImplementation, all_nodes, input_at, input_names

__all__ = ["MOST_ELEMENTS", "refuse_unrunnable"]

MOST_ELEMENTS = 1 << 29  # of one tensor: 2 GiB in float32
# How much a Pad adds to an axis from which on shapes are inferred, which takes time.
_MUCH_PADDING = 1 << 10
# A term of an Einsum: letters, and one ellipsis at most. Shape inference never ends on two in a row.
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def refuse_unrunnable(model: onnx.ModelProto) -> None:
    """Refuse a model that no runtime should be given.

    Raises:
        NoImplementation: it has an Einsum that no runtime ends on, or Pads that make a tensor too large.
        DoesNotRun: strides are 0, which newer runtimes refuse, and older ones (seen of 1.18) divide by.
    """
    for node in all_nodes(model):
        if node.op_type == "Einsum" and not _has_sound_equation(node):
            raise NoImplementation(
                f"ONNX Runtime never ends on the equation of the Einsum '{node.output[0]}'"
            )
        strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [])
        if 0 in strides:
            raise DoesNotRun(f"{node.op_type} '{node.output[0]}' has strides of {strides}")
    if _pads_much(model.graph):
        _refuse_large_tensors(model)


def _has_sound_equation(node: onnx.NodeProto) -> bool:
    equation = next((a.s for a in node.attribute if a.name == "equation"), b"").decode("utf-8", "replace")
    left, _, right = equation.replace(" ", "").partition("->")
    return all(_TERM.fullmatch(term) for term in (*left.split(","), right))


def _pads_much(graph: onnx.GraphProto) -> bool:
    lists = {tensor.name: tensor for tensor in graph.initializer if math.prod(tensor.dims) < _MUCH_PADDING}
    return any(_largest_pad(node, lists) >= _MUCH_PADDING for node in graph.node if node.op_type == "Pad")


def _largest_pad(node: onnx.NodeProto, lists: Mapping[str, onnx.TensorProto]) -> int:
    """The largest number of positions that a Pad adds on one side, by its attribute (before opset 11) or `lists`."""
    pads = [amount for a in node.attribute if a.name in ("pads", "paddings") for amount in a.ints]
    listed = lists.get(input_at(node, 1))
    if listed is not None:
        pads += onnx.numpy_helper.to_array(listed).ravel().tolist()
    return max(pads, default=0)


def _refuse_large_tensors(model: onnx.ModelProto) -> None:
    """Raise NoImplementation if a tensor is too large at the smallest sizes that the inputs may have."""
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
