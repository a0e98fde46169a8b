"""The symbolic tensor of a node's output, from those of its inputs: one rule for each operator that moves values.

A rule returns None where the output is not certain. The output is then its own source: nothing is known about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Const
from onnx_repfuse.lift.border.scatter_ranges import scatter_ranges
from onnx_repfuse.lift.border.symbolic_shape import Sizes, constant_ints, sizes, sizes_at_rank
from onnx_repfuse.lift.border.symbolic_tensor import (
    Cells,
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

    def tensor_of(self, name: str) -> SymbolicTensor | None:
        """What the tensor `name` holds; None if not even its rank is known."""
        if name not in self.tensors:
            self.depth += 1
            self.tensors[name] = self._compute(name) if self.depth <= MAX_DEPTH else None
            self.depth -= 1
        return self.tensors[name]

    def _compute(self, name: str) -> SymbolicTensor | None:
        const = self.context.scope.const(name)
        if const is not None:
            return _constant(const) if const.size <= MAX_CONSTANT_ELEMENTS else None
        node = self.context.scope.producer.get(name)
        rule = None if node is None else _RULES.get(node.op)
        result = None if rule is None else rule(self, node)
        if result is not None:
            return result
        rank = self.context.rank(name)
        return None if rank is None else from_source(name, rank)


def _constant(const: Const) -> SymbolicTensor | None:
    if const.data_type in FLOAT_FORMATS:
        return from_constant(np.asarray(const.read()).astype(np.float64))
    return from_constant(np.asarray(const.read())) if const.data_type in INTEGERS else None


def _identity(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    return propagator.tensor_of(node.inputs[0].name)


def _reshape(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    return _identity(propagator, node) if _has_equal_shapes(propagator, node) else None


def _expand(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    if _has_equal_shapes(propagator, node):
        return _identity(propagator, node)
    return _constant_at_output_rank(propagator, node)


def _tile(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    """Along each axis the values are all the same, or it is not repeated."""
    if _has_equal_shapes(propagator, node):
        return _identity(propagator, node)
    tensor = _constant_at_output_rank(propagator, node)
    if tensor is None:
        return None
    before = sizes_at_rank(propagator.context, node.inputs[0].name, tensor.rank)
    after = sizes(propagator.context, node.outputs[0].name, tensor.rank)
    if before is None:
        return None
    for cells, old, new in zip(tensor.values.shape, before, after, strict=True):
        if cells != 1 and (new is None or new != old):
            return None
    return tensor


def _has_equal_shapes(propagator: Propagator, node: gs.Node) -> bool:
    """Whether input and output are proved to have one shape: then Reshape, Expand and Tile do nothing."""
    scope = propagator.context.scope
    before, after = scope.shape(node.inputs[0].name), scope.shape(node.outputs[0].name)
    return before is not None and before == after and None not in before


def _constant_at_output_rank(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    tensor = propagator.tensor_of(node.inputs[0].name)
    rank = propagator.context.rank(node.outputs[0].name)
    if tensor is None or tensor.source is not None or rank is None:
        return None
    return tensor.broadcast_to_rank(rank)


def _constant_of_shape(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    rank, value = propagator.context.rank(node.outputs[0].name), node.attrs.get("value")
    if rank is None:
        return None
    return uniform(0.0 if value is None else np.asarray(value.values).ravel()[0], rank)


def _transpose(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    tensor = propagator.tensor_of(node.inputs[0].name)
    if tensor is None:
        return None
    return tensor.transposed(node.attrs.get("perm") or tuple(reversed(range(tensor.rank))))


def _slice(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    """Only along axes where all values are the same: then it does not matter which are kept."""
    tensor, context = propagator.tensor_of(node.inputs[0].name), propagator.context
    if operator(node).uses_attributes(context.scope.opset):
        axes = node.attrs.get("axes")
    else:
        axes = constant_ints(context, node, 3)
    if tensor is None or tensor.source is not None or axes is None:
        return None
    return tensor if all(tensor.values.shape[axis] == 1 for axis in axes) else None


def _pad(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    tensor = propagator.tensor_of(node.inputs[0].name)
    if tensor is None or node.attrs.get("mode", "constant") != "constant":
        return None
    pads = read_pads(propagator.context, node, tensor.rank)
    if isinstance(pads, Declined) or min((*pads.begin, *pads.end), default=0) < 0:
        return None
    return padded(tensor, pads.begin, pads.end, pads.value)


def _concat(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    parts = _tensors_of_inputs(propagator, node)
    if parts is None or len({part.rank for part in parts}) != 1:
        return None
    rank = parts[0].rank
    axis = node.attrs.get("axis", 1) % rank
    all_sizes = [sizes(propagator.context, tensor.name, rank) for tensor in node.inputs]
    if not _may_be_concatenated(all_sizes, axis):
        return None
    return concatenated(parts, [size[axis] for size in all_sizes], axis)


def _may_be_concatenated(all_sizes: Sequence[Sizes], axis: int) -> bool:
    """Whether no part is empty and all agree beside `axis`: ONNX Runtime leaves out an empty part of any other size."""
    for position, column in enumerate(zip(*all_sizes, strict=True)):
        proved = {size for size in column if size is not None}
        if 0 in proved or (position != axis and len(proved) > 1):
            return False
    return True


def _where(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    operands = _aligned_inputs(propagator, node)
    if operands is None or operands[0].is_source.any():
        return None
    condition, chosen, other = operands
    mask = condition.values.astype(bool)
    return _combined(
        operands,
        np.where(mask, chosen.values, other.values),
        np.where(mask, chosen.is_source, other.is_source),
    )


def _arithmetic(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    operands = _aligned_inputs(propagator, node)
    if operands is None:
        return None
    left, right = operands
    if not _leaves_source(node.op, left, right).all():
        return None
    with np.errstate(all="ignore"):
        values = _ARITHMETIC[node.op](left.values, right.values)
    return _combined(operands, values, left.is_source | right.is_source)


def _leaves_source(op: str, left: SymbolicTensor, right: SymbolicTensor) -> Cells:
    """In which cells the operation does not change elements of the source: x + 0, x - 0, x * 1, or none there."""
    neutral = {"Add": 0, "Sub": 0, "Mul": 1}.get(op)
    if neutral is None:
        return np.asarray(~left.is_source & ~right.is_source)
    keeps_left = ~left.is_source | (right.values == neutral)
    keeps_right = ~right.is_source
    if op != "Sub":
        keeps_right |= left.values == neutral
    return np.asarray(keeps_left & keeps_right)


def _combined(operands: Sequence[SymbolicTensor], values: Cells, is_source: Cells) -> SymbolicTensor:
    box = next((operand.source for operand in operands if operand.source is not None), None)
    return SymbolicTensor(values, operands[0].leading, is_source, box)


def _tensors_of_inputs(propagator: Propagator, node: gs.Node) -> list[SymbolicTensor] | None:
    tensors = []
    for value in node.inputs:
        tensor = propagator.tensor_of(value.name)
        if tensor is None:
            return None
        tensors.append(tensor)
    return tensors


def _aligned_inputs(propagator: Propagator, node: gs.Node) -> list[SymbolicTensor] | None:
    """The inputs of an elementwise operator with equal cells; None unless at most one, not broadcast, has a source."""
    tensors = _tensors_of_inputs(propagator, node)
    if tensors is None:
        return None
    with_source = [number for number, tensor in enumerate(tensors) if tensor.source is not None]
    rank = max(tensor.rank for tensor in tensors)
    wide = [tensor.broadcast_to_rank(rank) for tensor in tensors]
    operands = [tensor for tensor in wide if tensor is not None]
    if len(with_source) > 1 or len(operands) < len(tensors):
        return None
    if with_source and not _keeps_size(propagator, node, with_source[0], operands[with_source[0]]):
        return None
    return aligned(operands)


def _keeps_size(propagator: Propagator, node: gs.Node, number: int, operand: SymbolicTensor) -> bool:
    """Whether the other operands do not broadcast operand `number`, which has a source.

    Along an axis with padding on it the operand has more than one position, and so cannot be broadcast. Along the
    others, the source may have any size, so the other operands must have size one or be proved to have its size.
    """
    box = operand.source
    assert box is not None
    target = sizes(propagator.context, node.inputs[number].name, operand.rank)
    for other in [tensor.name for i, tensor in enumerate(node.inputs) if i != number]:
        proved = sizes_at_rank(propagator.context, other, operand.rank)
        if proved is None:
            return False
        for axis, size in enumerate(proved):
            is_padded = box.before[axis] + box.after[axis] > 0
            if not is_padded and size != 1 and (size is None or size != target[axis]):
                return False
    return True


def _scatter_nd(propagator: Propagator, node: gs.Node) -> SymbolicTensor | None:
    """ScatterND that assigns to consecutive positions along each axis."""
    if node.attrs.get("reduction", "none") not in ("none", b"none"):
        return None
    data, _, updates = (tensor.name for tensor in node.inputs)
    target, values = propagator.tensor_of(data), propagator.tensor_of(updates)
    if target is None or values is None:
        return None
    proved = sizes(propagator.context, data, target.rank)
    ranges = scatter_ranges(propagator.context, node, proved, MAX_CONSTANT_ELEMENTS)
    return None if ranges is None else assigned(target, ranges, values, proved)


_ARITHMETIC: dict[str, Callable[[Cells, Cells], Cells]] = {
    "Add": np.add,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "Mul": np.multiply,
    "Sub": np.subtract,
}
_RULES: dict[str, Callable[[Propagator, gs.Node], SymbolicTensor | None]] = {
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
