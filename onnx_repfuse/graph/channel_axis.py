"""Which axis of a tensor holds its channels.

An Add or a Mul by a scalar does not say. A Conv reads channels from axis 1, a MatMul from the last axis; what
stands between inherits from what it reads or, where that says nothing, from what reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope, Shape
from onnx_repfuse.graph.views import VIEWS, behind_view

__all__ = ["ChannelLayout", "channel_layouts", "rank_of"]

ELEMENTWISE = frozenset(
    (
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Celu",
        "ThresholdedRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Mish",
        "Swish",
        "Tanh",
        "Softplus",
        "Softsign",
        "Clip",
        "Erf",
        "Gelu",
        "Exp",
        "Log",
        "Sqrt",
        "Abs",
        "Floor",
        "Ceil",
        "Round",
        "Reciprocal",
        "Neg",
        "Sign",
        "Identity",
        "Dropout",
    )
)
OVER_SPACE = frozenset(  # channels stand on axis 1, by definition
    (
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool",
        "InstanceNormalization",
        "LRN",
        "BatchNormalization",
    )
)
RESIZING = frozenset(("Pad", "Resize", "Upsample"))  # any axis, that of the channels too
CHANNEL_KEEPING = ELEMENTWISE | OVER_SPACE | RESIZING
COMBINING = frozenset(("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Pow"))


@dataclass(frozen=True)
class ChannelLayout:
    """Channel axis (1 or -1), spatial rank, channels and ONNX data type (0 = unknown) of a tensor."""

    channel_axis: int
    rank: int
    channels: int
    data_type: int

    @property
    def layout(self) -> tuple[int, int]:
        """As `Geometry.layout`."""
        return self.channel_axis, self.rank


def rank_of(scope: Scope, known: dict[str, ChannelLayout], name: str) -> int | None:
    """Number of dims: proved by inference, or by the operator that made the tensor."""
    shape = scope.shape(name)
    if shape is not None:
        return len(shape)
    frame = known.get(name)
    return frame.rank + 2 if frame is not None and frame.channel_axis == 1 else None


def channel_layouts(
    scope: Scope, before: Mapping[str, ChannelLayout] | None = None
) -> dict[str, ChannelLayout]:
    """The frame of every tensor for which one is known; `before` are those known already."""
    known = dict(before or {})
    _forward(scope, known)
    wanted = dict(known)
    frameless = (scope.consumers.keys() | scope.producer.keys()) - known.keys()
    frameless -= scope.constants.keys() - scope.overridable
    for node in reversed(scope.nodes) if frameless else ():
        if frameless.isdisjoint([t.name for t in (*node.inputs, *node.outputs)]):
            continue  # nothing to learn
        for name, frame in _demands(scope, node, wanted):
            if name in frameless:
                wanted[name] = frame
                frameless.remove(name)
    if len(wanted) > len(known):
        known = wanted
        _forward(scope, known)
    return known


def _forward(scope: Scope, known: dict[str, ChannelLayout]) -> None:
    for node in scope.nodes:
        if not node.outputs or node.outputs[0].name in known:
            continue
        frame = _output_frame(scope, node, known)
        if frame is not None and _agrees(frame, scope.shape(node.outputs[0].name)):
            known[node.outputs[0].name] = frame
            if node.op == "Split":
                _split(scope, node, frame, known)


def _agrees(frame: ChannelLayout, dims: Shape | None) -> bool:
    """Whether what is proved of a tensor's shape allows a frame."""
    if dims is None:
        return True
    if not dims or (frame.channel_axis == 1 and len(dims) != frame.rank + 2):
        return False
    return dims[frame.channel_axis] in (None, frame.channels)


def _fits(shape: tuple[int, ...], frame: ChannelLayout) -> bool:
    """Whether a constant of that shape, combined with a tensor of this frame, leaves rank and channels alone."""
    if frame.channel_axis == -1:
        return not shape or shape[-1] in (1, frame.channels)
    aligned = (1,) * (frame.rank + 2 - len(shape)) + shape
    return len(aligned) == frame.rank + 2 and aligned[1] in (1, frame.channels)


