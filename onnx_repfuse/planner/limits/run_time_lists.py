"""Lists of sizes that a graph computes from shapes, evaluated at one size of its inputs.

An exporter writes the sizes of a Resize as Concat(Slice(Shape(x)), Cast(Concat(Unsqueeze(Gather(Shape(y))), ...))).
What `size_lists` follows with sizes that are not known is computed here in numbers, so any arithmetic will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dim, Extent, value
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, input_names
from onnx_repfuse.graph.size_lists import constant_list, has_rows, moved_list, multiplies_all, paired

__all__ = ["RunTimeLists"]

MAX_DEPTH = 32
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a // b,  # of sizes, which are not negative
}


class _UnknownError(Exception):
    """A list does not follow from shapes by the operators above."""


@dataclass(eq=False)
class RunTimeLists:
    """Evaluates lists where every size that is not known has a number.

    Attributes:
        size: that of the tensor whose sizes are asked for first, along every axis.
        scale: times `size`, that of every other tensor: of two images, either may be the larger one.
        origins: tensor -> the size it has.
    """

    scope: Scope
    size: int
    scale: float = 1.0
    origins: dict[str, int] = field(default_factory=dict)

    def evaluate(self, name: str) -> list[int] | None:
        """The numbers of a list; None where they do not follow from shapes."""
        try:
            return self._list(name, 0)
        except _UnknownError:
            return None

    def dims(self, name: str) -> list[int] | None:
        """The dims of a tensor; None if its rank is not known."""
        dims = dims_of(self.scope, name)
        return None if dims is None else [self._number(dim) for dim in dims]

    def _number(self, dim: Dim) -> int:
        return value(dim, self._size)

    def _size(self, extent: Extent) -> int:
        other = max(1, int(self.size * self.scale)) if self.origins else self.size
        return self.origins.setdefault(extent.tensor, other)

    def _list(self, name: str, depth: int) -> list[int]:
        scope = self.scope
        if scope.const(name) is not None:
            return _known(constant_list(scope, name))
        node = scope.producer.get(name)
        if node is None or depth > MAX_DEPTH:
            raise _UnknownError
        of_shape = operator(node).of_shape
        if of_shape is not None:
            dims = _known(self.dims(node.inputs[0].name))
            return [int(number) for number in of_shape(node.attrs, tuple(dims)).ravel()]
        if has_rows(scope, node):
            raise _UnknownError
        return self._computed(node, [self._list(input_name, depth + 1) for input_name in input_names(node)])

    def _computed(self, node: gs.Node, inputs: list[list[int]]) -> list[int]:
        moved = moved_list(node, inputs)
        return _arithmetic(node, inputs) if moved is None else moved


def _known(numbers: list[int] | None) -> list[int]:
    """The numbers. Raises _UnknownError if there are none."""
    if numbers is None:
        raise _UnknownError
    return numbers


def _arithmetic(node: gs.Node, inputs: list[list[int]]) -> list[int]:
    """Integer arithmetic of lists. Raises _UnknownError for what is not known here."""
    if multiplies_all(node, len(inputs)):
        return [prod(inputs[0])]
    function = _ARITHMETIC.get(node.op)
    if function is None or len(inputs) != 2:
        raise _UnknownError
    pairs = paired(*inputs)
    if pairs is None or (node.op == "Div" and any(a < 0 or b <= 0 for a, b in pairs)):
        raise _UnknownError
    return [function(a, b) for a, b in pairs]
