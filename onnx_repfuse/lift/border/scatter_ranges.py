"""Which positions a ScatterND assigns to, where its indices enumerate a range along each axis.

`y[:, :, :1, :] = v` becomes Transpose, ScatterND, Transpose. The indices are a constant where the exporter knows the
size. Where it does not, torch's legacy exporter computes them:

    size    = Gather(Shape(y), axis)              all positions of the axis:  Range(0, size, 1)
    indices = Unsqueeze(Slice(all positions, [lo], [hi]), -1)

Where only the batch is unknown, it does not transpose, and writes an index for each of the first axes:

    a, b, c = Reshape(positions of axis 0, [-1, 1, 1]), Reshape(positions of axis 1, [-1, 1]), positions of axis 2
    indices = Concat(Unsqueeze(Expand(a, Shape(a + b + c)), -1), .. b .., .. c .., axis=-1)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.views import whole_shape_of
from onnx_repfuse.lift.border.symbolic_shape import TO_THE_END, Sizes, constant_ints, size_key
from onnx_repfuse.lift.border.symbolic_tensor import AxisRange, Cells, NotProved
from onnx_repfuse.lift.linear_op import Context

__all__ = ["scatter_ranges"]

MAX_SUMMANDS = 16  # and sums of them, in the indices of a block


def scatter_ranges(context: Context, node: gs.Node, sizes: Sizes, max_elements: int) -> list[AxisRange]:
    """The positions along each axis of the data, whose sizes are `sizes`. Raises NotProved if they are no ranges.

    Constant indices of more than `max_elements` are not read.
    """
    const = context.scope.const(node.inputs[1].name)
    if const is None:
        data, indices = node.inputs[0].name, context.scope.producer.get(node.inputs[1].name)
        if indices is not None and indices.op == "Concat":
            return _computed_block(context, data, indices, sizes)
        rows = _computed_rows(context, data, node.inputs[1].name, sizes)
        return [rows, *(AxisRange(),) * (len(sizes) - 1)]
    # (n, 1) for whole rows, (n_0, .., n_d, d + 1) for a block: one index vector for each assigned slice.
    if const.size > max_elements or len(const.shape) < 2 or 0 in const.shape:
        raise NotProved
    return _constant_ranges(np.asarray(const.read()), sizes)


def _constant_ranges(indices: Cells, sizes: Sizes) -> list[AxisRange]:
    """Indices of shape (n_0, .., n_d, d + 1) that enumerate a block of the first d + 1 axes in order."""
    depth = indices.shape[-1]
    if indices.ndim != depth + 1 or depth > len(sizes):
        raise NotProved
    ranges, grid = [], []
    for axis, size in enumerate(sizes[:depth]):
        lo, hi = int(indices[..., axis].min()), int(indices[..., axis].max()) + 1
        if size is None or not 0 <= lo < hi <= size:
            raise NotProved
        if hi - lo != indices.shape[axis]:
            raise NotProved
        grid.append(np.arange(lo, hi))
        ranges.append(_known_range(lo, hi, size))
    if not np.array_equal(np.stack(np.meshgrid(*grid, indexing="ij"), -1), indices):
        raise NotProved
    return [*ranges, *(AxisRange(),) * (len(sizes) - depth)]


def _known_range(lo: int, hi: int, size: int) -> AxisRange:
    """Positions lo..hi of `size`, counted from the nearer end; if they cross the middle, from both ends."""
    if lo == 0 and hi == size:
        return AxisRange()
    if hi <= size // 2:
        return AxisRange(before=lo, length=hi - lo)
    if lo > size // 2:
        return AxisRange(after=size - hi, length=hi - lo, from_end=True)
    return AxisRange(before=lo, after=size - hi)


def _computed_rows(context: Context, data: str, indices: str, sizes: Sizes) -> AxisRange:
    """Rows lo..hi of `data`, as the module's docstring writes them."""
    unsqueeze = _producer(context, indices, "Unsqueeze")
    if constant_ints(context, unsqueeze, 1, unsqueeze.attrs.get("axes")) not in ([-1], [1]):  # (n,) -> (n, 1)
        raise NotProved
    return _positions(context, unsqueeze.inputs[0].name, data, 0, sizes)


def _positions(context: Context, name: str, data: str, axis: int, sizes: Sizes) -> AxisRange:
    """A vector of consecutive positions of an axis of `data`."""
    const, size = context.scope.const(name), sizes[axis]
    if const is not None:
        listed = np.asarray(const.read())
        if size is None or listed.ndim != 1 or not len(listed):
            raise NotProved
        return _constant_ranges(listed[:, None], [size])[0]
    node = context.scope.producer.get(name)
    if node is None or node.op != "Slice":
        _check_is_whole(context, name, data, axis, len(sizes))
        return AxisRange()
    starts, ends = constant_ints(context, node, 1), constant_ints(context, node, 2)
    if not len(starts) == len(ends) == 1 or constant_ints(context, node, 4, [1]) != [1]:
        raise NotProved
    _check_is_whole(context, node.inputs[0].name, data, axis, len(sizes))
    return _range_of_bounds(starts[0], ends[0])


