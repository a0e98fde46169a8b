"""The sizes of tensors, as far as they follow from the sizes of others: two tensors may be proved to have equal shapes
although no size is known.

Along one axis, a size is a number or (tensor, axis, stride, slack): that of an axis of that tensor behind a window,
`floor((n + slack) / stride) + 1`. Windows compose: behind another one it is (stride * s, slack + stride * (1 + S)). Two
sizes that are equal as values are equal whatever the tensor's is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.lift.linear_op import Context
from onnx_repfuse.lift.windows import window_of

__all__ = ["Dim", "Extent", "equal_shapes", "extents", "known_extents"]


_AXES_AT = {"Slice": 3, "ReduceMean": 1}  # which input lists the axes


class Extent(NamedTuple):
    """A size that is not known: that of an axis of a tensor, behind a window of that stride and slack."""

    tensor: str
    axis: int
    stride: int = 1
    slack: int = -1

    def behind(self, stride: int, slack: int) -> Extent:
        """The number of positions of a window that slides over this one's."""
        return Extent(self.tensor, self.axis, self.stride * stride, self.slack + self.stride * (1 + slack))


Dim = int | Extent
Dims = tuple[Dim, ...]


def extents(context: Context) -> dict[str, Dims]:
    """The dims of every tensor of a scope of which at least the rank is known."""
    found: dict[str, Dims] = {}
    for node in context.scope.nodes:
        for tensor in node.inputs:  # what no node of this scope makes
            _note(found, context.scope, tensor.name, None)
        dims = _dims_of(found, context, node) if len(node.outputs) == 1 else None
        for tensor in node.outputs:
            if node.op == "Split" and node.inputs[0].name in found:
                dims = _except(found[node.inputs[0].name], [node.attrs.get("axis", 0)], tensor.name)
            _note(found, context.scope, tensor.name, dims)
    return found


def known_extents(context: Context) -> dict[str, Dims]:
    """`extents`, found once for a context."""
    if not context.extents:  # asked for the first time
        context.extents.update(extents(context))
    return context.extents


def equal_shapes(context: Context, names: Sequence[str]) -> bool:
    """Whether tensors have the same shape, whatever that is."""
    found = known_extents(context)
    first, *others = [found.get(name) for name in names]
    return first is not None and all(other == first for other in others)


def _note(found: dict[str, Dims], scope: Scope, name: str, dims: Dims | None) -> None:
    """Note the dims of a tensor: numbers where they are proved, else those given, else its own."""
    proved = scope.shape(name)
    if not name or name in found or (proved is None and dims is None):
        return
    if proved is None or (dims is not None and len(dims) != len(proved)):
        proved = (None,) * len(dims or ())
    given = dims or tuple(Extent(name, axis) for axis in range(len(proved)))
    found[name] = tuple(other if dim is None else dim for dim, other in zip(proved, given, strict=True))


def _dims_of(found: dict[str, Dims], context: Context, node: gs.Node) -> Dims | None:
    """The dims of a node's first output, where they follow from those of its inputs."""
    first = found.get(node.inputs[0].name) if node.inputs else None
    if first is None:
        return None
    if operator(node).normalizes:
        return first
    if operator(node).elementwise:
        return _broadcast(found, context.scope, node)
    if node.op == "Concat":
        return _side_by_side(found, node)
    if node.op in _AXES_AT and node.attrs.get("keepdims", 1):
        axes = _axes(context.scope, node)
        return None if axes is None else _except(first, axes, node.outputs[0].name)
    if node.op.startswith("Global"):  # pools of all positions
        return (*first[:2], *(1,) * len(first[2:]))
    return _behind_window(context, node, first)


def _behind_window(context: Context, node: gs.Node, first: Dims) -> Dims | None:
    window = window_of(context, node)
    if window is None or len(window.strides) != len(first) - 2:
        return None
    channels = first[1]
    if node.op == "Conv":
        weight = static(context.scope.shape(optional_input(node, 1)))
        channels = weight[0] if weight else Extent(node.outputs[0].name, 1)
    axes = zip(first[2:], window.strides, window.slack, strict=True)
    space = [_windows(dim, stride, slack) for dim, stride, slack in axes]
    return first[0], channels, *space


def _windows(dim: Dim, stride: int, slack: int) -> Dim:
    return dim.behind(stride, slack) if isinstance(dim, Extent) else (dim + slack) // stride + 1


def _broadcast(found: dict[str, Dims], scope: Scope, node: gs.Node) -> Dims | None:
    """Of an element-wise operator: where not even equal, only a number above 1 prevails."""
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return None
    operands = list(_operands(found, scope, node))
    if None in operands:
        return None
    rank = max(len(dims) for dims in operands if dims is not None)
    padded = [(1,) * (rank - len(dims)) + dims for dims in operands if dims is not None]
    output = node.outputs[0].name
    return tuple(
        _joint(set(dims), Extent(output, axis)) for axis, dims in enumerate(zip(*padded, strict=True))
    )


def _operands(found: dict[str, Dims], scope: Scope, node: gs.Node) -> Iterator[Dims | None]:
    for tensor in node.inputs:
        if tensor.name:
            yield found.get(tensor.name)


def _joint(dims: set[Dim], own: Extent) -> Dim:
    """The size that operands of these sizes broadcast to; `own`, if that is not certain."""
    larger = dims - {1}
    if len(larger) <= 1:
        return larger.pop() if larger else 1
    return max((dim for dim in larger if isinstance(dim, int)), default=own)


def _except(first: Dims, changed: Sequence[int], output: str) -> Dims | None:
    """The same sizes, but along some axes, where nothing is known; None if these make no sense."""
    rank = len(first)
    if not all(-rank <= axis < rank for axis in changed):
        return None
    places = {axis % rank for axis in changed}
    return tuple(Extent(output, axis) if axis in places else dim for axis, dim in enumerate(first))


def _side_by_side(found: dict[str, Dims], node: gs.Node) -> Dims | None:
    """Of a Concat: where all operands agree, along the other axes.

    Where they do not, one of them may be empty: ONNX Runtime leaves it out then, whatever its other sizes.
    """
    parts = [found.get(tensor.name) for tensor in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len(set(map(len, known))) != 1:
        return None
    differing = [axis for axis, dims in enumerate(zip(*known, strict=True)) if len(set(dims)) > 1]
    return _except(known[0], [*differing, node.attrs.get("axis", 1)], node.outputs[0].name)


def _axes(scope: Scope, node: gs.Node) -> list[int] | None:
    """The axes that a node is given, None if they are not known: without any, it is all, or the first ones."""
    if operator(node).uses_attributes(scope.opset):
        return list(node.attrs.get("axes") or ()) or None
    const = scope.const(optional_input(node, _AXES_AT[node.op]))
    values = None if const is None else const.computed()
    return None if values is None else [int(axis) for axis in np.asarray(values).ravel()] or None
