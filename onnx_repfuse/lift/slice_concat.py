"""Operators that pick or stack channels or positions: Concat, Gather, Slice, Split.

Their kernels are identities on a range, choices of channels and, for a Slice of space, one tap with a stride and an
origin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Index, Sampled, picked
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_products import composed, narrowed
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.dims import known_list
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.index_maps import END_OF_AXIS, gathered, sliced, split_sizes
from onnx_repfuse.graph.scope import Scope, optional_input, static
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.lift.view_ops import lift_view
from onnx_repfuse.records.report import Kind

__all__ = ["lift_concat", "lift_gather", "lift_repeat", "lift_slice", "lift_split", "slice_arguments"]


class Cut(NamedTuple):
    """What a Slice keeps along one axis."""

    start: int
    end: int
    step: int


WHOLE = Cut(0, END_OF_AXIS, 1)
CHANNELS = -1  # in place of an axis


def _is_channel_axis(context: Context, layout: tuple[int, int], name: str, axis: int) -> bool:
    """Whether `axis` of a tensor is that of its channels; of unknown rank, only if it is written the same way."""
    rank = context.rank(name)
    if rank is None:
        return axis == layout[0]
    return rank > 0 and axis % rank == layout[0] % rank


def lift_concat(context: Context, node: gs.Node) -> LinearOp | None:
    """Concat along the channels."""
    output = node.outputs[0].name
    stacked = context.float_layout(output)
    if stacked is None or "axis" not in node.attrs:  # before opset 4 it may be left out, and is 1
        return None
    operands: list[Operand] = []
    terms: list[Term] = []
    start = 0
    for tensor in node.inputs:
        part = _part(context, node, tensor.name, stacked.layout)
        if part is None:
            return None
        terms.append(Term(len(operands), Vector.unit(part.channels, part.layout), 0, start))
        operands.append(part)
        start += part.channels
    if start != stacked.channels:  # what was inferred of the output contradicts its parts
        return None
    bias = Bias.zeros(start)
    return LinearOp(node, output, Kind.CONCAT, start, stacked.layout, tuple(operands), tuple(terms), bias)


def _part(context: Context, node: gs.Node, name: str, layout: tuple[int, int]) -> Operand | None:
    """One input of a Concat, if it is no constant and its channels are concatenated."""
    # A constant has no term: its values would be a bias for each position.
    part = None if context.scope.const(name) is not None else context.channel_layout(name)
    if part is None or part.layout != layout:
        return None
    if not _is_channel_axis(context, layout, name, node.attrs["axis"]):
        return None
    return Operand(name, part.channels, layout)


def _selection(node: gs.Node, output: str, channel_layout: ChannelLayout, lo: int, hi: int) -> LinearOp:
    """Channels lo..hi of the node's first input."""
    term = Term(0, Vector.unit(hi - lo, channel_layout.layout), lo, 0)
    return _of_first_input(node, output, channel_layout, term, Kind.CONCAT)


def _of_first_input(
    node: gs.Node, output: str, channel_layout: ChannelLayout, term: Term, role: Kind
) -> LinearOp:
    """A term of the node's first input, of that layout."""
    layout, channels = channel_layout.layout, term.kernel.geometry.c_out
    operand = Operand(node.inputs[0].name, channel_layout.channels, layout)
    return LinearOp(node, output, role, channels, layout, (operand,), (term,), Bias.zeros(channels))


def lift_gather(context: Context, node: gs.Node) -> LinearOp | None:
    """Gather of channels by a constant list."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name)
    const = context.scope.const(optional_input(node, 1))
    if channel_layout is None or const is None or len(const.shape) != 1:
        return None  # an index of another rank changes the rank of the tensor
    if not _is_channel_axis(context, channel_layout.layout, name, node.attrs.get("axis", 0)):
        return None
    index = gathered(channel_layout.channels, const.read())
    return None if index is None else _choice_of(node, channel_layout, index)


def _choice_of(node: gs.Node, channel_layout: ChannelLayout, index: Index) -> LinearOp:
    """The channels `index` of the node's first input."""
    term = _choice(channel_layout, index)
    role = Kind.CONCAT if isinstance(term.kernel, Vector) else Kind.INDEX
    return _of_first_input(node, node.outputs[0].name, channel_layout, term, role)


def _choice(channel_layout: ChannelLayout, index: Index) -> Term:
    taps = Vector.unit(len(index), channel_layout.layout)
    kernel, first = narrowed(picked(index, taps, channel_layout.channels))
    return Term(0, kernel, first, 0)


def lift_repeat(context: Context, node: gs.Node) -> LinearOp | None:
    """Expand or Tile of space, which is a view, or of channels: a grey image as three channels."""
    view = lift_view(context, node)
    if view is not None:
        return view
    behind = context.float_layout(node.outputs[0].name)
    channels = None if behind is None else _repeated_channels(context.scope, node, behind)
    if behind is None or channels is None:
        return None
    return _choice_of(node, replace(behind, channels=channels), np.arange(behind.channels) % channels)


def _repeated_channels(scope: Scope, node: gs.Node, behind: ChannelLayout) -> int | None:
    """How many channels an Expand or Tile reads that repeats these, and nothing else; None if it does not."""
    shape = scope.shape(node.inputs[0].name)
    # of three inputs (Tile in opset 1), the second is not a list
    listed = known_list(scope, optional_input(node, 1)) if len(node.inputs) == 2 else None
    if shape is None or listed is None:
        return None
    adds_axes = len(listed) > len(shape)
    if adds_axes or not behind.allows_dims(len(shape)):
        return None
    channel = behind.channel_axis % len(shape)
    channels = shape[channel]
    amounts = [1] * (len(shape) - len(listed)) + listed
    times = amounts.pop(channel)
    if channels is None or times < 1 or not set(amounts) <= {1}:
        return None
    is_factor = (
        node.op == "Tile" or channels == 1
    )  # else an Expand lists as many channels as there are, or one
    written = channels * times if is_factor else channels
    return channels if written == behind.channels else None


