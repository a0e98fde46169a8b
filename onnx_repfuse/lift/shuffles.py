"""SpaceToDepth, and nodes that together move channels, or positions into channels and back.

Of a channel shuffle and a pixel_unshuffle, each channel of the result is one channel of the tensor before, at one
position of each block: a `Picked` kernel whose taps are zero but for one. A pixel_shuffle is the DepthToSpace that it
stands for:

    (n, C*r*r, h, w) -> (n, C, r, r, h, w) -> (n, C, h, r, w, r) -> (n, C, h*r, w*r)        mode CRD
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Index, picked
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Stored, Vector
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dims, times
from onnx_repfuse.graph.scope import Scope, all_known
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift.linear_op import Context, LinearOp, Operand
from onnx_repfuse.lift.rearranged import Part, Rearranged, rearranged
from onnx_repfuse.lift.view_ops import operator_of_view
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["MAX_STEPS_BACK", "kernel_of", "lift_shuffle", "lift_space_to_depth", "moved"]

LAST = frozenset(("Reshape", "Transpose", "Unsqueeze"))
INNER = frozenset(("Gather", "GatherND", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
MAX_STEPS_BACK = 5  # from the last node of a shuffle to its first
MAX_BLOCK = 64  # positions that become channels: of each channel, that many taps are kept
MODES_SINCE = 11  # the opset that brought the order CRD; before, DepthToSpace is DCR
TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)  # of which ONNX Runtime has a DepthToSpace


def lift_space_to_depth(context: Context, node: gs.Node) -> LinearOp | None:
    """SpaceToDepth: (N, C, h*b, w*b) -> (N, b*b*C, h, w), channel c of position (i, j) at (i*b + j)*C + c."""
    source = context.float_layout(node.inputs[0].name)
    block = int(node.attrs.get("blocksize", 0))
    if source is None or source.layout != (1, 2) or not 1 <= block * block <= MAX_BLOCK:
        return None
    channels = source.channels
    place, index = np.divmod(np.arange(block * block * channels), channels)
    kernel = kernel_of(index, place, (block, block), channels)
    return _operator(node, node.inputs[0].name, kernel, ())


def lift_shuffle(context: Context, node: gs.Node) -> LinearOp | None:
    """The shuffle that ends with a Reshape, a Transpose or an Unsqueeze."""
    if node.op not in LAST:
        return None
    for nodes in _chains(context, node):
        source = nodes[0].inputs[0].name
        dims = dims_of(context.scope, source) or ()
        # (N, C, ...) with a known number of channels; nothing can be told of the positions of an empty tensor
        if len(dims) < 3 or not isinstance(dims[1], int) or 0 in dims:
            continue
        if context.scope.data_type(source) not in FLOAT_FORMATS:
            return None
        steps = list(_rearrangements(context, dims, nodes))
        if _takes_channel_off_and_on(steps, nodes):
            return _operator(node, source, Vector.unit(1, (1, len(dims) - 2)), tuple(nodes[:-1]))
        if len(nodes) - _undone(steps) < 2:
            return None  # what is left is a view, or nothing: views that undo each other go another way
        are_followed = len(steps) > len(nodes)
        lifted = _of_rearranged(context.scope, nodes, steps[-1], dims) if are_followed else None
        if lifted is not None:
            return lifted
    return None


def _of_rearranged(scope: Scope, nodes: Sequence[gs.Node], tensor: Rearranged, dims: Dims) -> LinearOp | None:
    """What nodes are together: a choice of channels and positions, a DepthToSpace, or neither.

    Args:
        tensor: what they make of the tensor of these `dims` that the first of them reads.
    """
    *inner, last = nodes
    source = nodes[0].inputs[0].name
    assert isinstance(dims[1], int)
    kernel = moved(tensor, dims[1], len(dims))
    if kernel is not None:
        return _operator(last, source, kernel, tuple(inner))
    view = _pixel_shuffle(scope, source, dims, last, tensor)
    return None if view is None else operator_of_view(last, view, tuple(inner))


def _rearrangements(context: Context, dims: Dims, nodes: Sequence[gs.Node]) -> Iterator[Rearranged]:
    """A tensor of these dims, and what each of the nodes makes of it, up to the first that does something else."""
    tensor: Rearranged | None = Rearranged.of(dims)
    for node in nodes:
        if tensor is None:
            return
        yield tensor
        tensor = rearranged(context.scope, tensor, node)
    if tensor is not None:
        yield tensor


def _takes_channel_off_and_on(steps: Sequence[Rearranged], nodes: Sequence[gs.Node]) -> bool:
    """Whether a Squeeze removes the axis of a single channel, so that it is no view, and an Unsqueeze adds it again.

    As torch.stack of what unbind gives is exported.
    """
    if [node.op for node in nodes] != ["Squeeze", "Unsqueeze"] or len(steps) != len(nodes) + 1:
        return False
    has_one_channel = not steps[0].axes[1]
    return has_one_channel and steps[0].is_like(steps[-1])


def _undone(steps: Sequence[Rearranged]) -> int:
    """How many nodes in a row undo each other, at most."""
    pairs = combinations(enumerate(steps), 2)
    return max((later - first for (first, one), (later, other) in pairs if one.is_like(other)), default=0)


def _chains(context: Context, last: gs.Node) -> Iterator[list[gs.Node]]:
    """The node with one or more nodes before it, each of which it alone reads."""
    nodes = [last]
    while len(nodes) < MAX_STEPS_BACK:
        before = context.scope.private_producer(nodes[0].inputs[0].name)
        if before is None or before.op not in INNER or id(before) in context.protected:
            return
        nodes.insert(0, before)
        yield list(nodes)


def moved(tensor: Rearranged, channels: int, dims: int, *, is_whole: bool = True) -> Kernel | None:
    """The kernel of (N, C, *space) -> (N, C', *space'); None if it is no choice of channels and of positions in blocks.

    Each axis of space must keep its slowest part, and the channels take all others.

    Args:
        channels, dims: of the tensor before.
        is_whole: it is all that is computed; then it is no choice where it is that tensor.
    """
    if len(tensor.axes) != dims or tensor.chosen.keys() - {1} or not _keeps_batch(tensor):
        return None
    parts = tensor.axes[1]
    sizes: list[int] | None = all_known(_block(tensor, axis) for axis in range(2, dims))
    if sizes is None or _number_of(parts) is None:
        return None
    taps = prod(sizes)
    if not 1 <= taps <= MAX_BLOCK:
        return None
    index, place = _places(tensor, parts, tuple(sizes))
    read = tensor.chosen.get(1)
    index = index if read is None else read[index]
    if is_whole and taps == 1 and np.array_equal(index, np.arange(channels)):
        return None  # nothing moves
    return kernel_of(index, place, tuple(sizes), channels)


def _keeps_batch(tensor: Rearranged) -> bool:
    """Whether the first axis is that of the first tensor, and no channel depends on it."""
    batch, channels = tensor.axes[:2]
    is_kept = len(batch) <= 1 and all(part == Part(0, part.size) for part in batch)
    others = [*channels, *(fixed.part for fixed in tensor.fixed)]
    return is_kept and all(part.axis != 0 for part in others)


def _block(tensor: Rearranged, axis: int) -> int | None:
    """How many neighbours along an axis of space become channels; None if what is left is not that axis."""
    parts = tensor.axes[axis]
    own = [*tensor.axes[1], *(fixed.part for fixed in tensor.fixed)]
    taken = _number_of([part for part in own if part.axis == axis])
    if not parts:  # of one position, or all of it became channels
        return taken
    (first, *others) = parts
    is_slowest = first.step == taken  # else neighbours stay neighbours, and blocks of them become channels
    return taken if first.axis == axis and not others and is_slowest else None


def _number_of(parts: Sequence[Part]) -> int | None:
    """How many positions parts have together; None if that is not known."""
    total = times(part.size for part in parts)
    return total if isinstance(total, int) else None


def _places(tensor: Rearranged, parts: tuple[Part, ...], block: tuple[int, ...]) -> tuple[Index, Index]:
    """Of each channel of the result the channel it reads, and the position in the block."""
    counts = [part.size for part in parts if isinstance(part.size, int)]
    numbers = np.indices(counts).reshape(len(counts), -1) if counts else np.zeros((0, 1), np.intp)
    place = np.zeros((1 + len(block), numbers.shape[1]), np.intp)
    for fixed in tensor.fixed:
        place[fixed.part.axis - 1] += fixed.position * fixed.part.step
    for part, number in zip(parts, numbers, strict=True):
        place[part.axis - 1] += number * part.step
    position = np.zeros(numbers.shape[1], np.intp)
    for size, offset in zip(block, place[1:], strict=True):
        position = position * size + offset
    return place[0], position


def kernel_of(index: Index, place: Index, block: tuple[int, ...], channels: int) -> Kernel:
    """Channel `index[o]` at position `place[o]` of each block.

    The last block is whole: runtimes demand it of SpaceToDepth, and of the others the sizes are proved. So the slack is
    that of a tensor that would have zeros behind its end.
    """
    rank, count = len(block), len(index)
    if prod(block) == 1:
        return picked(index, Vector.unit(count, (1, rank)), channels)
    zeros, ones = (0,) * rank, (1,) * rank
    geometry = Geometry(count, count, count, block, block, ones, zeros, (-1,) * rank)

    def one_hot() -> Index:
        taps = np.zeros((count, prod(block)), np.intp)
        taps[np.arange(count), place] = 1
        return taps.reshape(count, 1, *block)

    return picked(index, Stored(geometry, one_hot), channels)


def _operator(node: gs.Node, source: str, kernel: Kernel, inner_nodes: tuple[gs.Node, ...]) -> LinearOp:
    g = kernel.geometry
    return LinearOp(
        node,
        node.outputs[0].name,
        Kind.INDEX,
        g.c_out,
        g.layout,
        (Operand(source, g.c_in, g.layout),),
        (Term(0, kernel),),
        Bias.zeros(g.c_out),
        inner_nodes=inner_nodes,
    )


def _pixel_shuffle(scope: Scope, source: str, dims: Dims, node: gs.Node, tensor: Rearranged) -> View | None:
    """The DepthToSpace that nodes are; None if they are none.

    Args:
        source, dims: what the first of them reads.
        node: the last of them.
        tensor: its output, as parts of the axes of the source.
    """
    output = node.outputs[0].name
    if len(dims) != 4 or scope.data_type(source) not in TYPES:
        return None
    attributes = _depth_to_space(tensor, dims, scope.opset)
    if attributes is None:
        return None
    assert isinstance(dims[1], int)
    return View(
        new_node("DepthToSpace", node.name, attributes, [source], [output]),
        source,
        output,
        dims[1],
        dims[1] // attributes["blocksize"] ** 2,
        (1, 2),
        (1, 2),
        dims=4,
        entry=None,
        target=None,
        listed_in="",
        start=scope.shape(source) or (None,) * 4,
        end=scope.shape(output) or (None,) * 4,
        like="",
        is_copy=False,
        keeps_constants=True,
        sizes=dims,
        sizes_behind=dims_of(scope, output) or (),
    )


def _depth_to_space(tensor: Rearranged, dims: Dims, opset: int) -> dict[str, Any] | None:
    """The attributes of the DepthToSpace that makes this of a tensor of these dims; None if none does."""
    assert isinstance(dims[1], int)
    block = 0 if tensor.chosen or tensor.fixed else _block_of_channels(tensor)
    if block < 2 or dims[1] % (block * block):
        return None
    modes = [mode for mode in ("DCR", "CRD") if tensor.axes == _joined(dims, block, mode).axes]
    if opset < MODES_SINCE:
        return {"blocksize": block} if "DCR" in modes else None
    return {"blocksize": block, "mode": modes[0]} if modes else None


def _block_of_channels(tensor: Rearranged) -> int:
    """How many channels become neighbours along the height; 0 if none do."""
    parts = tensor.axes[2] if len(tensor.axes) == 4 else ()
    last = parts[-1] if parts else Part(0, 0)
    return last.size if last.axis == 1 and isinstance(last.size, int) else 0


def _joined(dims: Dims, block: int, mode: str) -> Rearranged:
    """What a DepthToSpace makes of a tensor."""
    first = Rearranged.of(dims)
    assert isinstance(dims[1], int)
    channels = dims[1] // (block * block)
    # channel c of row i and column j: (i, j, c) in the order DCR, (c, i, j) in CRD
    height, width, own = (block * channels, channels, 1) if mode == "DCR" else (block, 1, block * block)
    kept = () if channels == 1 else (Part(1, channels, own),)
    rows, columns = (*first.axes[2], Part(1, block, height)), (*first.axes[3], Part(1, block, width))
    return Rearranged((first.axes[0], kept, rows, columns), {})
