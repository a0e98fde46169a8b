"""Views as operators of the algebra: the identity on every channel, with the view to carry along."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.scope import Const
from onnx_repfuse.graph.views import View, behind_view, restored_from
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["lift_view"]


def _listed(target: Const, entry: int, channel: int) -> tuple[int | None, Const | None]:
    """`entry` and `target` of a Reshape's `View`, whose zeros copy dims of the same position in the input.

    Args:
        target: the list of sizes.
        entry: the position of the channels in it.
        channel: their axis in the input.
    """
    sizes = [int(size) for size in target.read().ravel()]
    copies = {place for place, size in enumerate(sizes) if size == 0}
    if entry != channel and not copies.isdisjoint((entry, channel)):
        return entry, None  # right for this number of channels alone
    return (None if sizes[entry] <= 0 else entry), target


def lift_view(context: Context, node: gs.Node) -> LinearOp | None:
    """GlobalAveragePool, ReduceMean, Resize, Flatten, Reshape, Squeeze, Unsqueeze, Transpose: see `graph.views`."""
    scope = context.scope
    name, output = node.inputs[0].name, node.outputs[0].name
    frame = context.channel_layout(name)
    if frame is None or frame.data_type not in FLOAT_FORMATS:
        return None
    found = behind_view(scope, node, frame.layout, frame.channels)
    if found is None:
        return None
    layout, shape = found
    entry, target = None, None
    if node.op == "Reshape" or (node.op == "Resize" and len(node.inputs) == 4 and node.inputs[3].name):
        entry = layout[0] % len(shape)
        target = scope.const(node.inputs[-1].name) if len(node.inputs) > 1 else None
        if target is not None and node.op == "Reshape":
            channel = frame.layout[0] % len(scope.shape(name) or shape)
            entry, target = _listed(target, entry, channel)
    view = View(
        node,
        name,
        output,
        frame.channels,
        frame.layout,
        layout,
        len(shape),
        entry,
        target,
        scope.shape(name) or (),
        shape,
        restored_from(scope, node),
    )
    return LinearOp(
        node,
        output,
        Kind.COMMUTE,
        frame.channels,
        layout,
        (Operand(name, frame.channels, frame.layout),),
        (Term(0, Vector.unit(frame.channels, frame.layout)),),
        Bias.zeros(frame.channels),
        view=view,
    )
