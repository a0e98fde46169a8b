"""Sums of tensors, and operators that do nothing: Add, Sub, Sum, Mean, Neg, Identity, Dropout.

`Add(a, b)` is linear only when it does not broadcast. That is proved by equal static shapes or, later, by the
geometry of its operands; annotations in the file are not trusted.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.scope import optional_input
from onnx_repfuse.lift.batchnorm_arithmetic import lift_arithmetic
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand, diagonal
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_add", "lift_dropout", "lift_identity", "lift_sum"]


def lift_add(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add and Sub, of two tensors or of a tensor and a constant."""
    if any(context.scope.const(tensor.name) is not None for tensor in node.inputs):
        return lift_arithmetic(context, node)
    return lift_sum(context, node)


def lift_sum(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add, Sub, Sum, Mean of tensors, none of them constant."""
    output = node.outputs[0].name
    names = [tensor.name for tensor in node.inputs]
    channel_layout = context.float_layout(output)
    # With two operands that is `lift_arithmetic`; a constant among three or more is rare, and is left as it is.
    has_constant = any(context.scope.const(name) is not None for name in names)
    if channel_layout is None or has_constant or not all(names):
        return None
    channels, layout = channel_layout.channels, channel_layout.layout
    # Height, width and batch may broadcast, too: `needs_equal_shapes` leaves that to the planner.
    if any(_broadcasts_channels(context, name, channel_layout) for name in names):
        return Declined(Reason.BROADCAST)
    return LinearOp(
        node,
        output,
        _role(names, layout),
        channels,
        layout,
        tuple(Operand(name, channels, layout) for name in names),
        tuple(Term(number, kernel) for number, kernel in enumerate(_summands(node, channels, layout))),
        Bias.zeros(channels),
        needs_equal_shapes=len(names) > 1 and not _equal_shapes(context, names),
        size=context.size(names[0], channel_layout.rank) if channel_layout.channel_axis == 1 else None,
    )


def _role(names: list[str], layout: tuple[int, int]) -> Kind | None:
    """The kind of a sum; none for an Identity, which a fold of any kind may hold."""
    if len(names) == 1:
        return None
    return Kind.MATMUL if layout == (-1, 0) else Kind.BRANCHES


def _broadcasts_channels(context: Context, name: str, output: ChannelLayout) -> bool:
    operand = context.channel_layout(name)
    if operand is None or operand.layout != output.layout:
        return False
    return operand.channels != output.channels


def _summands(node: gs.Node, channels: int, layout: tuple[int, int]) -> list[Vector]:
    """What each operand is multiplied with: 1; 1 and -1; or 1/n."""
    unit = Vector.unit(channels, layout)
    count = len(node.inputs)
    if node.op == "Sub":
        return [unit, Vector(unit.geometry, -unit.scale)]
    if node.op == "Mean" and count > 1:
        return [Vector(unit.geometry, unit.scale / count)] * count
    return [unit] * count


def _equal_shapes(context: Context, names: list[str]) -> bool:
    first = context.scope.shape(names[0])
    if first is None or None in first:
        return False
    return all(context.scope.shape(name) == first for name in names[1:])


def lift_identity(context: Context, node: gs.Node) -> LinearOp | None:
    """Identity, and Neg."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(node.outputs[0].name, name)
    if channel_layout is None:
        return None
    channels = channel_layout.channels
    scale = np.full(channels, -1.0 if node.op == "Neg" else 1.0)
    return diagonal(node, name, channel_layout, scale, np.zeros(channels))


def lift_dropout(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Dropout in inference mode, without a consumer of its mask."""
    if len(node.outputs) > 1 and node.outputs[1].name:
        return None
    return Declined(Reason.TRAINING) if _drops(context, node) else lift_identity(context, node)


def _drops(context: Context, node: gs.Node) -> bool:
    """Whether it may run in training mode, where it sets values to zero at random."""
    # From opset 7 to 11 a Dropout is the identity; training mode is an input from 12 on.
    if context.scope.opset < 7:
        return not node.attrs.get("is_test", 0)
    name = optional_input(node, 2)
    if not name:
        return False
    const = context.scope.const(name)
    return const is None or bool(np.any(const.read()))
