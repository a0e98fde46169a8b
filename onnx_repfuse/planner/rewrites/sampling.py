"""What a node does with positions: which it reads, and whether it could compute fewer of its own.

A 1x1 convolution of stride s reads every s-th position only. A window (a convolution or a pool) computes every g-th of
its positions if its stride is multiplied by g, an element-wise operator if its operands have every g-th only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.facts import per_axis
from onnx_repfuse.graph.scope import Scope, all_known, optional_input
from onnx_repfuse.graph.windows import has_window, kernel_of, window_of
from onnx_repfuse.lift import Context, LinearOp, lift

__all__ = ["Strides", "is_elementwise", "may_subsample", "movable_pads", "reads_border", "strides_read"]

Strides = tuple[int, ...]  # one per spatial axis
TO_THE_END = 1 << 30  # an end of a Slice that is behind any size


def may_subsample(node: gs.Node) -> bool:
    """Whether a node may read every so-many-th position of a tensor."""
    return node.op == "Slice" or max(node.attrs.get("strides") or (1,)) > 1


def strides_read(context: Context, node: gs.Node, rank: int) -> Strides | None:
    """The strides with which a node reads its first input, if it reads each position for one of its own only.

    A 1x1 convolution or pool without padding, or a Slice of space from the first position to the last. An LpPool of one
    position gives out absolute values, and is no pick of what it reads.
    """
    if node.op == "Slice":
        return _sliced(context.scope, node, rank)
    if not has_window(node) or kernel_of(context.scope, node) != (1,) * rank or reads_border(node):
        return None
    if node.op == "LpPool":
        return None
    if node.attrs.get("ceil_mode", 0) or len(node.outputs) != 1:
        return None
    strides = per_axis(node.attrs, "strides", rank)
    return strides if len(strides) == rank else None


def reads_border(node: gs.Node) -> bool:
    """Whether a convolution or pool of one tap has pads of its own: SAME adds none to it, at any size."""
    return any(node.attrs.get("pads") or ())


def movable_pads(context: Context, node: gs.Node) -> tuple[int, ...] | None:
    """The pads of a convolution or pool whose strides may be multiplied; None if they may not, or are not known.

    Its output has floor((n + slack) / s) + 1 positions; every g-th of them are floor((n + slack) / (s*g)) + 1, as with
    the stride s*g. Automatic pads would change with the stride.
    """
    window = window_of(context.scope, node)
    return None if window is None else window.pads


def is_elementwise(context: Context, node: gs.Node, rank: int) -> bool:
    """Whether each position of its output is computed from the same position of its operands, which have this rank.

    An operand may broadcast: along an axis of one position, every g-th of them is that one.
    """
    scope = context.scope
    if scope.opset < NUMPY_BROADCAST_SINCE or any(tensor.name for tensor in node.outputs[1:]):
        return False
    if operator(node).normalizes or node.op == "Dropout":  # in inference only
        return isinstance(lift(context, node), LinearOp)
    if not operator(node).elementwise:
        return False
    operands = [tensor.name for tensor in node.inputs if tensor.name]
    return all(_fits(context, name, rank) for name in operands)


def _fits(context: Context, name: str, rank: int) -> bool:
    """Whether an operand is a constant that is the same at all positions, or a tensor of (N, C, *space)."""
    const = context.scope.const(name)
    if const is not None:
        return prod(const.shape[-rank:]) == 1
    return name not in context.scope.overridable and context.rank(name) == rank + 2


def _sliced(scope: Scope, node: gs.Node, rank: int) -> Strides | None:
    """The strides of a Slice of space that begins with the first position and ends with the last."""
    if operator(node).uses_attributes(scope.opset):
        return None  # it has no steps then
    listed = all_known(_indices(scope, node, place) for place in range(1, 5))
    if listed is None or len(set(map(len, listed[1:]))) > 1:
        return None
    starts, ends, axes, steps = listed
    if any(starts) or min(ends, default=0) < TO_THE_END or min(steps) < 1:
        return None
    step_of = dict(zip([int(axis) % (rank + 2) for axis in axes], map(int, steps), strict=True))
    batch, channels, *space = (step_of.get(axis, 1) for axis in range(rank + 2))
    return tuple(space) if batch == channels == 1 else None


def _indices(scope: Scope, node: gs.Node, place: int) -> Sequence[int] | None:
    """The numbers of a constant input."""
    const = scope.const(optional_input(node, place))
    return None if const is None else const.integers()