def _check_is_whole(context: Context, name: str, data: str, axis: int, rank: int) -> None:
    """Raise NotProved unless a vector lists all positions of an axis of `data`.

    It is Range(0, Gather(Shape(y), axis), 1), where y may be `data` before some other rows were assigned.
    """
    all_rows = _producer(context, name, "Range")
    if constant_ints(context, all_rows, 0) != [0] or constant_ints(context, all_rows, 2) != [1]:
        raise NotProved
    gather = _producer(context, all_rows.inputs[1].name, "Gather")
    entry = constant_ints(context, gather, 1)
    if len(entry) != 1:
        raise NotProved
    shaped = _shaped_so(context, gather.inputs[0].name)
    if size_key(context, shaped, entry[0] % rank) != size_key(context, data, axis):
        raise NotProved


def _computed_block(context: Context, data: str, indices: gs.Node, sizes: Sizes) -> list[AxisRange]:
    """A block of `data`, with an index for each of its first axes, as the module's docstring writes them."""
    depth = len(indices.inputs)
    if indices.attrs.get("axis") not in (-1, depth) or depth > len(sizes):
        raise NotProved
    expanded = [_expanded(context, tensor.name, depth) for tensor in indices.inputs]
    leaves = [expand.inputs[0].name for expand in expanded]
    for expand in expanded:
        if _summands(context, _shaped_like(context, expand.inputs[1].name), set(leaves)) != set(leaves):
            raise NotProved
    ranges = [
        _positions(context, _vector(context, leaf, depth - 1 - axis), data, axis, sizes)
        for axis, leaf in enumerate(leaves)
    ]
    return [*ranges, *(AxisRange(),) * (len(sizes) - depth)]


def _expanded(context: Context, name: str, depth: int) -> gs.Node:
    """The Expand of one index, behind which an axis for the Concat is added."""
    unsqueeze = _producer(context, name, "Unsqueeze")
    if constant_ints(context, unsqueeze, 1, unsqueeze.attrs.get("axes")) not in ([-1], [depth]):
        raise NotProved
    return _producer(context, unsqueeze.inputs[0].name, "Expand")


def _vector(context: Context, name: str, axes_behind: int) -> str:
    """The vector that was given so many axes of size one behind its own."""
    if not axes_behind:
        return name
    reshape = _producer(context, name, "Reshape")
    if constant_ints(context, reshape, 1) != [-1, *(1,) * axes_behind] or reshape.attrs.get("allowzero"):
        raise NotProved
    return str(reshape.inputs[0].name)


def _shaped_like(context: Context, shape: str) -> str:
    """The tensor whose Shape the target of an Expand is, through Where(Equal(shape, -1), 1, shape)."""
    node = context.scope.producer.get(shape)
    if node is not None and node.op == "Where":
        shape = node.inputs[2].name
        _check_replaces_minus_one(context, node)
    return _shaped_so(context, shape)


def _check_replaces_minus_one(context: Context, where: gs.Node) -> None:
    """Raise NotProved unless a Where gives 1 for each -1 of its last input, and any other number as it is."""
    condition = _producer(context, where.inputs[0].name, "Equal")
    others = [tensor.name for tensor in condition.inputs if tensor.name != where.inputs[2].name]
    compared = context.scope.const(others[0]) if len(others) == 1 else None
    if compared is None or (compared.read() != -1).any():
        raise NotProved
    if set(constant_ints(context, where, 1)) != {1}:
        raise NotProved


def _shaped_so(context: Context, shape: str) -> str:
    """The tensor whose whole Shape a vector is."""
    name = whole_shape_of(context.scope, shape)
    if not name:
        raise NotProved
    return name


def _summands(context: Context, name: str, leaves: set[str]) -> set[str]:
    """The leaves that were added to a tensor. Raises NotProved if there is anything else in it."""
    found: set[str] = set()
    pending = [name]
    for _ in range(MAX_SUMMANDS):
        if not pending:
            return found
        tensor = pending.pop()
        if tensor in leaves:
            found.add(tensor)
        else:
            pending += [operand.name for operand in _producer(context, tensor, "Add").inputs]
    raise NotProved


def _producer(context: Context, name: str, op: str) -> gs.Node:
    node = context.scope.producer.get(name)
    if node is None or node.op != op:
        raise NotProved
    return node


def _range_of_bounds(lo: int, hi: int) -> AxisRange:
    """`lo:hi` as in Python, where negative numbers count from the end. Raises NotProved if it may be empty."""
    # Where an axis is shorter than lo or hi say, the updates do not fit the range and the node does not run.
    if hi >= TO_THE_END:
        return AxisRange(before=lo) if lo >= 0 else AxisRange(length=-lo, from_end=True)
    if lo >= 0 > hi:
        return AxisRange(before=lo, after=-hi)
    if lo >= hi or lo < 0 <= hi:
        raise NotProved
    if lo < 0:
        return AxisRange(length=hi - lo, after=-hi, from_end=True)
    return AxisRange(before=lo, length=hi - lo)