def lift_slice(context: Context, node: gs.Node) -> LinearOp | None:
    """Slice of channels and of space by constants, with any steps; backwards over channels only."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name)
    if channel_layout is None:
        return None
    cuts = _cuts(context, node, channel_layout.layout)
    if cuts is None:
        return None
    index = sliced(channel_layout.channels, *cuts.pop(CHANNELS, WHOLE))
    if not len(index):
        return None
    if not cuts:
        return _choice_of(node, channel_layout, index)
    window = _window(context, name, channel_layout, cuts, len(index))
    if window is None:  # no kernel; but where only sizes are not known, it may be a view
        is_known = static(context.scope.shape(name)) is not None
        keeps_channels = len(index) == channel_layout.channels
        return lift_view(context, node) if keeps_channels and not is_known else None
    choice = _choice(channel_layout, index)
    # a Slice of all positions is no convolution
    taps = Vector.unit(len(index), window.layout) if window.is_pointwise else Sampled(window)
    kernel = composed(taps, choice.kernel, zero_bias=True)
    term = replace(choice, kernel=kernel)
    lifted = _of_first_input(node, node.outputs[0].name, channel_layout, term, Kind.INDEX)
    return replace(lifted, also=lift_view(context, node))


def _cuts(context: Context, node: gs.Node, layout: tuple[int, int]) -> dict[int, Cut] | None:
    """What a Slice keeps along each axis it names: `CHANNELS`, or another axis counted from the front."""
    arguments = slice_arguments(context.scope, node)
    if arguments is None:
        return None
    starts, ends, axes, steps = arguments
    axes = axes or list(range(len(starts)))  # left out, they are the first axes
    steps = steps or [1] * len(starts)
    if {len(ends), len(axes), len(steps)} != {len(starts)} or 0 in steps:
        return None
    cuts: dict[int, Cut] = {}
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        place = _place(context, layout, node.inputs[0].name, axis)
        if place is None or place in cuts:
            return None
        cuts[place] = Cut(*cut)
    return cuts


def _place(context: Context, layout: tuple[int, int], name: str, axis: int) -> int | None:
    """`CHANNELS`, or another axis of a tensor, counted from the front; None if that is not certain."""
    if _is_channel_axis(context, layout, name, axis):
        return CHANNELS
    rank = context.rank(name)
    return None if rank is None else axis % rank


def _window(
    context: Context, name: str, channel_layout: ChannelLayout, cuts: dict[int, Cut], channels: int
) -> Geometry | None:
    """A Slice of space as a convolution with one tap: `x[.., start::step]` is `x` at `step*i + start`.

    Its slack says where it ends: `-1 - start` at the last position, and less before it.
    """
    if channel_layout.channel_axis != 1:
        return None
    rank = channel_layout.rank
    shape = context.scope.shape(name) or (None,) * (rank + 2)
    strides, origin, slack = [1] * rank, [0] * rank, [-1] * rank
    for axis, cut in cuts.items():
        bounds = _bounds(cut, shape[axis])
        if bounds is None:
            return None
        if axis < 2:
            if cut.step != 1 or bounds != (0, 0):  # it skips images
                return None
            continue
        first, left_out = bounds
        strides[axis - 2], origin[axis - 2], slack[axis - 2] = cut.step, first, -1 - first - left_out
    point = Geometry.diagonal(channels, rank)
    return replace(point, strides=tuple(strides), origin=tuple(origin), slack=tuple(slack))


def _bounds(cut: Cut, size: int | None) -> tuple[int, int] | None:
    """The first position that a cut forwards keeps, and how many it leaves out at the end; None if not known."""
    if cut.step < 1:
        return None
    if size is None:
        # From the step on, a small tensor has nothing left, where a kernel would count fewer positions than none.
        starts_within_step = 0 <= cut.start < cut.step
        return (cut.start, 0) if starts_within_step and cut.end >= END_OF_AXIS else None
    first, last, _ = slice(cut.start, cut.end).indices(size)
    return (first, size - last) if first < last else None


def slice_arguments(scope: Scope, node: gs.Node) -> list[list[int]] | None:
    """Starts, ends, axes and steps, [] where one is not given: attributes before opset 10, then inputs."""
    if operator(node).uses_attributes(scope.opset):
        return [list(node.attrs.get(name) or ()) for name in ("starts", "ends", "axes", "steps")]
    arguments: list[list[int]] = [[], [], [], []]
    for number, tensor in enumerate(node.inputs[1:5]):
        if tensor.name:
            values = known_list(scope, tensor.name)
            if values is None:
                return None
            arguments[number] = values
    return arguments


def lift_split(context: Context, node: gs.Node, output: int) -> LinearOp | None:
    """One output of a Split of channels into known parts."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name)
    if channel_layout is None:
        return None
    if not _is_channel_axis(context, channel_layout.layout, name, node.attrs.get("axis", 0)):
        return None
    sizes = split_sizes(context.scope, node, channel_layout.channels)
    if sizes is None:
        return None
    lo = sum(sizes[:output])
    return _selection(node, node.outputs[output].name, channel_layout, lo, lo + sizes[output])
