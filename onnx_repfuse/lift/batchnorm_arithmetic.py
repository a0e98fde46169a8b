"""Per-channel affine operators: BatchNormalization, and arithmetic with a constant.

BatchNormalization: `t = scale / sqrt(var + epsilon)`, `y = t*x + (B - mean*t)` (ONNX spec, inference mode).

A constant acts per channel only if numpy broadcasting says so: aligned from the right, every dim but the channel
dim is 1. On a Conv's output of shape (N, C, H, W) a constant of shape (W,) or (H, 1) is not per channel, even if
its length happens to equal C; and a constant with more dims than the tensor changes its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Array, Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import broadcast_shape, keeps_any_shape
from onnx_repfuse.graph.operators.facts import Passes
from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, ONNX_DOMAINS, Const, Scope, node_name
from onnx_repfuse.graph.zero_signs import shows_zero
from onnx_repfuse.lift.linear_op import (
    Context,
    Declined,
    LinearOp,
    affine_role,
    bias_of_const,
    diagonal,
    flat_float64,
    from_kernel,
)
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, epsilon
from onnx_repfuse.records.reasons import Reason

__all__ = [
    "ROUNDS_BETWEEN",
    "lift_arithmetic",
    "lift_batch_normalization",
    "most_that_cancels",
    "per_channel",
    "rounds_between",
]

_SUMS = ("Add", "Sub", "Sum")
_MOVES = ("Concat", "Gather", "GatherND", "Identity", "Neg", "SpaceToDepth", "Split")
_KEEP_ROUNDING = ("Clip", "Div", "LeakyRelu", "Max", "Min", "Mul", "Relu")  # with constants alone
MAX_NEIGHBOURS = 64  # looked at for the other half of a rounding
MAX_NODES_BACK = 16  # looked at for what hides the rank of a tensor
# What the original rounds away at |x| = 1 may be so much of its result: more is a rounding that somebody wanted.
MAX_ROUNDING = 2.0**-12
MIN_CANCELLATION = 4.0
ROUNDS_BETWEEN = "adding and subtracting a large constant rounds what is between"


def lift_batch_normalization(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """BatchNormalization in inference mode with constant parameters."""
    if len(node.inputs) < 5:  # scale, B, mean and var are required
        return None
    declined = _not_per_channel(context, node)
    if declined is not None:
        return declined
    parameters = _parameters(context, node)
    if not isinstance(parameters, list):
        return parameters
    if len({const.shape for const in parameters}) != 1:
        return None
    channel_layout = _normalized_layout(context, node.inputs[0].name, parameters[0].size)
    if not isinstance(channel_layout, ChannelLayout):
        return channel_layout
    lifted = _normalized(node, parameters, channel_layout)
    # One that an earlier round created: its mean is 0 and its variance 1, its shift may be known by a kernel only.
    created = next((const.bias for const in parameters if const.bias is not None), None)
    return lifted if created is None or isinstance(lifted, Declined) else replace(lifted, bias=created)


def _normalized(
    node: gs.Node, parameters: Sequence[Const], channel_layout: ChannelLayout
) -> LinearOp | Declined:
    """The formula of the module's docstring, in float64."""
    scale, shift, mean, variance = (_channel_values(const) for const in parameters)
    added = float(np.float32(node.attrs.get("epsilon", 1e-5)))  # attributes are float32, the default too
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + added)
        moved = mean * factor
        terms = np.abs(shift) + np.abs(moved)  # magnitudes, which may exceed |shift - moved| by far
        is_finite = np.isfinite(factor + terms).all()
        offset = shift - moved
    if not is_finite:
        return Declined(Reason.NON_FINITE)
    return diagonal(node, node.inputs[0].name, channel_layout, factor, offset, terms=terms)


def _not_per_channel(context: Context, node: gs.Node) -> Declined | None:
    """Why it does not scale each channel by constants: training mode, or statistics per position."""
    opset = context.scope.opset
    if opset < 7:  # is_test, which is off by default; later versions infer the mode
        if not node.attrs.get("is_test", 0):
            return Declined(
                Reason.TRAINING, "it runs in training mode (is_test=0): export the model in eval mode"
            )
    # From opset 7 to 13, asking for the statistics as outputs is what turns training mode on; 14 has an attribute.
    elif node.attrs.get("training_mode", 0) or any(tensor.name for tensor in node.outputs[1:]):
        # Exporters compute the mean and variance that no running statistics give. Then eval mode changes nothing.
        are_computed = all(tensor.name in context.scope.producer for tensor in node.inputs[3:5])
        return Declined(Reason.BATCH_STATISTICS if are_computed else Reason.TRAINING)
    is_per_position = opset < 9 and not node.attrs.get("spatial", 1)
    if is_per_position and context.rank(node.inputs[0].name) != 2:  # (N, C) has no positions
        return Declined(Reason.SPATIAL)
    return None


