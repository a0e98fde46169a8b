"""Operators of several operands that broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnx_repfuse.graph.operators.channel_rules import BROADCAST
from onnx_repfuse.graph.operators.facts import Attributes, Evaluate, Operator, Values

__all__ = ["ARITHMETIC"]

MAX_EXPONENT = 1 << 24  # up to which float32 holds every integer


def _binary(function: Callable[[Values, Values], Any]) -> Evaluate:
    return lambda attrs, a, b: function(a, _aligned(attrs, a, b)).astype(a.dtype)


def _aligned(attrs: Attributes, a: Values, b: Values) -> Values:
    """The second operand, aligned with the axes of the first from `axis` on, as opsets below 7 have it."""
    axis = attrs.get("axis")
    if axis is None or not attrs.get("broadcast"):
        return b
    behind = a.ndim - axis % a.ndim - b.ndim
    return b.reshape(*b.shape, *(1,) * behind)


def _divide(a: Values, b: Values) -> Values:
    return np.trunc(np.true_divide(a, b)) if a.dtype.kind in "iu" else np.true_divide(a, b)


def _power(a: Values, b: Values) -> Values:
    if b.dtype.kind in "iu" and b.size and max(abs(int(b.min())), abs(int(b.max()))) > MAX_EXPONENT:
        raise ValueError(
            "an exponent that float32 does not hold"
        )  # ONNX Runtime rounds it: an odd one becomes even
    return np.asarray(np.power(a, b))


def _equal(attrs: Attributes, a: Values, b: Values) -> Any:
    return np.equal(a, _aligned(attrs, a, b))


def _where(attrs: Attributes, condition: Values, a: Values, b: Values) -> Values:
    return np.asarray(np.where(condition, a, b), a.dtype)


def _arithmetic(name: str, **facts: Any) -> Operator:
    return Operator(name, channels=BROADCAST, elementwise=True, **facts)


ARITHMETIC = (
    _arithmetic("Add", stays_for_a_reason=True, evaluate=_binary(np.add)),
    _arithmetic("Div", stays_for_a_reason=True, evaluate=_binary(_divide)),
    _arithmetic("Max", gain=1.0),
    _arithmetic("Mean", gain=1.0),
    _arithmetic("Min", gain=1.0),
    _arithmetic("Mul", stays_for_a_reason=True, evaluate=_binary(np.multiply)),
    _arithmetic("Pow", evaluate=_binary(_power), undefined_for="iu"),  # 2 ** -1 in integers
    _arithmetic("Sub", stays_for_a_reason=True, evaluate=_binary(np.subtract)),
    _arithmetic("Sum", gain=64.0),
    Operator("Equal", evaluate=_equal, jumps=lambda attrs: True),
    Operator("Where", gain=1.0, evaluate=_where),
)
