"""Einsum: its equation, and a product by a constant matrix along one axis, as a Conv or MatMul computes it.

    bchw,dc->bdhw        a 1x1 Conv        ...c,cd->...d        a MatMul

Unlike those, an Einsum broadcasts: an index may have size 1 in one operand. So channels count as such only where the
sizes of both operands are proved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators.channel_rules import ChannelLayout, ChannelRule, Demand, Layouts
from onnx_repfuse.graph.operators.facts import Attributes, Layout, Operator, SizeCase
from onnx_repfuse.graph.scope import Scope

__all__ = ["EINSUM", "Equation", "Labels", "MatrixProduct", "equation_of", "product_by_matrix"]

Labels = tuple[
    str, ...
]  # one for each axis: a letter, or ".1" for the last axis of an ellipsis, ".2" before it


@dataclass(frozen=True)
class Equation:
    """The labels of the axes of each operand, and of the result."""

    terms: tuple[Labels, ...]
    result: Labels

    def sizes(self, shapes: Sequence[Sequence[int | None]]) -> dict[str, set[int | None]]:
        """The sizes that each label has in the operands."""
        found: dict[str, set[int | None]] = {}
        for term, shape in zip(self.terms, shapes, strict=True):
            for label, size in zip(term, shape, strict=True):
                found.setdefault(label, set()).add(size)
        return found


def equation_of(attrs: Attributes, ranks: Sequence[int | None]) -> Equation | None:
    """The equation of an Einsum of operands with so many axes; None if it does not fit them, or has a diagonal.

    Without an arrow, the result has each letter that occurs once, in the order of the alphabet.
    """
    text = attrs.get("equation", "")
    text = (text.decode() if isinstance(text, bytes) else str(text)).replace(" ", "")
    left, arrow, right = text.partition("->")
    written = left.split(",")
    if len(written) != len(ranks):
        return None
    terms = [_labels(term, rank) for term, rank in zip(written, ranks, strict=True)]
    if any(term is None or len(set(term)) < len(term) for term in terms):
        return None
    known = tuple(term for term in terms if term is not None)
    longest = max(
        (label for label in chain(*known) if label[0] == "."), key=lambda one: int(one[1:]), default=""
    )
    ellipsis = int(longest[1:]) if longest else 0
    if not arrow:
        once = [
            label for label, times in Counter(left.replace(".", "").replace(",", "")).items() if times == 1
        ]
        right = ("..." if ellipsis else "") + "".join(sorted(once))
    if ellipsis and "..." not in right:
        return None
    result = _labels(right, len(right.replace(".", "")) + ellipsis)
    return None if result is None or not set(result) <= set(chain(*known)) else Equation(known, result)


def _labels(term: str, rank: int | None) -> Labels | None:
    """The labels of a term of so many axes; None if it has another number."""
    before, dots, behind = term.partition("...")
    if not (before + behind).isalpha() and before + behind:
        return None
    if not dots:
        return tuple(term) if rank in (None, len(term)) else None
    hidden = None if rank is None else rank - len(before) - len(behind)
    if hidden is None or hidden < 0:
        return None
    return (*before, *(f".{number}" for number in range(hidden, 0, -1)), *behind)


class MatrixProduct(NamedTuple):
    """An Einsum that multiplies one axis of a tensor by a matrix.

    Attributes:
        data, weight: which input is the tensor, and which the matrix.
        layout: of the tensor and of the result, whose channels are on that axis.
        channels: read and written.
        reads_rows: the matrix is (read, written), not (written, read).
    """

    data: int
    weight: int
    layout: Layout
    channels: tuple[int, int]
    reads_rows: bool


def product_by_matrix(scope: Scope, node: gs.Node) -> MatrixProduct | None:
    """An Einsum as a product by a matrix of constant shape, the second input if both may be it; None if it is none."""
    names = [tensor.name for tensor in node.inputs]
    shapes = [scope.shape(name) for name in names]
    if len(names) != 2 or None in shapes:
        return None
    known = [shape for shape in shapes if shape is not None]
    equation = equation_of(node.attrs, [len(shape) for shape in known])
    if equation is None:
        return None
    for weight in (1, 0):
        if scope.const(names[weight]) is not None and scope.const(names[1 - weight]) is None:
            return _product_by(equation, known, weight)
    return None


def _product_by(
    equation: Equation, shapes: Sequence[Sequence[int | None]], weight: int
) -> MatrixProduct | None:
    matrix, data = equation.terms[weight], equation.terms[1 - weight]
    gone = [label for label in matrix if label in data]
    new = [label for label in matrix if label not in data]
    if len(gone) != 1 or len(new) != 1 or gone[0] in equation.result:
        return None
    axis = data.index(gone[0])
    if equation.result != (*data[:axis], new[0], *data[axis + 1 :]):
        return None
    layout = _layout(axis, len(data))
    read, written = (shapes[weight][matrix.index(label)] for label in (gone[0], new[0]))
    if layout is None or read is None or written is None or shapes[1 - weight][axis] != read:
        return None
    return MatrixProduct(1 - weight, weight, layout, (read, written), matrix[0] == gone[0])


def _layout(axis: int, rank: int) -> Layout | None:
    if axis == rank - 1 and rank > 1:
        return -1, 0
    return (1, rank - 2) if axis == 1 else None


def _around(layouts: Layouts, node: gs.Node) -> tuple[str, ChannelLayout, ChannelLayout] | None:
    """The tensor that is multiplied, its layout and that of the result."""
    product = product_by_matrix(layouts.scope, node)
    if product is None:
        return None
    data_type = layouts.scope.data_type(node.inputs[product.weight].name) or 0
    read, written = (ChannelLayout(*product.layout, channels, data_type) for channels in product.channels)
    return str(node.inputs[product.data].name), read, written


def _forwards(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    around = _around(layouts, node)
    return None if around is None else around[2]


def _backwards(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    around = _around(layouts, node)
    return () if around is None else [around[:2]]


def _weight_channels(node: gs.Node, shape: Sequence[int]) -> tuple[int, int]:
    """Of a matrix that is the second input."""
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    data = equation.partition(",")[0]
    matrix = equation.partition(",")[2].partition("->")[0]
    return (shape[0], shape[1]) if matrix[:1] in data else (shape[1], shape[0])


def _multiply_adds(scope: Scope, node: gs.Node) -> int | None:
    """Of two operands, a product for each combination of positions of all indices."""
    shapes = [_assumed(scope, tensor.name) for tensor in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    equation = equation_of(node.attrs, [len(shape) for shape in known])
    if equation is None or len(known) != 2:
        return 0
    sizes = equation.sizes(known)
    return prod(max(size or 0 for size in found) for found in sizes.values())


def _assumed(scope: Scope, name: str) -> tuple[int, ...] | None:
    const = scope.const(name)
    return scope.assumed.get(name) if const is None else const.shape


def _doubts(case: SizeCase) -> Sequence[int]:
    """Axes whose index may be of size 1 in one operand: inference takes the first size it meets."""
    shapes = [shape for shape in case.shapes if shape is not None]
    every = range(len(case.result))
    if len(shapes) < len(case.shapes):
        return every
    equation = equation_of(case.attrs, [len(shape) for shape in shapes])
    if equation is None or len(equation.result) != len(case.result):
        return every
    sizes = equation.sizes(shapes)
    times = Counter(chain(*equation.terms))
    return [
        axis
        for axis, label in enumerate(equation.result)
        if times[label] > 1 and (len(sizes[label]) > 1 or None in sizes[label])
    ]


EINSUM = (
    Operator(
        "Einsum",
        channels=ChannelRule(_forwards, _backwards),
        weight=_weight_channels,
        multiply_adds=_multiply_adds,
        doubts=_doubts,
    ),
)
