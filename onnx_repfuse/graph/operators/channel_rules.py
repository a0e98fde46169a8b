"""How channel layouts pass through a node: what its inputs tell of its output, and the other way round.

A rule is two functions. Forwards gives the layout of the first output. Backwards lists layouts of tensors around the
node, for tensors of which nothing else tells the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope, Shape

__all__ = [
    "BROADCAST",
    "BY_SHAPE",
    "KEPT",
    "KEPT_ON_AXIS_1",
    "KEPT_WHERE_PROVED",
    "NORMALIZED",
    "SELECTED",
    "STACKED",
    "ChannelLayout",
    "ChannelRule",
    "Layouts",
    "agrees",
]


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


@dataclass(frozen=True, eq=False)
class Layouts:
    """The layouts known so far of a scope's tensors."""

    scope: Scope
    known: dict[str, ChannelLayout]

    def first(self, node: gs.Node) -> ChannelLayout | None:
        """That of a node's first input."""
        names = input_names(node)
        return self.known.get(names[0]) if names else None

    def output(self, node: gs.Node) -> ChannelLayout | None:
        """That of a node's first output."""
        return self.known.get(node.outputs[0].name) if node.outputs else None

    def rank(self, name: str) -> int | None:
        """Number of dims: proved by inference, or by the operator that computes the tensor."""
        shape = self.scope.shape(name)
        if shape is not None:
            return len(shape)
        layout = self.known.get(name)
        return layout.rank + 2 if layout is not None and layout.channel_axis == 1 else None

    def output_shape(self, node: gs.Node) -> Shape | None:
        """The proved shape of a node's first output."""
        return self.scope.shape(node.outputs[0].name)


Demand = tuple[str, ChannelLayout]


@dataclass(frozen=True)
class ChannelRule:
    """What a node tells of channel layouts: of its output (forwards), and of other tensors around it (backwards)."""

    forwards: Callable[[Layouts, gs.Node], ChannelLayout | None]
    backwards: Callable[[Layouts, gs.Node], Sequence[Demand]] = lambda layouts, node: ()


def input_names(node: gs.Node) -> list[str]:
    """The inputs that are not left out."""
    return [t.name for t in node.inputs if t.name]


def agrees(layout: ChannelLayout, shape: Shape | None) -> bool:
    """Whether what is proved of a tensor's shape allows a layout."""
    if shape is None:
        return True
    if not shape or (layout.channel_axis == 1 and len(shape) != layout.rank + 2):
        return False
    return shape[layout.channel_axis] in (None, layout.channels)


# Nothing but the shape tells: (N, C) has its channels last.


