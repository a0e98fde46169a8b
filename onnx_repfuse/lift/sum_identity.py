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
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand, diagonal
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_dropout", "lift_nothing", "lift_sum"]


def lift_sum(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add, Sub, Sum, Mean of tensors; an operand that is a constant zero is dropped."""
    scope = context.scope
    output = node.outputs[0].name
    names = [t.name for t in node.inputs]
    if not all(names):
        return None
    frame = context.channel_layout(output)
    if frame is None or frame.data_type not in FLOAT_FORMATS:
        return None
    signs = [1.0] * len(names)
    if node.op == "Sub":
        signs[1] = -1.0
    elif node.op == "Mean":
        signs = [1.0 / len(names)] * len(names)
    if any(scope.const(name) is not None for name in names):
        return None
    axis, rank = frame.layout
    unit = Vector.unit(frame.channels, frame.layout)
    operands = []
    for name in names:
        own = context.channel_layout(name)
        if own is not None and own.channels != frame.channels and own.layout == frame.layout:
            return Declined(Reason.BROADCAST)
        operands.append(Operand(name, frame.channels, frame.layout))
    return LinearOp(
        node,
        output,
        Kind.MATMUL if frame.layout == (-1, 0) else Kind.BRANCHES,
        frame.channels,
        frame.layout,
        tuple(operands),
        tuple(
            Term(i, unit if s == 1 else Vector(unit.geometry, s * unit.scale)) for i, s in enumerate(signs)
        ),
        Bias.zeros(frame.channels),
        needs_equal_shapes=len(names) > 1 and not _equal_shapes(context, names),
        size=context.size(names[0], rank) if axis == 1 else None,
    )


def _equal_shapes(context: Context, names: list[str]) -> bool:
    first = context.scope.shape(names[0])
    if first is None or None in first:
        return False
    return all(context.scope.shape(name) == first for name in names[1:])


def lift_nothing(context: Context, node: gs.Node) -> LinearOp | None:
    """Identity, and Neg."""
    name = node.inputs[0].name
    frame = context.channel_layout(node.outputs[0].name) or context.channel_layout(name)
    if frame is None or frame.data_type not in FLOAT_FORMATS:
        return None
    sign = -1.0 if node.op == "Neg" else 1.0
    role = Kind.MATMUL if frame.layout == (-1, 0) else Kind.AFFINE
    return diagonal(node, name, frame, role, np.full(frame.channels, sign), np.zeros(frame.channels))


def lift_dropout(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Dropout that lets everything through: training_mode off (opset >= 12), is_test=1 (opset < 7)."""
    scope = context.scope
    if len(node.outputs) > 1 and node.outputs[1].name:
        return None
    if scope.opset < 7:
        live = not node.attrs.get("is_test", 0)
    elif len(node.inputs) > 2 and node.inputs[2].name:
        const = scope.const(node.inputs[2].name)
        live = const is None or bool(np.any(const.read()))
    else:
        live = False
    return Declined(Reason.TRAINING) if live else lift_nothing(context, node)
