"""Nodes that give out what they read, at any rank: their consumers may read that instead.

Identity, a Cast to the type that is there, a Dropout that drops nothing, a Reshape to the shape that is there, a Slice
of everything, a Pad by nothing, a Tile of one, a sum or maximum of one tensor, a pool of one position, arithmetic with
ones or zeros, a Where that takes all of one tensor. An Add of zero and an average change one value: -0 becomes 0
(`graph.zero_signs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.einsum import equation_of
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, optional_input, static
from onnx_repfuse.graph.size_lists import constant_list
from onnx_repfuse.graph.zero_signs import shows_zero, tells_zeros_apart
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["constant_beside", "constants_beside", "drops", "given_out", "has_mask"]


def given_out(scope: Scope, node: gs.Node) -> str:
    """The input that a node gives out as it is, at every element and in its shape; "" where it is no such node."""
    first = optional_input(node, 0)
    if not first:
        return ""
    gives_first = _GIVE_FIRST.get(node.op)
    if gives_first is not None:
        return first if gives_first(scope, node) else ""
    picks = _PICK.get(node.op)
    return "" if picks is None else picks(scope, node)


def has_mask(node: gs.Node) -> bool:
    """Whether a Dropout gives out which values it keeps."""
    return any(tensor.name for tensor in node.outputs[1:])


def drops(scope: Scope, node: gs.Node) -> bool:
    """Whether a Dropout may run in training mode, where it sets values to zero at random."""
    # From opset 7 to 11 a Dropout is the identity; training mode is an input from 12 on.
    if scope.opset < 7:
        return not node.attrs.get("is_test", 0)
    name = optional_input(node, 2)
    if not name:
        return False
    const = scope.const(name)
    return const is None or bool(np.any(const.read()))


# Nodes that give out their first input, or another one.


def _is_alone(scope: Scope, node: gs.Node) -> bool:
    """One input and one output: a Concat, Sum or Max of one tensor."""
    return len(node.inputs) == len(node.outputs) == 1


def _cast(scope: Scope, node: gs.Node) -> bool:
    """A Cast to the type that its input is proved to have."""
    return _is_alone(scope, node) and scope.data_type(node.inputs[0].name) == node.attrs.get("to")


def _cast_like(scope: Scope, node: gs.Node) -> bool:
    """A Cast to the type of another tensor, which is that of its input."""
    own = scope.data_type(node.inputs[0].name)
    return own is not None and own == scope.data_type(optional_input(node, 1))


def _where(scope: Scope, node: gs.Node) -> str:
    """The operand that a constant condition takes everywhere, where nothing widens it."""
    condition = scope.const(node.inputs[0].name)
    if condition is None or not 0 < condition.effort <= MAX_FOLDED_ELEMENTS:
        return ""
    taken = condition.computed()
    if taken is None or np.any(taken) != np.all(taken):
        return ""
    names = [optional_input(node, place) for place in (1, 2)]
    name, other = names if np.all(taken) else names[::-1]
    if scope.const(name) is not None or not _keeps_shape(scope, name, condition.shape):
        return ""
    beside = static(scope.shape(other))
    keeps_shape = equal_shapes(scope, [name, other]) if beside is None else _keeps_shape(scope, name, beside)
    return name if keeps_shape else ""


def _einsum(scope: Scope, node: gs.Node) -> bool:
    """Of one operand whose axes stay as they are."""
    if not _is_alone(scope, node):
        return False
    shape = scope.shape(node.inputs[0].name)
    equation = equation_of(node.attrs, [None if shape is None else len(shape)])
    return equation is not None and equation.terms == (equation.result,)


def _dropout(scope: Scope, node: gs.Node) -> bool:
    return not has_mask(node) and not drops(scope, node)


def _reshape(scope: Scope, node: gs.Node) -> bool:
    """What keeps the order of elements, to the same shape; of one size that is not known, the others tell."""
    shape = scope.shape(node.inputs[0].name)
    if shape is None or scope.shape(node.outputs[0].name) != shape:
        return False
    return shape.count(None) <= 1 and 0 not in shape


def _expand(scope: Scope, node: gs.Node) -> bool:
    """What keeps every size; of an Expand, sizes of 1 do so whatever the tensor's are, but may add an axis."""
    shape = scope.shape(node.inputs[0].name)
    if node.op == "Expand":
        listed = constant_list(scope, optional_input(node, 1))
        if listed is not None and set(listed) <= {1}:
            return len(listed) <= len(shape or ())
    size = static(shape)
    return size is not None and scope.shape(node.outputs[0].name) == size


def _tile(scope: Scope, node: gs.Node) -> bool:
    # of three inputs (opset 1), the second is one number
    listed = constant_list(scope, optional_input(node, 1)) if len(node.inputs) == 2 else None
    return listed is not None and set(listed) <= {1}


def _split(scope: Scope, node: gs.Node) -> bool:
    """Of one part, which is the whole."""
    return len(node.outputs) == 1


def _slice(scope: Scope, node: gs.Node) -> bool:
    """As many positions as there are, and none of them backwards."""
    steps = optional_input(node, 4)
    if not steps:
        return _expand(scope, node)
    const = scope.const(steps)
    if const is None or np.any(const.read() <= 0):
        return False
    return _expand(scope, node)


def _transpose(scope: Scope, node: gs.Node) -> bool:
    order = list(node.attrs.get("perm") or (1, 0))  # by default the axes are reversed
    return order == sorted(order)


