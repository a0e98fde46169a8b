"""Views as operators of the algebra: the identity on every channel, with the view to carry along."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.form import Term
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.frames import FLOATS
from onnx_repfuse.graph.lift.lifted import Context, Lifted, Operand
from onnx_repfuse.graph.views import View, after, restored
from onnx_repfuse.report.record import Kind

__all__ = ["lift_view"]


def lift_view(context: Context, node: gs.Node) -> Lifted | None:
    """GlobalAveragePool, ReduceMean, Resize, Flatten, Reshape, Squeeze, Unsqueeze, Transpose: see `graph.views`."""
    scope = context.scope
    name, output = node.inputs[0].name, node.outputs[0].name
    frame = context.frame(name)
    if frame is None or frame.data_type not in FLOATS:
        return None
    found = after(scope, node, frame.layout, frame.channels)
    if found is None:
        return None
    layout, shape = found
    entry, target = None, None
    if node.op == "Reshape" or (node.op == "Resize" and len(node.inputs) == 4 and node.inputs[3].name):
        entry = layout[0] % len(shape)
        target = scope.const(node.inputs[-1].name) if len(node.inputs) > 1 else None
        if target is not None and int(target.read().ravel()[entry]) <= 0:
            entry = None  # inferred or copied
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
        restored(scope, node),
    )
    return Lifted(
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
