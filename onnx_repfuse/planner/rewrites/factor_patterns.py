"""Which elements of a tensor a factor scales, followed upwards past operators that only some of them pass.

    q, k, v = Split(Transpose(Reshape(x @ W)));  q * s         scales the columns of W that q comes from, and no others

A pattern is an array of ones, where the factor acts, and zeros. It broadcasts to its tensor: each dim is 1 or the
tensor's size. No pattern means every element.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dims, times
from onnx_repfuse.graph.operators.index_maps import sliced
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, Shape

__all__ = ["Pattern", "by_channel", "pattern_above", "pattern_of_choice", "pattern_of_part"]

Pattern = NDArray[np.bool_]
Element = TypeVar("Element", bound=np.generic)  # of a pattern, or of values that vary likewise
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))


def pattern_of_part(scope: Scope, split: gs.Node, output: int, pattern: Pattern | None) -> Pattern | None:
    """The pattern of what a Split reads, given that of one of its outputs; None if the sizes are not known."""
    shapes = [scope.shape(tensor.name) for tensor in split.outputs]
    data = scope.shape(split.inputs[0].name)
    if data is None:
        return None
    axis = split.attrs.get("axis", 0) % len(data)
    sizes = [None if shape is None else shape[axis] for shape in shapes]
    if None in sizes:
        return None
    rows = [size for size in sizes if size is not None]
    own = np.ones((1,) * len(data), np.bool_) if pattern is None else pattern
    shape = list(own.shape)
    parts = []
    for number, size in enumerate(rows):
        shape[axis] = size
        parts.append(np.broadcast_to(own, shape) if number == output else np.zeros(shape, np.bool_))
    return np.concatenate(parts, axis)


def pattern_of_choice(
    scope: Scope, choice: gs.Node, others: Iterable[gs.Node], pattern: Pattern | None
) -> Pattern | None:
    """The pattern of what a Gather or Slice reads, given that of its output, where others choose other elements.

    None if some may choose the same ones, or the sizes are not known.
    """
    shape = scope.shape(choice.inputs[0].name)
    own = None if shape is None else _chosen(scope, choice, shape)
    if own is None or shape is None:
        return None
    size = shape[own.axis]
    for other in others:
        another = _chosen(scope, other, shape)
        if another is None or another.axis != own.axis or np.intersect1d(another.places, own.places).size:
            return None
    inner = np.ones((1,) * (len(shape) - own.drops_axis), np.bool_) if pattern is None else pattern
    inner = np.expand_dims(inner, own.axis) if own.drops_axis else inner
    full = list(inner.shape)
    full[own.axis] = size or 1
    result = np.zeros(full, np.bool_)
    where: list[Any] = [slice(None)] * len(shape)
    where[own.axis] = own.places
    result[tuple(where)] = inner
    return result


class _Choice(NamedTuple):
    """The places along an axis that a node chooses, and whether the axis is gone then."""

    axis: int
    places: NDArray[np.int64]
    drops_axis: bool


def _chosen(scope: Scope, node: gs.Node, shape: Shape) -> _Choice | None:
    """What a Gather or Slice chooses of a tensor of this shape; None if its arguments are no constants."""
    constants = [const for tensor in node.inputs[1:] if (const := scope.const(tensor.name)) is not None]
    if len(constants) < len(node.inputs) - 1:
        return None
    values = [const.read() for const in constants]
    if node.op == "Gather" and values:
        return _gathered(node, shape, values[0])
    return _sliced(shape, values) if node.op == "Slice" else None


def _gathered(node: gs.Node, shape: Shape, places: NDArray[np.int64]) -> _Choice | None:
    axis = node.attrs.get("axis", 0) % len(shape)
    size = shape[axis]
    if size is None or places.ndim > 1:
        return None
    return _Choice(axis, places.ravel() % size, places.ndim == 0)


def _sliced(shape: Shape, arguments: list[NDArray[Any]]) -> _Choice | None:
    """The places of a Slice of one axis, given its inputs starts, ends, axes and, maybe, steps."""
    if len(arguments) < 3 or any(value.size != 1 for value in arguments):
        return None
    start, end, axis, *step = (int(value.item()) for value in arguments)
    axis %= len(shape)
    size = shape[axis]
    taken = None if size is None else sliced(size, start, end, *(step or [1]))
    return None if taken is None or not len(taken) else _Choice(axis, taken, False)


def pattern_above(scope: Scope, view: gs.Node, pattern: NDArray[Element]) -> NDArray[Element] | None:
    """The pattern of what a view reads, given that of its output; None if it cannot be told."""
    before, after = (dims_of(scope, tensor.name) for tensor in (view.inputs[0], view.outputs[0]))
    if before is None or after is None or len(after) != pattern.ndim:
        return None
    if view.op == "Transpose":
        return np.transpose(pattern, np.argsort(permutation(view, len(before))))
    return _reshaped(pattern, after, before) if view.op in _RESHAPES else None


def by_channel(pattern: NDArray[Element], layout: ChannelLayout) -> NDArray[Element] | None:
    """A pattern as one value for each channel, shape (channels,); None if it varies along another axis."""
    axis = layout.channel_axis % pattern.ndim
    rows = np.moveaxis(pattern, axis, -1).reshape(-1, pattern.shape[axis])
    return np.broadcast_to(rows[0], (layout.channels,)) if (rows == rows[0]).all() else None


def _reshaped(pattern: NDArray[Element], dims: Dims, target: Dims) -> NDArray[Element] | None:
    """A pattern of a tensor of `dims` for the same elements in `target`; both have the same order of elements."""
    groups = _groups(dims, target)
    if groups is None:
        return None
    parts, place = [], 0
    for inner, outer in groups:
        parts.append(_repeated_along(pattern.shape[place : place + len(inner)], inner, outer))
        place += len(inner)
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    full = [size for part in known for size in part.full]
    # what is repeated stands in front of each group: its axis is 1 there
    spread = np.broadcast_to(pattern, [size for part in known for size in part.inner])
    spread = spread.reshape([size for part in known for size in (1, part.period)])
    spread = np.broadcast_to(spread, [size for part in known for size in (part.times, part.period)])
    return spread.reshape(full)


class _Repeated(NamedTuple):
    """How a pattern of a run of axes goes on in other axes of the same elements.

    Attributes:
        inner: sizes to which it is broadcast first.
        period: elements until it begins again.
        times: how often it is repeated then.
        full: sizes that it has in the other axes.
    """

    inner: list[int]
    period: int
    times: int
    full: list[int]


def _repeated_along(shape: tuple[int, ...], inner: Dims, outer: Dims) -> _Repeated | None:
    """A pattern of `shape` in axes `inner`, in axes `outer`; None where sizes that are not known are in the way.

    It begins again behind the last axes that it varies along: so it is the same for each of the axes before them.
    """
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    varying = _numbers(inner[first:])
    if varying is None:
        return None
    period = prod(varying)
    for begin in range(len(outer), -1, -1):
        last = _numbers(outer[begin:])
        if last is None:
            return None
        if prod(last) % period == 0:
            return _Repeated([1] * first + varying, period, prod(last) // period, [1] * begin + last)
    return None


def _groups(dims: Dims, target: Dims) -> list[tuple[Dims, Dims]] | None:
    """Runs of axes that hold the same elements; None if a size that is not known is in the way."""
    if 0 in (*dims, *target):
        return None
    groups: list[tuple[Dims, Dims]] = []
    while dims and target:
        lengths = product(range(1, len(dims) + 1), range(1, len(target) + 1))
        equal = (pair for pair in lengths if times(dims[: pair[0]]) == times(target[: pair[1]]))
        inner, outer = next(equal, (0, 0))
        if not inner:
            return None
        groups.append((dims[:inner], target[:outer]))
        dims, target = dims[inner:], target[outer:]
    return [*groups, (dims, target)] if {*dims, *target} <= {1} else None


def _numbers(dims: Dims) -> list[int] | None:
    """Sizes, if all of them are known."""
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return numbers if len(numbers) == len(dims) else None