def _pad(scope: Scope, node: gs.Node) -> bool:
    """A Pad by no positions, as torch's legacy exporter writes one before every AveragePool."""
    amounts: Any
    if len(node.inputs) == 1:  # before opset 11, and called paddings in 1
        amounts = node.attrs.get("pads", node.attrs.get("paddings"))
    else:
        const = scope.const(optional_input(node, 1))
        amounts = None if const is None else const.computed()
    return amounts is not None and not np.any(amounts)


def _pool(_scope: Scope, node: gs.Node) -> bool:
    """A pool whose windows are one position, at every position; as `subsample` of ResNets at stride 1."""
    kernel, attrs = node.attrs.get("kernel_shape"), node.attrs
    if not kernel or any(attrs.get("pads") or ()) or len(node.outputs) != 1:
        return False
    return set(kernel) == {1} and set(attrs.get("strides") or (1,)) == {1}


def _reduced(scope: Scope, node: gs.Node) -> bool:
    """A reduction of axes of one position, which keeps them."""
    return len(node.outputs) == 1 and _reshape(scope, node)


def _average(scope: Scope, node: gs.Node) -> bool:
    """A sum or mean of one position: it begins with 0, and so makes 0 of -0."""
    is_of_one = _pool(scope, node) if node.op == "AveragePool" else _reduced(scope, node)
    return is_of_one and not tells_zeros_apart(scope, node.outputs[0].name)


def _product(scope: Scope, node: gs.Node) -> str:
    """A product or quotient by one, or its first power."""
    name, values = _beside_of_file(scope, node, commutes=node.op == "Mul")
    return name if values is not None and np.all(values == 1) else ""


def _sum(scope: Scope, node: gs.Node) -> str:
    """A sum with zeros, or a difference."""
    name, values = _beside_of_file(scope, node, commutes=node.op == "Add")
    if values is None or np.any(values):
        return ""
    return "" if shows_zero(scope, node, values.astype(np.float64), is_left=False) else name


def _beside_of_file(scope: Scope, node: gs.Node, *, commutes: bool) -> tuple[str, NDArray[Any] | None]:
    """As `constant_beside`, with the values of a constant that an exporter left behind.

    One that this run made does something, and may be expensive to compute.
    """
    name, const = constant_beside(scope, node, commutes=commutes)
    if const is None or const.bias is not None or const.kernel is not None:
        return "", None
    return name, const.read()


def constant_beside(scope: Scope, node: gs.Node, *, commutes: bool) -> tuple[str, Const | None]:
    """A tensor and the small float constant behind it, or before it, that does not widen it; else no constant."""
    if len(node.inputs) != 2:
        return "", None
    name, other = (tensor.name for tensor in node.inputs)
    # below opset 7 the output has the shape of the first operand
    has_shape_of_first = scope.opset < NUMPY_BROADCAST_SINCE
    if commutes and not has_shape_of_first and scope.const(name) is not None:
        name, other = other, name
    const = scope.const(other)
    if const is None or scope.const(name) is not None:
        return "", None
    if not _is_small_float(const):
        return "", None
    keeps_shape = has_shape_of_first or _keeps_shape(scope, name, const.shape)
    return name, const if keeps_shape else None


def constants_beside(scope: Scope, node: gs.Node) -> tuple[str, list[Const]]:
    """The tensor of an operator and the constants beside it, as `constant_beside`: of a Sum, any number; else none."""
    if node.op != "Sum":
        name, const = constant_beside(scope, node, commutes=node.op != "Div")
        return name, [] if const is None else [const]
    names = [tensor.name for tensor in node.inputs]
    constants = [const for name in names if (const := scope.const(name)) is not None]
    if len(constants) != len(names) - 1 or not all(map(_is_small_float, constants)):
        return "", []
    (tensor,) = (name for name in names if scope.const(name) is None)
    return tensor, constants if all(_keeps_shape(scope, tensor, const.shape) for const in constants) else []


def _is_small_float(const: Const) -> bool:
    """Whether a constant holds few floats, which can be read while planning."""
    if const.data_type not in FLOAT_FORMATS or const.size > MAX_FOLDED_ELEMENTS:
        return False
    # what this run made of kernels is computed while it is written
    return not const.takes_kernel and const.computed() is not None


def _keeps_shape(scope: Scope, name: str, constant: tuple[int, ...]) -> bool:
    """Whether a constant broadcasts neither the rank nor a size of a tensor."""
    shape = scope.shape(name)
    if shape is None:
        return constant == ()
    if len(constant) > len(shape):
        return False
    sizes = shape[len(shape) - len(constant) :]
    return all(wide in (1, size) for wide, size in zip(constant, sizes, strict=True))


_GIVE_FIRST: dict[str, Callable[[Scope, gs.Node], bool]] = {
    "AveragePool": _average,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _is_alone,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _reshape,
    "GlobalAveragePool": _average,
    "GlobalMaxPool": _reduced,
    "Identity": _is_alone,
    "Max": _is_alone,
    "MaxPool": _pool,
    "Mean": _is_alone,
    "Min": _is_alone,
    "Pad": _pad,
    "ReduceMax": _reduced,
    "ReduceMean": _average,
    "ReduceMin": _reduced,
    "ReduceSum": _average,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sum": _is_alone,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
_PICK: dict[str, Callable[[Scope, gs.Node], str]] = {  # "" where they give out none
    "Add": _sum,
    "Div": _product,
    "Mul": _product,
    "Pow": _product,
    "Sub": _sum,
    "Where": _where,
}
