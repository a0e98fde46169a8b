"""What the oracle's operators work on: a tensor in float64, and beside it how much was summed to get it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.float_formats import is_float

__all__ = [
    "Array",
    "Context",
    "Joined",
    "Resized",
    "StoredKernel",
    "Tensor",
    "TooLarge",
    "Unsupported",
    "along",
    "check_size",
]

Array = np.ndarray[Any, np.dtype[Any]]
_MOST_ELEMENTS = 1 << 28  # 2 GiB in float64


class Unsupported(Exception):  # noqa: N818 - an outcome: another judge takes over
    """The oracle does not know this operator, or this form of it."""


class TooLarge(Exception):  # noqa: N818 - an outcome: nobody may judge this
    """A tensor at this size takes more memory than a proof may."""


def check_size(shape: Sequence[int]) -> None:
    """Raise TooLarge for a tensor of this shape."""
    if math.prod(shape) > _MOST_ELEMENTS:
        sizes = "x".join(map(str, shape))
        raise TooLarge(f"a tensor of {sizes} elements is more than is evaluated")


@dataclass(frozen=True)
class Tensor:
    """A tensor and its magnitude.

    Attributes:
        value: float64, any shape; integers and booleans keep their type.
        magnitude: float32, of the same shape: sum |w| |x| over all products that made an element up, as if nothing
            had cancelled (a Sub adds). With power 2 it is sum w^2 x^2.
    """

    value: Array
    magnitude: Array

    @staticmethod
    def of(array: Array, power: int = 1) -> Tensor:
        """An input or a constant: its magnitude is |x| ** power."""
        value = array.astype(np.float64) if is_float(array.dtype) else array
        if not is_float(value.dtype):  # sizes, indices, conditions: exact, so without a magnitude to speak of
            return Tensor(value, value)
        with np.errstate(over="ignore"):  # of doubles beyond float32, the magnitude is infinite
            magnitude = (np.abs(value) if power == 1 else np.square(value)).astype(np.float32)
        return Tensor(value, magnitude)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(self.value.shape)

    def map(self, move: Callable[[Array], Array]) -> Tensor:
        """The result of an operator that only moves elements: magnitudes move with their values."""
        return Tensor(move(self.value), move(self.magnitude))


@dataclass(frozen=True)
class StoredKernel(Tensor):
    """A large Conv kernel as the file stores it, in both fields.

    It is converted block by block: in float64, with magnitudes, a float32 kernel takes three times its size.
    """

    power: int = 1

    def to_values(self, block: Array) -> Array:
        """A block of the kernel in float64."""
        return Tensor.of(block).value

    def to_magnitudes(self, block: Array) -> Array:
        """The magnitudes of a block, float32."""
        if self.power == 1 and block.dtype == np.float32:  # without the way through float64
            return np.asarray(np.abs(block))
        return Tensor.of(block, self.power).magnitude


class Joined(Tensor):
    """A large Concat, whose parts are copied into one only when they are needed in one.

    A Conv of it sums what it makes of each part.
    """

    def __init__(self, parts: Sequence[Tensor], axis: int) -> None:
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "axis", axis)

    parts: tuple[Tensor, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Known without a copy."""
        first = self.parts[0].shape
        size = sum(part.shape[self.axis] for part in self.parts)
        return (*first[: self.axis], size, *first[self.axis + 1 :])

    @cached_property
    def value(self) -> Array:
        """Copied when it is asked for."""
        return np.concatenate([part.value for part in self.parts], self.axis)

    @cached_property
    def magnitude(self) -> Array:
        """Copied when it is asked for."""
        return np.concatenate([part.magnitude for part in self.parts], self.axis)


