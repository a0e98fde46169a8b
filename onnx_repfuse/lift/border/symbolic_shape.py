"""Sizes that a file computes, as far as they can be proved: entries of a shape, sizes of a tensor, equal sizes.

`Concat([batch], [8], [1], [width])` proves two of four sizes. Shape inference loses them: torch's legacy exporter
passes every shape of an Expand through `Where(Equal(shape, -1), ones, shape)`, which replaces a -1 by 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS, Const, optional_input, static
from onnx_repfuse.graph.views import whole_shape_of
from onnx_repfuse.lift.border.symbolic_tensor import NotProved
from onnx_repfuse.lift.linear_op import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.modelfile.dtypes import HOLDING_SIZES

__all__ = ["TO_THE_END", "Sizes", "constant_ints", "shape_entries", "size_key", "sizes", "sizes_at_rank"]

Sizes = list[int | None]  # None: not proved
MAX_DEPTH = 32  # nodes in a row that compute one size: the rules are recursive
TO_THE_END = 1 << 31  # exporters write a slice's open end as INT64_MAX
MAX_CHAIN = 128  # nodes in a row that `size_key` follows


def constant_ints(
    context: Context, node: gs.Node, number: int, default: list[int] | None = None
) -> list[int]:
    """Input `number` of a node, flat, or `default` if it is left out. Raises NotProved if it is not constant."""
    name = optional_input(node, number)
    if not name and default is not None:
        return list(default)
    const = context.scope.const(name)
    if const is None:
        raise NotProved
    return _integers(const)


def _integers(const: Const) -> list[int]:
    if const.size > MAX_FOLDED_ELEMENTS:
        raise NotProved
    return [int(v) for v in const.read().ravel()]


def shape_entries(context: Context, name: str, depth: int = 0) -> Sizes:
    """The entries of a vector (or scalar) of integers. Raises NotProved if not even their number is known."""
    const = context.scope.const(name)
    if const is not None:
        return list(_integers(const))
    shape = static(context.scope.shape(name))
    if shape is None or len(shape) > 1 or depth > MAX_DEPTH:
        raise NotProved
    count = prod(shape)
    with suppress(NotProved):  # the number of entries is known all the same
        entries = _computed_entries(context, name, depth + 1)
        if len(entries) == count:
            return entries
    return [None] * count


def _computed_entries(context: Context, name: str, depth: int) -> Sizes:
    """What a rule says of a vector. Raises NotProved if there is none for the node that computes it."""
    node = context.scope.producer.get(name)
    rule = None if node is None else _ENTRY_RULES.get(node.op)
    if node is None or rule is None:
        raise NotProved
    return rule(node, [shape_entries(context, tensor.name, depth) for tensor in node.inputs])


def _concat_entries(node: gs.Node, operands: Sequence[Sizes]) -> Sizes:
    return [entry for operand in operands for entry in operand]


def _first_entries(node: gs.Node, operands: Sequence[Sizes]) -> Sizes:
    if node.op == "Cast" and node.attrs.get("to") not in HOLDING_SIZES:
        raise NotProved
    return operands[0]


def _equal_entries(node: gs.Node, operands: Sequence[Sizes]) -> Sizes:
    return [None if None in pair else int(pair[0] == pair[1]) for pair in _columns(operands)]


def _where_entries(node: gs.Node, operands: Sequence[Sizes]) -> Sizes:
    return [_where_entry(*column) for column in _columns(operands)]


def _where_entry(condition: int | None, chosen: int | None, other: int | None) -> int | None:
    if chosen == other:  # whatever the condition
        return chosen
    if condition is None:
        return None
    return chosen if condition else other


def _columns(operands: Sequence[Sizes]) -> list[tuple[int | None, ...]]:
    """The operands' entries side by side. Raises NotProved if one is broadcast."""
    if len({len(operand) for operand in operands}) != 1:
        raise NotProved
    return list(zip(*operands, strict=True))


