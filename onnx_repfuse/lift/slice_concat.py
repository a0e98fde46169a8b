"""Operators that pick or stack channels: Concat, Slice, Split. Their kernels are identities on a range."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import optional_input
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.records.report import Kind

__all__ = ["lift_concat", "lift_slice", "lift_split"]


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
    if stacked is None or "axis" not in node.attrs:
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
    part = context.channel_layout(name)
    if part is None or part.layout != layout or context.scope.const(name) is not None:
        return None
    if not _is_channel_axis(context, layout, name, node.attrs["axis"]):
        return None
    return Operand(name, part.channels, layout)


def _selection(node: gs.Node, output: str, channel_layout: ChannelLayout, lo: int, hi: int) -> LinearOp:
    """Channels lo..hi of the node's first input."""
    layout = channel_layout.layout
    operand = Operand(node.inputs[0].name, channel_layout.channels, layout)
    term = Term(0, Vector.unit(hi - lo, layout), lo, 0)
    return LinearOp(node, output, Kind.CONCAT, hi - lo, layout, (operand,), (term,), Bias.zeros(hi - lo))


def lift_slice(context: Context, node: gs.Node) -> LinearOp | None:
    """Slice of consecutive channels by constants."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name)
    selected = None if channel_layout is None else _selected_range(context, node)
    if channel_layout is None or selected is None:
        return None
    axis, start, end = selected
    if not _is_channel_axis(context, channel_layout.layout, name, axis):
        return None
    lo, hi, _ = slice(start, end).indices(
        channel_layout.channels
    )  # negative and out-of-range ends as in Python
    return _selection(node, node.outputs[0].name, channel_layout, lo, hi) if lo < hi else None


def _selected_range(context: Context, node: gs.Node) -> tuple[int, int, int] | None:
    """(axis, start, end) of a Slice by constants along one axis with step 1."""
    arguments = _slice_arguments(context, node)
    if arguments is None:
        return None
    starts, ends, axes, steps = arguments
    axes = axes or [0]  # left out, they are the first axes
    # A step picks every n-th channel, or reverses them: a kernel, but not one that terms can write as a range.
    if not len(starts) == len(ends) == len(axes) == 1 or steps not in ([], [1]):
        return None
    return axes[0], starts[0], ends[0]


def _slice_arguments(context: Context, node: gs.Node) -> list[list[int]] | None:
    """Starts, ends, axes and steps, [] where one is not given: attributes before opset 10, then inputs."""
    if operator(node).uses_attributes(context.scope.opset):
        return [list(node.attrs.get(name) or ()) for name in ("starts", "ends", "axes", "steps")]
    arguments: list[list[int]] = [[], [], [], []]
    for number, tensor in enumerate(node.inputs[1:5]):
        if tensor.name:
            const = context.scope.const(tensor.name)
            if const is None:
                return None
            arguments[number] = [int(v) for v in const.read().ravel()]
    return arguments


def lift_split(context: Context, node: gs.Node, output: int) -> LinearOp | None:
    """One output of a Split of channels into known parts."""
    name = node.inputs[0].name
    channel_layout = context.float_layout(name)
    if channel_layout is None:
        return None
    if not _is_channel_axis(context, channel_layout.layout, name, node.attrs.get("axis", 0)):
        return None
    sizes = _split_sizes(context, node, channel_layout.channels)
    if sizes is None:
        return None
    lo = sum(sizes[:output])
    return _selection(node, node.outputs[output].name, channel_layout, lo, lo + sizes[output])


def _split_sizes(context: Context, node: gs.Node, channels: int) -> list[int] | None:
    """Channels of each output, all positive: from an attribute (before opset 13), from an input, or equal parts."""
    sizes = node.attrs.get("split")
    count = len(node.outputs)
    name = optional_input(node, 1)
    if name:
        const = context.scope.const(name)
        if const is None:
            return None
        sizes = [int(v) for v in const.read().ravel()]
    if sizes is None:  # ceil(channels / count) each, the last one what is left (num_outputs, opset 18)
        chunk = -(-channels // count)
        sizes = [min(chunk, channels - number * chunk) for number in range(count)]
    is_partition = len(sizes) == count and sum(sizes) == channels and min(sizes) > 0
    return list(sizes) if is_partition else None
