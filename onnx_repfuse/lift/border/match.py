"""A border of one value per channel, however an exporter wrote it, as one operator: `pad_v(x)`.

Diverse branch blocks pad with what a 1x1 Conv and its BatchNormalization make of zeros. torch has no such padding, so
authors pad with zero and assign the sides, put rows and columns around the tensor, or put the tensor into a frame; and
exporters write an assignment as Transpose, ScatterND, Transpose, with indices from Shape and Range. All these nodes
only place values, so `placing` paints what they make; if that is one tensor, whole, with one value per channel all
around it, the last of them is lifted as a padding of the first one's input, and takes the others along.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Stored
from onnx_repfuse.lift.border.propagate import Painter
from onnx_repfuse.lift.border.symbolic_tensor import SymbolicTensor
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, epsilon
from onnx_repfuse.records.report import Kind

__all__ = ["lift_border"]

LAST = frozenset(("Add", "Concat", "Identity", "ScatterND", "Transpose", "Where"))
READERS = frozenset(("AveragePool", "Conv"))
INNER = 512  # nodes that compute indices; torch's legacy exporter writes some 180 for a border


def lift_border(context: Context, node: gs.Node) -> LinearOp | None:
    """The last node of a group that puts a border around a tensor."""
    scope, output = context.scope, node.outputs[0].name
    if node.op not in LAST or not any(r.op in READERS for r in scope.consumers.get(output, ())):
        return None
    if not _may_place(context, node):
        return None
    painter = Painter(context)
    canvas = painter.paint(output)
    if canvas is None or canvas.place is None or canvas.place.name == output:
        return None
    place = canvas.place
    frame, rank = context.channel_layout(place.name), canvas.rank - 2
    around = (*place.before, *place.after)
    if frame is None or frame.layout != (1, rank) or rank < 1 or frame.data_type not in FLOAT_FORMATS:
        return None
    if place.axes != tuple(range(canvas.rank)) or not any(around):
        return None
    if any(place.before[:2]) or any(place.after[:2]):
        return None
    border = _border(canvas, frame.channels)
    inner = _group(context, painter, node, place.name)
    if border is None or inner is None:
        return None
    pads = (*place.before[2:], *place.after[2:])
    ones = (1,) * rank
    geometry = Geometry.conv(frame.channels, frame.channels, ones, groups=frame.channels, pads=pads)
    weight = np.broadcast_to(1.0, geometry.weight_shape)
    return LinearOp(
        node,
        output,
        Kind.PAD,
        frame.channels,
        frame.layout,
        (Operand(place.name, frame.channels, frame.layout),),
        (Term(0, Stored(geometry, lambda: weight)),),
        Bias.zeros(frame.channels),
        padding_value=Bias.rounded(border, epsilon(frame.data_type)) if border.any() else None,
        size=context.size(place.name, rank),
        inner_nodes=inner,
    )


def _may_place(context: Context, node: gs.Node) -> bool:
    """Whether a look is worth while: something near the end must place values."""
    for _ in range(8):
        if node.op in ("Concat", "ScatterND", "Where"):
            return bool(node.op != "Concat" or node.attrs.get("axis", 1) != 1)
        producers = [context.scope.producer.get(t.name) for t in node.inputs]
        if node.op == "Add":
            return any(p is not None and p.op == "Pad" for p in producers)
        if not producers or producers[0] is None:
            return False
        node = producers[0]
    return False


def _border(canvas: SymbolicTensor, channels: int) -> Array | None:
    """The value of each channel around the core, if there is just one."""
    place = canvas.place
    assert place is not None
    if canvas.values.shape[1] > channels:
        return None
    canvas = canvas.split((0, channels - 1 - canvas.last[1], *(0,) * (canvas.rank - 2)), (0,) * canvas.rank)
    core: NDArray[np.bool_] = np.ones(canvas.values.shape, bool)
    for axis in range(2, canvas.rank):
        position = np.arange(canvas.values.shape[axis])
        within = (position >= place.before[axis]) & (position < len(position) - place.after[axis])
        core &= within.reshape(-1, *(1,) * (canvas.rank - 1 - axis))
    if not np.array_equal(core, canvas.inside):
        return None
    values = np.moveaxis(canvas.values, 1, 0).reshape(channels, -1).astype(np.float64)
    outside = values[:, ~np.moveaxis(core, 1, 0).reshape(channels, -1)[0]]
    same = np.isfinite(outside).all() and (outside == outside[:, :1]).all()
    return np.array(outside[:, 0]) if same else None


def _group(context: Context, painter: Painter, last: gs.Node, core: str) -> tuple[gs.Node, ...] | None:
    """The nodes that go when `last` reads `core` directly; None if somebody else needs one of them."""
    scope = context.scope
    inner: dict[int, gs.Node] = {id(last): last}
    pending = [last]
    while pending:  # what moves the core
        for tensor in pending.pop().inputs:
            canvas, producer = painter.canvases.get(tensor.name), scope.producer.get(tensor.name)
            if producer is None or canvas is None or canvas.place is None or tensor.name == core:
                continue
            if id(producer) not in inner:
                inner[id(producer)] = producer
                pending.append(producer)
    for node in list(inner.values()):
        if node is not last and not _absorb(context, [t.name for t in node.outputs], inner):
            return None
    for consumer in scope.consumers.get(core, ()):  # what only measures it
        if id(consumer) not in inner:
            trial = {**inner, id(consumer): consumer}
            if _absorb(context, [t.name for t in consumer.outputs], trial):
                inner = trial
    del inner[id(last)]
    return tuple(node for node in scope.nodes if id(node) in inner)


def _absorb(context: Context, names: list[str], inner: dict[int, gs.Node]) -> bool:
    """Add what the tensors lead to, if all of it leads into `inner` again."""
    scope, size = context.scope, len(inner)
    pending = list(names)
    while pending:
        name = pending.pop()
        if name in scope.outputs or name in scope.captured:
            return False
        for consumer in scope.consumers.get(name, ()):
            if id(consumer) not in inner:
                inner[id(consumer)] = consumer
                pending.extend(t.name for t in consumer.outputs)
        if len(inner) > size + INNER:
            return False
    return True
