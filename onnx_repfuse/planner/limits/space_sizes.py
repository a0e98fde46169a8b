"""How many positions crops, pads and repetitions leave, where their arguments are constants."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.dims import known_list
from onnx_repfuse.graph.scope import optional_input
from onnx_repfuse.lift import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.lift.slice_concat import slice_arguments

__all__ = ["positions_behind"]


def positions_behind(context: Context, node: gs.Node, space: Sequence[int]) -> list[int] | None:
    """The positions per spatial axis behind a Slice, Pad or Tile of an (N, C, *space); None where they are not told.

    Args:
        context: the scope of the node.
        node: the Slice, Pad or Tile; None is the answer for any other.
        space: positions in front of it.
    """
    if node.op == "Slice":
        return _sliced(context, node, space)
    rank = len(space) + 2
    if node.op == "Pad":
        pads = read_pads(context, node, rank)
        if isinstance(pads, Declined):
            return None
        return [sum(one) for one in zip(space, pads.begin[2:], pads.end[2:], strict=True)]
    times = known_list(context.scope, optional_input(node, 1)) if node.op == "Tile" else None
    if times is None or len(times) != rank:
        return None
    return [size * count for size, count in zip(space, times[2:], strict=True)]


def _sliced(context: Context, node: gs.Node, space: Sequence[int]) -> list[int] | None:
    arguments = slice_arguments(context.scope, node)
    if arguments is None:
        return None
    starts, ends, axes, steps = arguments
    result, rank = list(space), len(space) + 2
    for number, axis in enumerate(axes or range(len(starts))):
        place = axis % rank - 2
        step = steps[number] if steps else 1
        if step < 1:
            return None
        if place >= 0:
            result[place] = len(range(*slice(starts[number], ends[number], step).indices(space[place])))
    return result
