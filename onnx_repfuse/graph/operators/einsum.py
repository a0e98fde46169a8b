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

from onnx_repfuse.graph.operators.channel_rules import (
    ChannelLayout,
    ChannelRule,
    Demand,
    Layouts,
    layout_of_axis,
)
from onnx_repfuse.graph.operators.facts import Attributes, Layout, Operator, SizeCase
from onnx_repfuse.graph.scope import Scope, all_known

__all__ = ["EINSUM", "Equation", "Labels", "MatrixProduct", "equation_of", "product_by_matrix"]

# One for each axis: a letter, or ".1" for the last axis of an ellipsis, ".2" for the one before it.
Labels = tuple[str, ...]


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
    terms = all_known(_labels(term, rank) for term, rank in zip(written, ranks, strict=True))
    if terms is None or any(len(set(term)) < len(term) for term in terms):
        return None
    hidden = _hidden_axes(terms)
    if not arrow:
        right = _implied_result(left, hidden)
        if right.lower() != right != right.upper():
            return None  # of small letters and capitals, runtimes disagree which come first
    if hidden and "..." not in right:
        return None
    result = _labels(right, len(right.replace(".", "")) + hidden)
    if result is None or not set(result) <= set(chain(*terms)):
        return None
    return Equation(tuple(terms), result)


def _hidden_axes(terms: Sequence[Labels]) -> int:
    """How many axes the ellipsis stands for, in the operand in which it stands for the most."""
    return max((int(label[1:]) for label in chain(*terms) if label.startswith(".")), default=0)


def _implied_result(left: str, hidden: int) -> str:
    """What stands for the result of an equation without an arrow."""
    times = Counter(left.replace(".", "").replace(",", ""))
    once = sorted(letter for letter, count in times.items() if count == 1)
    return ("..." if hidden else "") + "".join(once)


def _labels(term: str, rank: int | None) -> Labels | None:
    """The labels of a term of so many axes; None if it has another number."""
    before, dots, behind = term.partition("...")
    letters = before + behind
    if letters and not letters.isalpha():
        return None
    if not dots:
        return tuple(term) if rank in (None, len(term)) else None
    hidden = -1 if rank is None else rank - len(letters)
    if hidden < 0:
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
    """An Einsum as a product of a tensor by a constant matrix; None if it is none."""
    names = [tensor.name for tensor in node.inputs]
    shapes = all_known(map(scope.shape, names))
    if shapes is None or len(shapes) != 2:
        return None
    equation = equation_of(node.attrs, [len(shape) for shape in shapes])
    are_constant = [scope.const(name) is not None for name in names]
    if equation is None or sum(are_constant) != 1:
        return None
    return _product_by(equation, shapes, are_constant.index(True))


def _product_by(
    equation: Equation, shapes: Sequence[Sequence[int | None]], weight: int
) -> MatrixProduct | None:
    matrix, data = equation.terms[weight], equation.terms[1 - weight]
    gone = [label for label in matrix if label in data]
    new = [label for label in matrix if label not in data]
    if (len(gone), len(new)) != (1, 1):
        return None
    axis = data.index(gone[0])
    # the label that is gone is in the place of the new one alone: it is summed
    if equation.result != (*data[:axis], new[0], *data[axis + 1 :]):
        return None
    layout = layout_of_axis(axis, len(data)) if len(data) > 1 else None
    read, written = (shapes[weight][matrix.index(label)] for label in (gone[0], new[0]))
    if layout is None or read is None or written is None:
        return None
    if shapes[1 - weight][axis] != read:  # not proved, or 1, which broadcasts
        return None
    return MatrixProduct(1 - weight, weight, layout, (read, written), matrix[0] == gone[0])


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
    shapes = all_known(_assumed(scope, tensor.name) for tensor in node.inputs)
    if shapes is None:
        return None
    equation = equation_of(node.attrs, [len(shape) for shape in shapes])
    if equation is None or len(shapes) != 2:
        return 0
    sizes = equation.sizes(shapes)
    return prod(_common_size(found) for found in sizes.values())


def _common_size(sizes: set[int | None]) -> int:
    """What sizes of one index broadcast to. One that is only assumed may be larger than that of a constant."""
    known = [size or 0 for size in sizes]
    return min((size for size in known if size > 1), default=min(known))


def _assumed(scope: Scope, name: str) -> tuple[int, ...] | None:
    const = scope.const(name)
    return scope.assumed.get(name) if const is None else const.shape


def _doubts(case: SizeCase) -> Sequence[int]:
    """Axes whose index may be of size 1 in one operand: inference takes the first size it meets."""
    shapes = all_known(case.shapes)
    every = range(len(case.result))
    if shapes is None:
        return every
    equation = equation_of(case.attrs, [len(shape) for shape in shapes])
    if equation is None or len(equation.result) != len(case.result):
        return every
    sizes = equation.sizes(shapes)
    times = Counter(chain(*equation.terms))
    may_broadcast = {label for label in sizes if len(sizes[label]) > 1 or None in sizes[label]}
    in_several = {label for label, count in times.items() if count > 1}
    return [axis for axis, label in enumerate(equation.result) if label in may_broadcast & in_several]


EINSUM = (
    Operator(
        "Einsum",
        channels=ChannelRule(_forwards, _backwards),
        weight=_weight_channels,
        multiply_adds=_multiply_adds,
        doubts=_doubts,
    ),
)
