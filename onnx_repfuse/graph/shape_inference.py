"""The types of a scope's tensors, inferred from scratch on graph inputs and weights alone.

Annotations in the file may be wrong, and a wrong shape would make a wrong proof. A second inference with a number for
every unknown input dim gives the sizes the cost model works with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import onnx

from onnx_repfuse.graph.operators import operator_of_proto
from onnx_repfuse.graph.scope import MAX_SHAPE_ELEMENTS, ONNX_DOMAINS, Const, Scope, Shape, outer_names
from onnx_repfuse.graph.unreliable_shapes import without_unreliable_shapes

__all__ = ["Sizes", "Types", "infer"]

MAX_SCALES = 5
UNKNOWN_SPACE = 224  # an unknown height, width or length, for costs only
logger = logging.getLogger("onnx_repfuse")
Types = dict[str, tuple[int, Shape | None]]
Sizes = dict[str, tuple[int, ...]]


def infer(
    graph: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    outer: Scope | None,
    constants: dict[str, Const],
    overridable: set[str],
    opset: int,
    model: onnx.ModelProto,
) -> tuple[Types, Sizes]:
    """Proved types, and assumed sizes, of the tensors of a scope.

    Args:
        graph, nodes: the scope, and its nodes without subgraphs.
        outer: the scope around it.
        constants, overridable: what is constant, and which of it a caller may override.
        opset: version of the ONNX operator set in force.
        model: for its other operator sets.
    """
    whole = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    whole.opset_import.add(domain="", version=opset)
    whole.opset_import.extend(i for i in model.opset_import if i.domain not in ONNX_DOMAINS)
    scope = whole.graph
    scope.name = "scope"
    if overridable:
        constants = {name: const for name, const in constants.items() if name not in overridable}
    initial = {i.name for i in graph.initializer} - overridable
    for value in graph.input:
        if value.name not in initial and value.type.HasField("tensor_type"):
            scope.input.add(name=value.name).type.CopyFrom(value.type)
            for dim in scope.input[-1].type.tensor_type.shape.dim if outer else ():
                dim.Clear()  # runtimes do not hold a Loop to what its body says
    for name in sorted(outer_names(graph)) if outer else ():
        data_type, shape = outer.types.get(name, (0, None)) if outer else (0, None)
        if data_type and name not in constants:
            scope.input.add(name=name, type=_type(data_type, shape))
    varying = len(scope.input)
    read = dict.fromkeys(name for node in nodes for name in node.input[:])
    weights = {name: constants[name] for name in read if name in constants}
    made = {i.name for i in scope.input} | weights.keys()
    scope.node.extend(node for node in nodes if not made.issuperset(node.output[:]))
    scope.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    _add_weights(scope, weights)
    declared = {name: (const.data_type, const.shape) for name, const in weights.items()}
    sized = proved = {**_run(whole, varying), **declared}
    certain = without_unreliable_shapes(scope, proved, weights, opset)
    if _assume(scope.input[:varying], outer):
        sized = {**_run(whole, varying), **declared}
    if certain is not None:
        stated = _types(certain.input[len(scope.input) :])  # what stands for a value in doubt
        scope.CopyFrom(certain)
        proved = {**dict(stated), **_run(whole, varying), **declared}
    return proved, {
        name: shape  # type: ignore[misc]
        for name, (_, shape) in sized.items()
        if shape is not None and None not in shape
    }


def _add_weights(scope: onnx.GraphProto, weights: dict[str, Const]) -> None:
    """Declare the constants that nodes read: with their values where these may decide a shape, else one for all of a
    type and shape."""
    names = {value.name for value in (*scope.input, *scope.output)}
    reads = [(node, node.input[:]) for node in scope.node]
    telling: set[str] = set()
    for node, read in reads:
        names.update(read, node.output[:])
        if not operator_of_proto(node).shaped_by_shapes:
            telling.update(name for name in read if name in weights and _may_tell(weights[name]))
    values = [(name, value) for name in sorted(telling) if (value := weights[name].computed()) is not None]
    telling = {name for name, _ in values}
    scope.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values)
    stand_ins: dict[tuple[int, Shape], str] = {}
    for node, read in reads:
        for place, name in enumerate(read):
            const = weights.get(name)
            if const is None or name in telling:
                continue
            kind = const.data_type, const.shape
            if kind not in stand_ins:
                stand_ins[kind] = _fresh(str(kind), names)
                scope.input.add(name=stand_ins[kind], type=_type(*kind))
            node.input[place] = stand_ins[kind]


def _fresh(name: str, names: set[str]) -> str:
    """A name that is not among `names`."""
    while name in names:
        name += "'"
    return name


def _may_tell(const: Const) -> bool:
    """Whether its value may decide a shape: integers, and the scales of a Resize."""
    if const.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return const.size <= MAX_SHAPE_ELEMENTS
    return const.data_type == onnx.TensorProto.FLOAT and const.size <= MAX_SCALES and len(const.shape) <= 1


def _type(data_type: int, shape: Shape | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    tensor = proto.tensor_type
    tensor.elem_type = data_type
    if shape is not None:
        tensor.shape.SetInParent()
        for dim in shape:
            added = tensor.shape.dim.add()
            if dim is not None:
                added.dim_value = dim
    return proto


def _assume(inputs: Iterable[onnx.ValueInfoProto], outer: Scope | None) -> bool:
    """Give every unknown dim a number; whether there was one."""
    unknown = False
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        given = outer.assumed.get(value.name) if outer else None
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                unknown = True
                usual = 1 if axis == 0 else UNKNOWN_SPACE
                dim.dim_value = given[axis] if given and len(given) == len(dims) else usual
    return unknown


def _run(model: onnx.ModelProto, varying: int) -> Types:
    """The types of everything but the weights, which are the inputs from number `varying` on."""
    try:
        result = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        logger.info("shape inference gave up: %s", error)
        result = model.graph
    return dict(_types((*result.value_info, *result.input[:varying], *result.output)))


def _types(values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, tuple[int, Shape | None]]]:
    met: dict[bytes, tuple[int, Shape | None] | None] = {}  # most tensors of a network are like others
    for value in values:
        key = value.type.SerializeToString(deterministic=True)
        if key not in met:
            tensor = value.type.tensor_type
            met[key] = (tensor.elem_type, _dims(tensor)) if value.type.HasField("tensor_type") else None
        found = met[key]
        if found is not None:
            yield value.name, found


def _dims(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    return tuple(
        [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim]
    )
