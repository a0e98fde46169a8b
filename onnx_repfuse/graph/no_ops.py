"""Nodes that give out what they read, at any rank: their consumers may read that instead.

Identity, a Cast to the type that is there, a Dropout that drops nothing, a Reshape to the shape that is there, a Slice
of everything, a Pad by nothing, a Tile of one, a sum or maximum of one tensor, arithmetic with ones or zeros, a Where
that takes all of one tensor. An Add of zero changes one value: -0 becomes 0, of which `1 / x` makes infinities of other
signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.facts import HAVE_SUBGRAPHS
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, Scope, optional_input, static
from onnx_repfuse.graph.size_lists import constant_list
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["constant_beside", "drops", "given_out", "shows_zero", "tells_zeros_apart"]

MAX_TENSORS_BEHIND = 64  # looked at for one that tells 0 from -0
# Operators that make something else of -0 than of 0, with the inputs for which they do.
_TELL_ZEROS_APART = {"Reciprocal": (0,), "Div": (1,), "Pow": (0,), "BitCast": (0,)}
# Operators behind which the sign of a zero is lost: they add many terms, or have one value for both zeros.
_LOSE_SIGN = {
    "Abs", "Conv", "ConvTranspose", "Exp", "Gemm", "LogSoftmax", "MatMul", "Shape", "Sigmoid", "Softmax", "Softplus",
}  # fmt: skip


def given_out(scope: Scope, node: gs.Node) -> str:
    """The input that a node gives out as it is, at every element and in its shape; "" where it is no such node."""
    rule = _RULES.get(node.op)
    return "" if rule is None or not optional_input(node, 0) else rule(scope, node)


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


def shows_zero(scope: Scope, node: gs.Node, zeros: NDArray[np.float64], *, is_left: bool) -> bool:
    """Whether something behind an Add or Sub of zeros sees that it makes 0 of -0.

    x + -0 and x - 0 are x for every x, and -0 - x is -x.

    Args:
        zeros: the constant operand.
        is_left: it is the first one.
    """
    changes_sign = np.signbit(zeros) == (node.op == "Sub" and not is_left)
    return bool(changes_sign.any()) and tells_zeros_apart(scope, node.outputs[0].name)


def tells_zeros_apart(scope: Scope, name: str) -> bool:
    """Whether something behind a tensor may compute another value from -0 than from 0.

    What is not known to do the same with both is taken to tell them apart, as are subgraphs. A graph output does not:
    -0 equals 0.
    """
    seen: set[str] = set()
    pending = [name]
    while pending:
        tensor = pending.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in scope.captured or len(seen) > MAX_TENSORS_BEHIND:
            return True
        for consumer in scope.consumers.get(tensor, ()):
            places = _TELL_ZEROS_APART.get(consumer.op, ())
            if any(optional_input(consumer, place) == tensor for place in places):
                return True
            is_unknown = "." in consumer.op or consumer.op in HAVE_SUBGRAPHS  # of another domain
            if is_unknown:
                return True
            if consumer.op not in _LOSE_SIGN:
                pending += [output.name for output in consumer.outputs if output.name]
    return False


def _identity(scope: Scope, node: gs.Node) -> str:
    return str(node.inputs[0].name) if len(node.inputs) == len(node.outputs) == 1 else ""


def _cast(scope: Scope, node: gs.Node) -> str:
    """A Cast to the type that its input is proved to have."""
    name = _identity(scope, node)
    return name if name and scope.data_type(name) == node.attrs.get("to") else ""


def _cast_like(scope: Scope, node: gs.Node) -> str:
    """A Cast to the type of another tensor, which is that of its input."""
    name, own = str(node.inputs[0].name), scope.data_type(node.inputs[0].name)
    return name if own is not None and own == scope.data_type(optional_input(node, 1)) else ""


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
    beside = static(scope.shape(other))
    keeps_shape = beside is not None and all(
        _keeps_shape(scope, name, shape) for shape in (beside, condition.shape)
    )
    return name if keeps_shape and scope.const(name) is None else ""


def _einsum(scope: Scope, node: gs.Node) -> str:
    """Of one operand whose axes stay as they are."""
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    axes, arrow, result = equation.partition("->")
    is_same = bool(arrow) and axes == result and axes.isalpha() and len(set(axes)) == len(axes)
    return _identity(scope, node) if is_same else ""


def _dropout(scope: Scope, node: gs.Node) -> str:
    has_mask = len(node.outputs) > 1 and bool(node.outputs[1].name)
    return "" if has_mask or drops(scope, node) else str(node.inputs[0].name)


def _reshape(scope: Scope, node: gs.Node) -> str:
    """What keeps the order of elements, to the same shape; of one size that is not known, the others tell."""
    name = str(node.inputs[0].name)
    shape = scope.shape(name)
    is_same = shape is not None and scope.shape(node.outputs[0].name) == shape
    return name if is_same and shape is not None and shape.count(None) <= 1 and 0 not in shape else ""


def _expand(scope: Scope, node: gs.Node) -> str:
    """What keeps every size; of an Expand, sizes of 1 do so whatever the tensor's are, but may add an axis."""
    name = str(node.inputs[0].name)
    listed = constant_list(scope, optional_input(node, 1)) if node.op == "Expand" else None
    if listed is not None and set(listed) <= {1}:
        return name if len(listed) <= len(scope.shape(name) or ()) else ""
    shape = static(scope.shape(name))
    return name if shape is not None and scope.shape(node.outputs[0].name) == shape else ""


