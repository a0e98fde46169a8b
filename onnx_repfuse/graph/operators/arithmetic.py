"""Operators of several operands that broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnx_repfuse.graph.operators.channel_rules import BROADCAST
from onnx_repfuse.graph.operators.facts import Attributes, Evaluate, Operator, Values

__all__ = ["ARITHMETIC"]


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


def _equal(attrs: Attributes, a: Values, b: Values) -> Any:
    return np.equal(a, _aligned(attrs, a, b))


def _where(attrs: Attributes, condition: Values, a: Values, b: Values) -> Values:
    return np.asarray(np.where(condition, a, b), a.dtype)


def _arithmetic(name: str, **facts: Any) -> Operator:
    return Operator(name, channels=BROADCAST, **facts)


ARITHMETIC = (
    _arithmetic("Add", stays_for_a_reason=True, evaluate=_binary(np.add)),
    _arithmetic("Div", stays_for_a_reason=True, evaluate=_binary(_divide)),
    _arithmetic("Max"),
    _arithmetic("Mean"),
    _arithmetic("Min"),
    _arithmetic("Mul", stays_for_a_reason=True, evaluate=_binary(np.multiply)),
    _arithmetic("Pow", evaluate=_binary(np.power), undefined_for="iu"),  # 2 ** -1 in integers
    _arithmetic("Sub", stays_for_a_reason=True, evaluate=_binary(np.subtract)),
    _arithmetic("Sum"),
    Operator("Equal", evaluate=_equal, jumps=lambda attrs: True),
    Operator("Where", evaluate=_where),
)
