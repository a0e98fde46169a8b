"""Conv, ConvTranspose, Gemm, MatMul, Einsum: the operators that have a weight.

Weights are brought to the algebra's (c_out, c_in / groups, *kernel) when they are read:
ConvTranspose stores (c_in, c_out / groups, *kernel); MatMul and Gemm with transB=0 store (c_in, c_out).
Gemm is `alpha * A @ B + beta * C` (ONNX spec); transA does not act on the last axis and is not linear in this sense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Scaled, Stored, Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph import windows
from onnx_repfuse.graph.constant_folding import why_not_constant
from onnx_repfuse.graph.operators.conv_matmul import is_one_matrix
from onnx_repfuse.graph.operators.einsum import product_by_matrix
from onnx_repfuse.graph.operators.facts import auto_pad, per_axis
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, node_name, optional_input
from onnx_repfuse.lift.linear_op import (
    Context,
    Declined,
    LinearOp,
    bias_of_const,
    flat_float64,
    from_kernel,
)
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = [
    "conv_geometry",
    "lift_conv",
    "lift_conv_transpose",
    "lift_einsum",
    "lift_gemm",
    "lift_matmul",
    "resolve_pads",
]

ODD_PADS_SINCE = 11  # the opset from which the standard says where a ConvTranspose leaves out an odd position


def _parameter(context: Context, name: str) -> Const | Declined | None:
    """A weight or bias that is constant; Declined where the user may make it one."""
    const = context.scope.const(name)
    if const is not None:
        return const
    if name in context.scope.overridable:
        return Declined(Reason.OVERRIDABLE)
    # A quantized model: the folded weight would have to be quantized again.
    producer = context.scope.producer.get(name)
    if producer is not None and producer.op == "DequantizeLinear":
        return Declined(Reason.QUANTIZED)
    why = _why_not_evaluated(context, producer)
    return Declined(Reason.UNSUPPORTED, why) if why else None


def _why_not_evaluated(context: Context, producer: gs.Node | None) -> str:
    """Why a weight counts as a tensor, though the node that computes it reads constants alone; '' if it does not."""
    scope = context.scope
    if producer is None or id(producer) not in scope.original:
        return ""
    if any(tensor.name and scope.const(tensor.name) is None for tensor in producer.inputs):
        return ""
    why = why_not_constant(scope.proto.node[scope.anchor[id(producer)]])
    return f"its weight is computed by {producer.op} '{node_name(producer)}', and {why}" if why else ""


def _weight(context: Context, node: gs.Node) -> Const | Declined | None:
    const = _parameter(context, optional_input(node, 1))
    if isinstance(const, Const) and const.data_type not in FLOAT_FORMATS:
        return None
    return const


def _bias(context: Context, node: gs.Node, channels: int) -> Bias | Declined | None:
    """The third input of a Conv or ConvTranspose."""
    name = optional_input(node, 2)
    if not name:
        return Bias.zeros(channels)
    const = _parameter(context, name)
    if not isinstance(const, Const):
        return const
    if const.shape != (channels,):  # invalid
        return None
    return _if_finite(bias_of_const(const, channels, const.data_type))


def _if_finite(bias: Bias) -> Bias | Declined:
    return bias if np.isfinite(bias.known).all() else Declined(Reason.NON_FINITE)


def _kernel(geometry: Geometry, const: Const, view: Callable[[NDArray[Any]], NDArray[Any]]) -> Kernel:
    """The kernel of a weight; `view` brings it to `geometry.weight_shape`.

    One value per channel (a 1x1 depthwise Conv) is read now, because a `Vector` composes while planning.
    """
    is_vector = geometry.is_diagonal and const.size <= MAX_FOLDED_ELEMENTS
    created = const.kernel
    if created is None or created.geometry.weight_shape != geometry.weight_shape:
        if is_vector:
            return Vector(geometry, flat_float64(const.read()))
        origin = const, view.__code__
        return Stored(geometry, lambda: view(const.read()), origin, const.inner > 0, const.least)
    # An earlier round of this run created the weight: go on in float64 from what is behind it.
    kernel = created
    if created.geometry != geometry:
        kernel = Stored(geometry, lambda: created.rows(0, geometry.c_out))
    if isinstance(kernel, Vector) or not is_vector:
        return kernel
    with np.errstate(all="ignore"):
        return Vector(geometry, kernel.rows(0, geometry.c_out).ravel())


def resolve_pads(context: Context, node: gs.Node, kernel: tuple[int, ...]) -> tuple[int, ...] | Declined:
    """`windows.resolve_pads`; Declined where they are not known."""
    try:
        return windows.resolve_pads(context.scope, node, kernel)
    except Inexact as reason:
        return Declined(reason.reason, reason.detail)


def _axis_attribute(node: gs.Node, name: str) -> tuple[int, ...] | None:
    value = node.attrs.get(name)
    return tuple(value) if value else None


def conv_geometry(
    node: gs.Node, c_in: int, c_out: int, kernel: tuple[int, ...], groups: int, pads: tuple[int, ...]
) -> Geometry | Declined:
    """The geometry of a Conv or AveragePool with the node's strides and dilations."""
    try:
        return Geometry.conv(
            c_in,
            c_out,
            kernel,
            groups=groups,
            strides=_axis_attribute(node, "strides"),
            dilations=_axis_attribute(node, "dilations"),
            pads=pads,
        )
    except ValueError as error:
        return Declined(Reason.UNSUPPORTED, str(error))


