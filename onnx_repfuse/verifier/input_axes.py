"""Ranks and sizes of inputs that the file leaves open, as far as the nodes that read them tell.

A Conv tells how many channels it takes, a Transpose the rank, an added constant the sizes it does not broadcast. What
is found are hints: sizes are still tried, and where none of these runs, the usual guesses follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from onnx_repfuse.verifier.flat_graph import constant_shapes
from onnx_repfuse.verifier.session import Dim, ValueInfo, input_at

__all__ = ["AxisHints", "axis_hints", "int_attribute"]

_SAME_SHAPE = frozenset(
    ["Abs", "Cast", "Clip", "Dropout", "Elu", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu",
     "Sigmoid", "Softmax", "Sqrt", "Tanh"]
)  # fmt: skip
_ELEMENTWISE = frozenset(["Add", "Sub", "Mul", "Div", "PRelu", "Pow", "Max", "Min"])
_Shapes = list[tuple[int, ...] | None]
_GUESSED_RANKS = (4, 2, 3, 5, 1, 0)  # images, features, sequences, volumes


@dataclass(frozen=True)
class AxisHints:
    """What is known of an input's axes.

    Attributes:
        rank: None if no node tells.
        least: the rank is not smaller.
        sizes: (axis, counted from the end where negative, size).
    """

    rank: int | None = None
    least: int = 0
    sizes: tuple[tuple[int, int], ...] = ()

    def ranks(self) -> tuple[int, ...]:
        """The ranks to try for an input whose rank is not declared."""
        if self.rank is not None:
            return (self.rank,)
        return tuple(rank for rank in _GUESSED_RANKS if rank >= self.least) or (self.least,)

    def applied(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """A shape with sizes in the place of the dims that are open."""
        dims = list(shape)
        for axis, size in self.sizes:
            if -len(dims) <= axis < len(dims) and not isinstance(dims[axis], int):
                dims[axis] = size
        return tuple(dims)


class _Read(NamedTuple):
    """A tensor with the elements of an input: `axes` are the input's, in the tensor's order; None: the same."""

    name: str
    axes: tuple[int, ...] | None


@dataclass
class _Found:
    rank: int | None = None
    least: int = 0
    sizes: dict[int, int] = field(default_factory=dict)


def axis_hints(graph: onnx.GraphProto, inputs: Iterable[ValueInfo]) -> dict[str, AxisHints]:
    """The hints on each input of a graph that has any; its weights need not be loaded."""
    reads = {value.name: _Read(value.name, None) for value in inputs}
    found = {name: _Found() for name in reads}
    shapes = constant_shapes(graph)
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in reads:
                told = _told(node, place, [shapes.get(other) for other in node.input])
                _add(found[reads[name].name], told, reads[name].axes)
        if input_at(node, 0) in reads and node.output:
            _follow(node, reads, shapes)
    return {
        name: AxisHints(item.rank, item.least, tuple(item.sizes.items()))
        for name, item in found.items()
        if item != _Found()
    }


def _follow(node: onnx.NodeProto, reads: dict[str, _Read], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Note an output that has the input's axes."""
    read = reads[node.input[0]]
    combines_constants = node.op_type in _ELEMENTWISE and all(name in shapes for name in node.input[1:])
    if node.op_type in _SAME_SHAPE or combines_constants:
        reads[node.output[0]] = read
    elif node.op_type == "Transpose":
        order = tuple(_ints(node, "perm"))  # left out, it reverses the axes, whose number may not be known
        axes = range(len(order)) if read.axes is None else read.axes
        if order and len(axes) == len(order):
            reads[node.output[0]] = _Read(read.name, tuple(axes[axis] for axis in order))


def _add(found: _Found, told: AxisHints, axes: tuple[int, ...] | None) -> None:
    """What one node tells, unless another one told before."""
    found.rank = told.rank if found.rank is None else found.rank
    found.least = max(found.least, told.least)
    for axis, size in told.sizes:
        if axes is not None:
            if not -len(axes) <= axis < len(axes):
                continue
            axis = axes[axis]
        found.sizes.setdefault(axis, size)


def _told(node: onnx.NodeProto, place: int, shapes: _Shapes) -> AxisHints:
    """What a node tells of its input at `place`; `shapes`: of its inputs, None of what is no constant."""
    other = shapes[1 - place] if len(shapes) > 1 and place < 2 else None
    if node.op_type in _ELEMENTWISE:
        return _by_broadcast(other)
    if node.op_type in ("MatMul", "Gemm"):
        return _by_product(node, place, other)
    if place == 0 and node.op_type in _TOLD_BY:
        return _TOLD_BY[node.op_type](node, other)
    return AxisHints()


def _by_broadcast(constant: tuple[int, ...] | None) -> AxisHints:
    if constant is None:
        return AxisHints()
    sizes = ((axis - len(constant), size) for axis, size in enumerate(constant) if size > 1)
    return AxisHints(least=len(constant), sizes=tuple(sizes))


def _by_product(node: onnx.NodeProto, place: int, other: tuple[int, ...] | None) -> AxisHints:
    rank = 2 if node.op_type == "Gemm" else None
    if not other:
        return AxisHints(rank)
    # The axis that is summed: the last of the first operand, the last but one of the second, or turned.
    axes = [-1, -2]
    for operand, attribute in enumerate(("transA", "transB")):
        if int_attribute(node, attribute):
            axes[operand] = -3 - axes[operand]
    summed = other[axes[1 - place] if len(other) > 1 else -1]
    return AxisHints(rank, least=1, sizes=((axes[place], summed),))


def _by_conv(node: onnx.NodeProto, kernel: tuple[int, ...] | None) -> AxisHints:
    if kernel is None or len(kernel) < 3:
        return AxisHints()
    channels = kernel[0] if node.op_type == "ConvTranspose" else kernel[1] * int_attribute(node, "group", 1)
    return AxisHints(len(kernel), sizes=((1, channels),))


def _by_norm(node: onnx.NodeProto, scale: tuple[int, ...] | None) -> AxisHints:
    if not scale:
        return AxisHints()
    axis, least = (-1, 1) if node.op_type == "LayerNormalization" else (1, 2)
    return AxisHints(least=least, sizes=((axis, scale[-1]),))


def _by_pads(node: onnx.NodeProto, pads: tuple[int, ...] | None) -> AxisHints:
    count = pads[0] if pads else len(_ints(node, "pads"))
    return AxisHints(count // 2 or None)


def _by_window(node: onnx.NodeProto, _: tuple[int, ...] | None) -> AxisHints:
    return AxisHints(len(_ints(node, "kernel_shape")) + 2)


def _by_order(node: onnx.NodeProto, _: tuple[int, ...] | None) -> AxisHints:
    return AxisHints(len(_ints(node, "perm")) or None)


_TOLD_BY: dict[str, Callable[[onnx.NodeProto, tuple[int, ...] | None], AxisHints]] = {
    "Conv": _by_conv,
    "ConvTranspose": _by_conv,
    "BatchNormalization": _by_norm,
    "InstanceNormalization": _by_norm,
    "LayerNormalization": _by_norm,
    "Pad": _by_pads,
    "MaxPool": _by_window,
    "AveragePool": _by_window,
    "Transpose": _by_order,
}


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])


def int_attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """An attribute of a node; `default` where it is left out."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