def _keeps(scope: Scope, node: gs.Node, frame: ChannelLayout) -> bool:
    """Whether an operator that leaves channels alone leaves those of this frame alone."""
    dims = scope.shape(node.outputs[0].name)
    if node.op in OVER_SPACE and frame.channel_axis != 1:
        return dims is not None and len(dims) == 2  # both axes are the same
    if node.op in RESIZING:
        return dims is not None and len(dims) > 1 and dims[frame.channel_axis] == frame.channels
    return True


def _combined(
    scope: Scope, known: dict[str, ChannelLayout], node: gs.Node, names: list[str]
) -> ChannelLayout | None:
    """The frame of operands that broadcast: theirs, if they agree and none can widen the channels."""
    found = [known[n] for n in names if n in known]
    if not found:
        return None
    dims = scope.shape(node.outputs[0].name)
    if dims is not None:
        return next((frame for frame in found if _agrees(frame, dims)), None)
    widest = max(found, key=lambda frame: frame.channels)
    sure = widest.channels > 1 or len(found) == len(names)
    return widest if sure and all(f.layout == widest.layout for f in found) else None


def _names(node: gs.Node) -> list[str]:
    return [t.name for t in node.inputs if t.name]


def _output_frame(scope: Scope, node: gs.Node, known: dict[str, ChannelLayout]) -> ChannelLayout | None:
    names = _names(node)
    first = known.get(names[0]) if names else None
    if node.op in ("Conv", "ConvTranspose"):
        weight = _weight(scope, node)
        if weight is None or len(weight[0]) < 3:
            return None
        shape, data_type = weight
        channels = shape[0] if node.op == "Conv" else shape[1] * _groups(node)
        return ChannelLayout(1, len(shape) - 2, channels, data_type)
    if node.op in ("Gemm", "MatMul"):
        weight = _weight(scope, node)
        if weight is None or len(weight[0]) != 2:
            return None
        transposed = node.op == "Gemm" and node.attrs.get("transB", 0)
        return ChannelLayout(-1, 0, weight[0][0 if transposed else 1], weight[1])
    if node.op in COMBINING:
        constant = [n for n in names if scope.const(n) is not None]
        varying = [n for n in names if scope.const(n) is None]
        own = _combined(scope, known, node, varying)
        if own is not None and not all(_fits(scope.constants[n].shape, own) for n in constant):
            own = None
        if constant and len(varying) == 1:
            return _beside_constant(scope, varying[0], constant[0], own) or own
        return own
    if node.op == "Concat" and first is not None:
        axis, rank = node.attrs.get("axis"), rank_of(scope, known, names[0])
        parts = [known.get(n) for n in names]
        if any(p is None or p.layout != first.layout for p in parts):
            return None
        if axis is None or (rank is None and (axis < 0) != (first.channel_axis < 0)):
            return None  # it may be the axis of the channels or another one
        if axis == first.channel_axis or (rank is not None and axis % rank == first.channel_axis % rank):
            return replace(first, channels=sum(p.channels for p in parts if p))
        return first
    if node.op in VIEWS and first is not None:
        found = behind_view(scope, node, first.layout, first.channels)
        if found is not None:
            axis, rank = found[0]
            return ChannelLayout(axis, rank, first.channels, first.data_type)
    if node.op in CHANNEL_KEEPING and first is not None:
        return first if _keeps(scope, node, first) else None
    if node.op in ("Slice", "Split", "ReduceMean") and first is not None:
        dims = scope.shape(node.outputs[0].name)
        if dims is None or (first.channel_axis == 1 and len(dims) != first.rank + 2):
            return None
        kept = dims[first.channel_axis] if len(dims) > 1 else None
        return None if kept is None else replace(first, channels=kept)
    dims = scope.shape(node.outputs[0].name)
    if dims is not None and len(dims) == 2 and dims[1]:
        return ChannelLayout(-1, 0, dims[1], scope.data_type(node.outputs[0].name) or 0)
    return None