def _kernel_size(node: gs.Node, weight: Const) -> tuple[int, ...] | None:
    """The spatial dims of a convolution's weight; None if it is empty or contradicts the attribute."""
    kernel = weight.shape[2:]
    stated = _axis_attribute(node, "kernel_shape")
    is_consistent = stated in (None, kernel) and 0 not in weight.shape
    return kernel if kernel and is_consistent else None


def lift_conv(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Conv with a constant weight, any rank."""
    weight = _weight(context, node)
    if not isinstance(weight, Const):
        return weight
    kernel = _kernel_size(node, weight)
    if kernel is None:
        return None
    pads = resolve_pads(context, node, kernel)
    if isinstance(pads, Declined):
        return pads
    groups = node.attrs.get("group", 1)  # the weight is (c_out, c_in / groups, *kernel)
    geometry = conv_geometry(node, weight.shape[1] * groups, weight.shape[0], kernel, groups, pads)
    if isinstance(geometry, Declined):
        return geometry
    return _with_bias(context, node, _kernel(geometry, weight, lambda w: w), None)


def lift_conv_transpose(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """ConvTranspose with a constant weight."""
    weight = _weight(context, node)
    if not isinstance(weight, Const):
        return weight
    kernel = _kernel_size(node, weight)
    if kernel is None:
        return None
    pads = _pads_of_transposed(context, node, kernel)
    if isinstance(pads, Declined):
        return pads
    groups = node.attrs.get("group", 1)  # the weight is (c_in, c_out / groups, *kernel)
    try:
        geometry = Geometry.conv_transpose(
            weight.shape[0],
            weight.shape[1] * groups,
            kernel,
            groups=groups,
            strides=_axis_attribute(node, "strides"),
            dilations=_axis_attribute(node, "dilations"),
            pads=pads,
            output_padding=_axis_attribute(node, "output_padding"),
        )
    except ValueError as error:
        return Declined(Reason.UNSUPPORTED, str(error))

    mirrored = _mirrored(geometry)

    def view(values: NDArray[Any]) -> NDArray[Any]:
        """(c_in, c_out / groups, *kernel) -> (c_out, c_in / groups, *kernel)."""
        split = values.reshape(groups, geometry.c_in // groups, geometry.c_out // groups, *kernel)
        result = np.swapaxes(split, 1, 2).reshape(geometry.weight_shape)
        return result if mirrored is None else np.flip(result, tuple(range(2, result.ndim)))

    return _with_bias(context, node, _kernel(mirrored or geometry, weight, view), Kind.TRANSPOSE)


def _pads_of_transposed(
    context: Context, node: gs.Node, kernel: tuple[int, ...]
) -> tuple[int, ...] | Declined | None:
    """The pads of a ConvTranspose, all begins, then all ends; None where there are none.

    They are as many as its `output_shape` demands, or as `auto_pad` SAME does: stride times the input's size.
    """
    mode = auto_pad(node.attrs)
    if mode == "NOTSET" and not node.attrs.get("output_shape"):
        return _axis_attribute(node, "pads")
    if any(node.attrs.get("pads") or ()):
        return Declined(
            Reason.UNSUPPORTED, "it has pads, and an output_shape or auto_pad, which exclude them"
        )
    if mode == "VALID" and not node.attrs.get("output_shape"):
        return None
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return Declined(Reason.UNSUPPORTED, f"auto_pad={mode} is unknown")
    totals = _cut_from_transposed(context, node, kernel)
    has_sides = context.scope.opset >= ODD_PADS_SINCE
    if totals is None or not (has_sides or all(total % 2 == 0 for total in totals)):
        return Declined(
            Reason.UNSUPPORTED, "the pads that its output_shape or auto_pad stands for are not known"
        )
    smaller = [total // 2 for total in totals]
    larger = [total - total // 2 for total in totals]
    return (*smaller, *larger) if mode == "SAME_UPPER" else (*larger, *smaller)


def _cut_from_transposed(context: Context, node: gs.Node, kernel: tuple[int, ...]) -> list[int] | None:
    """How many positions a ConvTranspose leaves out of all it computes, per spatial axis; None if not known.

    Without pads, n positions become `stride * (n - 1) + reach`, of which SAME keeps `stride * n`.
    """
    rank = len(kernel)
    strides, dilations = per_axis(node.attrs, "strides", rank), per_axis(node.attrs, "dilations", rank)
    extra = tuple(node.attrs.get("output_padding") or (0,) * rank)
    wanted = tuple(node.attrs.get("output_shape") or ())
    if {len(strides), len(dilations), len(extra)} != {rank} or len(wanted) not in (0, rank):
        return None
    reach = [step * (taps - 1) + 1 + more for taps, step, more in zip(kernel, dilations, extra, strict=True)]
    if not wanted:  # with output_padding, onnx and ONNX Runtime count otherwise
        totals = [one - stride for one, stride in zip(reach, strides, strict=True)] if not any(extra) else []
    else:
        size = context.size(node.inputs[0].name, rank) or ()
        axes = zip(size, strides, reach, wanted, strict=True) if size else ()
        totals = [stride * (n - 1) + one - out for n, stride, one, out in axes]
    return totals if totals and min(totals) >= 0 else None


def _mirrored(geometry: Geometry) -> Geometry | None:
    """The Conv that a ConvTranspose of stride 1 is, whose taps run backwards.

    None for another stride, and where it writes more positions than it reads: there the Conv would take more
    multiply-adds.
    """
    if max(geometry.strides) > 1 or max(geometry.slack) > 1:
        return None
    # It writes at i + origin + d*k: output j reads x at j - origin - d*k, first of all at the last tap.
    axes = zip(geometry.dilations, geometry.kernel, geometry.origin, strict=True)
    origin = tuple(-o - d * (k - 1) for d, k, o in axes)
    return replace(geometry, origin=origin, slack=tuple(s - 2 for s in geometry.slack), transposed=False)


def _with_bias(
    context: Context, node: gs.Node, kernel: Kernel, role: Kind | None
) -> LinearOp | Declined | None:
    bias = _bias(context, node, kernel.geometry.c_out)
    if not isinstance(bias, Bias):
        return bias
    name = node.inputs[0].name
    return from_kernel(node, name, kernel, role, bias, size=context.size(name, kernel.geometry.rank))


def lift_matmul(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """`x @ W` with a constant matrix W."""
    weight = _weight(context, node)
    if not isinstance(weight, Const):
        return weight
    name = node.inputs[0].name
    rank = context.rank(name)
    if not is_one_matrix(weight.shape) or 0 in weight.shape:
        return None  # a batch of matrices, or nothing
    if rank == 1:
        return None  # (K,) @ (K, N) -> (N,), which is not a map of channels
    may_add_axes = rank is None or rank < len(weight.shape)
    if may_add_axes and len(weight.shape) > 2:
        return None  # (M, K) @ (1, K, N) -> (1, M, N)
    c_in, c_out = weight.shape[-2:]
    kernel = _kernel(Geometry.dense(c_in, c_out), weight, lambda w: w.reshape(c_in, c_out).T)
    return from_kernel(node, name, kernel, Kind.MATMUL)


def lift_einsum(context: Context, node: gs.Node) -> LinearOp | None:
    """Einsum with a constant matrix, along the last axis or axis 1."""
    product = product_by_matrix(context.scope, node)
    if product is None:
        return None
    weight, (c_in, c_out) = context.scope.constants[node.inputs[product.weight].name], product.channels
    if weight.data_type not in FLOAT_FORMATS or 0 in weight.shape:
        return None
    axis, rank = product.layout
    if axis == 1 and weight.data_type == onnx.TensorProto.DOUBLE:
        return None  # ONNX Runtime has no Conv of doubles, as it has Einsums
    geometry = Geometry.dense(c_in, c_out) if axis == -1 else Geometry.conv(c_in, c_out, (1,) * rank)
    shape = geometry.weight_shape
    reads_rows = product.reads_rows
    kernel = _kernel(
        geometry, weight, (lambda w: w.T.reshape(shape)) if reads_rows else (lambda w: w.reshape(shape))
    )
    return from_kernel(node, node.inputs[product.data].name, kernel, Kind.MATMUL)


def lift_gemm(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Gemm with a constant B and a C that is constant and per column."""
    weight = _weight(context, node)
    if not isinstance(weight, Const):
        return weight
    if len(weight.shape) != 2 or 0 in weight.shape:  # fuzzed files have empty weights
        return None
    if node.attrs.get("transA", 0):
        return Declined(Reason.UNSUPPORTED, "transA=1 is not a product on the last axis")
    is_transposed = bool(node.attrs.get("transB", 0))
    c_out, c_in = weight.shape if is_transposed else weight.shape[::-1]
    geometry = Geometry.dense(c_in, c_out)
    kernel = _kernel(geometry, weight, (lambda w: w) if is_transposed else (lambda w: w.T))
    alpha = float(node.attrs.get("alpha", 1.0))
    if alpha != 1.0:  # of the product alone: the bias has beta
        kernel = Scaled(geometry, kernel, np.full(c_out, alpha))
    bias = _gemm_bias(context, node, c_out, weight.data_type)
    if not isinstance(bias, Bias):
        return bias
    return from_kernel(node, node.inputs[0].name, kernel, Kind.MATMUL, bias)


def _gemm_bias(context: Context, node: gs.Node, channels: int, data_type: int) -> Bias | Declined | None:
    """`beta * C`, where C broadcasts along the rows: shape (), (1,), (n,), (1, 1) or (1, n)."""
    beta = float(node.attrs.get("beta", 1.0))
    name = optional_input(node, 2)
    if not name or beta == 0.0:  # then C is not read, whatever it holds
        return Bias.zeros(channels)
    const = context.scope.const(name)
    if const is None:
        return Declined(Reason.OVERRIDABLE) if name in context.scope.overridable else None
    aligned = (1,) * (2 - len(const.shape)) + const.shape
    if aligned not in ((1, 1), (1, channels)):
        return Declined(Reason.BROADCAST, f"its C of shape {list(const.shape)} is not per column")
    bias = bias_of_const(const, channels, data_type)
    if beta != 1.0:
        bias = bias.through(Vector(Geometry.diagonal(channels, 0, -1), np.full(channels, beta)))
    return _if_finite(bias)
