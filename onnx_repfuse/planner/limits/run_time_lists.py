"""Lists of sizes that a graph computes from shapes, evaluated at one size of its inputs.

An exporter writes the sizes of a Resize as Concat(Slice(Shape(x)), Cast(Concat(Unsqueeze(Gather(Shape(y))), ...))).
Such lists are short and flat: Unsqueeze, Squeeze, Reshape and Cast to integers change nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import MAX_SHAPE_ELEMENTS, Scope, optional_input
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.extents import Dim, Extent, known_extents

__all__ = ["RunTimeLists"]

MAX_DEPTH = 32
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_FLAT = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
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
    """Evaluates lists where every size that is not known, of whatever tensor, is the same number.

    Attributes:
        size: that number.
        origins: the tensors whose sizes went into what was evaluated.
    """

    context: Context
    size: int
    origins: set[str] = field(default_factory=set)

    def evaluate(self, name: str) -> list[int] | None:
        """The numbers of a list; None where they do not follow from shapes."""
        try:
            return self._list(name, 0)
        except _UnknownError:
            return None

    def dims(self, name: str) -> list[int] | None:
        """The dims of a tensor; None if its rank is not known."""
        dims = known_extents(self.context).get(name)
        return None if dims is None else [self._number(dim) for dim in dims]

    def _number(self, dim: Dim) -> int:
        if not isinstance(dim, Extent):
            return dim
        self.origins.add(dim.tensor)
        return (self.size + dim.slack) // dim.stride + 1

    def _list(self, name: str, depth: int) -> list[int]:
        scope: Scope = self.context.scope
        const = scope.const(name)
        if const is not None:
            value = const.computed() if const.size <= MAX_SHAPE_ELEMENTS else None
            if value is None or const.data_type not in _INTEGERS:
                raise _UnknownError
            return [int(number) for number in value.ravel()]
        node = scope.producer.get(name)
        if node is None or depth > MAX_DEPTH:
            raise _UnknownError
        of_shape = operator(node).of_shape
        if of_shape is not None:
            dims = self.dims(node.inputs[0].name)
            if dims is None:
                raise _UnknownError
            return [int(number) for number in of_shape(node.attrs, tuple(dims)).ravel()]
        return self._computed(node, [self._list(t.name, depth + 1) for t in node.inputs if t.name])

    def _computed(self, node: gs.Node, inputs: list[list[int]]) -> list[int]:
        moved = _moved(node, inputs)
        return _arithmetic(node, inputs) if moved is None else moved


def _moved(node: gs.Node, inputs: list[list[int]]) -> list[int] | None:
    """What a node makes of lists that computes nothing; None for any other."""
    if node.op in _FLAT or (node.op == "Cast" and node.attrs.get("to") in _INTEGERS):
        return inputs[0]
    if node.op == "Concat":
        return [number for part in inputs for number in part]
    if node.op == "Gather" and len(inputs) == 2:
        return [inputs[0][place] for place in inputs[1]]
    if node.op == "Slice" and len(inputs) >= 3 and optional_input(node, 4) == "":
        ((first,), (last,)) = inputs[1], inputs[2]
        return inputs[0][first:last]
    return None


def _arithmetic(node: gs.Node, inputs: list[list[int]]) -> list[int]:
    """Integer arithmetic of lists. Raises _UnknownError for what is not known here."""
    if node.op == "ReduceProd" and not node.attrs.get("axes") and len(inputs) == 1:
        return [prod(inputs[0])]
    function = _ARITHMETIC.get(node.op)
    if function is None or len(inputs) != 2:
        raise _UnknownError
    count = max(map(len, inputs))
    a, b = (values * count if len(values) == 1 else values for values in inputs)
    if len(a) != len(b) or (node.op == "Div" and (0 in b or min(*a, *b) < 0)):
        raise _UnknownError
    return [function(x, y) for x, y in zip(a, b, strict=True)]
