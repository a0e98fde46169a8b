"""How far a change that is too small to matter may grow until it reaches an output of the model.

Zeroing a weight of 1e-38 changes what its node computes by next to nothing. Whether that stays so depends on what comes
behind. A Conv with a bias, a Sigmoid or a Softmax hides it: `0.5 + 1e-38` is 0.5. A ReLU passes it on. A logarithm, a
comparison or a division by a sum of such values makes it as large as anything. So every operator has a *gain*, the
factor by which such a change may grow: inf where it may show however small it is. The gain of a tensor is the largest
product along any path from it to where the change is hidden or leaves the model. `Operator.gain` has the plain ones,
with 0 for an operator that hides it; what depends on constants is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.planner.flush.small_weights import largest_by_channel
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["LARGE", "MAX_GAIN", "Gains"]

MAX_GAIN = 1e6  # of a normalization by sqrt(variance + 1e-12)
ORDINARY = 1e-12  # beside such a value what was too small before is not seen
LARGE = 1e20  # a mask or a sentinel: 1e-38 times it is seen
# What two activations may multiply each other by, and how many products a MatMul of both adds up.
ORDINARY_ACTIVATION, SUMMED_ACTIVATIONS = 16.0, 256.0
MAX_READ = 1 << 24  # elements of a constant that is looked at for large values

Values = NDArray[Any]


class _Gain(NamedTuple):
    """Of one input of a node: by what factor a change grows until it is hidden there, or until it is passed on."""

    hidden: float = 0.0
    passed: float = 0.0


HIDDEN, PASSED, SHOWN = _Gain(hidden=1.0), _Gain(passed=1.0), _Gain(passed=inf)
Read = Callable[[str], Values | None]
Largest = Callable[[gs.Node, bool], Values | None]


class Gains:
    """The gains of a scope's tensors as its nodes are now.

    Args:
        scope: the main graph; it must not change any more.
        read: the float values of a constant, in float64; None for what is no constant.
        largest: of the weight of a linear operator, the largest magnitude in each output channel, given whether what
            its outputs change by is hidden: then its own small elements become zero, too, and pass nothing on. Without
            it they are not flushed.
    """

    def __init__(self, scope: Scope, read: Read, largest: Largest | None = None) -> None:
        self._scope = scope
        self._read = read
        self._largest = largest

    def of(self, name: str) -> float:
        """By what factor a small change of a tensor may grow until it is hidden or leaves the model."""
        return self._gains.get(name, inf)

    def hides(self, node: gs.Node, behind: float | None = None) -> bool:
        """Whether a small change of a node's output shows nowhere, and its input makes none large.

        `behind` is the gain of the output, where it is known already.
        """
        gain = self.of(node.outputs[0].name) if behind is None else behind
        return gain <= MAX_GAIN and node.inputs[0].name not in self._large

    @cached_property
    def _gains(self) -> dict[str, float]:
        scope = self._scope
        gains = dict.fromkeys(scope.producer, 0.0)
        gains.update(dict.fromkeys(scope.inputs, 0.0))
        gains.update(dict.fromkeys(scope.outputs, 1.0))
        gains.update(dict.fromkeys(scope.captured, inf))
        for node in reversed(scope.nodes):
            behind = max((gains.get(tensor.name, inf) for tensor in node.outputs if tensor.name), default=0.0)
            for place, tensor in enumerate(node.inputs):
                if behind and tensor.name in gains:
                    own = self._node_gain(_Case(self, node, place, behind))
                    passed = own.passed * behind if own.passed else 0.0
                    gains[tensor.name] = max(gains[tensor.name], own.hidden, passed)
        return gains

    def _node_gain(self, case: _Case) -> _Gain:
        by_constants = _BY_CONSTANTS.get(case.node.op)
        if by_constants is not None:
            return by_constants(case)
        gain = operator(case.node).gain
        return _Gain(passed=gain) if gain else HIDDEN

    def constant(self, node: gs.Node, place: int) -> Values | None:
        """The value of a constant input, in float64."""
        name = optional_input(node, place)
        return self._read(name) if name and self._scope.const(name) is not None else None

    def weight_sums(self, node: gs.Node, behind: float) -> Values | None:
        """At least the sum of a channel's absolute weights, (channels,); None where the weight is no constant."""
        const = self._scope.const(optional_input(node, 1))
        if const is None or len(const.shape) < 2:
            return None
        if self._largest is None:
            value = self.constant(node, 1)
            largest = None if value is None else largest_by_channel(node, value).ravel()
        else:
            largest = self._largest(node, self.hides(node, behind))
        return None if largest is None else largest * (const.size / max(largest.size, 1))

    def smallest(self, name: str) -> float:
        """A bound below a divisor: a constant's smallest magnitude, or the epsilon that was added; 0 if unknown."""
        if self._scope.const(name) is not None:
            return _least(self._read(name))
        node = self._scope.producer.get(name)
        if node is None:
            return 0.0
        if node.op == "Sqrt":
            return sqrt(self.smallest(node.inputs[0].name))
        if node.op not in ("Add", "Max", "Clip"):
            return 0.0
        constants = [
            value
            for place in range(min(2, len(node.inputs)))
            if (value := self.constant(node, place)) is not None
        ]
        return max((max(float(value.min(initial=inf)), 0.0) for value in constants), default=0.0)

    @cached_property
    def _large(self) -> set[str]:
        large: set[str] = set()
        for node in self._scope.nodes:
            if operator(node).is_bounded:
                continue
            if any(tensor.name in large for tensor in node.inputs) or self._brings_large(node):
                large.update(tensor.name for tensor in node.outputs)
        return large

    def _brings_large(self, node: gs.Node) -> bool:
        """Whether a constant of a node is as large as a mask's; a Clip to the largest number brings none."""
        if node.op == "Clip" or operator(node).weight is not None:
            return False
        if any(abs(value) >= LARGE for value in node.attrs.values() if isinstance(value, float)):
            return True
        return any(self._is_large(tensor.name) for tensor in node.inputs)

    def _is_large(self, name: str) -> bool:
        const = self._scope.const(name)
        if const is None or const.data_type not in FLOAT_FORMATS:
            return False
        value = self._read(name) if const.size <= MAX_READ else None
        return value is None or not _greatest(value) < LARGE  # nor is NaN


