"""Which positions a ScatterND assigns to, where its indices enumerate a range along each axis.

`y[:, :, :1, :] = v` becomes Transpose, ScatterND, Transpose. The indices are a constant where the exporter knows the
size. Where it does not, torch's legacy exporter computes them:

    size    = Gather(Shape(y), axis)              all positions of the axis:  Range(0, size, 1)
    indices = Unsqueeze(Slice(all positions, [lo], [hi]), -1)
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift.border.symbolic_shape import Sizes, constant_ints, size_key
from onnx_repfuse.lift.border.symbolic_tensor import AxisRange, Cells
from onnx_repfuse.lift.linear_op import Context

__all__ = ["scatter_ranges"]

TO_THE_END = 1 << 31  # exporters write a slice's open end as INT64_MAX


def scatter_ranges(
    context: Context, node: gs.Node, sizes: Sizes, max_elements: int
) -> list[AxisRange] | None:
    """The positions along each axis of the data, whose proved sizes are `sizes`; None if they are no ranges.

    Constant indices of more than `max_elements` are not read.
    """
    data, indices = node.inputs[0].name, node.inputs[1].name
    const = context.scope.const(indices)
    if const is None:
        rows = _computed_rows(context, data, indices, len(sizes))
        return None if rows is None else [rows, *(AxisRange(),) * (len(sizes) - 1)]
    if const.size > max_elements or len(const.shape) < 2 or 0 in const.shape:
        return None
    return _constant_ranges(np.asarray(const.read()), sizes)


def _constant_ranges(indices: Cells, sizes: Sizes) -> list[AxisRange] | None:
    """Indices of shape (n_0, .., n_d, d + 1) that enumerate a block of the first d + 1 axes in order."""
    depth = indices.shape[-1]
    if indices.ndim != depth + 1 or depth > len(sizes):
        return None
    ranges, grid = [], []
    for axis, size in enumerate(sizes[:depth]):
        positions = np.moveaxis(indices[..., axis], axis, 0).reshape(indices.shape[axis], -1)[:, 0]
        is_within = size is not None and positions[0] >= 0 and positions[-1] < size
        if size is None or not is_within or (np.diff(positions) != 1).any():
            return None
        grid.append(positions)
        ranges.append(_known_range(int(positions[0]), int(positions[-1]) + 1, size))
    if not np.array_equal(np.stack(np.meshgrid(*grid, indexing="ij"), -1), indices):
        return None
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


def _computed_rows(context: Context, data: str, indices: str, rank: int) -> AxisRange | None:
    """Rows lo..hi of `data`, as the module's docstring writes them."""
    scope = context.scope
    unsqueeze = _producer(scope, indices, "Unsqueeze")
    if unsqueeze is None or not _adds_last_axis(context, unsqueeze):
        return None
    rows = _producer(scope, unsqueeze.inputs[0].name, "Slice")
    bounds = None if rows is None else _bounds(context, rows)
    if rows is None or bounds is None:
        return None
    everything = _producer(scope, rows.inputs[0].name, "Range")
    if everything is None or not _enumerates_rows(context, everything, data, rank):
        return None
    return _range_of_bounds(*bounds)


def _producer(scope: Scope, name: str, op: str) -> gs.Node | None:
    node = scope.producer.get(name)
    return node if node is not None and node.op == op else None


def _adds_last_axis(context: Context, unsqueeze: gs.Node) -> bool:
    """Whether (n,) becomes (n, 1); the axes are an input from opset 13 on."""
    axes = constant_ints(context, unsqueeze, 1) or unsqueeze.attrs.get("axes")
    return axes in ([-1], [1])


def _bounds(context: Context, rows: gs.Node) -> tuple[int, int] | None:
    """Begin and end of a Slice of a vector by constants, with step 1."""
    if len(rows.inputs) < 3 or constant_ints(context, rows, 4) not in (None, [1]):
        return None
    starts, ends = constant_ints(context, rows, 1), constant_ints(context, rows, 2)
    if starts is None or ends is None or not len(starts) == len(ends) == 1:
        return None
    return starts[0], ends[0]


def _enumerates_rows(context: Context, everything: gs.Node, data: str, rank: int) -> bool:
    """Whether it is Range(0, size of axis 0 of `data`, 1)."""
    if constant_ints(context, everything, 0) != [0] or constant_ints(context, everything, 2) != [1]:
        return False
    gather = _producer(context.scope, everything.inputs[1].name, "Gather")
    entry = None if gather is None else constant_ints(context, gather, 1)
    if gather is None or not entry:
        return False
    shape = _producer(context.scope, gather.inputs[0].name, "Shape")
    if shape is None or shape.attrs.get("start", 0) != 0:
        return False
    return size_key(context, shape.inputs[0].name, entry[0] % rank) == size_key(context, data, 0)


def _range_of_bounds(lo: int, hi: int) -> AxisRange | None:
    """`lo:hi` as in Python, where negative numbers count from the end; None if it may be empty."""
    if hi >= TO_THE_END:
        return AxisRange(before=lo) if lo >= 0 else AxisRange(length=-lo, from_end=True)
    if lo < 0:
        return AxisRange(length=hi - lo, after=-hi, from_end=True) if lo < hi < 0 else None
    if hi < 0:
        return AxisRange(before=lo, after=-hi)
    return AxisRange(before=lo, length=hi - lo) if hi > lo else None
