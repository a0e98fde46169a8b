"""What can be said about sizes that are not known: single entries of a shape, and which sizes are equal.

Exporters compute shapes in the graph: `Concat([batch], [8], [1], [width])` names two of four sizes. Shape inference
loses them behind the Equal and Where with which torch's legacy exporter reads a -1.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import MAX_FOLDED_ELEMENTS
from onnx_repfuse.lift.linear_op import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.modelfile.dtypes import HOLDING_SIZES

__all__ = ["Ints", "entries", "extent", "ints", "sizes"]

Ints = list[int | None]
DEEPEST = 32


def _is_wide_cast(node: gs.Node) -> bool:
    """A Cast that leaves sizes what they are."""
    return node.op == "Cast" and node.attrs.get("to") in HOLDING_SIZES


def ints(context: Context, node: gs.Node, number: int) -> list[int] | None:
    """Input `number` of a node, if it is constant, flat."""
    if len(node.inputs) <= number or not node.inputs[number].name:
        return None
    const = context.scope.const(node.inputs[number].name)
    return (
        None if const is None or const.size > MAX_FOLDED_ELEMENTS else [int(v) for v in const.read().ravel()]
    )


def entries(context: Context, name: str, depth: int = 0) -> Ints | None:
    """The entries of a vector (or scalar) of integers, None where not known."""
    const = context.scope.const(name)
    if const is not None:
        return [int(v) for v in const.read().ravel()] if const.size <= MAX_FOLDED_ELEMENTS else None
    shape = context.scope.shape(name)
    if shape is None or len(shape) > 1 or None in shape or depth > DEEPEST:
        return None
    unknown: Ints = [None] * (shape[0] or 0 if shape else 1)
    node = context.scope.producer.get(name)
    if node is None:
        return unknown
    inner = [entries(context, t.name, depth + 1) for t in node.inputs]
    if any(v is None for v in inner):
        return unknown
    known = [v for v in inner if v is not None]
    if node.op == "Concat":
        found: Ints = [entry for part in known for entry in part]
    elif node.op in ("Reshape", "Unsqueeze", "Squeeze", "Identity") or _is_wide_cast(node):
        found = known[0]
    elif node.op == "Equal" and len(known[0]) == len(known[1]):
        pairs = zip(*known, strict=True)
        found = [None if a is None or b is None else int(a == b) for a, b in pairs]
    elif node.op == "Where" and len({len(v) for v in known}) == 1:
        found = [b if a == b or c else a if c is not None else None for c, b, a in zip(*known, strict=True)]
    else:
        return unknown
    return found if len(found) == len(unknown) else unknown


def sizes(context: Context, name: str, rank: int, depth: int = 0) -> Ints:
    """The proved sizes of a tensor of `rank` axes."""
    shape = context.scope.shape(name)
    result: Ints = list(shape) if shape is not None and len(shape) == rank else [None] * rank
    node = context.scope.producer.get(name)
    if None not in result or node is None or depth > DEEPEST:
        return result
    first = node.inputs[0].name
    if node.op == "Slice":
        inner = sizes(context, first, rank, depth + 1)
        starts, ends, axes = (ints(context, node, i) for i in (1, 2, 3))
        if starts and ends and axes and ints(context, node, 4) in (None, [1]):
            for start, end, axis in zip(starts, ends, axes, strict=True):
                inner[axis] = 1 if (start, end) == (0, 1) else None
            result = [a if a is not None else b for a, b in zip(result, inner, strict=True)]
    elif node.op in ("Expand", "Tile", "ConstantOfShape"):
        const = context.scope.const(first)
        grown: Ints | None
        told = _shape_of(context, node.inputs[-1].name, depth)
        if node.op == "ConstantOfShape":
            grown = told
        elif const is None or told is None or len(const.shape) > rank:
            return result
        else:
            own = (*(1,) * (rank - len(const.shape)), *const.shape)
            grown = [_repeated(node.op, a, b) for a, b in zip(own, told, strict=False)]
        if grown is not None and len(grown) == rank:
            result = [a if a is not None else b for a, b in zip(result, grown, strict=True)]
    elif node.op in ("Add", "Sub", "Mul", "Equal", "Greater", "Less"):
        for tensor in node.inputs:
            count = context.rank(tensor.name)
            if count is None or count > rank:
                return result
        left, right = (
            [*(1,) * (rank - (r := context.rank(t.name) or 0)), *sizes(context, t.name, r, depth + 1)]
            for t in node.inputs
        )
        result = [_broadcast(a, b) if n is None else n for n, a, b in zip(result, left, right, strict=True)]
    elif node.op == "Pad":
        pads = read_pads(context, node, rank)
        if not isinstance(pads, Declined):
            inner = sizes(context, first, rank, depth + 1)
            result = [
                a if a is not None else None if b is None else b + pads[0][i] + pads[0][rank + i]
                for i, (a, b) in enumerate(zip(result, inner, strict=True))
            ]
    return result


def _shape_of(context: Context, name: str, depth: int) -> Ints | None:
    """A shape given as a tensor, the Shape of another one among them."""
    node = context.scope.producer.get(name)
    if node is not None and node.op == "Shape" and not node.attrs.get("start") and "end" not in node.attrs:
        rank = context.rank(node.inputs[0].name)
        return None if rank is None else sizes(context, node.inputs[0].name, rank, depth + 1)
    return entries(context, name)


def _broadcast(a: int | None, b: int | None) -> int | None:
    if a == 1 or b == 1:
        return b if a == 1 else a
    return a if a is not None else b


def _repeated(op: str, own: int, told: int | None) -> int | None:
    if op == "Tile":
        return None if told is None else own * told
    return told if own == 1 else own


def extent(context: Context, name: str, axis: int) -> tuple[str, int, int]:
    """A key for a tensor's size along an axis: another tensor's size plus a number. Equal keys, equal sizes."""
    plus = 0
    for _ in range(4 * DEEPEST):
        node = context.scope.producer.get(name)
        if node is None:
            break
        if node.op == "Transpose":
            perm = node.attrs.get("perm")
            if not perm:
                break
            axis = perm[axis]
        elif node.op == "Pad":
            rank = context.rank(name)
            pads = None if rank is None else read_pads(context, node, rank)
            if rank is None or pads is None or isinstance(pads, Declined):
                break
            plus += pads[0][axis] + pads[0][rank + axis]
        elif node.op not in ("Identity", "ScatterND"):
            break
        name = node.inputs[0].name
    return name, axis, plus
