"""A fold as two small models, before and after, for the verifier to run alone.

The models read the same inputs and write the fold's outputs. Batch and space are symbolic, so that any size may be
tried; constants are initializers. A border (nodes that were lifted together as one operator) may need help: where an
exporter does not know a size, it computes it from the model's inputs, which a model of a few nodes does not have, and
where it does know it, indices fit that one size, which may be too large to be tried many times. Then the border is
written as what it was lifted as. Whether it was lifted rightly is for the comparisons in place and of whole models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.edit_points import to_proto
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.graph.views import computed_from_shapes, proved_rank
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.modelfile.node_order import in_order
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["Weights", "fold_models", "sources"]

Nodes = Sequence[onnx.NodeProto]
Weights = dict[str, NDArray[Any]]
MAX_INLINE_ELEMENTS = 1 << 10  # of an initializer whose elements are in the model of a fold in any case
MAX_BORDER_ELEMENTS = 1 << 14  # of an operand, up to which a border's own nodes are tried
_LISTS_AT = {"Reshape": [1], "Resize": [3], "Slice": [1, 2, 3, 4]}  # which inputs may be computed from sizes
PAD_TAKES_ANY_TYPE = 13  # the opset from which Pad takes bfloat16, too


def fold_models(
    plan: ScopePlan,
    fold: PlannedFold,
    channel_layouts: dict[str, ChannelLayout],
    ir_version: int,
    *,
    sized: bool = False,
    weights: Weights | None = None,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Both sides of a fold. Computes its weights.

    Args:
        sized: declare the inputs with the sizes the file proves, where it does: a fold may be exact for them alone.
        weights: takes the elements of large initializers, by name, which the models only declare then: a message would
            hold two copies of them. Those that are there already are not computed.

    Raises:
        Inexact: a weight overflows.
    """
    scope = plan.scope
    before, after = _sides(plan, fold)
    both = (*before, *after)
    inputs = [
        _declare(scope, channel_layouts.get(name), name, both, sized=sized)
        for name in _inputs(scope, before, after)
    ]
    first, second = (
        _model(scope, nodes, inputs, fold.outputs, ir_version, weights) for nodes in (before, after)
    )
    return first, second


def sources(plan: ScopePlan, fold: PlannedFold) -> dict[str, bool]:
    """The inputs of both models, by name: whether the two sides read more of it than its sizes."""
    before, after = _sides(plan, fold)
    read = {
        name for node in (*before, *after) if node.op_type != "Shape" or node.domain for name in node.input
    }
    return {name: name in read for name in _inputs(plan.scope, before, after)}


def _sides(plan: ScopePlan, fold: PlannedFold) -> tuple[Nodes, Nodes]:
    """The nodes before and after; made once, as who asks for the sources asks for the models, too."""
    if id(fold) not in plan.sides:
        plan.sides[id(fold)] = _made_sides(plan, fold)
    return plan.sides[id(fold)]


def _made_sides(plan: ScopePlan, fold: PlannedFold) -> tuple[Nodes, Nodes]:
    before: Nodes = [_without_idle_inputs(node) for node in plan.nodes_before(fold)]
    for group in fold.groups:
        if group.role is Kind.PAD:  # the nodes of a shuffle run as they are
            before = _with_border_alone(plan.scope, before, group)
    after = [to_proto(node) for node in plan.nodes_after(fold)]
    before = _without_what_is_read(before, after, fold.outputs)
    # what picks a size that the file proves reads a list of sizes, of which another node computes the others
    picked = [name for node in before for name in node.input if name] if fold.is_initializer else []
    sides = (_with_shapes(plan, nodes, picked) for nodes in (before, after))
    first, second = (_needed(nodes, fold.outputs) for nodes in sides)
    return first, second


def _without_what_is_read(before: Nodes, after: Nodes, outputs: Sequence[str]) -> Nodes:
    """The nodes before, but for those that compute what the nodes after read: that is an input of both sides.

    A fold that shares a new node with this one brings its own nodes along, and this one may read what they compute.
    """
    read = {name for node in after for name in node.input} - _outputs(after) - {*outputs, ""}
    return [node for node in before if not read or not read.issuperset(filter(None, node.output))]


def _needed(nodes: Nodes, outputs: Sequence[str]) -> Nodes:
    """The nodes that the outputs depend on: what folds share may also compute something for another one."""
    wanted = set(outputs)
    result = []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            result.append(node)
    return result[::-1]