@dataclass(frozen=True)
class _Case:
    """One input of a node.

    Attributes:
        gains: of the scope.
        node, place: the node, and the number of the input.
        behind: the largest gain of the node's outputs.
    """

    gains: Gains
    node: gs.Node
    place: int
    behind: float

    def constant(self, place: int) -> Values | None:
        """The value of a constant input, in float64."""
        return self.gains.constant(self.node, place)

    def attribute(self, name: str, default: float) -> float:
        """A number among the attributes."""
        return float(self.node.attrs.get(name, default))


def _least(value: Values | None) -> float:
    return 0.0 if value is None else float(np.abs(value).min(initial=inf))


def _greatest(value: Values) -> float:
    return float(np.abs(value).max(initial=0.0))


def _linear(case: _Case) -> _Gain:
    """Conv, ConvTranspose, Gemm, MatMul: a channel's weights add up changes, and its bias hides them."""
    beta = abs(case.attribute("beta", 1.0))
    if case.place == 2:
        return _Gain(passed=beta)
    if case.place == 1:
        return _matrix_on_the_left(case)
    sums = case.gains.weight_sums(case.node, case.behind)
    if sums is None:
        return _Gain(passed=SUMMED_ACTIVATIONS)
    bias = case.constant(2)
    if bias is None or bias.size != sums.size:
        bias = np.zeros(sums.size)
    return _scaled_and_shifted(sums * abs(case.attribute("alpha", 1.0)), bias.ravel() * beta)


def _scaled_and_shifted(factors: Values, shifts: Values) -> _Gain:
    """Factors and shifts by channel."""
    if not np.isfinite(factors).all():
        return SHOWN
    hidden = np.abs(shifts) >= ORDINARY
    return _Gain(_greatest(factors[hidden]), _greatest(factors[~hidden]))


