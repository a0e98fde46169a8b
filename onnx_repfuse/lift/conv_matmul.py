"""Conv, ConvTranspose, Gemm, MatMul: the operators that have a weight.

Weights are brought to the algebra's (c_out, c_in / groups, *kernel) when they are read:
ConvTranspose stores (c_in, c_out / groups, *kernel); MatMul and Gemm with transB=0 store (c_in, c_out).
Gemm is `alpha * A @ B + beta * C` (ONNX spec); transA does not act on the last axis and is not linear in this sense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Scaled, Stored, Vector
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand, added, vector_of
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["lift_conv", "lift_conv_transpose", "lift_gemm", "lift_matmul", "resolve_pads"]


def _weight(context: Context, node: gs.Node) -> Const | Declined | None:
    if len(node.inputs) < 2:
        return None
    name = node.inputs[1].name
    const = context.scope.const(name)
    if const is None:
        if name in context.scope.overridable:
            return Declined(Reason.OVERRIDABLE)
        producer = context.scope.producer.get(name)
        if producer is not None and producer.op == "DequantizeLinear":
            return Declined(Reason.QUANTIZED)
        return None
    return const if const.data_type in FLOAT_FORMATS else None


def _bias(context: Context, node: gs.Node, channels: int) -> Bias | Declined | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return Bias.zeros(channels)
    name = node.inputs[2].name
    const = context.scope.const(name)
    if const is None:
        if name in context.scope.overridable:
            return Declined(Reason.OVERRIDABLE)
        producer = context.scope.producer.get(name)
        if producer is not None and producer.op == "DequantizeLinear":
            return Declined(Reason.QUANTIZED)
        return None
    if const.shape != (channels,):
        return None
    bias = added(const, channels, const.data_type)
    return bias if np.isfinite(bias.known).all() else Declined(Reason.NON_FINITE)


def _kernel(geometry: Geometry, const: Const, view: Callable[[NDArray[Any]], NDArray[Any]]) -> Kernel:
    diagonal = geometry.is_diagonal and const.size <= MAX_FOLDED_ELEMENTS
    if const.kernel is not None and const.kernel.geometry.weight_shape == geometry.weight_shape:
        same = _same(const.kernel, geometry)
        if isinstance(same, Vector) or not diagonal:
            return same
        with np.errstate(all="ignore"):
            return Vector(geometry, same.rows(0, geometry.c_out).ravel())
    if diagonal:
        return Vector(geometry, vector_of(const.read()))
    return Stored(geometry, lambda: view(const.read()))


def _same(kernel: Kernel, geometry: Geometry) -> Kernel:
    """A kernel of this run, on the geometry its node was written with."""
    if kernel.geometry == geometry:
        return kernel
    return Stored(geometry, lambda: kernel.rows(0, geometry.c_out))


def resolve_pads(context: Context, node: gs.Node, kernel: tuple[int, ...]) -> tuple[int, ...] | Declined:
    """The pads of a Conv or pool, auto_pad resolved (ONNX spec, operator Conv)."""
    rank = len(kernel)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "", None):
        return tuple(node.attrs.get("pads") or (0,) * (2 * rank))
    if auto == "VALID":
        return (0,) * (2 * rank)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return Declined(Reason.UNSUPPORTED, f"auto_pad={auto} is unknown")
    strides = node.attrs.get("strides") or (1,) * rank
    dilations = node.attrs.get("dilations") or (1,) * rank
    size = context.size(node.inputs[0].name, rank)
    begins, ends = [], []
    for axis in range(rank):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if strides[axis] == 1:
            total = reach - 1
        elif size is None:
            return Declined(Reason.SHAPE, "auto_pad with a stride needs a known size (see --input-shape)")
        else:
            outputs = -(-size[axis] // strides[axis])
            total = max((outputs - 1) * strides[axis] + reach - size[axis], 0)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return (*begins, *ends)


def _axis_attribute(node: gs.Node, name: str) -> tuple[int, ...] | None:
    value = node.attrs.get(name)
    return tuple(value) if value else None


def lift_conv(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Conv with a constant weight, any rank."""
    const = _weight(context, node)
    if not isinstance(const, Const):
        return const
    if len(const.shape) < 3 or 0 in const.shape:
        return None
    kernel = const.shape[2:]
    groups = node.attrs.get("group", 1)
    if node.attrs.get("kernel_shape") and tuple(node.attrs["kernel_shape"]) != kernel:
        return None
    pads = resolve_pads(context, node, kernel)
    if isinstance(pads, Declined):
        return pads
    try:
        geometry = Geometry.conv(
            const.shape[1] * groups,
            const.shape[0],
            kernel,
            groups=groups,
            strides=_axis_attribute(node, "strides"),
            dilations=_axis_attribute(node, "dilations"),
            pads=pads,
        )
    except ValueError as error:
        return Declined(Reason.UNSUPPORTED, str(error))
    return _lifted(context, node, geometry, _kernel(geometry, const, lambda w: w), None)


