"""From ONNX nodes to the algebra. To teach the tool an operator, write a function and name it in `_LIFTS`.

Three outcomes, never mixed: `None` - not linear, nothing to say; `Declined` - linear but not safely foldable, and
the user is told; `Lifted` - an operator of the algebra.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.lift import affine, border, channels, combine, convolution, space, views
from onnx_repfuse.graph.lift.lifted import Context, Declined, Lifted, Operand
from onnx_repfuse.graph.views import VIEWS
from onnx_repfuse.reasons import Reason

__all__ = ["Context", "Declined", "Lifted", "Operand", "lift"]


def _arithmetic_or_sum(context: Context, node: gs.Node) -> Lifted | Declined | None:
    if any(context.scope.const(t.name) is not None for t in node.inputs):
        return affine.lift_arithmetic(context, node)
    return combine.lift_sum(context, node) if node.op in ("Add", "Sub") else None


_LIFTS: dict[str, Callable[[Context, gs.Node], Lifted | Declined | None]] = {
    "Add": _arithmetic_or_sum,
    "AveragePool": space.lift_average_pool,
    "BatchNormalization": affine.lift_batch_normalization,
    "Concat": channels.lift_concat,
    "Conv": convolution.lift_conv,
    "ConvTranspose": convolution.lift_conv_transpose,
    "Div": _arithmetic_or_sum,
    "Dropout": combine.lift_dropout,
    "Gemm": convolution.lift_gemm,
    "Identity": combine.lift_nothing,
    "MatMul": convolution.lift_matmul,
    "Mean": combine.lift_sum,
    "Mul": _arithmetic_or_sum,
    "Neg": combine.lift_nothing,
    "Pad": space.lift_pad,
    "Slice": channels.lift_slice,
    "Sub": _arithmetic_or_sum,
    "Sum": combine.lift_sum,
    **dict.fromkeys(VIEWS, views.lift_view),
}


def lift(context: Context, node: gs.Node, output: int = 0) -> Lifted | Declined | None:
    """Output number `output` of `node` as an operator of the algebra."""
    try:
        found = _lift(context, node, output)
    except Inexact as reason:  # a constant of an earlier round cannot be written: its fold will be undone
        return Declined(reason.reason, reason.detail)
    if isinstance(found, Lifted) and not all((found.channels, *(o.channels for o in found.operands))):
        return None  # of no channels there is nothing to compute
    return found


def _lift(context: Context, node: gs.Node, output: int) -> Lifted | Declined | None:
    if not node.inputs or not node.inputs[0].name:
        return None
    if context.scope.const(node.outputs[output].name) is not None:
        return None
    if gs.Node.AttributeRef in map(type, node.attrs.values()):
        return None
    if id(node) in context.protected:
        return Declined(Reason.IDIOM)
    if node.op == "Split":
        return channels.lift_split(context, node, output)
    if output != 0:
        return None
    found = border.lift_border(context, node)
    if found is not None:
        return found
    function = _LIFTS.get(node.op)
    if function is None:
        return None
    return function(context, node)
