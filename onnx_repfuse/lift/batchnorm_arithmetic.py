"""Per-channel affine operators: BatchNormalization, and arithmetic with a constant.

BatchNormalization: `t = scale / sqrt(var + epsilon)`, `y = t*x + (B - mean*t)` (ONNX spec, inference mode).

A constant acts per channel only if numpy broadcasting says so: aligned from the right, every dim but the channel
dim is 1. On a Conv's output of shape (N, C, H, W) a constant of shape (W,) or (H, 1) is not per channel, even if
its length happens to equal C; and a constant with more dims than the tensor changes its rank.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Array
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, added, diagonal, vector_of
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_arithmetic", "lift_batch_normalization", "per_channel"]


def lift_batch_normalization(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """BatchNormalization in inference mode with constant parameters."""
    scope = context.scope
    if len(node.inputs) < 5:
        return None
    names = [t.name for t in node.inputs]
    live = [t for t in node.outputs[1:] if t.name]
    if scope.opset < 7:
        if not node.attrs.get("is_test", 0):
            return Declined(
                Reason.TRAINING, "it runs in training mode (is_test=0): export the model in eval mode"
            )
    elif node.attrs.get("training_mode", 0) or live:
        return Declined(Reason.TRAINING)
    if scope.opset < 9 and not node.attrs.get("spatial", 1):
        return Declined(Reason.SPATIAL)
    values, made = [], None  # the shift, if it is one of this run
    for name in names[1:5]:
        const = scope.const(name)
        if const is None:
            return Declined(Reason.OVERRIDABLE) if name in scope.overridable else None
        if len(const.shape) != 1 or const.size > MAX_FOLDED_ELEMENTS:
            return Declined(Reason.SPATIAL)
        made = made or const.bias
        values.append(const.read().astype(np.float64) if const.bias is None else const.bias.known)
    scale, shift, mean, variance = values
    if len({len(v) for v in values}) != 1:
        return None
    frame = context.channel_layout(names[0])
    rank = context.rank(names[0])
    if rank is None and frame is None:
        return Declined(Reason.SHAPE, "the rank of its input is not known (see --input-shape)")
    data_type = scope.data_type(names[0]) or (frame.data_type if frame else 0)
    if rank == 2 or (frame is not None and rank is None and frame.channel_axis == -1):
        layout = (-1, 0)
        if rank is None:
            return Declined(Reason.SHAPE, "the rank of its input is not known")
    else:
        layout = (1, (rank or 2) - 2)
    if rank is not None and rank < 2:
        return None
    epsilon = float(np.float32(node.attrs.get("epsilon", 1e-5)))  # attributes are float32, the default too
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        moved = mean * factor
        offset, terms = shift - moved, np.abs(shift) + np.abs(moved)
        finite = np.isfinite(factor + terms).all()
    if not finite:
        return Declined(Reason.NON_FINITE)
    role = Kind.MATMUL if layout == (-1, 0) else Kind.AFFINE
    own = ChannelLayout(*layout, len(scale), data_type)
    lifted = diagonal(node, names[0], own, role, factor, offset, terms=terms)
    return lifted if made is None else replace(lifted, bias=made)  # we write means of 0 and variances of 1


def lift_arithmetic(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add, Sub, Mul, Div of a tensor and a constant, on either side."""
    if len(node.inputs) != 2:
        return None
    left, right = (context.scope.const(t.name) for t in node.inputs)
    if (left is None) == (right is None):
        return None
    const = left if left is not None else right
    name = node.inputs[0 if left is None else 1].name
    if const is None or const.data_type not in FLOAT_FORMATS or (node.op == "Div" and left is not None):
        return None
    found = per_channel(context, name, node.outputs[0].name, const.shape)
    if not isinstance(found, ChannelLayout):
        return found
    if const.size > MAX_FOLDED_ELEMENTS:
        return None
    role = Kind.MATMUL if found.layout == (-1, 0) else Kind.AFFINE
    ones, zeros = np.ones(found.channels), np.zeros(found.channels)
    if const.bias is not None and node.op == "Add":
        lifted = diagonal(node, name, found, role, ones, zeros)
        return replace(lifted, bias=added(const, found.channels, found.data_type))
    value = np.broadcast_to(vector_of(const.read()), (found.channels,))
    if not np.isfinite(value).all():
        return Declined(Reason.NON_FINITE)
    scale: Array
    shift: Array
    if node.op == "Add":
        scale, shift = ones, value
    elif node.op == "Sub":
        scale, shift = (ones, -value) if left is None else (-ones, value)
    elif node.op == "Mul":
        scale, shift = value, zeros
    else:
        with np.errstate(all="ignore"):
            scale, shift = 1.0 / value, zeros
        if not np.isfinite(scale).all():
            return Declined(Reason.NON_FINITE, "it divides by zero")
    return diagonal(node, name, found, role, np.array(scale), np.array(shift))


def per_channel(
    context: Context, name: str, output: str, shape: tuple[int, ...]
) -> ChannelLayout | Declined | None:
    """The frame in which a constant of `shape` acts per channel on tensor `name`."""
    frame = context.channel_layout(output) or context.channel_layout(name)
    rank = context.rank(name)
    if frame is None:
        return None
    size = int(np.prod(shape))
    if rank is None:
        # Only the last axis can be told apart.
        scalar = size == 1 and len(shape) <= 1
        if scalar or (frame.channel_axis == -1 and shape == (frame.channels,)):
            return frame
        return Declined(Reason.SHAPE, "the rank of its input is not known")
    if len(shape) > rank:
        return Declined(
            Reason.BROADCAST, f"its constant of shape {list(shape)} changes the rank of its input"
        )
    aligned = (1,) * (rank - len(shape)) + shape
    axes = [axis for axis, dim in enumerate(aligned) if dim != 1]
    if not axes:
        return frame
    channel = frame.channel_axis % rank
    if axes != [channel]:
        return Declined(Reason.BROADCAST, f"its constant of shape {list(shape)} is not per channel")
    own = context.channel_layout(name)
    if aligned[channel] != frame.channels or (own is not None and own.channels != frame.channels):
        return Declined(
            Reason.BROADCAST, f"its constant of shape {list(shape)} changes the number of channels"
        )
    if own is None:
        dims = context.scope.shape(name)
        if dims is None or dims[channel] != frame.channels:
            return Declined(Reason.SHAPE, "the channels of its input are not known")
    return frame
