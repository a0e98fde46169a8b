"""The operators exporters place and assign values with, as operations on canvases.

Each rule says what a node's output holds, given what its inputs hold, or None where that is not certain; then the
output is taken as a tensor we know nothing about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_repfuse.graph.scope import Const
from onnx_repfuse.lift.border.symbolic_shape import Ints, extent, ints, sizes
from onnx_repfuse.lift.border.symbolic_tensor import (
    Cells,
    Span,
    SymbolicTensor,
    aligned,
    assigned,
    blank,
    concatenated,
    constant,
    padded,
)
from onnx_repfuse.lift.linear_op import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["Painter"]

LARGEST = 1 << 22  # elements of a constant that may be looked at
DEEPEST = 64
INT_MAX = 1 << 31
WHOLE = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))


@dataclass(eq=False)
class Painter:
    """Paints tensors, each once."""

    context: Context
    canvases: dict[str, SymbolicTensor | None] = field(default_factory=dict)
    depth: int = 0

    def paint(self, name: str) -> SymbolicTensor | None:
        """What a tensor holds."""
        if name not in self.canvases:
            self.depth += 1
            self.canvases[name] = self._paint(name) if self.depth <= DEEPEST else None
            self.depth -= 1
        return self.canvases[name]

    def _paint(self, name: str) -> SymbolicTensor | None:
        const = self.context.scope.const(name)
        if const is not None:
            return _read(const) if const.size <= LARGEST else None
        node = self.context.scope.producer.get(name)
        rule = _RULES.get(node.op) if node is not None else None
        found = rule(self, node) if rule is not None and node is not None else None
        if found is not None:
            return found
        rank = self.context.rank(name)
        return None if rank is None else blank(name, rank)


def _read(const: Const) -> SymbolicTensor | None:
    if const.data_type in FLOAT_FORMATS:
        return constant(np.asarray(const.read()).astype(np.float64))
    return constant(np.asarray(const.read())) if const.data_type in WHOLE else None


def _same(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    return painter.paint(node.inputs[0].name)


def _reshaped(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    """Reshape, Expand, Tile that change nothing, or repeat what is the same everywhere."""
    name, output = node.inputs[0].name, node.outputs[0].name
    before, after = painter.context.scope.shape(name), painter.context.scope.shape(output)
    if before is not None and before == after and None not in before:
        return painter.paint(name)
    rank = painter.context.rank(output)
    canvas = painter.paint(name)
    if node.op == "Reshape" or canvas is None or rank is None or canvas.place is not None or before is None:
        return None
    canvas = canvas.widened(rank)
    if canvas is None or node.op == "Expand":
        return canvas
    told = sizes(painter.context, output, rank)
    grown = (*(1,) * (rank - len(before)), *before)
    same = all(c == 1 or n == old for c, n, old in zip(canvas.values.shape, told, grown, strict=True))
    return canvas if same else None


def _constant_of_shape(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    rank = painter.context.rank(node.outputs[0].name)
    value = node.attrs.get("value")
    filler = 0.0 if value is None else np.asarray(value.values).ravel()[0]
    return (
        None
        if rank is None
        else SymbolicTensor(np.full((1,) * rank, filler), (0,) * rank, np.zeros((1,) * rank, bool))
    )


def _transposed(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    canvas = painter.paint(node.inputs[0].name)
    if canvas is None:
        return None
    return canvas.transposed(node.attrs.get("perm") or tuple(reversed(range(canvas.rank))))


def _sliced(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    """Of axes along which everything is the same."""
    canvas = painter.paint(node.inputs[0].name)
    axes = ints(painter.context, node, 3) if painter.context.scope.opset >= 10 else node.attrs.get("axes")
    if canvas is None or canvas.place is not None or axes is None:
        return None
    return canvas if all(canvas.values.shape[a] == 1 for a in axes) else None


def _padded(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    canvas = painter.paint(node.inputs[0].name)
    if canvas is None or node.attrs.get("mode", "constant") != "constant":
        return None
    found = read_pads(painter.context, node, canvas.rank)
    if isinstance(found, Declined) or min(found[0]) < 0:
        return None
    pads, value = found
    return padded(canvas, pads[: canvas.rank], pads[canvas.rank :], value)


def _concatenated(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    parts = [painter.paint(t.name) for t in node.inputs]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    rank, axis = known[0].rank, node.attrs.get("axis", 1)
    if any(p.rank != rank for p in known):
        return None
    axis %= rank
    whole = [sizes(painter.context, t.name, rank) for t in node.inputs]
    for other in range(rank):
        told = {n for n in (size[other] for size in whole) if n is not None}
        if 0 in told or (other != axis and len(told) > 1):
            return None  # ONNX Runtime leaves out what is empty, whatever its other sizes
    return concatenated(known, [size[axis] for size in whole], axis)


def _elementwise(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    canvases = [painter.paint(t.name) for t in node.inputs]
    known = [c for c in canvases if c is not None]
    if len(known) < len(canvases) or sum(c.place is not None for c in known) > 1:
        return None
    rank = max(c.rank for c in known)
    wide = [c.widened(rank) for c in known]
    whole = [c for c in wide if c is not None]
    if len(whole) < len(known) or not _keeps_shape(painter, node, whole):
        return None
    parts = aligned(whole)
    inside = [c.inside for c in parts]
    with np.errstate(all="ignore"):
        if node.op == "Where":
            chosen = parts[0].values.astype(bool)
            core = np.where(chosen, inside[1], inside[2])
            values = np.where(chosen, parts[1].values, parts[2].values)
            if inside[0].any():
                return None
        else:
            core = inside[0] | inside[1]
            neutral = _neutral(node.op, parts[0].values, parts[1].values, inside[0], inside[1])
            if not neutral.all():
                return None
            values = _ARITHMETIC[node.op](parts[0].values, parts[1].values)
    place = next((c.place for c in parts if c.place is not None), None)
    shape = values.shape
    return SymbolicTensor(values, parts[0].first, np.broadcast_to(core, shape), place)


def _neutral(op: str, a: Cells, b: Cells, in_a: Cells, in_b: Cells) -> Cells:
    """Where the operation leaves the core as it is, or does not meet it."""
    unit = {"Add": 0, "Sub": 0, "Mul": 1}.get(op)
    keeps_a = ~in_a | (False if unit is None else b == unit)
    keeps_b = ~in_b | (False if unit is None or op == "Sub" else a == unit)
    return np.asarray(keeps_a & keeps_b)


def _keeps_shape(painter: Painter, node: gs.Node, canvases: list[SymbolicTensor]) -> bool:
    """The canvas with a core is not broadcast: where nothing lies around it, the others have size one, or its size."""
    main = next((i for i, c in enumerate(canvases) if c.place is not None), None)
    if main is None:
        return True
    place, rank = canvases[main].place, canvases[main].rank
    assert place is not None
    own = sizes(painter.context, node.inputs[main].name, rank)
    for tensor, canvas in zip(node.inputs, canvases, strict=True):
        if canvas is canvases[main]:
            continue
        count = painter.context.rank(tensor.name)
        if count is None or count > rank:
            return False
        other = [*(1,) * (rank - count), *sizes(painter.context, tensor.name, count)]
        for axis in range(rank):
            around = place.before[axis] + place.after[axis]
            if around == 0 and other[axis] != 1 and (other[axis] is None or other[axis] != own[axis]):
                return False
    return True


def _scattered(painter: Painter, node: gs.Node) -> SymbolicTensor | None:
    """ScatterND whose indices are ranges: of rows, or of every axis."""
    if node.attrs.get("reduction", "none") not in ("none", b"none"):
        return None
    data, indices, updates = (t.name for t in node.inputs)
    canvas, new = painter.paint(data), painter.paint(updates)
    if canvas is None or new is None:
        return None
    whole = sizes(painter.context, data, canvas.rank)
    const = painter.context.scope.const(indices)
    if const is None:
        spans = _symbolic_rows(painter, data, indices, canvas.rank)
    elif const.size <= LARGEST and len(const.shape) >= 2 and 0 not in const.shape:
        spans = _constant_spans(np.asarray(const.read()), whole)
    else:
        spans = None
    return None if spans is None else assigned(canvas, spans, new, whole)


def _constant_spans(indices: Cells, whole: Ints) -> list[Span] | None:
    """Indices that enumerate a block of leading axes in order."""
    depth = indices.shape[-1]
    if indices.ndim != depth + 1 or depth > len(whole):
        return None
    spans, grid = [], []
    for axis in range(depth):
        column = np.moveaxis(indices[..., axis], axis, 0).reshape(indices.shape[axis], -1)[:, 0]
        size = whole[axis]
        if size is None or column[0] < 0 or (np.diff(column) != 1).any() or column[-1] >= size:
            return None
        grid.append(column)
        spans.append(_block(int(column[0]), int(column[-1]) + 1, size))
    if not np.array_equal(np.stack(np.meshgrid(*grid, indexing="ij"), -1), indices):
        return None
    return [*spans, *(Span(),) * (len(whole) - depth)]


def _block(lo: int, hi: int, size: int) -> Span:
    if lo == 0 and hi == size:
        return Span()
    if hi <= size // 2:
        return Span(skip=lo, keep=hi - lo)
    if lo > size // 2:
        return Span(drop=size - hi, keep=hi - lo, from_end=True)
    return Span(skip=lo, drop=size - hi)


def _symbolic_rows(painter: Painter, data: str, indices: str, rank: int) -> list[Span] | None:
    """Unsqueeze(Slice(Range(0, size of axis 0), lo, hi)): torch's slices of a size it does not know."""
    context, scope = painter.context, painter.context.scope
    node = scope.producer.get(indices)
    if node is None or node.op != "Unsqueeze":
        return None
    if (ints(context, node, 1) or node.attrs.get("axes")) not in ([-1], [1]):
        return None
    node = scope.producer.get(node.inputs[0].name)
    if node is None or node.op != "Slice" or len(node.inputs) < 3:
        return None
    bounds = [ints(context, node, i) for i in (1, 2)]
    if any(b is None or len(b) != 1 for b in bounds) or ints(context, node, 4) not in (None, [1]):
        return None
    lo, hi = (b[0] for b in bounds if b is not None)
    limit = scope.producer.get(node.inputs[0].name)
    if (
        limit is None
        or limit.op != "Range"
        or ints(context, limit, 0) != [0]
        or ints(context, limit, 2) != [1]
    ):
        return None
    gather = scope.producer.get(limit.inputs[1].name)
    number = ints(context, gather, 1) if gather is not None and gather.op == "Gather" else None
    shape = scope.producer.get(gather.inputs[0].name) if gather is not None and number else None
    if shape is None or number is None or shape.op != "Shape" or shape.attrs.get("start", 0) != 0:
        return None
    if extent(context, shape.inputs[0].name, number[0] % rank) != extent(context, data, 0):
        return None
    span = _symbolic(lo, hi)
    return None if span is None else [span, *(Span(),) * (rank - 1)]


def _symbolic(lo: int, hi: int) -> Span | None:
    if hi >= INT_MAX:
        return Span(skip=lo) if lo >= 0 else Span(keep=-lo, from_end=True)
    if lo >= 0:
        return Span(skip=lo, drop=-hi) if hi < 0 else Span(skip=lo, keep=hi - lo) if hi > lo else None
    return Span(keep=hi - lo, drop=-hi, from_end=True) if lo < hi < 0 else None


_ARITHMETIC: dict[str, Callable[[Cells, Cells], Cells]] = {
    "Add": np.add,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_RULES: dict[str, Callable[[Painter, gs.Node], SymbolicTensor | None]] = {
    **dict.fromkeys(_ARITHMETIC, _elementwise),
    "Concat": _concatenated,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _reshaped,
    "Identity": _same,
    "Pad": _padded,
    "Reshape": _reshaped,
    "ScatterND": _scattered,
    "Slice": _sliced,
    "Tile": _reshaped,
    "Transpose": _transposed,
    "Where": _elementwise,
}
