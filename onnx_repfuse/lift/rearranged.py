"""What Reshape, Transpose, Gather and GatherND do to the axes of a tensor, one after the other.

An axis is a list of parts: (n, C, h, w) reshaped to (n, g, C/g, h, w) splits C into two, a Transpose orders the axes,
and another Reshape joins them. A part knows how far apart its positions are along the axis it comes from. So the
result says of each of its positions where in the first tensor it comes from:

    channel_shuffle    (n, C, h, w) -> (n, g, C/g, h, w) -> (n, C/g, g, h, w) -> (n, C, h, w)
    pixel_unshuffle    (n, C, h, w) -> (n, C, h/r, r, w/r, r) -> (n, C, r, r, h/r, w/r) -> (n, C*r*r, h/r, w/r)
    x[:, [2, 1, 0]]    (n, C, h, w) -> (C, n, h, w) -> GatherND -> (C, n, h, w) -> (n, C, h, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.choice import Index
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, Shape, optional_input

__all__ = ["Axis", "Part", "Rearranged", "rearranged"]


@dataclass(frozen=True)
class Part:
    """Some positions of an axis of the first tensor: `size` of them, `step` apart; the size is None if not known."""

    axis: int
    size: int | None
    step: int = 1


Axis = tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Rearranged:
    """A tensor as parts of the axes of another one.

    Attributes:
        axes: of each axis its parts, the slowest first; none where it has one position.
        chosen: the positions of an axis of the first tensor that a Gather chose: the parts of that axis count these.
    """

    axes: tuple[Axis, ...]
    chosen: dict[int, Index]

    @classmethod
    def of(cls, shape: Shape) -> Rearranged:
        """A tensor of that shape as itself."""
        return cls(tuple(() if size == 1 else (Part(axis, size),) for axis, size in enumerate(shape)), {})


def rearranged(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    """What a node makes of a tensor; None if it does something else."""
    if node.op == "Transpose":
        order = permutation(node, len(tensor.axes))
        return replace(tensor, axes=tuple(tensor.axes[axis] for axis in order))
    if node.op == "Reshape":
        return _reshaped(scope, tensor, node)
    if node.op in ("Gather", "GatherND"):
        return _gathered(scope, tensor, node)
    return None


def _gathered(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    """A Gather by a list, or a GatherND that does the same along the first axis."""
    const = scope.const(optional_input(node, 1))
    if const is None:
        return None
    axis = node.attrs.get("axis", 0) if node.op == "Gather" else 0
    if node.op == "Gather" and len(const.shape) != 1:
        return None
    if node.op == "GatherND" and (
        len(const.shape) != 2 or const.shape[1] != 1 or node.attrs.get("batch_dims")
    ):
        return None
    parts = tensor.axes[axis]
    if len(parts) != 1 or parts[0].size is None or parts[0].step != 1 or parts[0].axis in tensor.chosen:
        return None
    source, size = parts[0].axis, parts[0].size
    index = np.asarray(const.read()).ravel().astype(np.intp)
    if not len(index) or index.min() < -size or index.max() >= size or _is_split(tensor, source):
        return None
    axes = list(tensor.axes)
    axes[axis] = (Part(source, len(index)),)
    return Rearranged(tuple(axes), {**tensor.chosen, source: index % size})


def _is_split(tensor: Rearranged, axis: int) -> bool:
    """Whether several parts come from one axis."""
    return sum(part.axis == axis for parts in tensor.axes for part in parts) > 1


def _reshaped(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    result = scope.shape(node.outputs[0].name)
    if result is None or 0 in result or not _keeps_unknown_sizes(scope, tensor, node, result):
        return None
    parts = [part for axis in tensor.axes for part in axis]
    axes: list[Axis] = []
    for size in result:
        taken = _taken(parts, size)
        if taken is None:
            return None
        axes.append(taken)
    return None if parts else replace(tensor, axes=tuple(axes))


def _taken(parts: list[Part], size: int | None) -> Axis | None:
    """The first parts, removed from a list, that make an axis of that size; None if they do not."""
    if size is None:
        return (parts.pop(0),) if parts and parts[0].size is None else None
    taken: list[Part] = []
    while size > 1:
        if not parts or parts[0].size is None:
            return None
        part = parts.pop(0)
        assert part.size is not None
        if size % part.size == 0:
            taken.append(part)
            size //= part.size
        elif part.size % size == 0:  # the axis ends within a part
            rest = part.size // size
            taken.append(Part(part.axis, size, part.step * rest))
            parts.insert(0, Part(part.axis, rest, part.step))
            size = 1
        else:
            return None
    return tuple(taken)


def _keeps_unknown_sizes(scope: Scope, tensor: Rearranged, node: gs.Node, result: Shape) -> bool:
    """Whether each unknown size of the result is proved to be the next one of the tensor.

    A 0 in the target copies the size of that axis, so all but one unknown sizes may be copied; the last one is what
    is left.
    """
    unknown = [place for place, size in enumerate(result) if size is None]
    if len(unknown) <= 1:
        return True
    const = scope.const(optional_input(node, 1))
    if const is None or node.attrs.get("allowzero"):
        return False
    target = [int(size) for size in const.read().ravel()]
    left = 0
    for number, place in enumerate(unknown):
        copied = tensor.axes[place] if place < len(tensor.axes) and target[place] == 0 else ()
        if copied != _unknown_part(tensor, number):
            left += 1
    return left <= 1


def _unknown_part(tensor: Rearranged, number: int) -> Sequence[Part]:
    """The part of unknown size with that number."""
    unknown = [part for axis in tensor.axes for part in axis if part.size is None]
    return tuple(unknown[number : number + 1])
