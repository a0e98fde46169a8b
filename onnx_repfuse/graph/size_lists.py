"""Lists of sizes that a graph computes from shapes: what nodes make of them.

An exporter writes the sizes of a Resize as Concat(Slice(Shape(x)), Cast(Concat(Unsqueeze(Gather(Shape(y))), ...))).
Such lists are short and flat: Unsqueeze, Squeeze, Reshape and Cast to integers change nothing of them. Where a list has
rows, its numbers are in order, but nothing is told of what is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.extents import Dim, Dims, extents_of, over, plus, times
from onnx_repfuse.graph.scope import MAX_SHAPE_ELEMENTS, Scope, all_known, input_names, optional_input

__all__ = [
    "INTEGERS",
    "SizeList",
    "constant_list",
    "has_rows",
    "moved_list",
    "multiplies_all",
    "paired",
    "size_list",
]

INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_FLAT = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
_Number = TypeVar("_Number")
SizeList = tuple[Dim | None, ...]  # None for a number that is not known


def constant_list(scope: Scope, name: str) -> list[int] | None:
    """The numbers of a short constant of integers; None for any other tensor."""
    const = scope.const(name)
    if const is None or const.size > MAX_SHAPE_ELEMENTS or const.data_type not in INTEGERS:
        return None
    return const.integers()


def has_rows(scope: Scope, node: gs.Node) -> bool:
    """Whether a node may see rows in one of the lists that it reads; what only rearranges the axes does not mind."""
    if node.op in (*_FLAT, "Cast"):
        return False
    return any(shape is None or len(shape) > 1 for shape in map(scope.shape, input_names(node)))


def moved_list(node: gs.Node, inputs: Sequence[Sequence[_Number]]) -> list[_Number] | None:
    """What a node makes of lists that computes nothing; None for any other, and where a list is too short."""
    if node.op in _FLAT:
        return list(inputs[0])
    if node.op == "Cast":
        return list(inputs[0]) if node.attrs.get("to") in INTEGERS else None  # a float may not hold a size
    if node.op == "Concat":
        return [number for part in inputs for number in part]
    if node.op not in ("Gather", "Slice"):
        return None
    data, *others = inputs
    if not all(isinstance(number, int) for one in others for number in one):
        return None  # a place that is not known
    places = cast("Sequence[Sequence[int]]", others)
    return _gathered(data, places) if node.op == "Gather" else _sliced(node, data, places)


def _gathered(data: Sequence[_Number], places: Sequence[Sequence[int]]) -> list[_Number] | None:
    if len(places) != 1:
        return None
    count = len(data)
    is_within = all(-count <= place < count for place in places[0])
    return [data[place] for place in places[0]] if is_within else None


def _sliced(node: gs.Node, data: Sequence[_Number], places: Sequence[Sequence[int]]) -> list[_Number] | None:
    """Of a Slice without steps, as exporters write it for sizes."""
    has_steps = bool(optional_input(node, 4))
    if has_steps or len(places) < 2:
        return None
    first, last = places[:2]
    return list(data[first[0] : last[0]]) if len(first) == len(last) == 1 else None


def paired(a: Sequence[_Number], b: Sequence[_Number]) -> list[tuple[_Number, _Number]] | None:
    """The numbers of two lists side by side, of which one may be a single number for all; None if they do not fit."""
    count = max(len(a), len(b))
    if not {len(a), len(b)} <= {1, count}:
        return None
    return list(zip(*(list(one) * (count if len(one) == 1 else 1) for one in (a, b)), strict=True))


def size_list(
    scope: Scope, node: gs.Node, lists: Mapping[str, SizeList], dims: Mapping[str, Dims]
) -> SizeList | None:
    """The list that a node computes, of those that are known and of the dims of tensors; None if it computes none."""
    first = node.inputs[0].name if node.inputs else ""
    if node.op == "Shape":
        known = dims.get(first)
        return None if known is None else known[node.attrs.get("start", 0) : node.attrs.get("end")]
    if not any(tensor.name in lists for tensor in node.inputs) or has_rows(scope, node):
        return None
    inputs = all_known(_list(scope, name, lists) for name in input_names(node))
    if inputs is None:
        return None
    moved = moved_list(node, inputs)
    return _computed(node, inputs) if moved is None else tuple(moved)


def _list(scope: Scope, name: str, lists: Mapping[str, SizeList]) -> SizeList | None:
    if name in lists:
        return lists[name]
    constant = constant_list(scope, name)
    return None if constant is None else tuple(constant)


def multiplies_all(node: gs.Node, inputs: int) -> bool:
    """Whether a node of so many inputs is the product of all numbers of a list."""
    if node.op != "ReduceProd" or inputs > 1:  # the second lists axes, from opset 18 on
        return False
    return not node.attrs.get("axes") and not node.attrs.get("noop_with_empty_axes")


def _computed(node: gs.Node, inputs: Sequence[SizeList]) -> SizeList | None:
    if multiplies_all(node, len(inputs)):
        return (_product(inputs[0]),)
    function = _ARITHMETIC.get(node.op)
    if function is None or len(inputs) != 2:
        return None
    pairs = paired(*inputs)
    return None if pairs is None else tuple(function(a, b) for a, b in pairs)


def _product(sizes: SizeList) -> Dim | None:
    known: list[Dim] | None = all_known(sizes)
    if known is None:
        return None
    is_short = sum(len(extents_of(size)) for size in known) <= _MAX_FACTORS
    return times(known) if is_short else None


def _sum(a: Dim | None, b: Dim | None) -> Dim | None:
    if a is None or b is None:
        return None
    if isinstance(b, int):
        return plus(a, b)
    return plus(b, a) if isinstance(a, int) else None  # a sum of two sizes is none of the kinds of `Dim`


def _quotient(a: Dim | None, b: Dim | None) -> Dim | None:
    return over(a, b) if a is not None and isinstance(b, int) else None


_MAX_FACTORS = 64  # of a size: one that is squared again and again has millions
_ARITHMETIC: dict[str, Callable[[Dim | None, Dim | None], Dim | None]] = {
    "Add": _sum,
    "Sub": lambda a, b: _sum(a, -b) if isinstance(b, int) else None,
    "Mul": lambda a, b: _product((a, b)),
    "Div": _quotient,
}
