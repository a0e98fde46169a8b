"""Sums of tensors, and operators that do nothing: Add, Sub, Sum, Mean, Neg, Identity, Dropout, no-ops.

`Add(a, b)` is linear only when it does not broadcast. That is proved by equal sizes (`graph.dims`) or, later, by the
geometry of its operands; annotations in the file are not trusted.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.no_ops import drops, given_out, has_mask
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS
from onnx_repfuse.lift.batchnorm_arithmetic import (
    ROUNDS_BETWEEN,
    lift_arithmetic,
    per_channel,
    rounds_between,
)
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand, bias_of_const, diagonal
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_add", "lift_dropout", "lift_identity", "lift_no_op", "lift_sum"]


def lift_add(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add and Sub, of two tensors or of a tensor and a constant."""
    if any(context.scope.const(tensor.name) is not None for tensor in node.inputs):
        return lift_arithmetic(context, node)
    return lift_sum(context, node)


def lift_sum(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add, Sub, Sum, Mean of tensors; of Sum and Mean, some operands may be constant."""
    output = node.outputs[0].name
    names = [tensor.name for tensor in node.inputs if context.scope.const(tensor.name) is None]
    channel_layout = context.float_layout(output)
    if channel_layout is None or not all(names):
        return None
    channels, layout = channel_layout.channels, channel_layout.layout
    # Height, width and batch may broadcast, too: `needs_equal_shapes` leaves that to the planner.
    if any(_broadcasts_channels(context, name, channel_layout) for name in names):
        return Declined(Reason.BROADCAST)
    bias = _constant_summands(context, node, names, channel_layout)
    if not isinstance(bias, Bias):
        return bias
    return LinearOp(
        node,
        output,
        _role(node, layout),
        channels,
        layout,
        tuple(Operand(name, channels, layout) for name in names),
        _summands(node, len(names), channels, layout),
        bias,
        needs_equal_shapes=len(names) > 1 and not equal_shapes(context.scope, names),
        size=context.size(names[0], channel_layout.rank) if channel_layout.channel_axis == 1 else None,
    )


def _constant_summands(
    context: Context, node: gs.Node, names: list[str], channel_layout: ChannelLayout
) -> Bias | Declined | None:
    """What the constants among the operands add to each channel; None where there is no tensor to add them to."""
    channels, layout = channel_layout.channels, channel_layout.layout
    total, shifts = Bias.zeros(channels), []
    if len(names) == len(node.inputs):
        return total
    for tensor in node.inputs:
        const = context.scope.const(tensor.name)
        if const is None:
            continue
        if not names or const.data_type not in FLOAT_FORMATS or const.size > MAX_FOLDED_ELEMENTS:
            return None
        acts_in = per_channel(context, names[0], node.outputs[0].name, const.shape)
        if not isinstance(acts_in, ChannelLayout):
            return acts_in
        if acts_in.layout != layout:
            return None
        shift = bias_of_const(const, channels, channel_layout.data_type)
        shifts.append(shift.known)
        total = total + shift
    if not np.isfinite(total.known).all():
        return Declined(Reason.NON_FINITE)
    if rounds_between(context, node, shifts, channel_layout.data_type):
        return Declined(Reason.PRECISION, ROUNDS_BETWEEN)
    mean = Vector(Vector.unit(channels, layout).geometry, np.full(channels, 1 / len(node.inputs)))
    return total.through(mean) if node.op == "Mean" else total


def _role(node: gs.Node, layout: tuple[int, int]) -> Kind | None:
    """The kind of a sum; none for an Identity, which a fold of any kind may hold."""
    if len(node.inputs) == 1:
        return None
    return Kind.MATMUL if layout == (-1, 0) else Kind.BRANCHES


def _broadcasts_channels(context: Context, name: str, output: ChannelLayout) -> bool:
    operand = context.channel_layout(name)
    if operand is None or operand.layout != output.layout:
        return False
    return operand.channels != output.channels


def _summands(node: gs.Node, tensors: int, channels: int, layout: tuple[int, int]) -> tuple[Term, ...]:
    """Each tensor times 1; 1 and -1; or 1/n."""
    unit = Vector.unit(channels, layout)
    kernels = [unit] * tensors
    if node.op == "Sub":
        kernels = [unit, Vector(unit.geometry, -unit.scale)]
    elif node.op == "Mean" and len(node.inputs) > 1:
        kernels = [Vector(unit.geometry, unit.scale / len(node.inputs))] * tensors
    return tuple(Term(number, kernel) for number, kernel in enumerate(kernels))


def lift_identity(context: Context, node: gs.Node) -> LinearOp | None:
    """Identity, and Neg."""
    return _times(context, node, node.inputs[0].name, -1.0 if node.op == "Neg" else 1.0)


def lift_no_op(context: Context, node: gs.Node) -> LinearOp | None:
    """What gives out one of its inputs, as a Where that takes all of it: at the end of a graph it is not removed."""
    source = given_out(context.scope, node)
    return _times(context, node, source, 1.0) if source else None


def _times(context: Context, node: gs.Node, name: str, factor: float) -> LinearOp | None:
    channel_layout = context.float_layout(node.outputs[0].name, name)
    if channel_layout is None:
        return None
    channels = channel_layout.channels
    return diagonal(node, name, channel_layout, np.full(channels, factor), np.zeros(channels))


def lift_dropout(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Dropout in inference mode, without a consumer of its mask."""
    if has_mask(node):
        return None
    return Declined(Reason.TRAINING) if drops(context.scope, node) else lift_identity(context, node)
