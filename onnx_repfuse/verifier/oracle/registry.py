"""The operators the oracle knows, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.verifier.oracle import conv, linear, pointwise, shape
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor

__all__ = ["DEFAULT_DOMAIN", "OPERATORS", "ROUNDING", "evaluate_node", "is_known"]

Operator = Callable[..., Any]  # (context, *operands) -> a Tensor, or a list of one per output
DEFAULT_DOMAIN = ("", "ai.onnx")

# Operators whose results are rounded when they are stored.
ROUNDING: dict[str, Operator] = {
    "Add": linear.add,
    "AveragePool": conv.average_pool,
    "BatchNormalization": linear.batch_norm,
    "Conv": conv.conv,
    "ConvTranspose": conv.conv_transpose,
    "Div": linear.div,
    "Gemm": linear.gemm,
    "GlobalAveragePool": linear.global_average_pool,
    "HardSigmoid": pointwise.hard_sigmoid,
    "HardSwish": pointwise.hard_swish,
    "MatMul": linear.matmul,
    "Mean": linear.mean,
    "Mul": linear.mul,
    "Pow": pointwise.power,
    "Reciprocal": pointwise.reciprocal,
    "ReduceMean": linear.reduce_mean,
    "ReduceSum": linear.reduce_sum,
    "Sqrt": pointwise.sqrt,
    "Sub": linear.sub,
    "Sum": linear.add,
}
# Operators whose results hold what their operands held. LeakyRelu is one of them for positive values alone; its
# negative ones are small.
_EXACT: dict[str, Operator] = {
    "Cast": shape.cast,
    "CastLike": shape.cast,
    "Clip": pointwise.clip,
    "Concat": shape.concat,
    "Constant": shape.constant,
    "ConstantOfShape": shape.constant_of_shape,
    "Dropout": shape.dropout,
    "Expand": shape.expand,
    "Flatten": shape.flatten,
    "Gather": shape.gather,
    "Identity": shape.identity,
    "LeakyRelu": pointwise.leaky_relu,
    "Neg": linear.neg,
    "Pad": shape.pad,
    "Relu": pointwise.relu,
    "Reshape": shape.reshape,
    "Resize": shape.resize,
    "ScatterND": shape.scatter_nd,
    "Shape": shape.shape_of,
    "Slice": shape.slice_,
    "Split": shape.split,
    "Squeeze": shape.squeeze,
    "Transpose": shape.transpose,
    "Unsqueeze": shape.unsqueeze,
    "Upsample": shape.resize,
}
OPERATORS = {**ROUNDING, **_EXACT}


def is_known(node: onnx.NodeProto) -> bool:
    """Whether the operator is in the table. Some of its forms may still be Unsupported."""
    return node.domain in DEFAULT_DOMAIN and node.op_type in OPERATORS


def evaluate_node(node: onnx.NodeProto, context: Context, operands: Sequence[Tensor | None]) -> list[Tensor]:
    """The outputs of one node, in float64.

    Args:
        node: of an operator that `is_known`.
        context: the node's.
        operands: one per input, None for an omitted one.

    Raises:
        Unsupported: the oracle does not know the operator with these attributes.
        ValueError: shapes do not fit.
    """
    with np.errstate(all="ignore"):  # overflow and 0 / 0 show in the result
        results = OPERATORS[node.op_type](context, *operands)
    return results if isinstance(results, list) else [results]
