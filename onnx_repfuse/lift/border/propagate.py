"""The symbolic tensor of a node's output, from those of its inputs: one rule for each operator that moves values.

A rule raises NotProved where the output is not certain. The output is then its own source: nothing is known about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_repfuse.graph.scope import Const
from onnx_repfuse.lift.border.scatter_ranges import scatter_ranges
from onnx_repfuse.lift.border.symbolic_shape import constant_ints, sizes, sizes_at_rank
from onnx_repfuse.lift.border.symbolic_tensor import (
    AxisRange,
    Cells,
    NotProved,
    SymbolicTensor,
    aligned,
    assigned,
    concatenated,
    from_constant,
    from_source,
    padded,
    uniform,
)
from onnx_repfuse.lift.linear_op import Context, Declined
from onnx_repfuse.lift.pad_pool import read_pads
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["Propagator"]

MAX_CONSTANT_ELEMENTS = 1 << 22  # a mask or a tensor of padding values; larger constants are not read
MAX_DEPTH = 64  # nodes between a padding and its source: the rules are recursive
INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))


@dataclass(eq=False)
class Propagator:
    """Computes symbolic tensors, each once."""

    context: Context
    tensors: dict[str, SymbolicTensor | None] = field(default_factory=dict)
    depth: int = 0

    def tensor_of(self, name: str) -> SymbolicTensor:
        """What the tensor `name` holds. Raises NotProved if not even its rank is known."""
        if name not in self.tensors:  # a tensor may be read by many of the nodes
            self.depth += 1
            self.tensors[name] = self._compute(name) if self.depth <= MAX_DEPTH else None
            self.depth -= 1
        tensor = self.tensors[name]
        if tensor is None:
            raise NotProved
        return tensor

    def constant_of(self, name: str) -> SymbolicTensor:
        """As `tensor_of`. Raises NotProved if the tensor has a source."""
        tensor = self.tensor_of(name)
        if tensor.source is not None:
            raise NotProved
        return tensor

    def _compute(self, name: str) -> SymbolicTensor | None:
        const = self.context.scope.const(name)
        if const is not None:
            return _constant(const)
        node = self.context.scope.producer.get(name)
        if node is not None and node.op in _RULES:
            # Not proved: then it is its own source, and what follows may still be a padding of it.
            with suppress(NotProved):
                return _RULES[node.op](self, node)
        rank = self.context.rank(name)
        return None if rank is None else from_source(name, rank)


def _constant(const: Const) -> SymbolicTensor | None:
    if const.size > MAX_CONSTANT_ELEMENTS:
        return None
    if const.data_type in FLOAT_FORMATS:
        return from_constant(np.asarray(const.read()).astype(np.float64))
    return from_constant(np.asarray(const.read())) if const.data_type in INTEGERS else None


def _identity(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    return propagator.tensor_of(node.inputs[0].name)


def _reshape(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    if not _has_equal_shapes(propagator, node):
        raise NotProved
    return _identity(propagator, node)


def _expand(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    """Of a constant, whose values are repeated where its size is one."""
    if _has_equal_shapes(propagator, node):
        return _identity(propagator, node)
    constant, rank = (
        propagator.constant_of(node.inputs[0].name),
        propagator.context.rank(node.outputs[0].name),
    )
    if rank is None:
        raise NotProved
    return constant.broadcast_to_rank(rank)


def _tile(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    """Of a constant that is repeated only along axes where all its values are the same."""
    result = _expand(propagator, node)
    before = sizes_at_rank(propagator.context, node.inputs[0].name, result.rank)
    after = sizes(propagator.context, node.outputs[0].name, result.rank)
    for cells, old, new in zip(result.values.shape, before, after, strict=True):
        may_be_repeated = new is None or new != old
        if may_be_repeated and cells != 1:
            raise NotProved
    return result


def _has_equal_shapes(propagator: Propagator, node: gs.Node) -> bool:
    """Whether input and output are proved to have one shape: then Reshape, Expand and Tile do nothing."""
    scope = propagator.context.scope
    before, after = scope.shape(node.inputs[0].name), scope.shape(node.outputs[0].name)
    return before is not None and before == after and None not in before


def _constant_of_shape(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    rank, value = propagator.context.rank(node.outputs[0].name), node.attrs.get("value")
    if rank is None:
        raise NotProved
    return uniform(0.0 if value is None else np.asarray(value.values).ravel()[0], rank)


def _transpose(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    tensor = propagator.tensor_of(node.inputs[0].name)
    return tensor.transposed(node.attrs.get("perm") or range(tensor.rank)[::-1])  # reversed by default


def _slice(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    """Of a constant, along axes where all its values are the same: then it does not matter which are kept."""
    context, constant = propagator.context, propagator.constant_of(node.inputs[0].name)
    axes = constant_ints(context, node, 3, node.attrs.get("axes"))  # attributes before opset 10
    if any(constant.values.shape[axis] != 1 for axis in axes):
        raise NotProved
    return constant


def _pad(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    tensor = propagator.tensor_of(node.inputs[0].name)
    pads = read_pads(propagator.context, node, tensor.rank)
    if isinstance(pads, Declined) or node.attrs.get("mode", "constant") != "constant":
        raise NotProved
    if min((*pads.begin, *pads.end), default=0) < 0:  # it crops
        raise NotProved
    return padded(tensor, pads.begin, pads.end, pads.value)


def _concat(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    parts = [propagator.tensor_of(tensor.name) for tensor in node.inputs]
    rank = parts[0].rank
    if any(part.rank != rank for part in parts):
        raise NotProved
    axis = node.attrs.get("axis", 1) % rank
    all_sizes = [sizes(propagator.context, tensor.name, rank) for tensor in node.inputs]
    # ONNX Runtime leaves out a part that is empty, even if its other sizes do not fit.
    for position, column in enumerate(zip(*all_sizes, strict=True)):
        proved = {size for size in column if size is not None}
        if 0 in proved:
            raise NotProved
        if position != axis and len(proved) > 1:
            raise NotProved
    return concatenated(parts, [part_sizes[axis] for part_sizes in all_sizes], axis)


def _where(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    condition, chosen, other = operands = _aligned_inputs(propagator, node)
    if condition.is_source.any():
        raise NotProved
    mask = condition.values.astype(bool)
    values = np.where(mask, chosen.values, other.values)
    return _combined(operands, values, np.where(mask, chosen.is_source, other.is_source))


def _arithmetic(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    left, right = operands = _aligned_inputs(propagator, node)
    if not _leaves_source(node.op, left, right).all():
        raise NotProved
    with np.errstate(all="ignore"):  # in cells of the source the numbers mean nothing
        values = _ARITHMETIC[node.op](left.values, right.values)
    return _combined(operands, values, left.is_source | right.is_source)


def _leaves_source(op: str, left: SymbolicTensor, right: SymbolicTensor) -> Cells:
    """In which cells the operation does not change elements of the source: x + 0, x - 0, x * 1, or none there."""
    neutral = {"Add": 0, "Sub": 0, "Mul": 1}.get(op)
    if neutral is None:
        return np.asarray(~left.is_source & ~right.is_source)
    keeps_left = ~left.is_source | (right.values == neutral)
    keeps_right = ~right.is_source
    if op != "Sub":  # 0 - x is not x
        keeps_right |= left.values == neutral
    return np.asarray(keeps_left & keeps_right)


def _combined(operands: Sequence[SymbolicTensor], values: Cells, is_source: Cells) -> SymbolicTensor:
    box = next((operand.source for operand in operands if operand.source is not None), None)
    return SymbolicTensor(values, operands[0].leading, is_source, box)


def _aligned_inputs(propagator: Propagator, node: gs.Node) -> list[SymbolicTensor]:
    """The inputs of an elementwise operator with equal cells. At most one may have a source, and is not broadcast."""
    tensors = [propagator.tensor_of(tensor.name) for tensor in node.inputs]
    rank = max(tensor.rank for tensor in tensors)
    operands = [tensor.broadcast_to_rank(rank) for tensor in tensors]
    with_source = [number for number, tensor in enumerate(tensors) if tensor.source is not None]
    if len(with_source) > 1:
        raise NotProved
    for number in with_source:
        _check_size_is_kept(propagator, node, number, operands[number])
    return aligned(operands)


def _check_size_is_kept(propagator: Propagator, node: gs.Node, number: int, operand: SymbolicTensor) -> None:
    """Raise NotProved if another operand may broadcast operand `number`, which has a source.

    Along an axis with padding on it the operand has more than one position, and so cannot be broadcast. Along the
    others, the source may have any size, so the other operands must have size one or be proved to have its size.
    """
    box = operand.source
    assert box is not None
    own = sizes(propagator.context, node.inputs[number].name, operand.rank)
    is_padded = [before + after > 0 for before, after in zip(box.before, box.after, strict=True)]
    for other in [tensor.name for index, tensor in enumerate(node.inputs) if index != number]:
        proved = sizes_at_rank(propagator.context, other, operand.rank)
        for size, own_size, padded_axis in zip(proved, own, is_padded, strict=True):
            if not padded_axis and size not in (1, own_size if own_size is not None else 1):
                raise NotProved


def _scatter_nd(propagator: Propagator, node: gs.Node) -> SymbolicTensor:
    """ScatterND that assigns to consecutive positions along each axis."""
    if node.attrs.get("reduction", "none") not in ("none", b"none"):  # adds to the data
        raise NotProved
    target = propagator.tensor_of(node.inputs[0].name)
    proved = sizes(propagator.context, node.inputs[0].name, target.rank)
    ranges = scatter_ranges(propagator.context, node, proved, MAX_CONSTANT_ELEMENTS)
    return assigned(target, ranges, _updates(propagator, node, ranges, proved), proved)


def _updates(
    propagator: Propagator, node: gs.Node, ranges: Sequence[AxisRange], proved: Sequence[int | None]
) -> SymbolicTensor:
    """What a ScatterND assigns. A Reshape to the shape of the assigned block, if it had that before, changes nothing.

    Of equally many elements, the first axis has as many as before if all others have.
    """
    name = node.inputs[2].name
    reshape = propagator.context.scope.producer.get(name)
    if reshape is None or reshape.op != "Reshape":
        return propagator.tensor_of(name)
    source = reshape.inputs[0].name
    block = [size if one == AxisRange() else one.length for one, size in zip(ranges, proved, strict=True)]
    before = sizes(propagator.context, source, len(block))
    is_same = None not in block[1:] and before[1:] == block[1:]
    return propagator.tensor_of(source if is_same else name)


_ARITHMETIC: dict[str, Callable[[Cells, Cells], Cells]] = {
    "Add": np.add,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_RULES: dict[str, Callable[[Propagator, gs.Node], SymbolicTensor]] = {
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Tile": _tile,
    "Transpose": _transpose,
    "Where": _where,
}
