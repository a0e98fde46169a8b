"""Constants: where they come from, and the little arithmetic that may stand between them and their reader.

A constant is an initializer, a Constant node, or the output of a node in `FOLDABLE` whose inputs are all
constants. Its payload is read only when somebody asks: shape and data type come from the skeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason

__all__ = ["END_OF_AXIS", "FOLDABLE", "MALFORMED", "fold_constant", "from_attributes"]

MALFORMED = (  # what computing with attributes and values that make no sense raises
    ArithmeticError,
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
)
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
END_OF_AXIS = (1 << 31) - 1  # the `ends` of a Slice that means: to the end
_STEPS = ("Floor", "Ceil", "Equal", "Range")  # what a change in the last place may change wholly

Values = NDArray[Any]


def _unary(function: Callable[[Values], Any]) -> Callable[..., Any]:
    return lambda x, attrs: function(x)


def _binary(function: Callable[[Values, Values], Any]) -> Callable[..., Any]:
    return lambda a, b, attrs: function(a, b).astype(a.dtype)


def _axes(inputs: Sequence[Values], attrs: Mapping[str, Any]) -> tuple[int, ...] | None:
    if len(inputs) > 1:
        return tuple(int(a) for a in inputs[1].ravel())
    return tuple(attrs["axes"]) if attrs.get("axes") is not None else None


def _reshape(x: Values, *rest: Any) -> Values:
    attrs, shape = rest[-1], rest[0] if len(rest) > 1 else rest[-1]["shape"]
    dims = [int(d) for d in np.ravel(shape)]
    if not attrs.get("allowzero"):
        dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return x.reshape(dims)


def _unsqueeze(x: Values, *rest: Any) -> Values:
    axes = _axes([x, *rest[:-1]], rest[-1])
    return np.expand_dims(x, axes if axes is not None else ())


def _squeeze(x: Values, *rest: Any) -> Values:
    return np.squeeze(x, _axes([x, *rest[:-1]], rest[-1]) or None)  # no axes: all of size 1


def _transpose(x: Values, attrs: Mapping[str, Any]) -> Values:
    return np.transpose(x, attrs.get("perm"))


def _cast(x: Values, attrs: Mapping[str, Any]) -> Values:
    to = attrs["to"]
    return x.astype(numpy_dtype(to) if isinstance(to, int) else to)


def _constant_of_shape(shape: Values, attrs: Mapping[str, Any]) -> Values:
    value = attrs.get("value")
    filler = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
    return np.full(tuple(int(d) for d in shape), filler.ravel()[0], filler.dtype)


def _flatten(x: Values, attrs: Mapping[str, Any]) -> Values:
    axis = attrs.get("axis", 1)
    return x.reshape(prod(x.shape[: axis % (x.ndim + 1) if axis < 0 else axis]), -1)


def _concat(*args: Any) -> Values:
    return np.concatenate(args[:-1], axis=args[-1]["axis"])


def _gather(x: Values, index: Values, attrs: Mapping[str, Any]) -> Values:
    return np.asarray(np.take(x, index, axis=attrs.get("axis", 0)))


def _expand(x: Values, shape: Values, attrs: Mapping[str, Any]) -> Values:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(d) for d in shape)))


def _matmul(a: Values, b: Values, attrs: Mapping[str, Any]) -> Values:
    return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), a.dtype)


def _slice(x: Values, *rest: Any) -> Values:
    attrs, given = rest[-1], [None if v is None else np.ravel(v) for v in rest[:-1]]
    starts = given[0] if given else attrs["starts"]
    ends = given[1] if len(given) > 1 else attrs["ends"]
    axes = given[2] if len(given) > 2 else attrs.get("axes")
    steps = given[3] if len(given) > 3 else None
    index = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):  # type: ignore[arg-type]
        axis, step = int(i if axes is None else axes[i]), int(1 if steps is None else steps[i])
        stop: int | None = int(end)
        if step < 0 and end >= END_OF_AXIS:
            raise ValueError("a Slice backwards to the end")  # which ONNX Runtime takes to the front
        if step < 0 and stop is not None and stop < -x.shape[axis]:
            stop = None  # past the front
        index[axis] = slice(int(start), stop, step)
    return np.asarray(x[tuple(index)])


def _range(start: Values, limit: Values, delta: Values, attrs: Mapping[str, Any]) -> Values:
    count = int(np.ceil((limit.item() - start.item()) / delta.item()))
    if count > MAX_FOLDED_ELEMENTS:
        raise ValueError("too long to evaluate")
    return np.asarray(start.item() + np.arange(max(count, 0)) * delta.item(), start.dtype)


def _divide(a: Values, b: Values) -> Values:
    return np.trunc(np.true_divide(a, b)) if a.dtype.kind in "iu" else np.true_divide(a, b)


FOLDABLE: dict[str, Callable[..., Any]] = {
    "Identity": _unary(lambda x: x),
    "Cast": _cast,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Shape": lambda x, attrs: np.array(x.shape, np.int64)[attrs.get("start", 0) : attrs.get("end")],
    "Slice": _slice,
    "Range": _range,
    "Equal": lambda a, b, attrs: np.equal(a, b),
    "Where": lambda c, a, b, attrs: np.asarray(np.where(c, a, b), a.dtype),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _binary(np.power),
    "MatMul": _matmul,
    "Neg": _unary(np.negative),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Exp": _unary(np.exp),
    "Abs": _unary(np.abs),
    "Tanh": _unary(np.tanh),
    "Sigmoid": _unary(lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype)),
}


def fold_constant(
    op: str,
    attrs: Mapping[str, Any],
    inputs: Sequence[Const | None],
    shape: tuple[int, ...] | None,
    data_type: int | None,
) -> Const | None:
    """The output of a foldable node over constants, or None when nothing certain can be said.

    An input is None where it is left out. With an inferred `shape` and `data_type` the value stays unread; else small
    inputs are evaluated now.
    """
    function = FOLDABLE.get(op)
    if function is None:
        return None
    given = [c for c in inputs if c is not None]
    if onnx.TensorProto.STRING in (data_type, attrs.get("to"), *(c.data_type for c in given)):
        return None

    def evaluate() -> Values:
        values = [c and c.read() for c in inputs]
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(function(*values, dict(attrs)))
        except MALFORMED as error:
            raise Inexact(Reason.SHAPE, f"a constant cannot be computed: {error}") from error
        if shape is not None and value.shape != shape:
            raise Inexact(Reason.SHAPE)
        return value

    halves = any(c.data_type in _HALVES for c in given)
    if halves and (op in _STEPS or (op == "Cast" and attrs.get("to") not in FLOAT_FORMATS)):
        return None  # runtimes compute them in single precision, which may end on another step
    whole = any(numpy_dtype(c.data_type).kind in "iu" for c in given)
    fails = op == "Range" or (op == "Pow" and whole)  # for some values
    if shape is not None and data_type is not None and not fails:
        return Const(shape, data_type, evaluate)
    if max((c.size for c in given), default=0) > MAX_FOLDED_ELEMENTS:
        return None
    try:
        value = evaluate()
    except Inexact:
        return None
    if value.size > MAX_FOLDED_ELEMENTS:
        return None
    return Const(value.shape, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), lambda: value)


def from_attributes(node: onnx.NodeProto, read: Callable[[onnx.TensorProto], Values]) -> Const | None:
    """The value of a Constant node in any of its attribute forms; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
            tensor = attribute.t
            return Const(tuple(tensor.dims), tensor.data_type, partial(read, tensor))
        simple: Values
        if attribute.name == "value_float":
            simple = np.array(attribute.f, np.float32)
        elif attribute.name == "value_floats":
            simple = np.array(attribute.floats, np.float32)
        elif attribute.name == "value_int":
            simple = np.array(attribute.i, np.int64)
        elif attribute.name == "value_ints":
            simple = np.array(attribute.ints, np.int64)
        else:
            continue
        return Const(
            simple.shape, onnx.helper.np_dtype_to_tensor_dtype(simple.dtype), partial(np.copy, simple)
        )
    return None
