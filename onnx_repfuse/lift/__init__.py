"""From ONNX nodes to the algebra. To teach the tool an operator, write a function and name it in `_LIFTS`.

Three outcomes, never mixed: `None` - not linear, nothing to say; `Declined` - linear but not safely foldable, and
the user is told; `LinearOp` - an operator of the algebra.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import (
    batchnorm_arithmetic,
    conv_matmul,
    pad_pool,
    slice_concat,
    sum_identity,
    view_ops,
)
from onnx_repfuse.lift.border import match
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand
from onnx_repfuse.records.reasons import Reason

__all__ = ["Context", "Declined", "LinearOp", "Operand", "lift"]


def _arithmetic_or_sum(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    if any(context.scope.const(t.name) is not None for t in node.inputs):
        return batchnorm_arithmetic.lift_arithmetic(context, node)
    return sum_identity.lift_sum(context, node) if node.op in ("Add", "Sub") else None


_LIFTS: dict[str, Callable[[Context, gs.Node], LinearOp | Declined | None]] = {
    "Add": _arithmetic_or_sum,
    "AveragePool": pad_pool.lift_average_pool,
    "BatchNormalization": batchnorm_arithmetic.lift_batch_normalization,
    "Concat": slice_concat.lift_concat,
    "Conv": conv_matmul.lift_conv,
    "ConvTranspose": conv_matmul.lift_conv_transpose,
    "Div": _arithmetic_or_sum,
    "Dropout": sum_identity.lift_dropout,
    "Gemm": conv_matmul.lift_gemm,
    "Identity": sum_identity.lift_nothing,
    "MatMul": conv_matmul.lift_matmul,
    "Mean": sum_identity.lift_sum,
    "Mul": _arithmetic_or_sum,
    "Neg": sum_identity.lift_nothing,
    "Pad": pad_pool.lift_pad,
    "Slice": slice_concat.lift_slice,
    "Sub": _arithmetic_or_sum,
    "Sum": sum_identity.lift_sum,
}


def lift(context: Context, node: gs.Node, output: int = 0) -> LinearOp | Declined | None:
    """Output number `output` of `node` as an operator of the algebra."""
    try:
        found = _lift(context, node, output)
    except Inexact as reason:  # a constant of an earlier round cannot be written: its fold will be undone
        return Declined(reason.reason, reason.detail)
    if isinstance(found, LinearOp) and not all((found.channels, *(o.channels for o in found.operands))):
        return None  # of no channels there is nothing to compute
    return found


def _lift(context: Context, node: gs.Node, output: int) -> LinearOp | Declined | None:
    if not node.inputs or not node.inputs[0].name:
        return None
    if context.scope.const(node.outputs[output].name) is not None:
        return None
    if gs.Node.AttributeRef in map(type, node.attrs.values()):
        return None
    if id(node) in context.protected:
        return Declined(Reason.IDIOM)
    if node.op == "Split":
        return slice_concat.lift_split(context, node, output)
    if output != 0:
        return None
    found = match.lift_border(context, node)
    if found is not None:
        return found
    if operator(node).space_map is not None:
        return view_ops.lift_view(context, node)
    function = _LIFTS.get(node.op)
    if function is None:
        return None
    return function(context, node)