def _matrix_on_the_left(case: _Case) -> _Gain:
    left = case.constant(0)
    if left is None or not left.ndim:
        return _Gain(passed=SUMMED_ACTIVATIONS)
    return _Gain(passed=_greatest(left) * left.shape[-1])


def _add(case: _Case) -> _Gain:
    return HIDDEN if _least(case.constant(1 - case.place)) >= ORDINARY else PASSED


def _mul(case: _Case) -> _Gain:
    factor = case.constant(1 - case.place)
    return _Gain(passed=ORDINARY_ACTIVATION if factor is None else _greatest(factor))


def _div(case: _Case) -> _Gain:
    # A divisor that is kept away from zero by an epsilon does not change: what added the epsilon has hidden it.
    least = case.gains.smallest(case.node.inputs[1].name) if case.place == 0 else 0.0
    return _Gain(passed=1 / least) if least else SHOWN


def _pow(case: _Case) -> _Gain:
    exponent = case.constant(1)
    is_steady = case.place == 0 and exponent is not None and float(exponent.min(initial=inf)) >= 1.0
    return _Gain(passed=ORDINARY_ACTIVATION) if is_steady else SHOWN


def _lower_end(case: _Case) -> _Gain:
    """Max, and Clip from opset 11 on: an end above zero hides what is smaller, as before a division."""
    end = case.constant(1 - case.place) if case.place < 2 and len(case.node.inputs) >= 2 else None
    is_positive = end is not None and float(end.min(initial=inf)) >= ORDINARY
    return HIDDEN if is_positive else PASSED


def _slope(case: _Case) -> _Gain:
    slope = case.constant(1) if case.place == 0 else None
    return SHOWN if slope is None else _Gain(passed=max(1.0, _greatest(slope)))


def _alpha(case: _Case) -> _Gain:
    return _Gain(passed=max(2.0, abs(case.attribute("alpha", 1.0))))


def _batch_normalization(case: _Case) -> _Gain:
    values = [case.constant(number) for number in range(1, 5)]
    known = [value for value in values if value is not None]
    if case.place or len(case.node.outputs) > 1 or len(known) < 4:
        return SHOWN
    scale, shift, mean, variance = known
    with np.errstate(all="ignore"):
        factors = np.abs(scale) / np.sqrt(variance + case.attribute("epsilon", 1e-5))
        return _scaled_and_shifted(factors, shift - mean * np.sign(scale) * factors)


def _normalization(case: _Case) -> _Gain:
    """By the mean and the variance of what is read: divided by the root of the epsilon at least."""
    epsilon = case.attribute("epsilon", 1e-5)
    if case.place or len(case.node.outputs) > 1 or epsilon < ORDINARY:
        return SHOWN
    scale, shift = case.constant(1), case.constant(2)
    factor = (1.0 if scale is None else _greatest(scale)) / sqrt(epsilon)
    return _Gain(hidden=factor) if _least(shift) >= ORDINARY else _Gain(passed=factor)


def _cast(case: _Case) -> _Gain:
    return PASSED if case.node.attrs.get("to") in FLOAT_FORMATS else SHOWN


_BY_CONSTANTS: Mapping[str, Callable[[_Case], _Gain]] = {
    "Add": _add, "BatchNormalization": _batch_normalization, "Cast": _cast, "Celu": _alpha, "Clip": _lower_end,
    "Conv": _linear, "ConvTranspose": _linear, "Div": _div, "Elu": _alpha, "Gemm": _linear,
    "GroupNormalization": _normalization, "HardSigmoid": _alpha, "InstanceNormalization": _normalization,
    "LayerNormalization": _normalization, "LeakyRelu": _alpha, "MatMul": _linear, "Max": _lower_end, "Mul": _mul,
    "PRelu": _slope, "Pow": _pow, "Sub": _add,
}  # fmt: skip
