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
    shuffles,
    slice_concat,
    stacked_moves,
    sum_identity,
    view_ops,
)
from onnx_repfuse.lift.border import match
from onnx_repfuse.lift.linear_op import Context, Declined, LinearOp, Operand
from onnx_repfuse.records.reasons import Reason

__all__ = ["Context", "Declined", "LinearOp", "Operand", "lift", "may_be_linear"]

_LIFTS: dict[str, Callable[[Context, gs.Node], LinearOp | Declined | None]] = {
    "Add": sum_identity.lift_add,
    "AveragePool": pad_pool.lift_average_pool,
    "BatchNormalization": batchnorm_arithmetic.lift_batch_normalization,
    "Concat": slice_concat.lift_concat,
    "Conv": conv_matmul.lift_conv,
    "ConvTranspose": conv_matmul.lift_conv_transpose,
    "Div": batchnorm_arithmetic.lift_arithmetic,
    "Dropout": sum_identity.lift_dropout,
    "Einsum": conv_matmul.lift_einsum,
    "Expand": slice_concat.lift_repeat,
    "Gather": slice_concat.lift_gather,
    "Gemm": conv_matmul.lift_gemm,
    "Identity": sum_identity.lift_identity,
    "MatMul": conv_matmul.lift_matmul,
    "Mean": sum_identity.lift_sum,
    "Mul": batchnorm_arithmetic.lift_arithmetic,
    "Neg": sum_identity.lift_identity,
    "Pad": pad_pool.lift_pad,
    "SpaceToDepth": shuffles.lift_space_to_depth,
    "Slice": slice_concat.lift_slice,
    "Sub": sum_identity.lift_add,
    "Sum": sum_identity.lift_sum,
    "Tile": slice_concat.lift_repeat,
}


def may_be_linear(node: gs.Node) -> bool:
    """Whether a node would be linear if its parameters were constants and its shapes known."""
    has_lift = node.op in _LIFTS or node.op == "Split"
    return has_lift or operator(node).space_map is not None


def lift(context: Context, node: gs.Node, output: int = 0) -> LinearOp | Declined | None:
    """Output number `output` of `node` as an operator of the algebra; found once for each context."""
    key = id(node), output
    known = context.answers.get(key)
    if known is None:
        known = context.answers[key] = node, _lifted(context, node, output)
    return known[1]


def _lifted(context: Context, node: gs.Node, output: int) -> LinearOp | Declined | None:
    if _stays(context, node, output):
        return None
    if id(node) in context.protected:
        return Declined(Reason.FUSED_PATTERN)
    if _is_too_wide(context, node, output):
        return Declined(Reason.COST, "it has so many channels that planning it would take too much memory")
    try:
        lifted = _by_operator(context, node, output)
    except Inexact as error:  # a constant of an earlier round cannot be written: its fold will be undone
        return Declined(error.reason, error.detail)
    return None if _has_no_channels(lifted) else lifted


def _is_too_wide(context: Context, node: gs.Node, output: int) -> bool:
    """Whether it is linear as far as its operator says, and has more channels than `Context.max_channels`."""
    most = context.max_channels
    if most is None or not may_be_linear(node):
        return False
    layout = context.channel_layout(node.outputs[output].name)
    return layout is not None and layout.channels > most


def _has_no_channels(lifted: LinearOp | Declined | None) -> bool:
    """Whether there is nothing to compute: fuzzed files have tensors of size 0."""
    if not isinstance(lifted, LinearOp):
        return False
    return 0 in (lifted.channels, *(operand.channels for operand in lifted.operands))


def _stays(context: Context, node: gs.Node, output: int) -> bool:
    """Whether it has no input, or its output is a constant."""
    if not node.inputs or not node.inputs[0].name:
        return True
    return context.scope.const(node.outputs[output].name) is not None


def _by_operator(context: Context, node: gs.Node, output: int) -> LinearOp | Declined | None:
    if node.op == "Split":
        return slice_concat.lift_split(context, node, output)
    if output != 0:
        return None
    # Before the node's own rule: the last node of a spelled-out padding may be a Concat or a Transpose.
    border = match.lift_border(context, node)
    if border is not None:
        return border
    shuffle = shuffles.lift_shuffle(context, node) or stacked_moves.lift_stacked_moves(context, node)
    if shuffle is not None:
        return shuffle
    function = _LIFTS.get(node.op)
    if function is not None:
        return function(context, node)
    if operator(node).space_map is None:
        return sum_identity.lift_no_op(context, node)
    return view_ops.lift_view(context, node)