def _parameters(context: Context, node: gs.Node) -> list[Const] | Declined | None:
    """Scale, B, mean and var, each of shape (channels,)."""
    parameters = []
    for tensor in node.inputs[1:5]:
        const = context.scope.const(tensor.name)
        if const is None:
            return Declined(Reason.OVERRIDABLE) if tensor.name in context.scope.overridable else None
        if len(const.shape) != 1 or const.size > MAX_FOLDED_ELEMENTS:  # (C, *space) with spatial=0
            return Declined(Reason.SPATIAL)
        parameters.append(const)
    return parameters


def _channel_values(const: Const) -> Array:
    return const.read().astype(np.float64) if const.bias is None else const.bias.known


def _normalized_layout(context: Context, name: str, channels: int) -> ChannelLayout | Declined | None:
    """The layout that BatchNormalization reads: (N, C, *space), of which (N, C) has channels on the last axis, too."""
    rank = context.rank(name)
    if rank is None:
        hidden = _custom_operator_before(context, name)
        if hidden is None:
            return Declined(Reason.SHAPE, "the rank of its input is not known")
        title = f"{hidden.op} '{node_name(hidden)}'"
        return Declined(
            Reason.CUSTOM_OPERATOR, f"its input comes from {title}, whose results have a rank not known"
        )
    if rank < 2:
        return None
    # What is inferred may come from another consumer: the parameters say how many channels there are.
    inferred = context.channel_layout(name)
    data_type = context.scope.data_type(name) or (0 if inferred is None else inferred.data_type)
    axis, space = (-1, 0) if rank == 2 else (1, rank - 2)
    return ChannelLayout(axis, space, channels, data_type)


def _custom_operator_before(context: Context, name: str) -> gs.Node | None:
    """The operator of another domain from which a tensor of unknown rank comes, through operators of ONNX."""
    for _ in range(MAX_NODES_BACK):
        producer = context.scope.producer.get(name)
        if producer is None or not producer.inputs:
            return None
        # nodes of other domains have their domain in the operator's name, see `graph.decode`
        if producer.domain not in ONNX_DOMAINS or "." in producer.op:
            return producer
        name = producer.inputs[0].name
    return None


def lift_arithmetic(context: Context, node: gs.Node) -> LinearOp | Declined | None:
    """Add, Sub, Mul, Div of a tensor and a constant, on either side; not a constant divided by a tensor."""
    operands = _tensor_and_constant(context, node)
    if operands is None:
        return Declined(Reason.OVERRIDABLE) if _has_overridable_factor(context, node) else None
    name, const, is_left = operands
    shape = broadcast_shape(context.scope, node, const.shape, context.rank(name))
    if shape is None or (is_left and shape != const.shape):
        return Declined(
            Reason.BROADCAST, "it broadcasts along an `axis`, and the rank of its input is not known"
        )
    channel_layout = per_channel(context, name, node.outputs[0].name, shape)
    if not isinstance(channel_layout, ChannelLayout):
        return channel_layout
    if const.size > MAX_FOLDED_ELEMENTS:
        return None  # its values are needed now, to tell whether they are finite and not zero
    return _with_values(context, node, name, const, channel_layout, is_left=is_left)


