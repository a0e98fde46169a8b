"""How channel layouts pass through a node: what its inputs tell of its output, and the other way round.

A rule is two functions. Forwards gives the layout of the first output. Backwards lists layouts of tensors around the
node, for tensors of which nothing else tells the layout. Rules refuse where they are not sure: a wrong axis would
make a wrong fold, an unknown one only loses a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Const, Scope, Shape, input_names, optional_input, static

__all__ = [
    "BROADCAST",
    "BY_SHAPE",
    "KEPT",
    "KEPT_ON_AXIS_1",
    "KEPT_WHERE_PROVED",
    "NEGATIVE_AXES_SINCE",
    "NORMALIZED",
    "NUMPY_BROADCAST_SINCE",
    "SELECTED",
    "STACKED",
    "ChannelLayout",
    "ChannelRule",
    "Demand",
    "Layouts",
    "broadcast_shape",
    "keeps_any_shape",
    "layout_of_axis",
]

NEGATIVE_AXES_SINCE = 11  # the opset from which every operator counts a negative axis from the end
NUMPY_BROADCAST_SINCE = 7  # the opset from which operands are aligned from the right, always


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

    def allows_dims(self, dims: int) -> bool:
        """Whether a tensor of this layout may have so many dims."""
        if self.channel_axis == 1:
            return dims == self.rank + 2
        return dims > 0  # a MatMul takes any number of leading axes

    def agrees(self, shape: Shape | None) -> bool:
        """Whether what is proved of a tensor's shape allows this layout."""
        if shape is None:
            return True
        return self.allows_dims(len(shape)) and shape[self.channel_axis] in (None, self.channels)

    def with_channels_of(self, shape: Shape | None) -> ChannelLayout | None:
        """This layout, with the channels that a tensor of that shape has; None if they are not proved."""
        if shape is None or len(shape) < 2:
            return None
        if not self.allows_dims(len(shape)):
            return None
        channels = shape[self.channel_axis]
        return None if channels is None else replace(self, channels=channels)


def layout_of_axis(axis: int, dims: int) -> tuple[int, int] | None:
    """The layout of a tensor with its channels on that axis, counted from the front; None unless it is 1 or the last.

    Of (N, C) it is both, and counts as the last.
    """
    if axis == dims - 1:
        return -1, 0
    return (1, dims - 2) if axis == 1 and dims > 2 else None


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

    def output_shape(self, node: gs.Node) -> Shape | None:
        """The proved shape of a node's first output."""
        return self.scope.shape(node.outputs[0].name)

    def channel_axis(self, name: str, axis: int) -> bool | None:
        """Whether an axis, counted from either end, is that of a tensor's channels; None if that is not certain."""
        layout, shape = self.known[name], self.scope.shape(name)
        if axis == layout.channel_axis:
            return True
        if shape is None and layout.channel_axis == -1:
            return None if axis >= 0 else False  # axis 1 may be the last one, as in (N, C)
        dims = layout.rank + 2 if shape is None else len(shape)
        return axis % dims == layout.channel_axis % dims


Demand = tuple[str, ChannelLayout]


@dataclass(frozen=True)
class ChannelRule:
    """What a node tells of channel layouts: of its output (forwards), and of other tensors around it (backwards)."""

    forwards: Callable[[Layouts, gs.Node], ChannelLayout | None]
    backwards: Callable[[Layouts, gs.Node], Sequence[Demand]] = lambda layouts, node: ()


# Of any operator, described or not: a proved (N, C) has its channels on the last axis.


