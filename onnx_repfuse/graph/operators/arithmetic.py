"""Operators of several operands that broadcast against each other."""

from __future__ import annotations

from typing import Any

from onnx_repfuse.graph.operators.channel_rules import BROADCAST
from onnx_repfuse.graph.operators.facts import Operator

__all__ = ["ARITHMETIC"]


def _arithmetic(name: str, **facts: Any) -> Operator:
    return Operator(name, channels=BROADCAST, elementwise=True, **facts)


ARITHMETIC = (
    _arithmetic("Add", stays_for_a_reason=True),
    _arithmetic("Div", stays_for_a_reason=True),
    _arithmetic("Max", gain=1.0),
    _arithmetic("Mean", gain=1.0),
    _arithmetic("Min", gain=1.0),
    _arithmetic("Mul", stays_for_a_reason=True),
    _arithmetic("Pow"),
    _arithmetic("Sub", stays_for_a_reason=True),
    _arithmetic("Sum", gain=64.0),
    Operator("Equal"),
    Operator("Where", gain=1.0),
)
