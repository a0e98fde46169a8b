"""Operators that move or average positions: Pad, AveragePool.

AveragePool with a divisor that is the same everywhere is a depthwise convolution with equal weights. With
count_include_pad=0 and pads the divisor shrinks at the edges; with ceil_mode a window may hang over the end and
is divided by fewer, too (ONNX spec, operator AveragePool).

Pad with value v is a pointwise convolution that pads: `pad_v(x) = pad_0(x - v) + v`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import optional_input
from onnx_repfuse.lift.conv_matmul import conv_geometry, resolve_pads
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, equal_taps, flat_float64, from_kernel
from onnx_repfuse.lift.view_ops import lift_view
from onnx_repfuse.records.float_formats import epsilon
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["PadAmounts", "lift_average_pool", "lift_pad", "padding_op", "read_pads"]


def lift_average_pool(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """AveragePool as a depthwise convolution, and as a view."""
    convolution, view = _average_as_convolution(context, node), lift_view(context, node)
    if view is None or convolution is None:
        return convolution
    if isinstance(convolution, Declined):
        return replace(view, declined=convolution)
    return replace(convolution, also=view)


def _average_as_convolution(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    name = node.inputs[0].name
    channel_layout = context.channel_layout(name) or context.channel_layout(node.outputs[0].name)
    kernel = tuple(node.attrs.get("kernel_shape") or ())
    if not kernel:
        return None
    if channel_layout is None or channel_layout.layout != (1, len(kernel)):
        return None
    pads = resolve_pads(context, node, kernel)
    if isinstance(pads, Declined):
        return pads
    if any(pads) and not node.attrs.get("count_include_pad", 0):  # a window on the padding divides by fewer
        return Declined(Reason.POOLING)
    channels = channel_layout.channels
    geometry = conv_geometry(node, channels, channels, kernel, channels, pads)
    if isinstance(geometry, Declined):
        return geometry
    size = context.size(name, len(kernel))
    if node.attrs.get("ceil_mode", 0) and not _divides_evenly(geometry, size):
        return Declined(Reason.POOLING, "ceil_mode may add a window that hangs over the end")
    return from_kernel(node, name, equal_taps(geometry, 1.0 / prod(kernel)), Kind.POOL, size=size)


def _divides_evenly(geometry: Geometry, size: tuple[int, ...] | None) -> bool:
    """Whether (size + slack) / stride is whole along each axis, so that its ceiling is its floor."""
    if all(stride == 1 for stride in geometry.strides):
        return True
    if size is None:
        return False
    axes = zip(size, geometry.slack, geometry.strides, strict=True)
    return all((positions + slack) % stride == 0 for positions, slack, stride in axes)


def lift_pad(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Pad of space by a constant: attribute (opset 2-10), input (11-17), with `axes` (18)."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name, node.outputs[0].name)
    if channel_layout is None or channel_layout.channel_axis != 1 or channel_layout.rank == 0:
        return None
    if node.attrs.get("mode", "constant") != "constant":
        return lift_view(context, node)  # reflect, edge and wrap repeat positions
    pads = read_pads(context, node, channel_layout.rank + 2)
    if isinstance(pads, Declined):
        return pads
    if any((*pads.begin[:2], *pads.end[:2])):
        return Declined(Reason.PADDING, "it pads batch or channels")
    if min((*pads.begin, *pads.end)) < 0:
        return Declined(Reason.PADDING, "it crops (negative pads)")
    if not np.isfinite(pads.value):
        return Declined(Reason.PADDING, f"it pads with {pads.value}")
    value = np.full(channel_layout.channels, pads.value)
    return padding_op(context, node, name, channel_layout, pads.begin[2:], pads.end[2:], value)


def padding_op(
    context: Context,
    node: gs.Node,
    name: str,
    channel_layout: ChannelLayout,
    begin: Sequence[int],
    end: Sequence[int],
    value: Array,
) -> LinearOp:
    """`pad_v(x)` of the tensor `name`: positions per spatial axis, and one value per channel."""
    slack = tuple(before + after - 1 for before, after in zip(begin, end, strict=True))
    pointwise = Geometry.diagonal(channel_layout.channels, channel_layout.rank)
    geometry = replace(pointwise, origin=tuple(-before for before in begin), slack=slack)
    # pad_0 is what every convolution does anyway: only another value has to meet an equal bias.
    has_value = value.any() and any((*begin, *end))
    padding_value = Bias.rounded(value, epsilon(channel_layout.data_type)) if has_value else None
    size = context.size(name, channel_layout.rank)
    kernel = equal_taps(geometry, 1.0)
    return from_kernel(node, name, kernel, Kind.PAD, size=size, padding_value=padding_value)


class PadAmounts(NamedTuple):
    """Positions that a Pad adds before and after, one entry per axis of the tensor, and their value."""

    begin: list[int]
    end: list[int]
    value: float


def read_pads(context: Context, node: gs.Node, rank: int) -> PadAmounts | Declined:
    """The constant arguments of a Pad of a tensor with `rank` axes, in any opset."""
    scope = context.scope
    all_axes = list(range(rank))
    if operator(node).uses_attributes(scope.opset):
        pads = node.attrs.get("pads", node.attrs.get("paddings"))  # called paddings in opset 1
        return _pad_amounts(pads or [], all_axes, rank, float(node.attrs.get("value", 0.0)))
    const = scope.const(optional_input(node, 1))
    if const is None:
        return Declined(Reason.PADDING, "its pads are not constant")
    value, axes = 0.0, all_axes
    value_name, axes_name = optional_input(node, 2), optional_input(node, 3)
    if value_name:
        filler = scope.const(value_name)
        if filler is None or filler.size != 1:
            return Declined(Reason.PADDING, "its padding value is not constant")
        value = float(flat_float64(filler.read())[0])
    if axes_name:
        listed = scope.const(axes_name)
        if listed is None:
            return Declined(Reason.PADDING, "its axes are not constant")
        axes = [int(axis) % rank for axis in listed.read().ravel()]
    return _pad_amounts(const.read().ravel().tolist(), axes, rank, value)


def _pad_amounts(pads: Sequence[int], axes: list[int], rank: int, value: float) -> PadAmounts | Declined:
    """`pads` lists all begins, then all ends, of the given axes; the other axes are not padded."""
    count = len(axes)
    if len(pads) != 2 * count or len(set(axes)) != count:
        return Declined(Reason.PADDING, "its pads are malformed")
    begin, end = [0] * rank, [0] * rank
    for number, axis in enumerate(axes):
        begin[axis], end[axis] = int(pads[number]), int(pads[count + number])
    return PadAmounts(begin, end, value)