def _tile(scope: Scope, node: gs.Node) -> str:
    listed = constant_list(scope, optional_input(node, 1)) if len(node.inputs) == 2 else None
    return str(node.inputs[0].name) if listed is not None and set(listed) <= {1} else ""


def _split(scope: Scope, node: gs.Node) -> str:
    """Of one part, which is the whole."""
    return str(node.inputs[0].name) if len(node.outputs) == 1 else ""


def _slice(scope: Scope, node: gs.Node) -> str:
    """As many positions as there are, and none of them backwards."""
    steps = optional_input(node, 4)
    const = scope.const(steps)
    goes_forwards = not steps or (const is not None and bool(np.all(const.read() > 0)))
    return _expand(scope, node) if goes_forwards else ""


def _transpose(scope: Scope, node: gs.Node) -> str:
    order = list(node.attrs.get("perm") or (1, 0))  # by default the axes are reversed
    return str(node.inputs[0].name) if order == sorted(order) else ""


def _pad(scope: Scope, node: gs.Node) -> str:
    """A Pad by no positions, as torch's legacy exporter writes one before every AveragePool."""
    const = scope.const(optional_input(node, 1))
    # attributes before opset 11, and of that name in 1
    listed = node.attrs.get("pads", node.attrs.get("paddings"))
    amounts: Any = listed if const is None else const.computed()
    is_known = amounts is not None and (const is not None or len(node.inputs) == 1)
    return str(node.inputs[0].name) if is_known and not np.any(amounts) else ""


def _product(scope: Scope, node: gs.Node) -> str:
    """A product or quotient by one, or its first power."""
    name, const = constant_beside(scope, node, commutes=node.op == "Mul")
    return name if const is not None and _is_from_file(const) and np.all(const.read() == 1) else ""


def _sum(scope: Scope, node: gs.Node) -> str:
    name, const = constant_beside(scope, node, commutes=node.op == "Add")
    if const is None or not _is_from_file(const):
        return ""
    value = const.read().astype(np.float64)
    if np.any(value):
        return ""
    return "" if shows_zero(scope, node, value, is_left=False) else name


def _is_from_file(const: Const) -> bool:
    """Whether an exporter left it behind: what this run made does something, and may be expensive to compute."""
    return const.bias is None and const.kernel is None


def constant_beside(scope: Scope, node: gs.Node, *, commutes: bool) -> tuple[str, Const | None]:
    """A tensor and the small float constant behind it, or before it, that does not widen it; else no constant."""
    if len(node.inputs) != 2:
        return "", None
    name, other = (tensor.name for tensor in node.inputs)
    if commutes and scope.opset >= NUMPY_BROADCAST_SINCE and scope.const(name) is not None:
        name, other = other, name
    const = scope.const(other)
    if scope.const(name) is not None or const is None or not _is_small_float(const):
        return "", None
    # below opset 7 the output has the shape of the first operand
    keeps_shape = scope.opset < NUMPY_BROADCAST_SINCE or _keeps_shape(scope, name, const.shape)
    return name, const if keeps_shape else None


def _is_small_float(const: Const) -> bool:
    """Whether a constant holds few floats, which can be read while planning."""
    if const.data_type not in FLOAT_FORMATS or const.size > MAX_FOLDED_ELEMENTS:
        return False
    takes_kernel = const.kernel is not None or (const.bias is not None and const.bias.deferred)
    return not takes_kernel and const.computed() is not None


def _keeps_shape(scope: Scope, name: str, constant: tuple[int, ...]) -> bool:
    """Whether a constant broadcasts neither the rank nor a size of a tensor."""
    shape = scope.shape(name)
    if shape is None:
        return constant == ()
    if len(constant) > len(shape):
        return False
    sizes = shape[len(shape) - len(constant) :]
    return all(wide in (1, size) for wide, size in zip(constant, sizes, strict=True))


_RULES: dict[str, Callable[[Scope, gs.Node], str]] = {
    "Add": _sum,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _identity,
    "Div": _product,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _reshape,
    "Identity": _identity,
    "Max": _identity,
    "Mean": _identity,
    "Min": _identity,
    "Mul": _product,
    "Pad": _pad,
    "Pow": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _sum,
    "Sum": _identity,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
    "Where": _where,
}