def lift_conv_transpose(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """ConvTranspose with a constant weight and explicit pads."""
    const = _weight(context, node)
    if not isinstance(const, Const):
        return const
    if len(const.shape) < 3 or 0 in const.shape:
        return None
    kernel = const.shape[2:]
    groups = node.attrs.get("group", 1)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if node.attrs.get("kernel_shape") and tuple(node.attrs["kernel_shape"]) != kernel:
        return None
    if node.attrs.get("output_shape") or auto not in ("NOTSET", "", "VALID"):
        return Declined(Reason.UNSUPPORTED, "ConvTranspose with output_shape or auto_pad=SAME is not handled")
    try:
        geometry = Geometry.conv_transpose(
            const.shape[0],
            const.shape[1] * groups,
            kernel,
            groups=groups,
            strides=_axis_attribute(node, "strides"),
            dilations=_axis_attribute(node, "dilations"),
            pads=_axis_attribute(node, "pads") if auto != "VALID" else None,
            output_padding=_axis_attribute(node, "output_padding"),
        )
    except ValueError as error:
        return Declined(Reason.UNSUPPORTED, str(error))

    def view(weight: NDArray[Any]) -> NDArray[Any]:
        split = weight.reshape(groups, geometry.c_in // groups, geometry.c_out // groups, *kernel)
        return np.swapaxes(split, 1, 2).reshape(geometry.weight_shape)

    return _lifted(context, node, geometry, _kernel(geometry, const, view), Kind.TRANSPOSE)


def _lifted(
    context: Context, node: gs.Node, geometry: Geometry, kernel: Kernel, role: Kind | None
) -> LinearOp | Declined | None:
    bias = _bias(context, node, geometry.c_out)
    if not isinstance(bias, Bias):
        return bias
    name = node.inputs[0].name
    operand = Operand(name, geometry.c_in, geometry.layout)
    size = context.size(name, geometry.rank) if geometry.channel_axis == 1 else None
    return LinearOp(
        node,
        node.outputs[0].name,
        role,
        geometry.c_out,
        geometry.layout,
        (operand,),
        (Term(0, kernel),),
        bias,
        size=size,
    )


def lift_matmul(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """`x @ W` with a constant matrix W."""
    const = _weight(context, node)
    if not isinstance(const, Const):
        return const
    if len(const.shape) != 2 or 0 in const.shape or context.rank(node.inputs[0].name) == 1:
        return None
    geometry = Geometry.dense(*const.shape)
    return _lifted(context, node, geometry, _kernel(geometry, const, lambda w: w.T), Kind.MATMUL)


def lift_gemm(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Gemm with a constant B and a C that is constant and per column."""
    const = _weight(context, node)
    if not isinstance(const, Const):
        return const
    if len(const.shape) != 2 or 0 in const.shape:
        return None
    if node.attrs.get("transA", 0):
        return Declined(Reason.UNSUPPORTED, "transA=1 is not a product on the last axis")
    transposed = bool(node.attrs.get("transB", 0))
    c_out, c_in = const.shape if transposed else const.shape[::-1]
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    geometry = Geometry.dense(c_in, c_out)
    kernel = _kernel(geometry, const, (lambda w: w) if transposed else (lambda w: w.T))
    if alpha != 1.0:
        kernel = Scaled(geometry, kernel, np.full(c_out, alpha))
    bias = Bias.zeros(c_out)
    if len(node.inputs) > 2 and node.inputs[2].name and beta != 0.0:
        found = context.scope.const(node.inputs[2].name)
        if found is None:
            over = node.inputs[2].name in context.scope.overridable
            return Declined(Reason.OVERRIDABLE) if over else None
        aligned = (1,) * (2 - len(found.shape)) + found.shape
        if len(aligned) != 2 or aligned[0] != 1 or aligned[1] not in (1, c_out):
            return Declined(Reason.BROADCAST, f"its C of shape {list(found.shape)} is not per column")
        bias = added(found, c_out, const.data_type)
        if beta != 1.0:
            bias = bias.through(Vector(Geometry.diagonal(c_out, 0, -1), np.full(c_out, beta)))
        if not np.isfinite(bias.known).all():
            return Declined(Reason.NON_FINITE)
    operand = Operand(node.inputs[0].name, c_in, (-1, 0))
    return LinearOp(
        node, node.outputs[0].name, Kind.MATMUL, c_out, (-1, 0), (operand,), (Term(0, kernel),), bias
    )