def _split(scope: Scope, node: gs.Node, frame: ChannelLayout, known: dict[str, ChannelLayout]) -> None:
    for tensor in node.outputs[1:]:
        shape = scope.shape(tensor.name)
        channels = shape[frame.channel_axis] if shape and len(shape) > 1 else None
        if channels is not None:
            known[tensor.name] = replace(frame, channels=channels)


def _beside_constant(
    scope: Scope, name: str, constant: str, own: ChannelLayout | None
) -> ChannelLayout | None:
    """A constant that differs along one axis only names that axis, where the tensor's frame does not."""
    shape, const = scope.shape(name), scope.constants[constant]
    if own is not None or shape is None or len(shape) < 2 or len(const.shape) > len(shape):
        return own
    aligned = (1,) * (len(shape) - len(const.shape)) + const.shape
    axes = [a for a, d in enumerate(aligned) if d != 1]
    data_type = scope.data_type(name) or const.data_type
    if axes == [len(shape) - 1] and shape[-1] == aligned[-1]:
        return ChannelLayout(-1, 0, aligned[-1], data_type)
    if axes == [1] and shape[1] == aligned[1]:
        return ChannelLayout(1, len(shape) - 2, aligned[1], data_type)
    return None


def _groups(node: gs.Node) -> int:
    groups = node.attrs.get("group", 1)
    return groups if isinstance(groups, int) else 1


def _weight(scope: Scope, node: gs.Node) -> tuple[tuple[int, ...], int] | None:
    if len(node.inputs) < 2:
        return None
    name = node.inputs[1].name
    shape, data_type = scope.shape(name), scope.data_type(name)
    if shape is None or None in shape or not data_type:
        return None
    return tuple(d for d in shape if d is not None), data_type


def _demands(scope: Scope, node: gs.Node, known: dict[str, ChannelLayout]) -> list[tuple[str, ChannelLayout]]:
    """What a node says about the tensors it reads."""
    if not node.inputs:
        return []
    name = node.inputs[0].name
    if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        weight = _weight(scope, node)
        if weight is None:
            return []
        shape, data_type = weight
        if node.op == "Conv" and len(shape) >= 3:
            return [(name, ChannelLayout(1, len(shape) - 2, shape[1] * _groups(node), data_type))]
        if node.op == "ConvTranspose" and len(shape) >= 3:
            return [(name, ChannelLayout(1, len(shape) - 2, shape[0], data_type))]
        if node.op in ("Gemm", "MatMul") and len(shape) == 2:
            return [(name, ChannelLayout(-1, 0, shape[1 if node.attrs.get("transB", 0) else 0], data_type))]
        return []
    if node.op == "BatchNormalization":
        dims = scope.shape(name)
        scale = scope.shape(node.inputs[1].name) if len(node.inputs) > 1 else None
        if dims is None or len(dims) < 2 or not scale or len(scale) != 1 or scale[0] is None:
            return []
        data_type = scope.data_type(name) or 0
        axis, rank = (-1, 0) if len(dims) == 2 else (1, len(dims) - 2)
        frame = ChannelLayout(axis, rank, scale[0], data_type)
        return [(name, frame), *((t.name, frame) for t in node.outputs[:1])]
    if node.op in CHANNEL_KEEPING and node.outputs and node.outputs[0].name in known:
        frame = known[node.outputs[0].name]
        kept = _keeps(scope, node, frame) and _agrees(frame, scope.shape(name))
        return [(name, frame)] if kept else []
    if node.op in COMBINING and node.outputs and node.outputs[0].name in known:
        frame = known[node.outputs[0].name]
        out = scope.shape(node.outputs[0].name)
        alone = all(_is_scalar(scope, t.name) for t in node.inputs[1:]) or (
            len(node.inputs) == 2 and _is_scalar(scope, name)
        )
        return [
            (t.name, frame)
            for t in node.inputs
            if t.name and (alone if out is None else scope.shape(t.name) == out)
        ]
    return []


def _is_scalar(scope: Scope, name: str) -> bool:
    """A constant that cannot widen what it is combined with."""
    const = scope.const(name)
    return const is not None and const.size == 1 and len(const.shape) <= 1
