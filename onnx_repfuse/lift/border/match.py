"""The last node of a padding with one value per channel, lifted as `pad_v(x)` together with the nodes before it.

The package's docstring says which files need this, and how the nodes are understood.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Array
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.lift.border.propagate import Propagator
from onnx_repfuse.lift.border.symbolic_tensor import NotProved, SourceBox, SymbolicTensor
from onnx_repfuse.lift.linear_op import Context, LinearOp
from onnx_repfuse.lift.pad_pool import padding_op

__all__ = ["lift_border"]

LAST_OPERATORS = frozenset(("Add", "Concat", "Identity", "ScatterND", "Transpose", "Where"))
CONSUMERS = frozenset(("AveragePool", "Conv"))  # what DBB and ECBSR pad for
MAX_STEPS_BACK = 8  # from the last node to one that places values: DBB needs Identity or Transpose in between
MAX_INNER_NODES = 512  # that compute indices; torch's legacy exporter writes some 180 for one padding


def lift_border(context: Context, node: gs.Node) -> LinearOp | None:
    """The padding whose last node this is; None if it is not one."""
    if not _may_be_last(context, node):
        return None
    try:
        return _padding(context, node)
    except NotProved:
        return None


def _padding(context: Context, node: gs.Node) -> LinearOp:
    """As `lift_border`. Raises NotProved if the output is not one padded tensor, or the nodes between are needed."""
    propagator = Propagator(context)
    tensor = propagator.tensor_of(node.outputs[0].name)
    box = tensor.source
    channel_layout = None if box is None else context.float_layout(box.name)
    if box is None or channel_layout is None:
        raise NotProved
    if not _pads_space(box, channel_layout):
        raise NotProved
    value = _value_around(tensor, box, channel_layout.channels)
    inner_nodes = _inner_nodes(context, propagator, node, box.name)
    lifted = padding_op(context, node, box.name, channel_layout, box.before[2:], box.after[2:], value)
    return replace(lifted, inner_nodes=inner_nodes)


def _may_be_last(context: Context, node: gs.Node) -> bool:
    """Whether a closer look is worth the time: few of a model's Adds, Concats and Transposes end a padding."""
    # below opset 7, the arithmetic of a spelled-out padding would broadcast differently
    if node.op not in LAST_OPERATORS or context.scope.opset < NUMPY_BROADCAST_SINCE:
        return False
    consumers = context.scope.consumers.get(node.outputs[0].name, ())
    return any(consumer.op in CONSUMERS for consumer in consumers) and _follows_placement(context, node)


def _follows_placement(context: Context, node: gs.Node) -> bool:
    """Whether the node, or one shortly before it along the first inputs, assigns values or adds them to a Pad."""
    for _ in range(MAX_STEPS_BACK):
        if node.op in ("ScatterND", "Where"):
            return True
        if node.op == "Concat":
            return bool(node.attrs.get("axis", 1) != 1)  # axis 1 concatenates the channels of branches
        producers = [context.scope.producer.get(tensor.name) for tensor in node.inputs]
        if node.op == "Add":  # Pad(x) + a constant that is zero except on the padding
            return any(producer is not None and producer.op == "Pad" for producer in producers)
        if not producers or producers[0] is None:
            return False
        node = producers[0]
    return False


def _pads_space(box: SourceBox, channel_layout: ChannelLayout) -> bool:
    """Whether a (N, C, *space) source lies with its axes in order, padded along some spatial axes and no others."""
    if channel_layout.channel_axis != 1 or channel_layout.rank < 1:
        return False
    if box.axes != tuple(range(channel_layout.rank + 2)):
        return False
    return any((*box.before, *box.after)) and not any((*box.before[:2], *box.after[:2]))


def _value_around(tensor: SymbolicTensor, box: SourceBox, channels: int) -> Array:
    """The value of each channel, shape (channels,), if it is the same all around the whole source."""
    if tensor.values.shape[1] > channels:  # more cells than positions: what was inferred contradicts the file
        raise NotProved
    # One cell per channel, then flat: (channels, cells over batch and space).
    zeros = (0,) * tensor.rank
    tensor = tensor.split((0, channels - 1 - tensor.trailing[1], *zeros[2:]), zeros)
    if not np.array_equal(_within(box, tensor.values.shape), tensor.is_source):
        raise NotProved
    values = np.moveaxis(tensor.values, 1, 0).reshape(channels, -1).astype(np.float64)
    is_source = np.moveaxis(tensor.is_source, 1, 0).reshape(channels, -1)[0]
    around = values[:, ~is_source]
    # One value per channel is what a convolution can pad with; NaN and infinity would not stay on the padding.
    if not np.isfinite(around).all() or (around != around[:, :1]).any():
        raise NotProved
    return np.array(around[:, 0])


def _within(box: SourceBox, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which cells lie within the box."""
    inside = np.zeros(shape, bool)
    spans = zip(box.before, box.after, shape, strict=True)
    inside[tuple(slice(before, count - after) for before, after, count in spans)] = True
    return inside


def _inner_nodes(context: Context, propagator: Propagator, last: gs.Node, source: str) -> tuple[gs.Node, ...]:
    """The nodes that are not needed when `last` reads the source directly.

    They are the nodes between the source and `last`, and what computes sizes and indices from them or the source.
    Raises NotProved if one of the former has another consumer.
    """
    scope = context.scope
    inner = _nodes_between(context, propagator, last, source)
    for node in list(inner.values()):
        if node is not last and not _add_consumers(context, node, inner):
            raise NotProved
    # A Shape of the source may serve other nodes, too: then it stays.
    for consumer in scope.consumers.get(source, ()):
        if id(consumer) not in inner:
            trial = {**inner, id(consumer): consumer}
            if _add_consumers(context, consumer, trial):
                inner = trial
    del inner[id(last)]
    return tuple(node for node in scope.nodes if id(node) in inner)


def _nodes_between(
    context: Context, propagator: Propagator, last: gs.Node, source: str
) -> dict[int, gs.Node]:
    """`last` and all nodes before it that hold elements of the source, by id."""
    inner: dict[int, gs.Node] = {id(last): last}
    pending = [last]
    while pending:
        for value in pending.pop().inputs:
            tensor = propagator.tensors.get(value.name)
            holds_source = tensor is not None and tensor.source is not None
            producer = context.scope.producer.get(value.name) if holds_source else None
            if producer is None or value.name == source or id(producer) in inner:
                continue
            inner[id(producer)] = producer
            pending.append(producer)
    return inner


def _add_consumers(context: Context, node: gs.Node, inner: dict[int, gs.Node]) -> bool:
    """Add all nodes that depend on `node` and are not `inner` yet; False if they lead out of the group."""
    scope, size = context.scope, len(inner)
    pending = [tensor.name for tensor in node.outputs]
    while pending:
        name = pending.pop()
        if scope.is_seen(name):
            return False
        for consumer in scope.consumers.get(name, ()):
            if id(consumer) not in inner:
                inner[id(consumer)] = consumer
                pending.extend(tensor.name for tensor in consumer.outputs)
        if len(inner) > size + MAX_INNER_NODES:  # they lead into the rest of the network
            return False
    return True
