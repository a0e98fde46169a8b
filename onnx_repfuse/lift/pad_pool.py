"""Operators that move or average positions: Pad, AveragePool.

AveragePool with a divisor that is the same everywhere is a depthwise convolution with equal weights. With
count_include_pad=0 and pads the divisor shrinks at the border; with ceil_mode a window may hang over the end and
is divided by fewer, too (ONNX spec, operator AveragePool).

Pad with value v is a pointwise convolution that pads: `pad_v(x) = pad_0(x - v) + v`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Stored
from onnx_repfuse.lift.conv_matmul import resolve_pads
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, epsilon
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_average_pool", "lift_pad", "read_pads"]


def lift_average_pool(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """AveragePool as a depthwise convolution."""
    name = node.inputs[0].name
    frame = context.channel_layout(name) or context.channel_layout(node.outputs[0].name)
    kernel = tuple(node.attrs.get("kernel_shape") or ())
    if frame is None or frame.channel_axis != 1 or len(kernel) != frame.rank or not kernel:
        return None
    pads = resolve_pads(context, node, kernel)
    if isinstance(pads, Declined):
        return pads
    if any(p != 0 for p in pads) and not node.attrs.get("count_include_pad", 0):
        return Declined(Reason.POOLING)
    try:
        geometry = Geometry.conv(
            frame.channels,
            frame.channels,
            kernel,
            groups=frame.channels,
            strides=tuple(node.attrs.get("strides") or ()) or None,
            dilations=tuple(node.attrs.get("dilations") or ()) or None,
            pads=pads,
        )
    except ValueError as error:
        return Declined(Reason.UNSUPPORTED, str(error))
    size = context.size(name, frame.rank)
    if node.attrs.get("ceil_mode", 0) and not _ceil_is_floor(geometry, size):
        return Declined(Reason.POOLING, "ceil_mode may add a window that hangs over the end")
    weight = np.broadcast_to(1.0 / prod(kernel), geometry.weight_shape)
    term = Term(0, Stored(geometry, lambda: weight))
    operand = Operand(name, frame.channels, frame.layout)
    return LinearOp(
        node,
        node.outputs[0].name,
        Kind.POOL,
        frame.channels,
        frame.layout,
        (operand,),
        (term,),
        Bias.zeros(frame.channels),
        size=size,
    )


def _ceil_is_floor(geometry: Geometry, size: tuple[int, ...] | None) -> bool:
    if all(stride == 1 for stride in geometry.strides):
        return True
    return size is not None and all(
        (n + s) % stride == 0 for n, s, stride in zip(size, geometry.slack, geometry.strides, strict=True)
    )


def lift_pad(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Pad of space by a constant: attribute (opset 2-10), input (11-17), with `axes` (18)."""
    name = node.inputs[0].name
    frame = context.channel_layout(name) or context.channel_layout(node.outputs[0].name)
    if frame is None or frame.channel_axis != 1 or frame.rank == 0 or frame.data_type not in FLOAT_FORMATS:
        return None
    if node.attrs.get("mode", "constant") != "constant":
        return None
    found = read_pads(context, node, frame.rank + 2)
    if isinstance(found, Declined):
        return found
    pads, value = found
    begin, end = pads[: frame.rank + 2], pads[frame.rank + 2 :]
    if any((*begin[:2], *end[:2])):
        return Declined(Reason.PADDING, "it pads batch or channels")
    if min(pads) < 0:
        return Declined(Reason.PADDING, "it crops (negative pads)")
    if not np.isfinite(value):
        return Declined(Reason.PADDING, f"it pads with {value}")
    geometry = Geometry.diagonal(frame.channels, frame.rank)
    slack = tuple(b + e - 1 for b, e in zip(begin[2:], end[2:], strict=True))
    geometry = replace(geometry, origin=tuple(-b for b in begin[2:]), slack=slack)
    ones = np.broadcast_to(1.0, geometry.weight_shape)
    border = Bias.rounded(np.full(frame.channels, value), epsilon(frame.data_type))
    return LinearOp(
        node,
        node.outputs[0].name,
        Kind.PAD,
        frame.channels,
        frame.layout,
        (Operand(name, frame.channels, frame.layout),),
        (Term(0, Stored(geometry, lambda: ones)),),
        Bias.zeros(frame.channels),
        padding_value=border if value != 0 and any(pads) else None,
        size=context.size(name, frame.rank),
    )


def read_pads(context: Context, node: gs.Node, rank: int) -> tuple[list[int], float] | Declined:
    scope = context.scope
    if scope.opset < 11:
        given = node.attrs.get("pads", node.attrs.get("paddings"))
        value = float(node.attrs.get("value", 0.0))
        if given is None or len(given) != 2 * rank:
            return Declined(Reason.PADDING, "its pads are malformed")
        return [int(p) for p in given], value
    const = scope.const(node.inputs[1].name) if len(node.inputs) > 1 else None
    if const is None:
        return Declined(Reason.PADDING, "its pads are not constant")
    pads = [int(p) for p in const.read().ravel()]
    value = 0.0
    if len(node.inputs) > 2 and node.inputs[2].name:
        filler = scope.const(node.inputs[2].name)
        if filler is None or filler.size != 1:
            return Declined(Reason.PADDING, "its padding value is not constant")
        value = float(np.asarray(filler.read()).astype(np.float64).ravel()[0])
    if len(node.inputs) > 3 and node.inputs[3].name:
        listed = scope.const(node.inputs[3].name)
        if listed is None:
            return Declined(Reason.PADDING, "its axes are not constant")
        axes = [int(a) % rank for a in listed.read().ravel()]
        if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
            return Declined(Reason.PADDING, "its pads are malformed")
        whole = [0] * (2 * rank)
        for i, axis in enumerate(axes):
            whole[axis], whole[rank + axis] = pads[i], pads[len(axes) + i]
        pads = whole
    if len(pads) != 2 * rank:
        return Declined(Reason.PADDING, "its pads are malformed")
    return pads, value
