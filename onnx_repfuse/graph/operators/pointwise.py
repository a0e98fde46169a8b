"""Element-wise operators: functions of one element, such as activations, and arithmetic of operands that broadcast."""

from __future__ import annotations

from typing import Any

from onnx_repfuse.graph.operators.channel_rules import BROADCAST, KEPT
from onnx_repfuse.graph.operators.facts import Doubt, Operator, Passes, SizeCase
from onnx_repfuse.modelfile.dtypes import HOLDING_SIZES

__all__ = ["ARITHMETIC", "POINTWISE"]


def _cast_doubts(case: SizeCase) -> tuple[()] | Doubt:
    """A size cast to a type that cannot hold it: inference goes on with the size as it was."""
    return Doubt.VALUE if len(case.shape) < 2 and case.attrs.get("to") not in HOLDING_SIZES else ()


def _slope_doubts(case: SizeCase) -> tuple[()] | Doubt:
    """PRelu: ONNX Runtime broadcasts its input to the slope, too, where onnx takes the shape of the input."""
    slope = case.shapes[1]
    if slope is None or len(slope) > len(case.shape):
        return Doubt.SHAPE
    sizes = zip(reversed(slope), reversed(case.shape), strict=False)
    return () if all(size in (1, wanted) and size is not None for size, wanted in sizes) else Doubt.SHAPE


def _pointwise(name: str, **facts: Any) -> Operator:
    return Operator(name, channels=KEPT, elementwise=True, **facts)


POINTWISE = (
    _pointwise("Abs", gain=1.0, passes=Passes.FACTORS),
    _pointwise("Ceil"),
    _pointwise("Celu", gain=2.0),
    _pointwise("Clip", gain=1.0, passes=Passes.FACTORS, attributes_are_inputs_since=11),
    _pointwise("Dropout", gain=1.0),
    _pointwise("Elu", gain=2.0),
    _pointwise("Erf", gain=2.0, is_bounded=True),
    _pointwise("Exp", gain=0.0),
    _pointwise("Floor"),
    _pointwise("Gelu", gain=2.0),
    _pointwise("HardSigmoid", gain=1.0, is_bounded=True),
    _pointwise("HardSwish", gain=2.0, since=14),
    _pointwise("Identity", gain=1.0, operations=0),
    _pointwise("LeakyRelu", gain=1.0, passes=Passes.FACTORS),
    _pointwise("Log"),
    _pointwise("Mish", gain=2.0),
    _pointwise("Neg", gain=1.0),
    Operator("PRelu", channels=BROADCAST, elementwise=True, passes=Passes.FACTORS, doubts=_slope_doubts),
    _pointwise("Reciprocal"),
    _pointwise("Relu", gain=1.0, passes=Passes.FACTORS),
    _pointwise("Round"),
    _pointwise("Selu", gain=2.0),
    _pointwise("Sigmoid", gain=0.0, is_bounded=True),
    _pointwise("Sign"),
    _pointwise("Softplus", gain=0.0),
    _pointwise("Softsign", gain=1.0, is_bounded=True),
    _pointwise("Sqrt"),
    _pointwise("Swish", gain=2.0),
    _pointwise("Tanh", gain=1.0, is_bounded=True),
    _pointwise("ThresholdedRelu"),
    # No rule passes channels through a Cast: behind it the data type is another one.
    Operator("Cast", elementwise=True, doubts=_cast_doubts),
)


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
