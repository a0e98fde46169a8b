"""Sizes that a file computes, as far as they can be proved: entries of a shape, sizes of a tensor, equal sizes.

`Concat([batch], [8], [1], [width])` proves two of four sizes. Shape inference loses them: torch's legacy exporter
passes every shape of an Expand through `Where(Equal(shape, -1), ones, shape)`, which replaces a -1 by 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS
from onnx_repfuse.lift.linear_op import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.modelfile.dtypes import HOLDING_SIZES

__all__ = ["Sizes", "constant_ints", "shape_entries", "size_key", "sizes", "sizes_at_rank"]

Sizes = list[int | None]  # None: not proved
MAX_DEPTH = 32  # nodes in a row that compute one size: the rules are recursive
MAX_CHAIN = 128  # nodes in a row that `size_key` follows


def constant_ints(context: Context, node: gs.Node, number: int) -> list[int] | None:
    """Input `number` of a node, if it is constant, flat."""
    if len(node.inputs) <= number or not node.inputs[number].name:
        return None
    const = context.scope.const(node.inputs[number].name)
    return (
        None if const is None or const.size > MAX_FOLDED_ELEMENTS else [int(v) for v in const.read().ravel()]
    )


def shape_entries(context: Context, name: str, depth: int = 0) -> Sizes | None:
    """The entries of a vector (or scalar) of integers; None if not even their number is known."""
    const = context.scope.const(name)
    if const is not None:
        return [int(v) for v in const.read().ravel()] if const.size <= MAX_FOLDED_ELEMENTS else None
    count = _number_of_entries(context, name)
    if count is None or depth > MAX_DEPTH:
        return None
    unknown: Sizes = [None] * count
    node = context.scope.producer.get(name)
    rule = None if node is None else _ENTRY_RULES.get(node.op)
    if node is None or rule is None or _may_change_sizes(node):
        return unknown
    operands = []
    for tensor in node.inputs:
        entries = shape_entries(context, tensor.name, depth + 1)
        if entries is None:
            return unknown
        operands.append(entries)
    result = rule(operands)
    return result if len(result) == count else unknown


def _may_change_sizes(node: gs.Node) -> bool:
    """A Cast to a type that cannot hold every size."""
    return node.op == "Cast" and node.attrs.get("to") not in HOLDING_SIZES


def _number_of_entries(context: Context, name: str) -> int | None:
    shape = context.scope.shape(name)
    if shape is None or len(shape) > 1:
        return None
    return shape[0] if shape else 1


def _concat_entries(operands: Sequence[Sizes]) -> Sizes:
    return [entry for operand in operands for entry in operand]


def _first_entries(operands: Sequence[Sizes]) -> Sizes:
    return operands[0]


def _equal_entries(operands: Sequence[Sizes]) -> Sizes:
    if len(operands[0]) != len(operands[1]):
        return []
    return [None if a is None or b is None else int(a == b) for a, b in zip(*operands, strict=True)]


def _where_entries(operands: Sequence[Sizes]) -> Sizes:
    if len({len(operand) for operand in operands}) != 1:
        return []
    return [_where_entry(*entries) for entries in zip(*operands, strict=True)]


def _where_entry(condition: int | None, chosen: int | None, other: int | None) -> int | None:
    if chosen == other:
        return chosen
    if condition is None:
        return None
    return chosen if condition else other


_ENTRY_RULES: dict[str, Callable[[Sequence[Sizes]], Sizes]] = {
    "Cast": _first_entries,
    "Concat": _concat_entries,
    "Equal": _equal_entries,
    "Identity": _first_entries,
    "Reshape": _first_entries,
    "Squeeze": _first_entries,
    "Unsqueeze": _first_entries,
    "Where": _where_entries,
}


def sizes(context: Context, name: str, rank: int, depth: int = 0) -> Sizes:
    """The proved sizes of a tensor of `rank` axes."""
    shape = context.scope.shape(name)
    inferred: Sizes = list(shape) if shape is not None and len(shape) == rank else [None] * rank
    node = context.scope.producer.get(name)
    if None not in inferred or node is None or depth > MAX_DEPTH:
        return inferred
    rule = _SIZE_RULES.get(node.op)
    computed = None if rule is None else rule(context, node, rank, depth + 1)
    if computed is None or len(computed) != rank:
        return inferred
    return [b if a is None else a for a, b in zip(inferred, computed, strict=True)]


def sizes_at_rank(context: Context, name: str, rank: int, depth: int = 0) -> Sizes | None:
    """`sizes` with ones in front, as a broadcast to `rank` axes sees them; None if the rank is unknown or higher."""
    count = context.rank(name)
    if count is None or count > rank:
        return None
    return [*(1,) * (rank - count), *sizes(context, name, count, depth)]


def _slice_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    """`[0:1]` leaves one position, any other range an unknown number."""
    starts, ends, axes = (constant_ints(context, node, number) for number in (1, 2, 3))
    if not starts or not ends or not axes or constant_ints(context, node, 4) not in (None, [1]):
        return None
    result = sizes(context, node.inputs[0].name, rank, depth)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        result[axis] = 1 if (start, end) == (0, 1) else None
    return result


def _constant_of_shape_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    return _entries_of_shape(context, node.inputs[-1].name, depth)


def _expand_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    """Of a constant: an axis of size one gets the size that is asked for, any other keeps its own."""
    operands = _constant_and_entries(context, node, rank, depth)
    if operands is None:
        return None
    return [asked if size == 1 else size for size, asked in zip(*operands, strict=False)]


def _tile_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    """Of a constant."""
    operands = _constant_and_entries(context, node, rank, depth)
    if operands is None:
        return None
    pairs = zip(*operands, strict=False)
    return [None if size is None or repeats is None else size * repeats for size, repeats in pairs]


def _constant_and_entries(
    context: Context, node: gs.Node, rank: int, depth: int
) -> tuple[Sizes, Sizes] | None:
    """The shape of the constant first input, ones in front, and the entries of the second."""
    const = context.scope.const(node.inputs[0].name)
    entries = _entries_of_shape(context, node.inputs[-1].name, depth)
    if const is None or entries is None or len(const.shape) > rank:
        return None
    return [*(1,) * (rank - len(const.shape)), *const.shape], entries


def _entries_of_shape(context: Context, name: str, depth: int) -> Sizes | None:
    """`shape_entries`, where the vector may also be the whole Shape of another tensor."""
    node = context.scope.producer.get(name)
    if node is None or node.op != "Shape" or node.attrs.get("start") or "end" in node.attrs:
        return shape_entries(context, name)
    rank = context.rank(node.inputs[0].name)
    return None if rank is None else sizes(context, node.inputs[0].name, rank, depth)


def _broadcast_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    left, right = (sizes_at_rank(context, tensor.name, rank, depth) for tensor in node.inputs)
    if left is None or right is None:
        return None
    return [_broadcast_size(a, b) for a, b in zip(left, right, strict=True)]


def _broadcast_size(a: int | None, b: int | None) -> int | None:
    """Of two sizes that broadcast, one of them or both unknown: only a size of 1 gives way to the other."""
    if a == 1:
        return b
    if b == 1:
        return a
    return b if a is None else a


def _pad_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes | None:
    pads = read_pads(context, node, rank)
    if isinstance(pads, Declined):
        return None
    inner = sizes(context, node.inputs[0].name, rank, depth)
    axes = zip(inner, pads.begin, pads.end, strict=True)
    return [None if size is None else size + begin + end for size, begin, end in axes]


_SIZE_RULES: dict[str, Callable[[Context, gs.Node, int, int], Sizes | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Equal", "Greater", "Less"), _broadcast_sizes),
    "ConstantOfShape": _constant_of_shape_sizes,
    "Expand": _expand_sizes,
    "Pad": _pad_sizes,
    "Slice": _slice_sizes,
    "Tile": _tile_sizes,
}


def size_key(context: Context, name: str, axis: int) -> tuple[str, int, int]:
    """The size of a tensor along an axis, as (tensor, axis, n): the size of that axis of that tensor, plus n.

    Two sizes with equal keys are equal, whatever they are.
    """
    added = 0
    for _ in range(MAX_CHAIN):
        node = context.scope.producer.get(name)
        step = None if node is None else _axis_of_input(context, node, axis)
        if node is None or step is None:
            break
        axis, more = step
        added += more
        name = node.inputs[0].name
    return name, axis, added


def _axis_of_input(context: Context, node: gs.Node, axis: int) -> tuple[int, int] | None:
    """The axis of the first input that becomes `axis` of the output, and how many positions are added to it."""
    if node.op in ("Identity", "ScatterND"):
        return axis, 0
    if node.op == "Transpose" and node.attrs.get("perm"):
        return node.attrs["perm"][axis], 0
    rank = context.rank(node.outputs[0].name) if node.op == "Pad" else None
    pads = None if rank is None else read_pads(context, node, rank)
    if pads is None or isinstance(pads, Declined):
        return None
    return axis, pads.begin[axis] + pads.end[axis]
