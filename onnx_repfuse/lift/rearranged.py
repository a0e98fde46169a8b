"""What Reshape, Transpose, Squeeze, Unsqueeze, Gather, Slice and Split do to the axes of a tensor, one after the other.

An axis is a list of parts: (n, C, h, w) reshaped to (n, g, C/g, h, w) splits C into two, a Transpose orders the axes,
and another Reshape joins them. A part knows how far apart its positions are along the axis it comes from. So the
result says of each of its positions where in the first tensor it comes from:

    channel_shuffle    (n, C, h, w) -> (n, g, C/g, h, w) -> (n, C/g, g, h, w) -> (n, C, h, w)
    pixel_unshuffle    (n, C, h, w) -> (n, C, h/r, r, w/r, r) -> (n, C, r, r, h/r, w/r) -> (n, C*r*r, h/r, w/r)
    x[:, [2, 1, 0]]    (n, C, h, w) -> (C, n, h, w) -> GatherND -> (C, n, h, w) -> (n, C, h, w)
    x[:, 2][:, None]   (n, C, h, w) -> Gather of one number -> (n, h, w) -> (n, 1, h, w)

A Split into equal parts, or a Slice of every k-th position, splits an axis as a Reshape would, and fixes one place of
what it made: the first half of 8 is place 0 of the 2 in (2, 4), every second of them place 0 of the 2 in (4, 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.choice import Index
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dim, Dims, over, quotient, times
from onnx_repfuse.graph.operators.index_maps import gathered, split_sizes
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.lift.slice_concat import slice_arguments

__all__ = ["Axis", "Fixed", "Part", "Rearranged", "rearranged"]


@dataclass(frozen=True)
class Part:
    """Some positions of an axis of the first tensor: `size` of them, `step` apart."""

    axis: int
    size: Dim
    step: int = 1


class Fixed(NamedTuple):
    """A part of which one position is taken."""

    part: Part
    position: int


Axis = tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Rearranged:
    """A tensor as parts of the axes of another one.

    Attributes:
        axes: of each axis its parts, the slowest first; none where it has one position.
        chosen: the positions of an axis of the first tensor that a Gather chose: the parts of that axis count these.
        fixed: the parts of which a Split, Slice or Gather took one position: they are in no axis.
    """

    axes: tuple[Axis, ...]
    chosen: dict[int, Index]
    fixed: tuple[Fixed, ...] = ()

    def is_like(self, other: Rearranged) -> bool:
        """Whether two tensors have each element at the same place."""
        return self.axes == other.axes and not (self.chosen or other.chosen or self.fixed or other.fixed)

    @classmethod
    def of(cls, dims: Dims) -> Rearranged:
        """A tensor of these dims as itself."""
        return cls(tuple(() if size == 1 else (Part(axis, size),) for axis, size in enumerate(dims)), {})


def rearranged(scope: Scope, tensor: Rearranged, node: gs.Node, output: int = 0) -> Rearranged | None:
    """What a node makes of a tensor, as its output of that number; None if it does something else."""
    if node.op == "Transpose":
        order = permutation(node, len(tensor.axes))
        return replace(tensor, axes=tuple(tensor.axes[axis] for axis in order))
    if node.op in ("Reshape", "Squeeze", "Unsqueeze"):  # the elements keep their order
        return _reshaped(scope, tensor, node)
    if node.op in ("Gather", "GatherND"):
        return _gathered(scope, tensor, node)
    if node.op == "Split":
        return _split(scope, tensor, node, output)
    return _sliced(scope, tensor, node) if node.op == "Slice" else None


def _split(scope: Scope, tensor: Rearranged, node: gs.Node, output: int) -> Rearranged | None:
    """One of equal parts."""
    axis, count = int(node.attrs.get("axis", 0)) % len(tensor.axes), len(node.outputs)
    size = times(part.size for part in tensor.axes[axis])
    sizes = split_sizes(scope, node, size) if isinstance(size, int) else None
    return _cut(tensor, axis, count, output) if sizes and len(set(sizes)) == 1 else None


def _sliced(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    """Every k-th position, or one of equal parts, of axes of known sizes."""
    arguments = slice_arguments(scope, node)
    if arguments is None:
        return None
    starts, ends, axes, steps = arguments
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    if {len(ends), len(axes), len(steps)} != {len(starts)}:
        return None
    result: Rearranged | None = tensor
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        result = None if result is None else _every(result, axis % len(tensor.axes), slice(*cut))
    return result


def _every(tensor: Rearranged, axis: int, cut: slice) -> Rearranged | None:
    size = times(part.size for part in tensor.axes[axis])
    if not isinstance(size, int) or cut.step < 1:
        return None
    places = range(size)[cut]
    count, step = len(places), places.step
    if not count or size % (count * step) or (step > 1 and count * step != size):
        return None
    if step > 1:  # of blocks of so many
        return _cut(tensor, axis, count, places.start, keeps_first=True) if places.start < step else None
    number, rest = divmod(places.start, count)
    return None if rest else _cut(tensor, axis, size // count, number)


def _cut(
    tensor: Rearranged, axis: int, count: int, number: int, *, keeps_first: bool = False
) -> Rearranged | None:
    """One place of the first `count` of an axis, and what each of them consists of; or these, and a place of that."""
    rest = list(tensor.axes[axis])
    first = _taken(rest, count, ())
    if first is None:
        return None
    kept, parts = (first, tuple(rest)) if keeps_first else (tuple(rest), first)
    sizes = [part.size for part in parts if isinstance(part.size, int)]
    if len(sizes) < len(parts):
        return None
    fixed = map(Fixed, parts, (int(place) for place in np.unravel_index(number, sizes)))
    axes = (*tensor.axes[:axis], kept, *tensor.axes[axis + 1 :])
    return replace(tensor, axes=axes, fixed=(*tensor.fixed, *fixed))


def _gathered(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    """A Gather by a list or a number, or a GatherND that does the same along the first axis."""
    const = scope.const(optional_input(node, 1))
    if const is None or not _chooses_along_one_axis(node, const.shape):
        return None
    axis = node.attrs.get("axis", 0) if node.op == "Gather" else 0
    source = _whole_axis(tensor, tensor.axes[axis])
    if source is None or not isinstance(source.size, int):
        return None if const.shape else _one_place(tensor, axis % len(tensor.axes), int(const.read()))
    index = gathered(source.size, const.read())
    if index is None:
        return None
    axes = list(tensor.axes)
    if const.shape:
        axes[axis] = (Part(source.axis, len(index)),)
    else:
        del axes[axis]  # one place, and the axis is gone
    return replace(tensor, axes=tuple(axes), chosen={**tensor.chosen, source.axis: index})


def _one_place(tensor: Rearranged, axis: int, place: int) -> Rearranged | None:
    """What a Gather of one number leaves of an axis of several parts: that place, and the axis is gone."""
    size = times(part.size for part in tensor.axes[axis])
    if not isinstance(size, int) or not -size <= place < size:
        return None
    cut = _cut(tensor, axis, size, place % size)
    return None if cut is None else replace(cut, axes=(*cut.axes[:axis], *cut.axes[axis + 1 :]))


def _chooses_along_one_axis(node: gs.Node, index: tuple[int, ...]) -> bool:
    """Whether an index of this shape lists places: of a higher rank, a Gather would add axes to the tensor."""
    if node.op == "Gather":
        return len(index) <= 1
    return len(index) == 2 and index[1] == 1 and not node.attrs.get("batch_dims")


def _whole_axis(tensor: Rearranged, parts: Axis) -> Part | None:
    """The axis of the first tensor that an axis is, all of it, if nothing was chosen of it before."""
    if len(parts) != 1:
        return None
    (part,) = parts
    is_whole = part.step == 1 and not _is_split(tensor, part.axis)
    return part if is_whole and part.axis not in tensor.chosen else None


def _is_split(tensor: Rearranged, axis: int) -> bool:
    """Whether several parts come from one axis."""
    parts = [*(part for parts in tensor.axes for part in parts), *(fixed.part for fixed in tensor.fixed)]
    return sum(part.axis == axis for part in parts) > 1


def _reshaped(scope: Scope, tensor: Rearranged, node: gs.Node) -> Rearranged | None:
    result = dims_of(scope, node.outputs[0].name)
    if result is None or 0 in result:
        return None
    parts = [part for axis in tensor.axes for part in axis]
    axes: list[Axis] = []
    for place, size in enumerate(result):
        taken = _taken(parts, size, result[place + 1 : place + 2])
        if taken is None:
            return None
        axes.append(taken)
    return None if parts else replace(tensor, axes=tuple(axes))


def _taken(parts: list[Part], size: Dim, following: Dims) -> Axis | None:
    """The first parts, removed from a list, that make an axis of that size; None if they do not.

    Args:
        following: the size of the next axis, if there is one.
    """
    taken: list[Part] = []
    while size != 1:
        if not parts:
            return None
        part = parts.pop(0)
        left = quotient(size, part.size)
        if left is not None:
            taken.append(part)
            size = left
            continue
        rest = _blocks(part.size, size, following)  # the axis ends within a part
        if rest is None:
            return None
        taken.append(Part(part.axis, size, part.step * rest))
        parts.insert(0, Part(part.axis, rest, part.step))
        size = 1
    return tuple(taken)


def _blocks(whole: Dim, size: Dim, following: Dims) -> int | None:
    """How long the blocks are that `whole` positions are split into, so many of them; None if that is not certain.

    A Reshape keeps the number of elements. So where it writes `floor(n / 2)` and 2 for n, n is even.
    """
    rest = quotient(whole, size)
    if rest is not None:
        return rest if isinstance(rest, int) else None
    length = following[0] if following else None
    if not isinstance(length, int):
        return None
    return length if over(whole, length) == size else None
