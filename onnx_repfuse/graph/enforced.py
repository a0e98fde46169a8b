"""What a runtime enforces: only that may be taken for a fact. Everything that proves a type, shape or value asks here.

Facts are: the values, shapes and data types of constants that nobody may override; the data types, ranks and fixed
sizes of the main graph's inputs, to which ONNX Runtime holds every caller; the data types of a subgraph's inputs; and
what follows from these for the outputs of nodes. No facts are:

* Shapes that a subgraph declares for its inputs: a Loop may hand it a tensor of another rank in every iteration. Their
  shapes are proved by induction, see `graph.subgraph_inputs`. The inputs of a function have no types at all.
* Attributes that refer to an argument of the call of a function (`refers_to_call`), unless it is the same in all calls
  (`graph.function_calls`): such a node is an operator of which nothing is known, whatever it is. onnx's inference would
  take them for 0.
* Types and shapes that the file declares for its outputs and inner tensors: they are not read.
* Sizes that onnx infers and ONNX Runtime computes otherwise: see `graph.unreliable_shapes`.
* That an operand of unknown rank leaves the rank of a sum alone: see `graph.operators.channel_rules`.

`is_inferable` says which nodes onnx's shape inference may see. It ends the process, or never ends, on some: those of
other domains without the types of their inputs (maps and sequences among them), and a few with attributes that make no
sense. `tests/graph/test_inference_survives.py` tries every operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx

from onnx_repfuse.graph.scope import ONNX_DOMAINS

__all__ = ["attribute_of", "is_inferable", "refers_to_call"]

# a term of an Einsum: letters, and one ellipsis at most; inference never ends on two in a row
_EINSUM_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def refers_to_call(node: onnx.NodeProto) -> bool:
    """Whether an attribute is an argument of the function whose body the node is in: unknown until the call."""
    return any(attribute.ref_attr_name for attribute in node.attribute[:])


def is_inferable(node: onnx.NodeProto) -> bool:
    """Whether onnx's shape inference may see a node: it ends, and what it says of the node is true."""
    if node.domain not in ONNX_DOMAINS or refers_to_call(node):
        return False
    is_sound = _IS_SOUND.get(node.op_type)
    return is_sound is None or is_sound(node)


def attribute_of(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    """An attribute of a node; an empty one where it has none of that name."""
    return next((a for a in node.attribute if a.name == name), onnx.AttributeProto())


def _has_sound_equation(node: onnx.NodeProto) -> bool:
    equation = attribute_of(node, "equation").s.decode("utf-8", "replace").replace(" ", "")
    left, _, right = equation.partition("->")
    return all(map(_EINSUM_TERM.fullmatch, [*left.split(","), right]))


def _splits_into_its_outputs(node: onnx.NodeProto) -> bool:
    # inference reads beyond the sizes of the parts where there are more outputs than parts
    parts = attribute_of(node, "num_outputs")
    return parts.type == onnx.AttributeProto.UNDEFINED or parts.i == len(node.output)


def _moves_on(node: onnx.NodeProto) -> bool:
    # onnx before 1.23 divides by strides of 0, which ends the process
    return 0 not in attribute_of(node, "strides").ints


def _never(node: onnx.NodeProto) -> bool:
    # inference of these asks for the type of an input that may have none
    return False


_WINDOWS = ("AveragePool", "Conv", "ConvInteger", "DeformConv", "LpPool", "MaxPool", "QLinearConv")
_IS_SOUND: dict[str, Callable[[onnx.NodeProto], bool]] = {
    **dict.fromkeys(_WINDOWS, _moves_on),
    "Einsum": _has_sound_equation,
    "EyeLike": _never,
    "GatherND": lambda node: attribute_of(node, "batch_dims").i >= 0,
    "RegexFullMatch": _never,
    "Split": _splits_into_its_outputs,
}