def _with_values(
    context: Context, node: gs.Node, name: str, const: Const, channel_layout: ChannelLayout, *, is_left: bool
) -> LinearOp | Declined:
    """Arithmetic with a constant that acts per channel; Declined if its values forbid that."""
    channels, layout = channel_layout.channels, channel_layout.layout
    if const.bias is not None and node.op == "Add":  # an Add that an earlier round created
        bias = bias_of_const(const, channels, channel_layout.data_type)
        return from_kernel(node, name, Vector.unit(channels, layout), affine_role(layout), bias)
    value = np.array(np.broadcast_to(flat_float64(const.read()), (channels,)))
    if not np.isfinite(value).all():
        return Declined(Reason.NON_FINITE)
    is_zero = node.op in ("Add", "Sub") and not value.any()
    if is_zero and shows_zero(context.scope, node, value, is_left=is_left):
        return Declined(
            Reason.PRECISION, "it turns -0 into 0, and a later node computes other values from the two"
        )
    scale, shift = _scale_and_shift(node.op, value, is_left)
    if not np.isfinite(scale).all():
        return Declined(Reason.NON_FINITE, "it divides by zero")
    if rounds_between(context, node, [shift], channel_layout.data_type):
        return Declined(Reason.PRECISION, ROUNDS_BETWEEN)
    return diagonal(node, name, channel_layout, scale, shift)


def most_that_cancels(ulp: float) -> float:
    """The largest sum of absolute values that may cancel to 1, in a data type with `ulp` at 1."""
    return max(MIN_CANCELLATION, MAX_ROUNDING / ulp)


def rounds_between(context: Context, node: gs.Node, shifts: Sequence[Array], data_type: int) -> bool:
    """Whether it is a part of `(x + 2**23) - 2**23`: a large constant comes, and goes, as quantizers round.

    Args:
        context: of the node.
        node: adds the shifts, one after the other: a Sum may have several.
        shifts: each of any shape.
        data_type: an ONNX float type.
    """
    largest = [float(np.abs(shift).max(initial=0.0)) for shift in shifts]
    most = most_that_cancels(epsilon(data_type))
    large = [(place, one) for place, one in enumerate(largest) if 2 * one > most]
    if not large:
        return False
    beside = [_largest_shift(context, neighbour) for neighbour in _neighbours(context, node)]
    return any(
        2 * other > most  # a factor in between makes another large constant of it
        or one / 2 <= other <= one * 2
        for place, one in large
        for other in (*largest[:place], *largest[place + 1 :], *beside)
    )


def _neighbours(context: Context, node: gs.Node) -> Iterator[gs.Node]:
    """The nodes before one, those behind it, and those beside it in a sum.

    Those that only move, choose, negate, limit, scale or shift values are looked through: what is rounded in front of
    them is rounded behind them.
    """
    scope = context.scope

    def behind(one: gs.Node) -> list[gs.Node]:
        return [consumer for tensor in one.outputs for consumer in scope.consumers.get(tensor.name, ())]

    def before(one: gs.Node) -> list[gs.Node]:
        producers = [scope.producer.get(tensor.name) for tensor in one.inputs]
        return [producer for producer in producers if producer is not None]

    consumers = _through_moves(scope, behind(node), behind)
    sums = [consumer for consumer in consumers if consumer.op in _SUMS]
    producers = [producer for one in (node, *sums) for producer in before(one)]
    found = (*consumers, *_through_moves(scope, producers, before))
    yield from (one for one in found if one is not node)


def _through_moves(
    scope: Scope, nodes: Iterable[gs.Node], beyond: Callable[[gs.Node], Iterable[gs.Node]]
) -> list[gs.Node]:
    """Nodes, and those beyond the ones among them that keep what was rounded; not too many."""
    found = list(nodes)
    for one in found:  # which grows
        facts = operator(one)
        is_move = facts.space_map is not None or facts.passes is Passes.AFFINE or one.op in _MOVES
        if (is_move or _reads_one_tensor(scope, one)) and len(found) < MAX_NEIGHBOURS:
            found += beyond(one)
    return found


def _reads_one_tensor(scope: Scope, node: gs.Node) -> bool:
    """Whether a node computes with one tensor and constants: `x + 2**23 + 1 - 2**23` rounds x, too."""
    if node.op not in (*_SUMS, *_KEEP_ROUNDING):
        return False
    return sum(bool(tensor.name) and scope.const(tensor.name) is None for tensor in node.inputs) == 1


def _largest_shift(context: Context, node: gs.Node) -> float:
    """The greatest magnitude of what a node adds to a tensor; 0 for any other node."""
    names = [tensor.name for tensor in node.inputs] if node.op in _SUMS else []
    constants = [const for name in names if (const := context.scope.const(name)) is not None]
    if len(constants) == len(names):
        return 0.0
    plain = [const for const in constants if const.data_type in FLOAT_FORMATS and const.bias is None]
    values = [flat_float64(const.read()) for const in plain if const.size <= MAX_FOLDED_ELEMENTS]
    return max((float(np.abs(value).max(initial=0.0)) for value in values), default=0.0)


