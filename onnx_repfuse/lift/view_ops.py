"""Views as operators of the algebra: the identity on every channel, together with the view."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.dims import dims_of, known_dims
from onnx_repfuse.graph.operators.resize import resized_axes
from onnx_repfuse.graph.scope import Const, Scope, Shape, optional_input
from onnx_repfuse.graph.views import View, behind_view, restored_from
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.records.report import Kind

__all__ = ["lift_view", "operator_of_view"]


_LISTED_AT = {"Resize": 3, "Reshape": 1}  # which input lists the sizes


def lift_view(context: Context, node: gs.Node) -> LinearOp | None:
    """GlobalAveragePool, Resize, Flatten, Reshape, Transpose, a crop, an Expand and others: see `graph.views`."""
    scope = context.scope
    name, output = node.inputs[0].name, node.outputs[0].name
    before, after = context.float_layout(name), context.channel_layout(output)
    behind = None if before is None else behind_view(scope, node, before.layout, before.channels, after)
    if before is None or behind is None:
        return None
    # The term is in the layout before the view, the operator's output in the one behind it.
    layout, shape = behind.layout, behind.shape
    entry, target = _entry_of_channels(scope, node, before, layout[0] % len(shape), shape)
    if behind.channels != before.channels:
        entry = None  # of one side only: it is written for these channels
    view = View(
        node,
        name,
        output,
        before.channels,
        behind.channels,
        before.layout,
        layout,
        dims=len(shape),
        entry=entry,
        target=target,
        listed_in=_varying_list(node, entry, target),
        start=scope.shape(name) or (),
        end=shape,
        like=restored_from(scope, node),
        is_copy=behind.is_copy,
        keeps_constants=behind.keeps_constants,
        sizes=dims_of(scope, name) or (),
        sizes_behind=dims_of(scope, output) or (),
    )
    return operator_of_view(node, view)


def operator_of_view(node: gs.Node, view: View, inner_nodes: tuple[gs.Node, ...] = ()) -> LinearOp:
    """A view as an operator: the identity, before it.

    Args:
        node: the last one of those that are the view.
        inner_nodes: the others.
    """
    operand = Operand(view.operand, view.channels, view.before)
    term = Term(0, Vector.unit(view.channels, view.before))
    bias = Bias.zeros(view.channels_behind)
    role = Kind.COMMUTE if view.channels_behind == view.channels else Kind.INDEX
    return LinearOp(
        node,
        view.output,
        role,
        view.channels_behind,
        view.after,
        (operand,),
        (term,),
        bias,
        inner_nodes=inner_nodes,
        view=view,
    )


def _entry_of_channels(
    scope: Scope, node: gs.Node, before: ChannelLayout, channel: int, shape: Shape
) -> tuple[int | None, Const | None]:
    """`View.entry` and `View.target`: where an operator that lists sizes lists the channels, and the constant list.

    Args:
        channel: the axis of the channels in the output.
    """
    if node.op == "Resize" and optional_input(node, 3):
        return _entry_of_resize(node, channel, len(shape)), scope.const(node.inputs[3].name)
    if node.op == "Expand":
        shape_list = scope.const(optional_input(node, 1))
        listed = scope.size_lists[node.inputs[1].name] if shape_list is None else shape_list.read().ravel()
        return (None, None) if listed[channel] == 1 else (channel, shape_list)
    if node.op == "Reshape":
        return _entry_of_reshape(scope, node, before, channel, shape)
    return None, None


def _entry_of_reshape(
    scope: Scope, node: gs.Node, before: ChannelLayout, channel: int, shape: Shape
) -> tuple[int | None, Const | None]:
    """Where the target of a Reshape lists the channels, and the constant target."""
    target = scope.const(optional_input(node, 1))
    if target is None:
        return _entry_of_computed_list(scope, node, channel), None
    sizes = [int(size) for size in target.read().ravel()]
    channel_before = before.channel_axis % len(scope.shape(node.inputs[0].name) or shape)
    # A 0 copies the size of the same axis of the input. Where that is the channels' size on one side only, the list is
    # right for this number of channels alone.
    copied_axes = {axis for axis, size in enumerate(sizes) if size == 0}
    if channel != channel_before and copied_axes & {channel, channel_before}:
        return channel, None
    return (None if sizes[channel] <= 0 else channel), target


def _entry_of_computed_list(scope: Scope, node: gs.Node, channel: int) -> int | None:
    """Where a Reshape lists the channels; None if it has a -1 there, and no 0 that would copy another size."""
    known_dims(scope)
    sizes = scope.size_lists.get(optional_input(node, 1), ())
    is_left = len(sizes) > channel and sizes[channel] == -1 and None not in sizes and 0 not in sizes
    return None if is_left else channel


def _entry_of_resize(node: gs.Node, channel: int, rank: int) -> int | None:
    """Where a Resize lists the size of an axis; None if its `axes` (opset 18) leave it out."""
    listed = resized_axes(node, rank)
    return listed.index(channel) if channel in listed else None


def _varying_list(node: gs.Node, entry: int | None, target: Const | None) -> str:
    """`View.listed_in`."""
    if entry is None or target is not None or node.op not in _LISTED_AT:
        return ""
    return optional_input(node, _LISTED_AT[node.op])
