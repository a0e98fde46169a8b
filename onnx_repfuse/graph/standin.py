"""What a group of nodes does, written alone.

Where an exporter does not know a size, it computes it from the model's inputs; a probe of a few nodes cannot. Where
it does, the indices fit that size alone, and a probe of many feeds is slow at a large one. Then the group stands in the
probe as what it was lifted as, from its own operand; whether it was lifted rightly is for the taps and the comparison
of whole models to say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_repfuse.graph.dtypes import numpy_dtype
from onnx_repfuse.graph.lift import Lifted
from onnx_repfuse.graph.scope import Scope

__all__ = ["stand_in"]

LARGEST = 1 << 14  # elements of an operand at which its own nodes are probed


def stand_in(scope: Scope, absorbed: Sequence[onnx.NodeProto], group: Lifted) -> list[onnx.NodeProto]:
    """`absorbed`; a group that reads more than its operand, or a large one, as pad(x) + v * (1 - pad(1))."""
    inner = {scope.anchor[id(node)]: node for node in (*group.also, group.node) if id(node) in scope.original}
    outputs = {t.name for node in inner.values() for t in node.outputs}
    mine = [proto for proto in absorbed if outputs & set(proto.output)]
    made = {name for proto in mine for name in proto.output}
    (operand,) = group.operands
    read = {name for proto in mine for name in proto.input if name} - made
    outside = {name for name in read if scope.const(name) is None}
    alone = outside <= {operand.name} and (scope.elements(operand.name) or 0) <= LARGEST
    if alone or scope.opset < 13 or len(mine) <= len(group.also):
        return list(absorbed)
    pads = group.terms[0].kernel.geometry
    number = itertools.count()
    new: list[onnx.NodeProto] = []

    def node(op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{group.output}.{next(number)}"
        new.append(onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(values: NDArray[Any]) -> str:
        return node("Constant", [], value=onnx.numpy_helper.from_array(values))

    dtype = numpy_dtype(
        scope.data_type(group.output) or scope.data_type(operand.name) or onnx.TensorProto.FLOAT
    )
    amount = constant(np.array([0, 0, *pads.pads_begin, 0, 0, *pads.pads_end], np.int64))
    one = onnx.numpy_helper.from_array(np.ones(1, dtype))
    ones = node("ConstantOfShape", [node("Shape", [operand.name])], value=one)
    around = node("Sub", [constant(np.ones((), dtype)), node("Pad", [ones, amount])])
    value = np.zeros(operand.channels) if group.border is None else group.border.known
    border = node("Mul", [around, constant(value.reshape(-1, *(1,) * pads.rank).astype(dtype))])
    new.append(onnx.helper.make_node("Add", [node("Pad", [operand.name, amount]), border], [group.output]))
    at = absorbed.index(mine[-1])
    rest = [proto for proto in absorbed if not any(proto is m for m in mine)]
    before = sum(1 for proto in absorbed[:at] if not any(proto is m for m in mine))
    return [*rest[:before], *new, *rest[before:]]