def _without_idle_inputs(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node without the inputs that decide nothing.

    A Dropout has a ratio, which may be a scalar input of the model, of no use to a probe. What is folded was proved to
    run in inference mode.
    """
    if node.op_type != "Dropout" or len(node.input) == 1:
        return node
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.input[1:]
    return result


def _inputs(scope: Scope, before: Nodes, after: Nodes) -> list[str]:
    both = [*before, *after]
    computed = _outputs(both)
    read = dict.fromkeys(name for node in both for name in node.input)
    return [name for name in read if name and name not in computed and scope.const(name) is None]


def _outputs(nodes: Nodes) -> set[str]:
    return {name for node in nodes for name in node.output}


def _with_shapes(plan: ScopePlan, nodes: Nodes, picked: Sequence[str]) -> Nodes:
    """Nodes, and those that compute lists of sizes for them from shapes, `picked` among them, in topological order.

    Planning treats a Reshape to such a list as a view of one tensor, so a fold does not absorb what computes its
    target; a Resize likewise, and a Slice whose ends follow from a number of channels.
    """
    lists = [*_lists_read(nodes), *(picked if nodes else ())]
    if not lists:
        return nodes
    scope, computed = plan.scope, _outputs(nodes)
    missing = _read_by(nodes, lists)
    added: dict[int, onnx.NodeProto] = {}
    for name in sorted(missing):
        if scope.const(name) is None:
            sizes = computed_from_shapes(scope, name, plan.original_producer)
            added.update((id(node), _as_read(scope, node, computed)) for node in sizes)
    others = [node for node in added.values() if computed.isdisjoint(node.output)]
    return in_order([*others, *nodes])


def _lists_read(nodes: Nodes) -> Iterator[str]:
    """The lists of sizes that nodes read."""
    for node in nodes:
        for place in _LISTS_AT.get(node.op_type, ()):
            if len(node.input) > place and node.input[place]:
                yield node.input[place]


def _as_read(scope: Scope, node: gs.Node, computed: set[str]) -> onnx.NodeProto:
    """A node as it is in the file where that reads a tensor of these, as before a fold; else as it is now."""
    proto = scope.proto.node[scope.anchor[id(node)]] if id(node) in scope.original else None
    return to_proto(node) if proto is None or computed.isdisjoint(proto.input) else proto


def _read_by(nodes: Nodes, names: Sequence[str]) -> set[str]:
    """Those of some tensors that no node computes, and what the nodes read that compute the others."""
    producer = {output: node for node in nodes for output in node.output}
    pending = list(names)
    seen = set(pending)  # many paths may lead to one node
    while pending:
        name = pending.pop()
        if name in producer:
            inputs = set(producer[name].input) - seen
            seen |= inputs
            pending.extend(inputs)
    return seen - producer.keys()


def _declare(
    scope: Scope, layout: ChannelLayout | None, name: str, nodes: Nodes, *, sized: bool
) -> onnx.ValueInfoProto:
    """A graph input of nodes: element type, rank and channels; other dims symbolic unless proved and `sized`."""
    shape = scope.shape(name)
    # Not one symbol for the same axis of several inputs: runtimes plan memory by equal symbols, and sizes may differ.
    dims: list[int | str] = [f"{name}.{axis}" for axis in range(_rank(scope, name, layout, nodes))]
    if layout is not None:
        dims[layout.channel_axis] = layout.channels
    if sized and shape is not None:
        dims = [symbol if dim is None else dim for dim, symbol in zip(shape, dims, strict=True)]
    return onnx.helper.make_tensor_value_info(name, _data_type(scope, name, layout), dims)


def _rank(scope: Scope, name: str, layout: ChannelLayout | None, nodes: Nodes) -> int:
    rank = proved_rank(scope, name)
    if rank is not None:
        return rank
    if layout is not None and layout.channel_axis == 1:
        return layout.rank + 2
    # a matrix product on the last axis takes any rank
    return next((rank for node in nodes if (rank := _rank_asked(scope, name, node))), 2)


def _rank_asked(scope: Scope, name: str, node: onnx.NodeProto) -> int | None:
    """Of what an If or a Loop gives out, who reads it may know the rank alone: a Transpose, or a Pad of all axes."""
    if not node.input or node.input[0] != name:
        return None
    lists = {attribute.name: len(attribute.ints) for attribute in node.attribute}
    if node.op_type == "Transpose":
        return lists.get("perm")
    if node.op_type != "Pad" or len(node.input) > 3:  # of the axes that are given
        return None
    pads = scope.const(node.input[1]) if len(node.input) > 1 else None
    return lists.get("pads", 0) // 2 if pads is None else pads.size // 2


def _data_type(scope: Scope, name: str, layout: ChannelLayout | None) -> int:
    known = scope.data_type(name)
    if known is None and layout is not None:
        known = layout.data_type
    return known or onnx.TensorProto.FLOAT


def _model(
    scope: Scope,
    nodes: Nodes,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    ir_version: int,
    weights: Weights | None,
) -> onnx.ModelProto:
    graph = onnx.GraphProto(name="fold", node=nodes, input=inputs)
    graph.output.extend(_output(scope, name) for name in outputs)
    computed = _outputs(nodes)
    # An output that no node computes is an initializer now.
    for name in dict.fromkeys((*(name for node in nodes for name in node.input), *outputs)):
        const = scope.const(name)
        if const is not None and name not in computed:
            graph.initializer.append(_initializer(name, const, weights))
    model = onnx.ModelProto(graph=graph, ir_version=max(ir_version, 4))
    model.opset_import.add(domain="", version=scope.opset)
    return model


def _output(scope: Scope, name: str) -> onnx.ValueInfoProto:
    data_type = scope.data_type(name)
    if data_type is None:
        return onnx.ValueInfoProto(name=name)
    return onnx.helper.make_tensor_value_info(name, data_type, None)


def _initializer(name: str, const: Const, weights: Weights | None) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=const.data_type, dims=list(const.shape))
    if weights is not None and name in weights:  # both sides may read it
        return tensor
    values = const.read().astype(numpy_dtype(const.data_type), copy=False)
    if weights is not None and const.size > MAX_INLINE_ELEMENTS and const.data_type in FLOAT_FORMATS:
        weights[name] = np.ascontiguousarray(values).reshape(const.shape)
    else:
        tensor.raw_data = values.tobytes()
    return tensor


def _with_border_alone(scope: Scope, nodes: Nodes, border: LinearOp) -> Nodes:
    """`nodes`, with those of a border that cannot be tried as they are replaced by `_border_nodes`."""
    original = [node for node in (*border.inner_nodes, border.node) if id(node) in scope.original]
    computed = {tensor.name for node in original for tensor in node.outputs}
    own = [node for node in nodes if not computed.isdisjoint(node.output)]
    is_whole = len(own) > len(border.inner_nodes)  # else an earlier fold has absorbed a part of it
    if not is_whole or scope.opset < PAD_TAKES_ANY_TYPE or _can_be_tried(scope, own, border):
        return nodes
    place = next(place for place, node in enumerate(nodes) if node is own[-1])
    before, behind = (
        [node for node in part if computed.isdisjoint(node.output)] for part in (nodes[:place], nodes[place:])
    )
    return [*before, *_border_nodes(scope, border), *behind]


def _can_be_tried(scope: Scope, nodes: Nodes, border: LinearOp) -> bool:
    """Whether a border's own nodes read nothing but its operand, which is small."""
    operand = border.operands[0].name
    read = {name for node in nodes for name in node.input if name} - _outputs(nodes)
    from_elsewhere = {name for name in read if name != operand and scope.const(name) is None}
    return not from_elsewhere and (scope.elements(operand) or 0) <= MAX_BORDER_ELEMENTS


def _border_nodes(scope: Scope, border: LinearOp) -> list[onnx.NodeProto]:
    """What a border was lifted as: `pad(x) + v * (1 - pad(1))` for padding by the value v, shape (C, 1, ...)."""
    operand, pads = border.operands[0], border.terms[0].kernel.geometry
    data_type = scope.data_type(border.output) or scope.data_type(operand.name) or onnx.TensorProto.FLOAT
    dtype = numpy_dtype(data_type)
    numbers = itertools.count()
    nodes: list[onnx.NodeProto] = []

    def node(op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{border.output}.{next(numbers)}"
        nodes.append(onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(values: NDArray[Any]) -> str:
        return node("Constant", [], value=onnx.numpy_helper.from_array(values))

    amount = constant(np.array([0, 0, *pads.pads_begin, 0, 0, *pads.pads_end], np.int64))
    one = onnx.numpy_helper.from_array(np.ones(1, dtype))
    ones = node("ConstantOfShape", [node("Shape", [operand.name])], value=one)
    outside = node("Sub", [constant(np.ones((), dtype)), node("Pad", [ones, amount])])
    value = np.zeros(operand.channels) if border.padding_value is None else border.padding_value.known
    values = node("Mul", [outside, constant(value.reshape(-1, *(1,) * pads.rank).astype(dtype))])
    padded = node("Pad", [operand.name, amount])
    nodes.append(onnx.helper.make_node("Add", [padded, values], [border.output]))
    return nodes
