"""A Pad before windows that the algebra does not take for convolutions of constant weights.

    AveragePool(Pad(x))   ->   AveragePool(x), with pads that count
    MaxPool(Pad(Relu(x)))   ->   MaxPool(Relu(x)), with pads
    Conv(Pad(x), w)       ->   Conv(x, w), with pads

A pool without pads of its own divides by its whole window, also where that holds padding. So do pads that count
(`count_include_pad`). The pads of a MaxPool never are the maximum. A zero is not, either, beside a value that is not
negative, nor is -inf beside any value. A Conv of a weight that is computed reads zeros in both. Pools that round up are
left alone: runtimes do not agree on what a window counts that hangs over counted pads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.decode import new_node, read_instead
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, optional_input
from onnx_repfuse.graph.windows import Window, any_window, fits, holds_a_position
from onnx_repfuse.graph.zero_signs import tells_zeros_apart
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.linear_op import Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["apply_padded_windows"]

_WINDOWS = ("AveragePool", "Conv", "MaxPool")
_NEVER_NEGATIVE = frozenset(("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"))
COUNTED_SINCE = 7  # the opset that brought count_include_pad


def apply_padded_windows(plan: ScopePlan, layouts: dict[str, ChannelLayout], is_free: IsFree) -> bool:
    """Write every such Pad into the windows that read it; whether there was any.

    Args:
        plan: of the scope, which is changed.
        layouts: of its tensors.
        is_free: whether a node may be replaced.
    """
    scope = plan.scope
    context = Context(scope, layouts)
    replacements = Replacements(plan)
    for pad in [node for node in scope.nodes if node.op == "Pad" and is_free(node)]:
        for window, fresh in _windows_with_pads(context, pad, is_free):
            replacements.fold(window.outputs[0].name, {Kind.PAD}, [pad, window], [fresh])
        for absorbed, created in _maxima_of_zeros(context, pad, is_free):
            replacements.fold(absorbed[-1].outputs[0].name, {Kind.PAD}, absorbed, created)
    return replacements.write()


def _windows_with_pads(context: Context, pad: gs.Node, is_free: IsFree) -> Iterator[tuple[gs.Node, gs.Node]]:
    """The consumers of a Pad, and what computes the same without it; none unless all of them can do without."""
    scope, name = context.scope, pad.outputs[0].name
    consumers = scope.consumers.get(name, [])
    amounts = _around_space(context, pad)
    if amounts is None or scope.is_seen(name) or not any(_is_left_to_us(context, node) for node in consumers):
        return
    if {node.op == "MaxPool" for node in consumers} != {amounts.value < 0}:
        return  # zeros before a maximum are for `_maxima_of_zeros`
    written = [_with_pads(context, pad, node, amounts) for node in consumers if is_free(node)]
    fresh = [node for node in written if node is not None]
    if len(fresh) == len(consumers):
        yield from zip(consumers, fresh, strict=True)


def _maxima_of_zeros(
    context: Context, pad: gs.Node, is_free: IsFree
) -> Iterator[tuple[list[gs.Node], list[gs.Node]]]:
    """An activation that is never negative, a Pad with zeros and a MaxPool, as TensorFlow pads; and the nodes for them.

    The activation is a part of the fold, which is none without it.
    """
    scope, name, source = context.scope, pad.outputs[0].name, pad.inputs[0].name
    activation, amounts = scope.producer.get(source), _around_space(context, pad)
    pool = scope.only_consumer(name)
    if pool is None or pool.op != "MaxPool" or amounts is None or amounts.value != 0:
        return
    if activation is None or not scope.is_private(source) or not _is_never_negative(scope, activation):
        return
    if tells_zeros_apart(scope, pool.outputs[0].name):
        return  # an activation may give out -0, beside which a zero of the padding is the maximum
    fresh = _with_pads(context, pad, pool, amounts) if is_free(pool) and is_free(activation) else None
    if fresh is not None:
        again = scope.fresh(f"{source}_unpadded")
        inputs = [tensor.name for tensor in activation.inputs]
        copy = new_node(
            activation.op, scope.fresh(f"{activation.name}_unpadded"), activation.attrs, inputs, [again]
        )
        scope.declare_like(again, source)
        read_instead(fresh, 0, again)
        yield [activation, pad, pool], [copy, fresh]


def _is_never_negative(scope: Scope, node: gs.Node) -> bool:
    """Whether an activation gives out no value below zero."""
    if node.op != "Clip":
        return node.op in _NEVER_NEGATIVE
    if operator(node).uses_attributes(scope.opset):
        limits = [node.attrs.get("min"), node.attrs.get("max", 0.0)]
    else:
        low, high = optional_input(node, 1), optional_input(node, 2)
        limits = [scope.scalar(low), scope.scalar(high) if high else 0.0]
    # Where the maximum is below the minimum, runtimes give out the maximum.
    return all(limit is not None and limit >= 0 for limit in limits)


def _is_left_to_us(context: Context, node: gs.Node) -> bool:
    """Whether the algebra does not see that a node reads zeros around its input."""
    return node.op in ("AveragePool", "MaxPool") or (
        node.op == "Conv" and context.scope.const(optional_input(node, 1)) is None
    )


class _Amounts(NamedTuple):
    """Positions that a Pad adds before and after each spatial axis, and their value: 0, or what no maximum is."""

    begin: list[int]
    end: list[int]
    value: float


def _around_space(context: Context, pad: gs.Node) -> _Amounts | None:
    """What a Pad with zeros, or with the lowest value, adds; None if it does anything else."""
    rank = context.rank(pad.outputs[0].name)
    if rank is None or rank < 3 or pad.attrs.get("mode", "constant") != "constant":
        return None
    amounts = read_pads(context, pad, rank)
    if isinstance(amounts, Declined) or min(*amounts.begin, *amounts.end) < 0:
        return None
    limits = FLOAT_FORMATS.get(context.scope.data_type(pad.inputs[0].name) or 0)
    is_lowest = limits is not None and amounts.value <= -limits.largest
    touches_channels = any((*amounts.begin[:2], *amounts.end[:2]))
    if touches_channels or not (is_lowest or amounts.value == 0):
        return None
    return _Amounts(amounts.begin[2:], amounts.end[2:], amounts.value)


def _fits_padded(context: Context, node: gs.Node, window: Window, amounts: _Amounts) -> bool:
    """Whether a window never sticks out of the padded tensor: runtimes would cut it, and divide by fewer."""
    sides = zip(window.slack, amounts.begin, amounts.end, strict=True)
    is_within = [slack + begin + end >= -1 for slack, begin, end in sides]
    return (
        all(is_within) or max(window.strides) == 1 or fits(context.scope, node.inputs[0].name, window.slack)
    )


def _with_pads(context: Context, pad: gs.Node, node: gs.Node, amounts: _Amounts) -> gs.Node | None:
    """A window that reads what the Pad reads; None where it would be another one."""
    window = any_window(context.scope, node)
    if window is None or node.op not in _WINDOWS or len(window.kernel) != len(amounts.begin):
        return None
    data, *others = (tensor.name for tensor in node.inputs)
    if pad.outputs[0].name != data or data in others:
        return None
    pads = [own + more for own, more in zip(window.pads, (*amounts.begin, *amounts.end), strict=True)]
    attributes: dict[str, Any] = {key: value for key, value in node.attrs.items() if key != "auto_pad"}
    if node.op == "AveragePool":
        # behind the Pad, its positions count
        attributes["count_include_pad"] = 1
        if not _may_count(context, node, window, pads) or not _fits_padded(context, node, window, amounts):
            return None
    elif node.op == "MaxPool" and not holds_a_position(node, window.kernel, pads):
        return None
    inputs = [pad.inputs[0].name, *others]
    name = context.scope.fresh(f"{node.outputs[0].name}_padded")
    return new_node(node.op, name, {**attributes, "pads": pads}, inputs, [node.outputs[0].name])


def _may_count(context: Context, pool: gs.Node, window: Window, pads: list[int]) -> bool:
    """Whether a pool with these pads divides by its whole window, as it does behind the Pad."""
    counts = not any(window.pads) or bool(pool.attrs.get("count_include_pad", 0))
    # of more padding than a window holds, runtimes have no average
    return counts and context.scope.opset >= COUNTED_SINCE and max(pads) < min(window.kernel)