def _matrix(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    shape = layouts.output_shape(node)
    if shape is None or len(shape) != 2 or not shape[1]:
        return None
    return ChannelLayout(-1, 0, shape[1], layouts.scope.data_type(node.outputs[0].name) or 0)


BY_SHAPE = ChannelRule(_matrix)


def _given_first(
    rule: Callable[[Layouts, gs.Node, ChannelLayout], ChannelLayout | None],
) -> Callable[[Layouts, gs.Node], ChannelLayout | None]:
    """A forwards rule that starts from the layout of the first input; without one, the output's shape tells."""

    def forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
        first = layouts.first(node)
        return _matrix(layouts, node) if first is None else rule(layouts, node, first)

    return forwards


# The output has the channels of the first input.


def _kept_if(keeps: Callable[[Layouts, gs.Node, ChannelLayout], bool]) -> ChannelRule:
    """Same channels in input and output, for the layouts that `keeps` allows."""

    def forwards(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> ChannelLayout | None:
        return first if keeps(layouts, node, first) else None

    def backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
        layout, name = layouts.output(node), node.inputs[0].name
        if layout is None or not keeps(layouts, node, layout):
            return ()
        return [(name, layout)] if agrees(layout, layouts.scope.shape(name)) else ()

    return ChannelRule(_given_first(forwards), backwards)


def _on_axis_1(layouts: Layouts, node: gs.Node, layout: ChannelLayout) -> bool:
    shape = layouts.output_shape(node)
    return layout.channel_axis == 1 or (
        shape is not None and len(shape) == 2
    )  # of (N, C) both axes are the same


def _where_proved(layouts: Layouts, node: gs.Node, layout: ChannelLayout) -> bool:
    shape = layouts.output_shape(node)
    return shape is not None and len(shape) > 1 and shape[layout.channel_axis] == layout.channels


KEPT = _kept_if(lambda layouts, node, layout: True)
KEPT_ON_AXIS_1 = _kept_if(_on_axis_1)  # by definition (N, C, ...): pools, normalizations
KEPT_WHERE_PROVED = _kept_if(_where_proved)  # a Pad or a Resize may change any axis, that of the channels too


def _normalized(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    """BatchNormalization: `scale` has one value per channel of axis 1."""
    name, scope = node.inputs[0].name, layouts.scope
    shape = scope.shape(name)
    scale = scope.shape(node.inputs[1].name) if len(node.inputs) > 1 else None
    if shape is None or len(shape) < 2 or scale is None or len(scale) != 1 or scale[0] is None:
        return ()
    axis, rank = (-1, 0) if len(shape) == 2 else (1, len(shape) - 2)
    layout = ChannelLayout(axis, rank, scale[0], scope.data_type(name) or 0)
    return [(name, layout), *((t.name, layout) for t in node.outputs[:1])]


NORMALIZED = ChannelRule(KEPT_ON_AXIS_1.forwards, _normalized)


# Some of the input's channels, or of its positions.


def _selected(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> ChannelLayout | None:
    shape = layouts.output_shape(node)
    if shape is None or (first.channel_axis == 1 and len(shape) != first.rank + 2):
        return None
    channels = shape[first.channel_axis] if len(shape) > 1 else None
    return None if channels is None else replace(first, channels=channels)


SELECTED = ChannelRule(_given_first(_selected))


# Concat: the channels of all inputs, where it is along the channels.


def _stacked(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> ChannelLayout | None:
    names = input_names(node)
    parts = [part for name in names if (part := layouts.known.get(name)) is not None]
    if len(parts) < len(names) or any(part.layout != first.layout for part in parts):
        return None
    axis, rank = node.attrs.get("axis"), layouts.rank(names[0])
    if axis is None:
        return None
    if rank is None and (axis < 0) != (first.channel_axis < 0):
        return None  # axis 1 and axis -1 may be the same axis or not
    if axis == first.channel_axis or (rank is not None and axis % rank == first.channel_axis % rank):
        return replace(first, channels=sum(part.channels for part in parts))
    return first


STACKED = ChannelRule(_given_first(_stacked))


# Operands that broadcast: that of the widest, if no other one can widen its channels.


def _broadcast(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    names, scope = input_names(node), layouts.scope
    constants = [scope.constants[name].shape for name in names if scope.const(name) is not None]
    varying = [name for name in names if scope.const(name) is None]
    layout = _common(layouts, node, varying)
    if layout is not None and not all(_fits(shape, layout) for shape in constants):
        layout = None
    if layout is None and constants and len(varying) == 1:
        constant = next(scope.constants[name] for name in names if scope.const(name) is not None)
        data_type = scope.data_type(varying[0]) or constant.data_type
        return _named_by_constant(scope.shape(varying[0]), constant.shape, data_type)
    return layout


def _common(layouts: Layouts, node: gs.Node, names: list[str]) -> ChannelLayout | None:
    """The layout of operands: theirs, if they agree and none can widen the channels."""
    operands = [layouts.known[name] for name in names if name in layouts.known]
    if not operands:
        return None
    shape = layouts.output_shape(node)
    if shape is not None:
        return next((layout for layout in operands if agrees(layout, shape)), None)
    widest = max(operands, key=lambda layout: layout.channels)
    if any(layout.layout != widest.layout for layout in operands):
        return None
    # one channel may become several by an operand of which nothing is known
    return widest if widest.channels > 1 or len(operands) == len(names) else None


def _fits(shape: tuple[int, ...], layout: ChannelLayout) -> bool:
    """Whether a constant of that shape, combined with a tensor of this layout, leaves rank and channels alone."""
    if layout.channel_axis == -1:
        return not shape or shape[-1] in (1, layout.channels)
    aligned = (1,) * (layout.rank + 2 - len(shape)) + shape
    return len(aligned) == layout.rank + 2 and aligned[1] in (1, layout.channels)


def _named_by_constant(
    shape: Shape | None, constant: tuple[int, ...], data_type: int
) -> ChannelLayout | None:
    """A constant that differs along one axis only names that axis: (C, 1, 1) axis 1 of (N, C, H, W)."""
    if shape is None or len(shape) < 2 or len(constant) > len(shape):
        return None
    aligned = (1,) * (len(shape) - len(constant)) + constant
    last = len(shape) - 1
    axes = [axis for axis, size in enumerate(aligned) if size != 1]
    if axes == [last] and shape[last] == aligned[last]:
        return ChannelLayout(-1, 0, aligned[last], data_type)
    if axes == [1] and shape[1] == aligned[1]:
        return ChannelLayout(1, len(shape) - 2, aligned[1], data_type)
    return None


def _operands(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    """Of the operands that cannot be narrower than the output."""
    layout = layouts.output(node)
    if layout is None:
        return ()
    scope, shape = layouts.scope, layouts.output_shape(node)
    if shape is not None:
        return [(name, layout) for name in input_names(node) if scope.shape(name) == shape]
    scalars = [_is_scalar(scope, t.name) for t in node.inputs]
    only_one_varies = all(scalars[1:]) or (len(scalars) == 2 and scalars[0])
    return [(name, layout) for name in input_names(node)] if only_one_varies else ()


def _is_scalar(scope: Scope, name: str) -> bool:
    """A constant that cannot widen what it is combined with."""
    const = scope.const(name)
    return const is not None and const.size == 1 and len(const.shape) <= 1


BROADCAST = ChannelRule(_broadcast, _operands)
