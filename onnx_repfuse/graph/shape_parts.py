"""Numbers of shapes that are known though the whole shape is not: of x of (N, 3, H, W), Shape(x)[1] is 3.

Only what inference proves of the shape counts (`graph.enforced`). What picks such numbers, as Gather, Slice or Squeeze,
computes a constant then, whatever the other sizes are.

Where a ScatterND places values, all sizes stay as they are computed: `lift.border` recognises the indices of a padding
by them, and removes them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import (
    MAX_SHAPE_ELEMENTS,
    Const,
    Types,
    all_known,
    input_names,
    shape_in,
    static,
)
from onnx_repfuse.graph.size_lists import INTEGERS, moved_list
from onnx_repfuse.modelfile.dtypes import numpy_dtype

__all__ = ["ShapeParts"]

Numbers = Sequence[int | None]


class ShapeParts:
    """The lists that a scope computes from shapes, as far as their numbers are known; asked in topological order."""

    def __init__(self, nodes: Sequence[gs.Node], constants: Mapping[str, Const], types: Types) -> None:
        """`constants` may grow meanwhile; `types` are inferred."""
        self._constants, self._types = constants, types
        self._places_values = any(node.op == "ScatterND" for node in nodes)
        self._lists: dict[str, Numbers] = {}

    def constant(self, node: gs.Node, fixed: set[str]) -> Const | None:
        """What a node of one output picks of shapes, if all its numbers are known.

        Args:
            node: it comes behind those that compute what it reads.
            fixed: names of constants that nobody may override.
        """
        if self._places_values or len(node.outputs) != 1 or not node.inputs:
            return None
        numbers = self._numbers(node, fixed)
        name = node.outputs[0].name
        data_type, shape = self._types.get(name, (0, None))
        size = static(shape)
        if numbers is None or size is None:
            return None
        if not _is_list(data_type, size) or prod(size) != len(numbers):
            return None
        known = all_known(numbers)
        if known is None:
            self._lists[name] = numbers
            return None
        dtype = numpy_dtype(data_type)
        if any(number > np.iinfo(dtype).max for number in known):
            return None
        return Const(size, data_type, partial(np.copy, np.array(known, dtype).reshape(size)))

    def _numbers(self, node: gs.Node, fixed: set[str]) -> Numbers | None:
        first = node.inputs[0].name
        if node.op == "Shape":
            shape = shape_in(self._types, first)
            return None if shape is None else shape[node.attrs.get("start", 0) : node.attrs.get("end")]
        if not self._lists:  # as in most models
            return None
        names = input_names(node)
        if not any(name in self._lists for name in names):
            return None
        inputs = all_known(self._list(name, fixed) for name in names)
        return None if inputs is None else moved_list(node, inputs)

    def _list(self, name: str, fixed: set[str]) -> Numbers | None:
        if name not in fixed:
            return self._lists.get(name)
        const = self._constants[name]
        return const.integers() if _is_list(const.data_type, const.shape) else None


def _is_list(data_type: int, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a short list of integers, or one: a Gather or Slice of a higher rank would pick rows."""
    return data_type in INTEGERS and len(shape) <= 1 and prod(shape) <= MAX_SHAPE_ELEMENTS
