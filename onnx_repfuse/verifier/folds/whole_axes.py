"""Which axes of a tensor are whole: an axis of a source, or one that a sum wrote, and no mixture of several axes.

A sum over such an axis gives each of its indices one weight for all places of the other axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

__all__ = ["WholeAxes", "known_shapes"]

Axes = frozenset[int]
_NONE: Axes = frozenset()
# What these compute at an index of an axis is of the same index of their operands', or of its neighbours'.
_KEEP_AXES = {
    "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "LeakyRelu", "Mul", "Neg", "PRelu", "Relu", "Resize",
    "Sub", "Sum", "Upsample",
}  # fmt: skip
_VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_RESIZES = {"Resize", "Upsample"}
_WINDOWS = {"Conv", "ConvTranspose"}
_MATRIX = 2  # axes


class WholeAxes:
    """Those of one side of a fold whose sizes are fixed. Its nodes are to be followed in their order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._shapes = known_shapes(model)
        self._constants = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
        self._axes: dict[str, Axes] = {
            value.name: frozenset(range(len(self._shapes[value.name])))
            for value in model.graph.input
            if value.name in self._shapes
        }

    def follow(self, node: onnx.NodeProto) -> None:
        """Find the axes of what a node computes."""
        for name in node.output:
            shape = self._shapes.get(name)
            self._axes[name] = _NONE if shape is None else self._behind(node, shape)

    def is_summed(self, node: onnx.NodeProto) -> bool:
        """Whether a node sums over a whole axis, with one weight for each index: a matrix, or the kernel of a Conv."""
        place = self._summed(node)
        return place is not None and place[1] in self._axes.get(place[0], _NONE)

    def _summed(self, node: onnx.NodeProto) -> tuple[str, int] | None:
        """The tensor that a node sums with weights, and over which axis."""
        variable = [place for place, name in enumerate(node.input[:2]) if name not in self._constants]
        if len(variable) != 1:
            return None
        (place,) = variable
        name = node.input[place]
        if node.op_type in _WINDOWS:
            return (name, 1) if place == 0 else None
        if self._constants[node.input[1 - place]] != _MATRIX:
            return None
        is_last = (place == 0) != _is_turned(node, place)
        return name, len(self._shapes.get(name, ())) - (1 if is_last else 2)

    def _behind(self, node: onnx.NodeProto, shape: Sequence[int]) -> Axes:
        own = self._axes.get(node.input[0], _NONE) if node.input else _NONE
        if node.op_type in _VIEWS:
            return self._behind_view(node.input[0], shape)
        if node.op_type == "Transpose":
            turned = [*range(len(shape))][::-1]
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), turned)
            return frozenset(axis for axis, source in enumerate(order) if source in own)
        if node.op_type in _WINDOWS:
            return own | {1}
        if node.op_type == "MatMul":
            return self._behind_product(node)
        return self._behind_elements(node, len(shape)) if node.op_type in _KEEP_AXES else _NONE

    def _behind_product(self, node: onnx.NodeProto) -> Axes:
        """A product with a matrix makes the axis that it sums one of its own."""
        summed = self._summed(node)
        return _NONE if summed is None else self._axes.get(summed[0], _NONE) | {summed[1]}

    def _behind_view(self, name: str, shape: Sequence[int]) -> Axes:
        """An axis stays one where it has as many indices, and as many elements before it, and so behind it."""
        own = self._shapes.get(name, ())
        known = {(math.prod(own[:axis]), own[axis]) for axis in self._axes.get(name, _NONE)}
        return frozenset(
            axis for axis, size in enumerate(shape) if size == 1 or (math.prod(shape[:axis]), size) in known
        )

    def _behind_elements(self, node: onnx.NodeProto, rank: int) -> Axes:
        """The axes that all operands have, counted from the last, as they are broadcast."""
        common = set(range(-rank, 0))
        operands = node.input[:1] if node.op_type in _RESIZES else node.input  # the others are sizes
        for name in operands:
            if name and name not in self._constants:
                size = len(self._shapes[name]) if name in self._shapes else rank
                common &= {axis - size for axis in self._axes.get(name, _NONE)} | set(range(-rank, -size))
        return frozenset(axis + rank for axis in common)


def _is_turned(node: onnx.NodeProto, place: int) -> bool:
    """Whether a Gemm transposes an operand."""
    return any(attribute.i for attribute in node.attribute if attribute.name == ("transA", "transB")[place])


def known_shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the tensors of which all sizes are known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    result = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim):
            result[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return result
