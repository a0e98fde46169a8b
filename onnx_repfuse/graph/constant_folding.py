"""Constants that nodes compute: Constant nodes, and the little arithmetic that may stand between one and its consumer.

A constant is an initializer, a Constant node, or the output of a node whose inputs are all constants and whose operator
has an `evaluate`. Its payload is read only when somebody asks: shape and data type come from shape inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators.facts import MALFORMED, Attributes, Operator, Values
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.records.reasons import Reason

MAX_GROWN_ELEMENTS = 1 << 24  # 64 MB in float32

__all__ = ["fold_constant", "from_attributes"]

MAX_OUTER_ELEMENTS = 1 << 22  # of what two constants may become while planning
# runtimes compute these in single precision
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_SIMPLE_VALUES = {  # attribute of a Constant node -> field of the AttributeProto, dtype
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
}


def fold_constant(
    facts: Operator,
    attrs: Attributes,
    inputs: Sequence[Const | None],
    shape: tuple[int, ...] | None,
    data_type: int | None,
) -> Const | None:
    """The output of a node over constants, or None when nothing certain can be said.

    Args:
        facts: its operator.
        attrs: its attributes.
        inputs: None where left out.
        shape, data_type: inferred; with both, the value stays unread, else small inputs are evaluated now.
    """
    if facts.evaluate is None:
        return None
    given = [const for const in inputs if const is not None]
    if _is_of_text(attrs, given, data_type) or _depends_on_runtime(facts, attrs, given):
        return None
    if shape is not None and _grows_too_large(shape, given):
        return None
    evaluate = partial(_evaluate, facts.evaluate, dict(attrs), inputs, shape)
    if shape is not None and data_type is not None and not _may_fail(facts, given):
        return Const(shape, data_type, evaluate)
    if any(const.size > MAX_FOLDED_ELEMENTS for const in given):
        return None  # a weight: to compute it now would take its memory while planning
    if prod(sorted(const.size for const in given)[-2:]) > MAX_OUTER_ELEMENTS:
        return None  # they may broadcast against each other, or the one pick from the other
    return _evaluated_now(evaluate)


def _evaluated_now(evaluate: Callable[[], Values]) -> Const | None:
    try:
        value = evaluate()
    except Inexact:
        return None
    if value.size > MAX_FOLDED_ELEMENTS:
        return None  # an Expand of a scalar, say
    return Const(value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), lambda: value)


def _grows_too_large(shape: tuple[int, ...], given: Sequence[Const]) -> bool:
    """Whether a constant is large although its inputs are not: an Expand of a scalar to a billion elements.

    What is as large as its inputs is a weight that is transposed or cast.
    """
    inputs = {id(const): const.size for const in given}  # of Concat(c, c), once
    return prod(shape) > max(MAX_GROWN_ELEMENTS, sum(inputs.values()))


def _is_of_text(attrs: Attributes, given: Sequence[Const], data_type: int | None) -> bool:
    """Strings decide nothing that is folded, and their payload cannot be read as an array."""
    return onnx.TensorProto.STRING in (data_type, attrs.get("to"), *(const.data_type for const in given))


def _depends_on_runtime(facts: Operator, attrs: Attributes, given: Sequence[Const]) -> bool:
    """Single precision may end on the other side of a jump than half precision, which numpy computes in."""
    return facts.jumps(attrs) and any(const.data_type in _HALVES for const in given)


def _may_fail(facts: Operator, given: Sequence[Const]) -> bool:
    """Whether some values have no result, so that only the value itself tells."""
    return any(numpy_dtype(const.data_type).kind in facts.undefined_for for const in given)


def _evaluate(
    function: Callable[..., Any],
    attrs: Attributes,
    inputs: Sequence[Const | None],
    shape: tuple[int, ...] | None,
) -> Values:
    values = [None if const is None else const.read() for const in inputs]
    try:
        with np.errstate(all="ignore"):  # runtimes compute infinities and NaN without a word, too
            value = np.asarray(function(attrs, *values))
    except MALFORMED as error:
        raise Inexact(Reason.SHAPE, f"a constant cannot be computed: {error}") from error
    # what was proved with the inferred shape would not hold
    if shape is not None and value.shape != shape:
        raise Inexact(Reason.SHAPE)
    return value


def from_attributes(node: onnx.NodeProto, read: Callable[[onnx.TensorProto], Values]) -> Const | None:
    """The value of a Constant node in any of its attribute forms; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
            tensor = attribute.t
            return Const(tuple(tensor.dims), tensor.data_type, partial(read, tensor))
        if attribute.name in _SIMPLE_VALUES:
            field, dtype = _SIMPLE_VALUES[attribute.name]
            value = np.array(getattr(attribute, field), dtype)
            data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            return Const(value.shape, data_type, partial(np.copy, value))
    return None
