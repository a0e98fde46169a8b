"""Views: operators that move, repeat or average positions and leave channels alone.

GlobalAveragePool, ReduceMean over space, nearest Resize, Flatten, Reshape, Squeeze, Unsqueeze, Transpose. A view maps
a constant per channel to the same constant and treats every channel alike, so for any pointwise A and bias b

    view(A x + b) = A view(x) + b

`behind_view` says where the channels stand behind a view, `is_identity` when a chain of views does nothing. Shapes are
the inferred ones: what they do not prove, is not a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.scope import Const, Scope, Shape

__all__ = ["FREE", "VIEWS", "Layout", "View", "behind_view", "is_identity", "restored_from"]

FREE = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))  # these keep the order of elements
VIEWS = FREE | frozenset(("GlobalAveragePool", "ReduceMean", "Resize", "Upsample", "Transpose"))
Layout = tuple[int, int]


@dataclass(frozen=True, eq=False)
class View:
    """A view of one tensor.

    Attributes:
        node: the operator, to be copied.
        operand, output: names of its tensors.
        channels: of both.
        before, after: (channel axis, rank) of both.
        dims: number of dims of the output.
        entry: for an operator that lists sizes, the position of the channels in that list, to be replaced for other
            channels; None where it works on any number of channels.
        target: that list, if it is constant.
        start, end: proved shapes of operand and output.
        like: the tensor whose Shape a Reshape restores.
    """

    node: gs.Node
    operand: str
    output: str
    channels: int
    before: Layout
    after: Layout
    dims: int
    entry: int | None
    target: Const | None
    start: Shape
    end: Shape
    like: str

    def fits(self, channels: int) -> bool:
        """Whether it can be written for that many channels."""
        return channels == self.channels or self.entry is None or self.target is not None


def behind_view(scope: Scope, node: gs.Node, before: Layout, channels: int) -> tuple[Layout, Shape] | None:
    """Layout and shape behind a view of a tensor with channels at `before`; None if it is not one."""
    if node.op not in VIEWS or not node.inputs or len(node.outputs) != 1:
        return None
    shape, result = scope.shape(node.inputs[0].name), scope.shape(node.outputs[0].name)
    like = restored_from(scope, node)
    if any(t.name and scope.const(t.name) is None for t in node.inputs[1:]):
        if not like:
            return None
        result = scope.shape(like)
    if shape is None or result is None or len(shape) < 2 or len(result) < 2:
        return None
    if before[0] == 1 and len(shape) != before[1] + 2:
        return None
    try:
        layout = _layout(scope, node, before, shape, result, channels)
    except Inexact:  # of a constant that cannot be computed
        return None
    if layout is None or result[layout[0] % len(result)] != channels:
        return None
    return layout, result


def restored_from(scope: Scope, node: gs.Node) -> str:
    """The tensor whose whole Shape a Reshape takes as its target, or ''."""
    if node.op != "Reshape" or len(node.inputs) != 2 or node.attrs.get("allowzero"):
        return ""
    made = scope.producer.get(node.inputs[1].name)
    if made is None or made.op != "Shape" or made.attrs.get("start") or made.attrs.get("end") is not None:
        return ""
    return str(made.inputs[0].name)


def is_identity(chain: Sequence[View]) -> bool:
    """Whether views applied one after the other give back what the first one read."""
    first, last = chain[0], chain[-1]
    if first.before != last.after:
        return False
    if all(view.node.op in FREE for view in chain):
        start, end = _positions(first.start, first.before), _positions(last.end, last.after)
        return (start == end and start.count(None) <= 1) or last.like == first.operand
    if all(view.node.op == "Transpose" for view in chain):
        order = list(range(len(first.start)))
        for view in chain:
            order = [order[axis] for axis in _permutation(view.node, len(order))]
        return order == sorted(order)
    return False


def _positions(shape: Shape, layout: Layout) -> Shape:
    """A shape, whatever the number of channels."""
    channel = layout[0] % len(shape)
    return (*shape[:channel], 0, *shape[channel + 1 :])


def _permutation(node: gs.Node, rank: int) -> list[int]:
    return list(node.attrs.get("perm") or range(rank)[::-1])


def _layout(
    scope: Scope, node: gs.Node, before: Layout, shape: Shape, result: Shape, channels: int
) -> Layout | None:
    rank, spatial = len(shape), before[0] == 1
    channel = before[0] % rank
    if node.op == "GlobalAveragePool":
        return before if spatial else None
    if node.op == "Transpose":
        return _place(_permutation(node, rank).index(channel), rank)
    if node.op in ("Resize", "Upsample"):
        return before if spatial and _resizes_space(scope, node, shape, result) else None
    if node.op in ("ReduceMean", "Squeeze", "Unsqueeze"):
        return _by_axes(scope, node, channel, shape, result)
    if node.op == "Flatten":
        axis = node.attrs.get("axis", 1)
        return _rows(shape, channel) if (axis + rank if axis < 0 else axis) == channel else None
    if channel == rank - 1 or all(dim == 1 for dim in shape[channel + 1 :]):  # Reshape of rows
        trailing = [dim for dim in result[1:] if dim != 1]
        if result[-1] == channels and (len(result) == 2 or channel == rank - 1):
            return -1, 0
        return (1, len(result) - 2) if trailing == [channels] and result[1] == channels else None
    if len(result) > 2 and result[1] == channels and channel == 1 and _batch_kept(scope, node, shape, result):
        return 1, len(result) - 2
    return None


def _place(channel: int, rank: int) -> Layout | None:
    """The layout of a tensor of that rank with channels on that axis."""
    if channel == rank - 1:
        return -1, 0
    return (1, rank - 2) if channel == 1 else None


def _rows(shape: Shape, channel: int) -> Layout | None:
    return (-1, 0) if all(dim == 1 for dim in shape[channel + 1 :]) else None


def _resizes_space(scope: Scope, node: gs.Node, shape: Shape, result: Shape) -> bool:
    given = node.attrs
    return bool(
        given.get("mode", "nearest") == "nearest"
        and given.get("coordinate_transformation_mode") != "tf_crop_and_resize"
        and not given.get("axes")
        and len(result) == len(shape)
        and result[1] == shape[1]
        and _scales(node)
        and _keeps_channels(_factors(scope, node))
        and _leaves_positions(_factors(scope, node), result)
    )


def _factors(scope: Scope, node: gs.Node) -> list[float]:
    """The factor of each axis; none where it is told sizes."""
    scales = node.attrs.get("scales")
    if scales is None:
        place = 1 if len(node.inputs) == 2 else 2
        const = scope.const(node.inputs[place].name) if len(node.inputs) > place else None
        scales = [] if const is None else const.read().ravel()
    return [float(scale) for scale in scales]


def _keeps_channels(factors: list[float]) -> bool:
    """Whether channels are not scaled: by 1.2, four of them would be four still, and others."""
    return all(factor == 1.0 for factor in factors[1:2])


def _leaves_positions(factors: list[float], result: Shape) -> bool:
    """Whether the result is not empty, where the operand is not: runtimes refuse to convolve what is."""
    if len(factors) != len(result):
        return 0 not in result
    return all(size or factor >= 1 for size, factor in zip(result[2:], factors[2:], strict=True))


def _scales(node: gs.Node) -> bool:
    """Whether it is told factors or sizes in a way that a change of channels can be written in."""
    return node.op == "Upsample" or len(node.inputs) <= 4


def _by_axes(scope: Scope, node: gs.Node, channel: int, shape: Shape, result: Shape) -> Layout | None:
    axes: Any = node.attrs.get("axes")
    if len(node.inputs) > 1 and node.inputs[1].name:
        const = scope.const(node.inputs[1].name)
        axes = None if const is None else [int(a) for a in const.read().ravel()]
    if not axes:
        return None
    if node.op == "Unsqueeze":
        rank = len(shape) + len(axes)
        kept = sorted(set(range(rank)) - {a % rank for a in axes})
        return _place(kept[channel], rank)
    rank = len(shape)
    gone = {a % rank for a in axes}
    if channel in gone or 0 in gone:
        return None
    if node.op == "ReduceMean" and node.attrs.get("keepdims", 1):
        return _place(channel, rank)
    return _place(channel - sum(1 for a in gone if a < channel), len(result))


def _batch_kept(scope: Scope, node: gs.Node, shape: Shape, result: Shape) -> bool:
    if shape[0] is not None and shape[0] == result[0]:
        return True
    rest = (*shape[1:], *result[1:])
    if None not in rest:
        return prod(d or 0 for d in shape[1:]) == prod(d or 0 for d in result[1:])
    const = scope.const(node.inputs[1].name) if len(node.inputs) > 1 else None
    return const is not None and not node.attrs.get("allowzero") and int(const.read().ravel()[0]) == 0