def _tensor_and_constant(context: Context, node: gs.Node) -> tuple[str, Const, bool] | None:
    """The tensor's name, the constant, and whether that is on the left; None for `constant / tensor`."""
    if len(node.inputs) != 2:
        return None
    names = [tensor.name for tensor in node.inputs]
    left, right = (context.scope.const(name) for name in names)
    if left is None:
        name, const = names[0], right
    elif right is None and node.op != "Div":
        name, const = names[1], left
    else:  # of two constants the graph computes another one
        return None
    if const is None or const.data_type not in FLOAT_FORMATS:
        return None
    return name, const, left is not None


def _has_overridable_factor(context: Context, node: gs.Node) -> bool:
    """Whether a tensor is multiplied or divided by a weight that callers may set."""
    places = {"Mul": (0, 1), "Div": (1,)}.get(node.op, ())
    names = [node.inputs[place].name for place in places if place < len(node.inputs)]
    return len(node.inputs) == 2 and sum(name in context.scope.overridable for name in names) == 1


def _scale_and_shift(op: str, value: Array, is_left: bool) -> tuple[Array, Array]:
    """`x op value`, or `value op x` where the constant is on the left, as `scale*x + shift`."""
    ones, zeros = np.ones(len(value)), np.zeros(len(value))
    if op == "Add":
        return ones, value
    if op == "Sub":
        return (-ones, value) if is_left else (ones, -value)
    if op == "Mul":
        return value, zeros
    with np.errstate(all="ignore"):
        return 1.0 / value, zeros


def per_channel(
    context: Context, name: str, output: str, shape: tuple[int, ...]
) -> ChannelLayout | Declined | None:
    """The layout in which a constant of `shape` acts per channel on tensor `name`; Declined if it does not."""
    operand = context.channel_layout(name)
    channel_layout = context.channel_layout(output) or operand
    if channel_layout is None:
        return None
    rank = context.rank(name)
    if rank is None:
        return _per_channel_at_any_rank(operand, channel_layout, shape)
    declined = _why_not_per_channel(context, name, channel_layout, shape, rank)
    return channel_layout if declined is None else declined


def _why_not_per_channel(
    context: Context, name: str, channel_layout: ChannelLayout, shape: tuple[int, ...], rank: int
) -> Declined | None:
    """Why a constant of `shape` does not act per channel on a tensor of `rank` axes; None if it does."""
    if len(shape) > rank:
        return _broadcasts(shape, "changes the rank of its input")
    aligned = (1,) * (rank - len(shape)) + shape  # (C, 1, 1) -> (1, C, 1, 1)
    varying = [axis for axis, dim in enumerate(aligned) if dim != 1]
    if not varying:  # one value for all channels
        return None
    channel = channel_layout.channel_axis % rank
    if varying != [channel]:
        return _broadcasts(shape, "is not per channel")
    # The layout may be that of the output: an input with a single channel is broadcast by the constant.
    operand, dims = context.channel_layout(name), context.scope.shape(name)
    channels = channel_layout.channels
    channels_before = channels if operand is None else operand.channels
    if {aligned[channel], channels_before} != {channels}:
        return _broadcasts(shape, "changes the number of channels")
    if operand is None and (dims is None or dims[channel] != channels):
        return Declined(Reason.SHAPE, "the channels of its input are not known")
    return None


def _broadcasts(shape: tuple[int, ...], clause: str) -> Declined:
    return Declined(Reason.BROADCAST, f"its constant of shape {list(shape)} {clause}")


def _per_channel_at_any_rank(
    operand: ChannelLayout | None, channel_layout: ChannelLayout, shape: tuple[int, ...]
) -> ChannelLayout | Declined:
    """As `per_channel`, for a tensor of unknown rank, which may be a scalar.

    A constant without axes changes no shape; one axis of one element adds an axis to a scalar only; and a vector acts
    on the last axis, if that is known to be as long: a single channel would be broadcast.
    """
    if keeps_any_shape(shape, channel_layout.channels):
        return channel_layout
    unknown = Declined(Reason.SHAPE, "the rank of its input is not known")
    if operand is None or operand.channel_axis != -1:
        return unknown
    return operand if shape in ((1,), (operand.channels,)) else unknown
