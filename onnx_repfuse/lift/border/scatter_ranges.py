"""Which positions a ScatterND assigns to, where its indices enumerate a range along each axis.

`y[:, :, :1, :] = v` becomes Transpose, ScatterND, Transpose. The indices are a constant where the exporter knows the
size. Where it does not, torch's legacy exporter computes them:

    size    = Gather(Shape(y), axis)              all positions of the axis:  Range(0, size, 1)
    indices = Unsqueeze(Slice(all positions, [lo], [hi]), -1)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.lift.border.symbolic_shape import Sizes, constant_ints, size_key
from onnx_repfuse.lift.border.symbolic_tensor import AxisRange, Cells, NotProved
from onnx_repfuse.lift.linear_op import Context

__all__ = ["scatter_ranges"]

TO_THE_END = 1 << 31  # exporters write a slice's open end as INT64_MAX


def scatter_ranges(context: Context, node: gs.Node, sizes: Sizes, max_elements: int) -> list[AxisRange]:
    """The positions along each axis of the data, whose sizes are `sizes`. Raises NotProved if they are no ranges.

    Constant indices of more than `max_elements` are not read.
    """
    const = context.scope.const(node.inputs[1].name)
    if const is None:
        rows = _computed_rows(context, node.inputs[0].name, node.inputs[1].name, len(sizes))
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
        if size is None or lo < 0 or hi > size or hi - lo != indices.shape[axis]:
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


def _computed_rows(context: Context, data: str, indices: str, rank: int) -> AxisRange:
    """Rows lo..hi of `data`, as the module's docstring writes them."""
    unsqueeze = _producer(context, indices, "Unsqueeze")
    if constant_ints(context, unsqueeze, 1, unsqueeze.attrs.get("axes")) not in ([-1], [1]):  # (n,) -> (n, 1)
        raise NotProved
    rows = _producer(context, unsqueeze.inputs[0].name, "Slice")
    starts, ends = constant_ints(context, rows, 1), constant_ints(context, rows, 2)
    if not len(starts) == len(ends) == 1 or constant_ints(context, rows, 4, [1]) != [1]:
        raise NotProved
    all_rows = _producer(context, rows.inputs[0].name, "Range")
    # Range(0, Gather(Shape(y), axis), 1), where y may be `data` before some other rows were assigned.
    if constant_ints(context, all_rows, 0) != [0] or constant_ints(context, all_rows, 2) != [1]:
        raise NotProved
    gather = _producer(context, all_rows.inputs[1].name, "Gather")
    shape = _producer(context, gather.inputs[0].name, "Shape")
    entry = constant_ints(context, gather, 1)
    if len(entry) != 1 or shape.attrs.get("start", 0) != 0 or "end" in shape.attrs:
        raise NotProved
    if size_key(context, shape.inputs[0].name, entry[0] % rank) != size_key(context, data, 0):
        raise NotProved
    return _range_of_bounds(starts[0], ends[0])


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