_ENTRY_RULES: dict[str, Callable[[gs.Node, Sequence[Sizes]], Sizes]] = {
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
    """The sizes of a tensor of `rank` axes, None where not proved."""
    shape = context.scope.shape(name)
    inferred: Sizes = list(shape) if shape is not None and len(shape) == rank else [None] * rank
    node = context.scope.producer.get(name)
    rule = None if node is None else _SIZE_RULES.get(node.op)
    if rule is not None and None in inferred and depth <= MAX_DEPTH:
        with suppress(NotProved):
            computed = rule(context, node, rank, depth + 1)
            if len(computed) == rank:
                return [b if a is None else a for a, b in zip(inferred, computed, strict=True)]
    return inferred


def sizes_at_rank(context: Context, name: str, rank: int, depth: int = 0) -> Sizes:
    """`sizes` with ones in front, as a broadcast to `rank` axes sees them. Raises NotProved if there may be more."""
    count = context.rank(name)
    if count is None or count > rank:
        raise NotProved
    return [*(1,) * (rank - count), *sizes(context, name, count, depth)]


def _slice_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    """`[0:1]` and `[-1:]` leave one position, any other range an unknown number."""
    starts, ends, axes = (constant_ints(context, node, number) for number in (1, 2, 3))
    if constant_ints(context, node, 4, [1]) != [1]:
        raise NotProved
    # Of an empty axis it would leave none; but then the Conv behind the padding gets none, too, and does not run.
    result = sizes(context, node.inputs[0].name, rank, depth)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        is_first, is_last = (start, end) == (0, 1), start == -1 and end >= TO_THE_END
        result[axis] = 1 if is_first or is_last else None
    return result


def _constant_of_shape_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    return _entries_of_shape(context, node.inputs[0].name, depth)


def _expand_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    """Of a constant: an axis of size one gets the size that is asked for, any other keeps its own."""
    own, asked = _constant_and_entries(context, node, rank, depth)
    return [new if size == 1 else size for size, new in zip(own, asked, strict=False)]


def _tile_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    """Of a constant."""
    own, repeats = _constant_and_entries(context, node, rank, depth)
    return [None if count is None else size * count for size, count in zip(own, repeats, strict=False)]


def _constant_and_entries(context: Context, node: gs.Node, rank: int, depth: int) -> tuple[list[int], Sizes]:
    """The shape of the constant first input, with ones in front, and the entries of the second input."""
    const = context.scope.const(node.inputs[0].name)
    if const is None or len(const.shape) > rank:
        raise NotProved
    own = [*(1,) * (rank - len(const.shape)), *const.shape]
    return own, _entries_of_shape(context, node.inputs[1].name, depth)


def _entries_of_shape(context: Context, name: str, depth: int) -> Sizes:
    """`shape_entries`, where the vector may also be the whole Shape of another tensor."""
    shaped = whole_shape_of(context.scope, name)
    if not shaped:
        return shape_entries(context, name)
    rank = context.rank(shaped)
    if rank is None:
        raise NotProved
    return sizes(context, shaped, rank, depth)


def _broadcast_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    left, right = (sizes_at_rank(context, tensor.name, rank, depth) for tensor in node.inputs)
    return [_broadcast_size(a, b) for a, b in zip(left, right, strict=True)]


def _broadcast_size(a: int | None, b: int | None) -> int | None:
    """Of two sizes that broadcast: only a size of 1 gives way to the other."""
    if a == 1:
        return b
    return b if a is None and b != 1 else a


def _pad_sizes(context: Context, node: gs.Node, rank: int, depth: int) -> Sizes:
    pads = read_pads(context, node, rank)
    if isinstance(pads, Declined):
        raise NotProved
    inner = sizes(context, node.inputs[0].name, rank, depth)
    axes = zip(inner, pads.begin, pads.end, strict=True)
    return [None if size is None else size + begin + end for size, begin, end in axes]


_SIZE_RULES: dict[str, Callable[[Context, gs.Node, int, int], Sizes]] = {
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
    if node.op in ("Identity", "ScatterND"):  # assigning does not change the shape
        return axis, 0
    if node.op == "Transpose" and node.attrs.get("perm"):
        return node.attrs["perm"][axis], 0
    rank = context.rank(node.outputs[0].name) if node.op == "Pad" else None
    pads = None if rank is None else read_pads(context, node, rank)
    if pads is None or isinstance(pads, Declined):
        return None
    return axis, pads.begin[axis] + pads.end[axis]
