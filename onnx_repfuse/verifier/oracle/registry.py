"""The operators the oracle knows, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.verifier.legacy_broadcast import NUMPY_BROADCAST_SINCE, aligned_shape
from onnx_repfuse.verifier.oracle import conv, linear, norms, pointwise, resize, shape
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor
from onnx_repfuse.verifier.stopping import check_stop

__all__ = ["DEFAULT_DOMAIN", "OPERATORS", "evaluate_node", "is_known", "rounds"]

Operator = Callable[..., Any]  # (context, *operands) -> a Tensor, or a list of one per output
DEFAULT_DOMAIN = ("", "ai.onnx")

# Operators that compute: their results are rounded when they are stored.
_ROUNDING: dict[str, Operator] = {
    "Add": linear.add, "Sum": linear.add, "Sub": linear.sub, "Mean": linear.mean,
    "Mul": linear.mul, "Div": linear.div, "MatMul": linear.matmul, "Gemm": linear.gemm, "Einsum": linear.einsum,
    "BatchNormalization": linear.batch_norm,
    "LayerNormalization": norms.layer_norm, "InstanceNormalization": norms.instance_norm,
    "GroupNormalization": norms.group_norm,
    "Conv": conv.conv, "ConvTranspose": conv.conv_transpose, "AveragePool": conv.average_pool,
    "GlobalAveragePool": linear.global_average_pool,
    "ReduceMean": linear.reduce_mean, "ReduceSum": linear.reduce_sum, "ReduceL2": linear.reduce_l2,
    "Elu": pointwise.elu, "Sigmoid": pointwise.sigmoid, "Softplus": pointwise.softplus, "Tanh": pointwise.tanh,
    "LeakyRelu": pointwise.leaky_relu, "PRelu": pointwise.p_relu, "HardSigmoid": pointwise.hard_sigmoid,
    "HardSwish": pointwise.hard_swish, "Exp": pointwise.exp, "Softmax": pointwise.softmax,
    "Pow": pointwise.power, "Reciprocal": pointwise.reciprocal, "Sqrt": pointwise.sqrt,
}  # fmt: skip
# Operators that choose or move what is stored already.
_EXACT: dict[str, Operator] = {
    "Identity": shape.identity, "Dropout": shape.dropout, "Neg": linear.neg,
    "Relu": pointwise.relu, "Clip": pointwise.clip, "Abs": pointwise.absolute, "MaxPool": conv.max_pool,
    "Cast": shape.cast, "CastLike": shape.cast, "Constant": shape.constant, "Shape": shape.shape_of,
    "ConstantOfShape": shape.constant_of_shape, "Expand": shape.expand,
    "Pad": shape.pad, "Slice": shape.slice_, "Split": shape.split, "Concat": shape.concat,
    "Equal": shape.equal, "Range": shape.range_, "Tile": shape.tile, "Where": shape.where,
    "Gather": shape.gather, "GatherND": shape.gather_nd,
    "SpaceToDepth": shape.space_to_depth, "DepthToSpace": shape.depth_to_space, "ScatterND": shape.scatter_nd,
    "Reshape": shape.reshape, "Flatten": shape.flatten, "Transpose": shape.transpose,
    "Squeeze": shape.squeeze, "Unsqueeze": shape.unsqueeze,
    "Resize": resize.resize, "Upsample": resize.resize,
}  # fmt: skip
_RESIZES = ("Resize", "Upsample")
OPERATORS = {**_ROUNDING, **_EXACT}


def is_known(node: onnx.NodeProto) -> bool:
    """Whether the operator is in the table. Some of its forms may still be Unsupported."""
    return node.domain in DEFAULT_DOMAIN and node.op_type in OPERATORS


def rounds(node: onnx.NodeProto, context: Context) -> bool:
    """Whether what it stores is rounded: it computes, and does not only move what is stored already."""
    return node.op_type in _ROUNDING or (node.op_type in _RESIZES and resize.is_interpolating(context))


def evaluate_node(node: onnx.NodeProto, context: Context, operands: Sequence[Tensor | None]) -> list[Tensor]:
    """The outputs of one node, in float64.

    Args:
        node: of an operator that `is_known`.
        context: the node's.
        operands: one per input, None for an omitted one.

    Raises:
        Unsupported: the oracle does not know the operator with these attributes.
        ValueError: shapes do not fit.
        SystemExit: see `check_stop`.
    """
    check_stop()
    if context.opset < NUMPY_BROADCAST_SINCE and len(operands) == 2 and "axis" in context.attributes:
        operands = _aligned(context, *operands)
    with np.errstate(all="ignore"):  # overflow and 0 / 0 show in the result
        results = OPERATORS[node.op_type](context, *operands)
    return results if isinstance(results, list) else [results]


def _aligned(context: Context, first: Tensor | None, second: Tensor | None) -> list[Tensor | None]:
    """The operands of Add, Sub, Mul, Div or Pow with `broadcast` and `axis`, as numpy broadcasts them."""
    if not context.attributes.get("broadcast") or first is None or second is None:
        return [first, second]
    shape = aligned_shape(first.value.shape, second.value.shape, context.attributes["axis"])
    return [first, second.map(lambda array: array.reshape(shape))]
