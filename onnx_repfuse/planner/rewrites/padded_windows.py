"""A Pad with zeros before windows that the algebra does not take for convolutions of constant weights.

    AveragePool(Pad(x))   ->   AveragePool(x), with pads that count
    Conv(Pad(x), w)       ->   Conv(x, w), with pads

A pool without pads of its own divides by its whole window, also where that holds padding. So do pads that count
(`count_include_pad`). A Conv of a weight that is computed reads zeros in both. Pools that round up are left alone:
runtimes do not agree on what a window counts that hangs over counted pads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.scope import optional_input
from onnx_repfuse.graph.windows import Window, any_window, fits
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.linear_op import Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["apply_padded_windows"]

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
    return replacements.write()


def _windows_with_pads(context: Context, pad: gs.Node, is_free: IsFree) -> Iterator[tuple[gs.Node, gs.Node]]:
    """The consumers of a Pad, and what computes the same without it; none unless all of them can do without."""
    scope, name = context.scope, pad.outputs[0].name
    consumers = scope.consumers.get(name, [])
    amounts = _zeros_around_space(context, pad)
    if amounts is None or scope.is_seen(name) or not any(_is_left_to_us(context, node) for node in consumers):
        return
    written = [_with_pads(context, pad, node, amounts) for node in consumers if is_free(node)]
    fresh = [node for node in written if node is not None]
    if len(fresh) == len(consumers):
        yield from zip(consumers, fresh, strict=True)


def _is_left_to_us(context: Context, node: gs.Node) -> bool:
    """Whether the algebra does not see that a node reads zeros around its input."""
    return node.op == "AveragePool" or (
        node.op == "Conv" and context.scope.const(optional_input(node, 1)) is None
    )


def _zeros_around_space(context: Context, pad: gs.Node) -> tuple[list[int], list[int]] | None:
    """How many zeros a Pad adds before and after each spatial axis; None if it does anything else."""
    rank = context.rank(pad.outputs[0].name)
    if rank is None or rank < 3 or pad.attrs.get("mode", "constant") != "constant":
        return None
    amounts = read_pads(context, pad, rank)
    if isinstance(amounts, Declined) or amounts.value != 0 or min(*amounts.begin, *amounts.end) < 0:
        return None
    touches_channels = any((*amounts.begin[:2], *amounts.end[:2]))
    return None if touches_channels else (amounts.begin[2:], amounts.end[2:])


def _fits_padded(
    context: Context, node: gs.Node, window: Window, amounts: tuple[list[int], list[int]]
) -> bool:
    """Whether a window never sticks out of the padded tensor: runtimes would cut it, and divide by fewer."""
    sides = zip(window.slack, *amounts, strict=True)
    is_within = [slack + begin + end >= -1 for slack, begin, end in sides]
    return (
        all(is_within) or max(window.strides) == 1 or fits(context.scope, node.inputs[0].name, window.slack)
    )


def _with_pads(
    context: Context, pad: gs.Node, node: gs.Node, amounts: tuple[list[int], list[int]]
) -> gs.Node | None:
    """A window that reads what the Pad reads; None where it would be another one."""
    window = any_window(context.scope, node)
    if window is None or node.op not in ("AveragePool", "Conv") or len(window.kernel) != len(amounts[0]):
        return None
    data, *others = (tensor.name for tensor in node.inputs)
    padded = pad.outputs[0].name
    if data != padded or padded in others:
        return None
    pads = [own + more for own, more in zip(window.pads, (*amounts[0], *amounts[1]), strict=True)]
    attributes: dict[str, Any] = {key: value for key, value in node.attrs.items() if key != "auto_pad"}
    if node.op == "AveragePool":
        if not _may_count(context, node, window, pads) or not _fits_padded(context, node, window, amounts):
            return None
        attributes["count_include_pad"] = 1
    inputs = [pad.inputs[0].name, *others]
    name = context.scope.fresh(f"{node.outputs[0].name}_padded")
    return new_node(node.op, name, {**attributes, "pads": pads}, inputs, [node.outputs[0].name])


def _may_count(context: Context, pool: gs.Node, window: Window, pads: list[int]) -> bool:
    """Whether a pool with these pads divides by its whole window, as it does behind the Pad."""
    counts = not any(window.pads) or bool(pool.attrs.get("count_include_pad", 0))
    # of more padding than a window holds, runtimes have no average
    return counts and context.scope.opset >= COUNTED_SINCE and max(pads) < min(window.kernel)