def _matrix(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    shape = layouts.output_shape(node) or ()
    channels = shape[1] if len(shape) == 2 else None
    data_type = layouts.scope.data_type(node.outputs[0].name) or 0
    return ChannelLayout(-1, 0, channels, data_type) if channels else None


BY_SHAPE = ChannelRule(_matrix)


def _given_first(
    rule: Callable[[Layouts, gs.Node, ChannelLayout], ChannelLayout | None],
) -> Callable[[Layouts, gs.Node], ChannelLayout | None]:
    """A forwards rule that starts from the layout of the first input; without one, the output's shape tells."""

    def forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
        first = layouts.first(node)
        return _matrix(layouts, node) if first is None else rule(layouts, node, first)

    return forwards


# The output has the channels of the first input, and the first input those of the output.


def _kept_if(keeps: Callable[[Layouts, gs.Node, ChannelLayout], bool]) -> ChannelRule:
    """Same channels in input and output, for the layouts that `keeps` allows."""

    def forwards(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> ChannelLayout | None:
        return first if keeps(layouts, node, first) else None

    def backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
        layout, name = layouts.output(node), node.inputs[0].name
        if layout is None or not keeps(layouts, node, layout):
            return ()
        return [(name, layout)] if layout.agrees(layouts.scope.shape(name)) else ()

    return ChannelRule(_given_first(forwards), backwards)


def _on_axis_1(layouts: Layouts, node: gs.Node, layout: ChannelLayout) -> bool:
    if layout.channel_axis == 1:
        return True
    # torch exports BatchNorm1d as a BatchNormalization of (N, C): there the last axis is axis 1
    return len(layouts.output_shape(node) or ()) == 2


def _where_proved(layouts: Layouts, node: gs.Node, layout: ChannelLayout) -> bool:
    shape = layouts.output_shape(node) or ()
    return len(shape) > 1 and shape[layout.channel_axis] == layout.channels


KEPT = _kept_if(lambda layouts, node, layout: True)
KEPT_ON_AXIS_1 = _kept_if(_on_axis_1)  # by definition (N, C, ...): pools, normalizations
KEPT_WHERE_PROVED = _kept_if(_where_proved)  # a Pad or a Resize may change any axis, that of the channels too


def _normalized(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    # BatchNormalization: its scale has one value per channel of axis 1
    name, scope = node.inputs[0].name, layouts.scope
    shape = scope.shape(name) or ()
    scale = static(scope.shape(optional_input(node, 1))) or ()
    on_axis_1 = layout_of_axis(1, len(shape))
    if on_axis_1 is None or len(scale) != 1:
        return ()  # before opset 9, `spatial=0` has a scale per position
    layout = ChannelLayout(*on_axis_1, scale[0], scope.data_type(name) or 0)
    return [(name, layout), *((t.name, layout) for t in node.outputs[:1])]


NORMALIZED = ChannelRule(KEPT_ON_AXIS_1.forwards, _normalized)


# Some of the input's channels, or of its positions: the proved shape says how many channels are left.


def _selected_from(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    layout, name = layouts.output(node), node.inputs[0].name
    shape, result = layouts.scope.shape(name), layouts.output_shape(node)
    if layout is None or shape is None:
        return ()
    if result is None or len(result) != len(shape):  # a Gather by a number removes an axis
        return ()
    whole = layout.with_channels_of(shape)
    return () if whole is None else [(name, whole)]


SELECTED = ChannelRule(
    _given_first(lambda layouts, node, first: first.with_channels_of(layouts.output_shape(node))),
    _selected_from,
)


# Concat: the channels of all inputs, where it is along the channels.


def _stacked(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> ChannelLayout | None:
    names, axis = input_names(node), node.attrs.get("axis")
    parts = [layouts.known.get(name) for name in names]
    if {part.layout if part else None for part in parts} != {first.layout} or axis is None:
        return None  # of a part nobody knows how many channels it adds
    along_channels = layouts.channel_axis(names[0], axis)
    if along_channels is None:
        return None
    return replace(first, channels=sum(part.channels for part in parts if part)) if along_channels else first


def _parts(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    layout = layouts.output(node)
    if layout is None:
        return ()
    parts = [(name, layout.with_channels_of(layouts.scope.shape(name))) for name in input_names(node)]
    return [(name, part) for name, part in parts if part is not None]


STACKED = ChannelRule(_given_first(_stacked), _parts)


# Operands that broadcast: that of the widest, if no other one can widen its channels.


def broadcast_shape(
    scope: Scope, node: gs.Node, shape: tuple[int, ...], rank: int | None
) -> tuple[int, ...] | None:
    """The shape of a constant second operand, so that it aligns from the right with a first operand of `rank` axes.

    Below opset 7, `broadcast=1, axis=k` aligns it with the axes from `k` on. None if that is not known, or impossible.
    """
    axis = node.attrs.get("axis") if node.attrs.get("broadcast") else None
    if scope.opset >= NUMPY_BROADCAST_SINCE or axis is None:
        return shape
    if not rank:
        return None
    behind = rank - axis % rank - len(shape)
    return None if behind < 0 else (*shape, *(1,) * behind)


def _broadcast(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    if layouts.scope.opset < NUMPY_BROADCAST_SINCE and node.attrs.get("broadcast"):
        return _broadcast_to_first(layouts, node)
    scope = layouts.scope
    varying, constants = _operands_of(scope, node)
    layout = _common(layouts, node, varying)
    if layout is not None and all(_fits(const.shape, layout) for const in constants):
        return layout
    if not constants or len(varying) != 1:
        return None
    data_type = scope.data_type(varying[0]) or constants[0].data_type
    return _named_by_constant(scope.shape(varying[0]), constants[0].shape, data_type)


def _operands_of(scope: Scope, node: gs.Node) -> tuple[list[str], list[Const]]:
    """The operands that vary, and those that are constant."""
    operands = [(name, scope.const(name)) for name in input_names(node)]
    varying = [name for name, const in operands if const is None]
    return varying, [const for _, const in operands if const is not None]


def _broadcast_to_first(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    """Below opset 7, the output has the shape of the first operand."""
    first, scope = layouts.first(node), layouts.scope
    if first is not None:
        return first
    shape, const = scope.shape(node.inputs[0].name), scope.const(optional_input(node, 1))
    if shape is None or const is None:
        return None
    aligned = broadcast_shape(scope, node, const.shape, len(shape))
    return None if aligned is None else _named_by_constant(shape, aligned, const.data_type)


def _common(layouts: Layouts, node: gs.Node, names: list[str]) -> ChannelLayout | None:
    """The layout of operands, if they agree and none can widen the channels."""
    operands = [layouts.known[name] for name in names if name in layouts.known]
    if not operands:
        return None
    shape = layouts.output_shape(node)
    if shape is not None:  # (N, C, 1, 1) * (N, C, H, W): both agree; (N, 1, H, W) * (N, C, H, W): the second
        return next((layout for layout in operands if layout.agrees(shape)), None)
    return _widest(operands, are_all=len(operands) == len(names))


def _widest(operands: Sequence[ChannelLayout], *, are_all: bool) -> ChannelLayout | None:
    """The layout of operands that broadcast to a shape nobody knows, if they agree on the axis."""
    widest = max(operands, key=lambda layout: layout.channels)
    if any(layout.layout != widest.layout for layout in operands):
        return None
    if are_all:
        return widest
    # An operand of which nothing is known may have more axes, which moves axis 1, but not the last. It may broadcast
    # one channel to several.
    return widest if widest.channel_axis == -1 and widest.channels > 1 else None


def _fits(shape: tuple[int, ...], layout: ChannelLayout) -> bool:
    """Whether a constant of that shape, combined with a tensor of this layout, leaves rank and channels alone."""
    if layout.channel_axis == -1:
        return shape[-1:] in ((), (1,), (layout.channels,))
    dims = layout.rank + 2
    aligned = (1,) * (dims - len(shape)) + shape  # (C, 1, 1) -> (1, C, 1, 1)
    return len(shape) <= dims and aligned[1] in (1, layout.channels)


def _named_by_constant(
    shape: Shape | None, constant: tuple[int, ...], data_type: int
) -> ChannelLayout | None:
    """A constant that varies along one axis only names that axis."""
    # (C, 1, 1) with (N, C, H, W): axis 1; (C,) with (N, L, C): the last
    if shape is None or len(shape) < max(2, len(constant)):
        return None
    aligned = (1,) * (len(shape) - len(constant)) + constant
    varying = [axis for axis, size in enumerate(aligned) if size != 1]
    layout = layout_of_axis(varying[0], len(shape)) if len(varying) == 1 else None
    if layout is None:
        return None
    channels = aligned[varying[0]]
    if shape[varying[0]] != channels:
        return None  # it broadcasts the tensor, or the size is not proved
    return ChannelLayout(*layout, channels, data_type)


def _operands(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    """Operands that cannot be narrower than the output have its layout."""
    layout = layouts.output(node)
    if layout is None:
        return ()
    scope, shape = layouts.scope, layouts.output_shape(node)
    if shape is not None:
        return [(name, layout) for name in input_names(node) if scope.shape(name) == shape]
    constants = [scope.const(tensor.name) for tensor in node.inputs]
    scalars = [const is not None and keeps_any_shape(const.shape, layout.channels) for const in constants]
    if len(scalars) == 2:
        scalars.sort()  # of two operands, either may be the scalar
    return [(name, layout) for name in input_names(node)] if all(scalars[1:]) else ()


def keeps_any_shape(constant: tuple[int, ...], channels: int) -> bool:
    """Whether a constant of that shape cannot widen what it is combined with, where so many channels come out.

    One axis of one element gives an axis to a scalar only, which would have one channel.
    """
    return constant == () or (constant == (1,) and channels > 1)


BROADCAST = ChannelRule(_broadcast, _operands)
