"""Operators that pick or stack channels: Concat, Slice, Split. Their kernels are identities on a range."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["lift_concat", "lift_slice", "lift_split"]


def _unit(frame: ChannelLayout, channels: int) -> Vector:
    return Vector.unit(channels, frame.layout)


def _is_channel_axis(context: Context, frame: ChannelLayout, name: str, axis: int) -> bool:
    rank = context.rank(name)
    if rank is None:
        return axis == frame.channel_axis
    return rank > 0 and axis % rank == frame.channel_axis % rank


def lift_concat(context: Context, node: gs.Node) -> LinearOp | None:
    """Concat along the channels."""
    output = node.outputs[0].name
    frame = context.channel_layout(output)
    names = [t.name for t in node.inputs]
    if frame is None or frame.data_type not in FLOAT_FORMATS or not all(names) or "axis" not in node.attrs:
        return None
    operands, terms, start = [], [], 0
    for number, name in enumerate(names):
        own = context.channel_layout(name)
        if own is None or own.layout != frame.layout or context.scope.const(name) is not None:
            return None
        if not _is_channel_axis(context, frame, name, node.attrs["axis"]):
            return None
        operands.append(Operand(name, own.channels, own.layout))
        terms.append(Term(number, _unit(frame, own.channels), 0, start))
        start += own.channels
    if start != frame.channels:
        return None
    return LinearOp(
        node,
        output,
        Kind.CONCAT,
        frame.channels,
        frame.layout,
        tuple(operands),
        tuple(terms),
        Bias.zeros(frame.channels),
    )


def _selection(node: gs.Node, output: str, name: str, frame: ChannelLayout, lo: int, hi: int) -> LinearOp:
    return LinearOp(
        node,
        output,
        Kind.CONCAT,
        hi - lo,
        frame.layout,
        (Operand(name, frame.channels, frame.layout),),
        (Term(0, _unit(frame, hi - lo), lo, 0),),
        Bias.zeros(hi - lo),
    )


def lift_slice(context: Context, node: gs.Node) -> LinearOp | None:
    """Slice of consecutive channels by constants."""
    name = node.inputs[0].name
    frame = context.channel_layout(name)
    if frame is None or frame.data_type not in FLOAT_FORMATS:
        return None
    values: list[list[int] | None] = []
    if context.scope.opset < 10:
        values = [node.attrs.get("starts"), node.attrs.get("ends"), node.attrs.get("axes"), None]
    else:
        for tensor in [*node.inputs[1:5], *[None] * (5 - len(node.inputs))]:
            if tensor is None or not tensor.name:
                values.append(None)
                continue
            const = context.scope.const(tensor.name)
            if const is None:
                return None
            values.append([int(v) for v in const.read().ravel()])
    starts, ends, axes, steps = values
    if starts is None or ends is None or len(starts) != 1 or len(ends) != 1 or (axes and len(axes) != 1):
        return None
    if (steps and steps != [1]) or not _is_channel_axis(context, frame, name, axes[0] if axes else 0):
        return None
    lo, hi, _ = slice(starts[0], ends[0]).indices(frame.channels)
    return _selection(node, node.outputs[0].name, name, frame, lo, hi) if lo < hi else None


def lift_split(context: Context, node: gs.Node, output: int) -> LinearOp | None:
    """One output of a Split of channels into known parts."""
    name = node.inputs[0].name
    frame = context.channel_layout(name)
    if frame is None or frame.data_type not in FLOAT_FORMATS:
        return None
    if not _is_channel_axis(context, frame, name, node.attrs.get("axis", 0)):
        return None
    sizes = node.attrs.get("split")
    if len(node.inputs) > 1 and node.inputs[1].name:
        const = context.scope.const(node.inputs[1].name)
        if const is None:
            return None
        sizes = [int(v) for v in const.read().ravel()]
    if sizes is None:
        chunk = -(-frame.channels // len(node.outputs))
        sizes = [min(chunk, frame.channels - i * chunk) for i in range(len(node.outputs))]
    if len(sizes) != len(node.outputs) or sum(sizes) != frame.channels or min(sizes) < 1:
        return None
    lo = sum(sizes[:output])
    return _selection(node, node.outputs[output].name, name, frame, lo, lo + sizes[output])
