"""Operators that move elements as a Transpose, Gather or Slice does, written as that.

    Einsum "nhwc->nchw"                                     Transpose
    GatherElements by a list that it repeats                Gather
    ReverseSequence of equal lengths, as tf.reverse         Gather
    Gather of every k-th position of space                  Slice

They are read as index maps and views then (`lift`). GatherElements holds an index for every element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators.einsum import equation_of
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["write_plain_moves"]

Index = NDArray[np.int64]
MAX_INDICES = 1 << 22  # of a GatherElements, that are looked at
STEPS_SINCE = 10  # the opset that brought steps to Slice


def write_plain_moves(plan: ScopePlan, layouts: Mapping[str, ChannelLayout], is_free: IsFree) -> bool:
    """Write such nodes as plain ones; whether there were any.

    Args:
        plan: of the scope, which is changed.
        layouts: of the tensors whose channels are known.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for node, kind, created in _plain(scope, layouts):
        if is_free(node):
            replacements.fold(node.outputs[0].name, {kind}, [node], [created])
    return replacements.write()


def _plain(scope: Scope, layouts: Mapping[str, ChannelLayout]) -> Iterator[tuple[gs.Node, Kind, gs.Node]]:
    """Nodes, and what each is written as."""
    for node in scope.nodes:
        rule = _RULES.get(node.op)
        if rule is None or scope.const(node.outputs[0].name) is not None:
            continue
        created = rule(scope, node, layouts)
        if created is not None:
            yield node, Kind.COMMUTE if created.op == "Transpose" else Kind.INDEX, created


def _transposes(scope: Scope, node: gs.Node, _layouts: Mapping[str, ChannelLayout]) -> gs.Node | None:
    """An Einsum of one operand whose axes it orders otherwise."""
    shape = scope.shape(node.inputs[0].name)
    if len(node.inputs) != 1 or not shape:  # a scalar has no axes
        return None
    equation = equation_of(node.attrs, [len(shape)])
    if equation is None or sorted(equation.result) != sorted(equation.terms[0]):
        return None
    order = [equation.terms[0].index(label) for label in equation.result]
    return _new(scope, node, "Transpose", [node.inputs[0].name], perm=order)


def _gathers(scope: Scope, node: gs.Node, _layouts: Mapping[str, ChannelLayout]) -> gs.Node | None:
    """A GatherElements whose constant indices vary along its own axis only."""
    shape, indices = scope.shape(node.inputs[0].name), _values(scope, optional_input(node, 1))
    if shape is None or indices is None or indices.ndim != len(shape):
        return None
    axis = node.attrs.get("axis", 0) % len(shape)
    if any(size != indices.shape[place] for place, size in enumerate(shape) if place != axis):
        return None  # it takes a part of these axes, or may do so
    first = indices[tuple(slice(None) if place == axis else 0 for place in range(len(shape)))]
    aligned = first.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return _gather(scope, node, axis, first) if (indices == aligned).all() else None


def _reverses(scope: Scope, node: gs.Node, _layouts: Mapping[str, ChannelLayout]) -> gs.Node | None:
    """A ReverseSequence of as many positions in every sequence."""
    shape, lengths = scope.shape(node.inputs[0].name), _values(scope, optional_input(node, 1))
    if shape is None or lengths is None or (lengths != lengths.ravel()[0]).any():
        return None
    axis, length = int(node.attrs.get("time_axis", 0)) % len(shape), int(lengths.ravel()[0])
    size = shape[axis]
    if size is None or not 0 < length <= size:
        return None
    return _gather(scope, node, axis, np.concatenate([np.arange(length)[::-1], np.arange(length, size)]))


def _slices(scope: Scope, node: gs.Node, layouts: Mapping[str, ChannelLayout]) -> gs.Node | None:
    """A Gather of every k-th position along an axis of space, k > 1."""
    name = node.inputs[0].name
    layout, shape = layouts.get(name), scope.shape(name)
    if layout is None or shape is None or layout.channel_axis != 1 or scope.opset < STEPS_SINCE:
        return None
    axis = node.attrs.get("axis", 0) % len(shape)
    index = _values(scope, optional_input(node, 1)) if axis >= 2 else None
    step = 0 if index is None else _step(index)
    if index is None or step < 2 or index[0] < 0:
        return None
    numbers = (int(index[0]), int(index[-1]) + step, axis, step)
    lists = [_indices(scope, node, label, [number]) for label, number in zip(_SLICE, numbers, strict=True)]
    return _new(scope, node, "Slice", [name, *lists])


def _step(index: Index) -> int:
    """How far one number of a list is behind the one before it; 0 for fewer than two, and where that varies."""
    if index.ndim != 1 or len(index) < 2:
        return 0
    steps = np.diff(index)
    return int(steps[0]) if (steps == steps[0]).all() else 0


def _values(scope: Scope, name: str) -> Index | None:
    """The numbers of a constant that is not too long to be looked at, and not empty."""
    const = scope.const(name)
    return const.computed() if const is not None and 0 < const.size <= MAX_INDICES else None


def _gather(scope: Scope, node: gs.Node, axis: int, index: Index) -> gs.Node | None:
    inputs = [node.inputs[0].name, _indices(scope, node, "indices", index)]
    return _new(scope, node, "Gather", inputs, axis=axis)


def _indices(scope: Scope, node: gs.Node, label: str, values: Index | list[int]) -> str:
    index = np.array(values, np.int64)
    constant = Const(index.shape, onnx.TensorProto.INT64, lambda: index)
    return scope.new_constant(f"{node.outputs[0].name}_{label}", constant)


def _new(scope: Scope, node: gs.Node, op: str, inputs: list[str], **attributes: int | list[int]) -> gs.Node:
    output = node.outputs[0].name
    return new_node(op, scope.fresh(f"{output}_{op.lower()}"), attributes, inputs, [output])


_SLICE = ("starts", "ends", "axes", "steps")
_Rule = Callable[[Scope, gs.Node, Mapping[str, ChannelLayout]], gs.Node | None]
_RULES: dict[str, _Rule] = {
    "Einsum": _transposes,
    "Gather": _slices,
    "GatherElements": _gathers,
    "ReverseSequence": _reverses,
}
