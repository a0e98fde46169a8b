"""What the oracle's operators work on, and where they enter themselves.

Beside each value v stands its magnitude m = sum |w| |x| over all terms that made it up (a Sub adds, nothing cancels),
or, when asked for squares, sum w^2 x^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import is_float

__all__ = ["OPS", "Context", "Unsupported", "Value", "Weight", "attributes", "register"]

Array = np.ndarray[Any, np.dtype[Any]]
Op = Callable[..., Any]
OPS: dict[str, Op] = {}


class Unsupported(Exception):  # noqa: N818 - an outcome: another judge takes over
    """The oracle does not know this operator, or this form of it."""


@dataclass(frozen=True)
class Value:
    """A tensor: `v` in float64 (integers and booleans as they are), `m` its magnitude in float32, v.shape."""

    v: Array
    m: Array

    @staticmethod
    def of(array: Array, power: int = 1) -> Value:
        """A value whose magnitude is its own size, to a power."""
        v = array.astype(np.float64) if is_float(array.dtype) else array
        if v.dtype.kind != "f":
            return Value(v, v)
        return Value(v, (np.abs(v) if power == 1 else np.square(v)).astype(np.float32))


@dataclass(frozen=True)
class Weight(Value):
    """A large kernel as it is stored, in both `v` and `m`: `values` and `sizes` make blocks of it what they mean."""

    power: int = 1

    @staticmethod
    def view(tensor: onnx.TensorProto, power: int) -> Weight:
        stored = onnx.numpy_helper.to_array(tensor)
        return Weight(stored, stored, power)

    def values(self, block: Array) -> Array:
        """In float64."""
        return Value.of(block).v

    def sizes(self, block: Array) -> Array:
        """In float32, to the power."""
        if self.power == 1 and block.dtype == np.float32:
            return np.asarray(np.abs(block))
        return Value.of(block, self.power).m


@dataclass
class Context:
    """What an operator sees of its node: attributes, opset, number of outputs, a place to count terms, and
    the power the magnitudes are summed in."""

    attributes: dict[str, Any]
    opset: int
    outputs: int
    counted: list[Array]
    power: int = 1

    def count(self, fan_in: int, operand: Array) -> None:
        """Note that this node sums `fan_in` products of `operand`, whose axis 0 may be rows."""
        if operand.ndim < 2:
            self.counted.append(np.array([float(fan_in)]))
            return
        rows = np.count_nonzero(operand.reshape(operand.shape[0], -1), axis=1)
        self.counted.append(np.minimum(rows, fan_in).astype(np.float64))


def register(*names: str) -> Callable[[Op], Op]:
    """Add an operator: f(context, *values) -> Value or a list of them; an absent input is None."""

    def add(function: Op) -> Op:
        for name in names:
            OPS[name] = function
        return function

    return add


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found