class Resized(Tensor):
    """A large image that was resized, by one matrix for each axis of positions, when its elements are needed.

    A 1x1 Conv sums channels, which these matrices leave alone: it can be taken of the image as it was before.
    """

    def __init__(self, before: Tensor, matrices: Mapping[int, tuple[Array, Array]]) -> None:
        """`matrices`: by axis, (size after, size before), for values and for magnitudes."""
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "matrices", dict(matrices))

    before: Tensor
    matrices: dict[int, tuple[Array, Array]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Known before it is computed."""
        sizes = dict(enumerate(self.before.shape)) | {axis: len(m) for axis, (m, _) in self.matrices.items()}
        return tuple(sizes.values())

    @cached_property
    def value(self) -> Array:
        """Computed when it is asked for."""
        return self.resize_values(self.before.value)

    @cached_property
    def magnitude(self) -> Array:
        """Computed when it is asked for."""
        return self.resize_magnitudes(self.before.magnitude)

    def resize_values(self, array: Array) -> Array:
        """An image of the size before -> of the size after."""
        for axis, (matrix, _) in self.matrices.items():
            array = along(array, matrix, axis)
        return array

    def resize_magnitudes(self, array: Array) -> Array:
        """The same, of what was summed."""
        for axis, (_, matrix) in self.matrices.items():
            array = along(array, matrix, axis)
        return array


def along(a: Array, matrix: Array, axis: int) -> Array:
    """The product of a matrix (count, size) with an axis of that size."""
    before, size, behind = a.shape[:axis], a.shape[axis], a.shape[axis + 1 :]
    if not behind:
        return np.asarray(a @ matrix.T)
    # (count, size) @ (before, size, behind) -> (before, count, behind), without a copy in another order
    product = matrix @ a.reshape(math.prod(before), size, math.prod(behind))
    return np.asarray(product.reshape(*before, len(matrix), *behind))


@dataclass(frozen=True)
class Context:
    """What an operator sees of its node, beside the operands.

    Attributes:
        attributes: by name; only what the node states, so each operator knows the defaults.
        opset: the version of the default domain.
        outputs: how many outputs the node has, omitted ones included.
        terms: where `count_terms` writes; one list for a whole evaluation.
        power: 1 or 2: what magnitudes sum (`Tensor`).
        needs_values: if not, the magnitudes of sums of products stand for their values, which are half of the work.
        needs_magnitudes: if not, the values of sums of products stand for their magnitudes.
    """

    attributes: dict[str, Any]
    opset: int
    outputs: int
    terms: list[Array]
    power: int = 1
    needs_values: bool = True
    needs_magnitudes: bool = True

    @staticmethod
    def of(node: onnx.NodeProto, opset: int, power: int = 1) -> Context:
        """The context of a node, with a list of terms of its own."""
        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            # ONNX has strings as bytes.
            attributes[attribute.name] = value.decode() if isinstance(value, bytes) else value
        return Context(attributes, opset, len(node.output), [], power)

    def counting(self, terms: list[Array], needs_values: bool, needs_magnitudes: bool) -> Context:
        """The same, which writes its terms there."""
        return replace(self, terms=terms, needs_values=needs_values, needs_magnitudes=needs_magnitudes)

    def both(self, value: Callable[[], Array], magnitude: Callable[[], Array]) -> tuple[Array, Array]:
        """What two functions compute, or for both what one of them does, where nobody needs the other."""
        if self.needs_values and self.needs_magnitudes:
            return value(), magnitude()
        one = value() if self.needs_values else magnitude()
        return one, one

    def count_terms(self, fan_in: int, *parts: Array) -> None:
        """Note that each output element sums `fan_in` products of elements of an operand, given as its parts.

        Zeros add no rounding error, so a row (index of axis 0) cannot sum more terms than it has non-zeros. That is
        what makes the error bound of an impulse small.
        """
        if parts[0].ndim < 2:  # a vector has no rows
            self.terms.append(np.array([float(fan_in)]))
            return
        nonzero = sum(np.count_nonzero(part.reshape(len(part), -1), axis=1) for part in parts)
        self.terms.append(np.minimum(nonzero, fan_in).astype(np.float64))
