"""A fold as two small models, before and after, for the verifier's probes and taps.

What a group of nodes does, written alone.

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
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.edit_points import to_proto
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.modelfile.dtypes import numpy_dtype

__all__ = ["before_and_after", "sources", "stand_in"]

LARGEST = 1 << 14  # elements of an operand at which its own nodes are probed


def before_and_after(
    scope: Scope,
    channel_layouts: dict[str, ChannelLayout],
    root: str,
    absorbed: Sequence[onnx.NodeProto],
    created: Sequence[gs.Node],
    ir_version: int,
    groups: Sequence[LinearOp] = (),
    *,
    sized: bool = False,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both sides of a fold. Computes its weights; raises Inexact where one overflows.

    `groups` are nodes that were lifted together: where they take sizes from elsewhere in the model, the probe cannot
    give them, and what the group does is written in their place.
    `sized` declares the sources with the sizes the file proves: a fold may be exact for them alone.
    """
    absorbed, new = _sides(scope, absorbed, created, groups)
    inputs = [_declare(scope, channel_layouts, name, sized=sized) for name in _read(scope, absorbed, new)]
    return tuple(  # type: ignore[return-value]
        _model(scope, nodes, inputs, root, ir_version) for nodes in (absorbed, new)
    )


def sources(
    scope: Scope,
    absorbed: Sequence[onnx.NodeProto],
    created: Sequence[gs.Node],
    groups: Sequence[LinearOp] = (),
) -> list[str]:
    """The tensors that the two sides read: the inputs of both models."""
    return _read(scope, *_sides(scope, absorbed, created, groups))


def _sides(
    scope: Scope, absorbed: Sequence[onnx.NodeProto], created: Sequence[gs.Node], groups: Sequence[LinearOp]
) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    for group in groups:
        absorbed = stand_in(scope, absorbed, group)
    return _with_shapes(scope, absorbed), _with_shapes(scope, [to_proto(node) for node in created])


def _read(scope: Scope, absorbed: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> list[str]:
    made = {name for node in (*absorbed, *new) for name in node.output}
    read = dict.fromkeys(name for node in (*absorbed, *new) for name in node.input)
    return [name for name in read if name and name not in made and scope.const(name) is None]


def _with_shapes(scope: Scope, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes and, each behind what it reads, the Shape nodes beside them that tell a Reshape what to restore."""
    if not any(node.op_type == "Reshape" for node in nodes):
        return list(nodes)
    made = {name for node in nodes for name in node.output}
    names = {name for node in nodes for name in node.input} - made
    told = [node for node in scope.original.values() if node.op == "Shape" and node.outputs[0].name in names]
    result = [to_proto(node) for node in told if node.inputs[0].name not in made]
    for node in nodes:
        result.append(node)
        result += [to_proto(shape) for shape in told if shape.inputs[0].name in node.output]
    return result


def _declare(
    scope: Scope, channel_layouts: dict[str, ChannelLayout], name: str, *, sized: bool
) -> onnx.ValueInfoProto:
    """Element type, rank and channels; batch and space symbolic, or where proved and `sized`, as they are."""
    shape, frame = scope.shape(name), channel_layouts.get(name)
    rank = len(shape) if shape is not None else (frame.rank + 2 if frame and frame.channel_axis == 1 else 2)
    dims: list[int | str] = [f"d{axis}" for axis in range(rank)]
    dims[0] = "batch"
    if frame is not None:
        dims[frame.channel_axis] = frame.channels
    if sized and shape is not None:
        dims = [symbol if dim is None else dim for dim, symbol in zip(shape, dims, strict=True)]
    data_type = scope.data_type(name) or (frame.data_type if frame else 0) or onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(name, data_type, dims)


def _model(
    scope: Scope,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    root: str,
    ir_version: int,
) -> onnx.ModelProto:
    made = {name for node in nodes for name in node.output}
    graph = onnx.GraphProto(name="fold")
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    data_type = scope.data_type(root)
    graph.output.append(
        onnx.helper.make_tensor_value_info(root, data_type, None)
        if data_type
        else onnx.ValueInfoProto(name=root)
    )
    for name in dict.fromkeys(n for node in nodes for n in node.input):
        const = scope.const(name)
        if const is not None and name not in made:
            graph.initializer.append(_tensor(name, const))
    model = onnx.ModelProto(graph=graph, ir_version=max(ir_version, 4))
    model.opset_import.add(domain="", version=scope.opset)
    return model


def _tensor(name: str, const: Const) -> onnx.TensorProto:
    values = const.read()
    tensor = onnx.TensorProto(name=name, data_type=const.data_type, dims=list(const.shape))
    tensor.raw_data = values.astype(numpy_dtype(const.data_type), copy=False).tobytes()
    return tensor


def stand_in(scope: Scope, absorbed: Sequence[onnx.NodeProto], group: LinearOp) -> list[onnx.NodeProto]:
    """`absorbed`; a group that reads more than its operand, or a large one, as pad(x) + v * (1 - pad(1))."""
    inner = {
        scope.anchor[id(node)]: node
        for node in (*group.inner_nodes, group.node)
        if id(node) in scope.original
    }
    outputs = {t.name for node in inner.values() for t in node.outputs}
    mine = [proto for proto in absorbed if outputs & set(proto.output)]
    made = {name for proto in mine for name in proto.output}
    (operand,) = group.operands
    read = {name for proto in mine for name in proto.input if name} - made
    outside = {name for name in read if scope.const(name) is None}
    alone = outside <= {operand.name} and (scope.elements(operand.name) or 0) <= LARGEST
    if alone or scope.opset < 13 or len(mine) <= len(group.inner_nodes):
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
    value = np.zeros(operand.channels) if group.padding_value is None else group.padding_value.known
    border = node("Mul", [around, constant(value.reshape(-1, *(1,) * pads.rank).astype(dtype))])
    new.append(onnx.helper.make_node("Add", [node("Pad", [operand.name, amount]), border], [group.output]))
    at = absorbed.index(mine[-1])
    rest = [proto for proto in absorbed if not any(proto is m for m in mine)]
    before = sum(1 for proto in absorbed[:at] if not any(proto is m for m in mine))
    return [*rest[:before], *new, *rest[before:]]
