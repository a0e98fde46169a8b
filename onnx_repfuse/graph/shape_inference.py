"""The types of a scope's tensors, inferred from scratch on graph inputs and weights alone.

Annotations in the file may be wrong, and a wrong shape would make a wrong proof. A second inference with a number for
every unknown input dim gives the sizes the cost model works with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from onnx_repfuse.graph.enforced import is_inferable
from onnx_repfuse.graph.guarded_inference import GuardedModel
from onnx_repfuse.graph.operators import operator_of_proto
from onnx_repfuse.graph.scope import (
    MAX_SHAPE_ELEMENTS,
    ONNX_DOMAINS,
    Const,
    Scope,
    Shape,
    Sizes,
    Types,
    sizes_are_known,
    static,
)
from onnx_repfuse.graph.unreliable_shapes import without_unreliable_shapes
from onnx_repfuse.modelfile.node_order import outer_names

__all__ = ["infer", "types_of"]

MAX_SCALES = 10  # of a Resize: begin and end of a region for each of N, C, D, H, W
MAX_VECTOR = 1 << 18  # elements; of what is longer, no values are propagated
ASSUMED_SPACE = 224  # an unknown height, width or length, for costs only
logger = logging.getLogger("onnx_repfuse")


def infer(
    graph: onnx.GraphProto,
    outer: Scope | None,
    constants: dict[str, Const],
    overridable: set[str],
    input_shapes: Mapping[str, Shape | None],
    opset: int,
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    found: Types | None = None,
) -> tuple[Types, Sizes]:
    """Proved types, and assumed sizes, of the tensors of a scope.

    Args:
        graph: the scope as it is in the file.
        outer: the scope around it.
        constants, overridable: what is constant, and which of it a caller may override.
        input_shapes: what is proved of the inputs of a subgraph, of which the declared shapes are no facts.
        opset: version of the ONNX operator set in force.
        model: for its other operator sets.
        nodes: those of the scope, without subgraphs.
        found: types of tensors that other nodes of the scope make.
    """
    alone = _empty_model(model, opset)
    scope = alone.graph
    fixed = constants
    if overridable:
        fixed = {name: const for name, const in constants.items() if name not in overridable}
    _add_inputs(scope, graph, overridable, None if outer is None else input_shapes)
    if outer is not None:
        _add_captures(scope, graph, outer, fixed)
    for name, kind in (found or {}).items():
        scope.input.add(name=name, type=_type(*kind))
    varying = len(scope.input)
    weights = {name: fixed[name] for node in nodes for name in node.input[:] if name in fixed}
    _add_nodes(scope, nodes, weights)
    # without the types that the file declares
    scope.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    _add_weights(scope, weights)
    return _infer_twice(alone, varying, weights, outer)


def _empty_model(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """With the operator sets of `model`, but for ONNX's: a function has its own."""
    alone = onnx.ModelProto(ir_version=max(model.ir_version, 4))  # before 4, initializers had to be inputs
    alone.graph.name = "scope"
    alone.opset_import.add(domain="", version=opset)
    alone.opset_import.extend(i for i in model.opset_import if i.domain not in ONNX_DOMAINS)
    return alone


def _infer_twice(
    alone: onnx.ModelProto, varying: int, weights: Mapping[str, Const], outer: Scope | None
) -> tuple[Types, Sizes]:
    """Proved types without the sizes in doubt, and sizes with a number for every unknown one."""
    scope, opset = alone.graph, alone.opset_import[0].version
    declared: Types = {name: (const.data_type, const.shape) for name, const in weights.items()}
    sized = proved = {**_run(alone, varying), **declared}
    certain = without_unreliable_shapes(scope, {**dict(types_of(scope.input)), **proved}, weights, opset)
    if _assume(scope.input[:varying], outer):
        sized = {**_run(alone, varying), **declared}
    if certain is not None:
        types_in_doubt = dict(types_of(certain.input[len(scope.input) :]))  # of what has a value in doubt
        scope.CopyFrom(certain)
        proved = {**types_in_doubt, **_run(alone, varying), **declared}
    sizes = ((name, static(shape)) for name, (_, shape) in sized.items())
    return proved, {name: shape for name, shape in sizes if shape is not None}


def _add_inputs(
    scope: onnx.GraphProto,
    graph: onnx.GraphProto,
    overridable: set[str],
    proved: Mapping[str, Shape | None] | None,
) -> None:
    """The inputs with their declared types; those of a subgraph with the `proved` shapes."""
    initialized = {i.name for i in graph.initializer} - overridable
    for value in graph.input:
        if value.name in initialized or not value.type.HasField("tensor_type"):
            continue
        copy = scope.input.add(name=value.name)
        data_type = value.type.tensor_type.elem_type
        copy.type.CopyFrom(value.type if proved is None else _type(data_type, proved.get(value.name)))


def _add_captures(
    scope: onnx.GraphProto, graph: onnx.GraphProto, outer: Scope, constants: Mapping[str, Const]
) -> None:
    """What the scope reads from the scopes around it, with the types proved there."""
    for name in sorted(outer_names(graph) - constants.keys()):
        data_type, shape = outer.types.get(name, (0, None))
        if data_type:
            scope.input.add(name=name, type=_type(data_type, shape))


def _add_nodes(scope: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], weights: Mapping[str, Const]) -> None:
    """The nodes, but those that compute a constant: it is declared, with its value where that matters."""
    given = {value.name for value in scope.input} | weights.keys()
    inferable = filter(is_inferable, nodes)
    scope.node.extend(node for node in inferable if not given.issuperset(node.output[:]))


def _add_weights(scope: onnx.GraphProto, weights: Mapping[str, Const]) -> None:
    """Declare the constants that nodes read: with values where these may decide a shape, else by type and shape alone.

    All constants of one type and shape get one input in common, which makes inference on a large network faster.
    """
    reads = [(node, node.input[:]) for node in scope.node]
    # inference propagates values (data_prop), so a constant of sizes decides shapes far from its consumer
    read = {name for node, names in reads if not operator_of_proto(node).shaped_by_shapes for name in names}
    with_value = set()
    for name in sorted(read & weights.keys()):
        value = weights[name].computed() if _may_decide_a_shape(weights[name]) else None
        if value is not None:
            with_value.add(name)
            scope.initializer.append(onnx.numpy_helper.from_array(value, name))
    _add_stand_ins(scope, reads, {name: const for name, const in weights.items() if name not in with_value})


def _add_stand_ins(
    scope: onnx.GraphProto,
    reads: Sequence[tuple[onnx.NodeProto, Sequence[str]]],
    weights: Mapping[str, Const],
) -> None:
    names = {value.name for value in (*scope.input, *scope.output)}
    for node, read in reads:
        names.update(read, node.output[:])
    stand_ins: dict[tuple[int, Shape], str] = {}
    for node, read in reads:
        for place, name in enumerate(read):
            const = weights.get(name)
            if const is None:
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


def _may_decide_a_shape(const: Const) -> bool:
    """Integers (axes, sizes, pads) and the scales of a Resize."""
    if const.kernel is not None or const.bias is not None:
        return False  # a weight that a fold made: nobody may compute it before it is written
    if const.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return const.size <= MAX_SHAPE_ELEMENTS
    is_vector = len(const.shape) <= 1
    return is_vector and const.data_type == onnx.TensorProto.FLOAT and const.size <= MAX_SCALES


def _type(data_type: int, shape: Shape | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    tensor = proto.tensor_type
    tensor.elem_type = data_type
    if shape is not None:
        tensor.shape.SetInParent()
        for size in shape:
            dim = tensor.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return proto


def _assume(inputs: Iterable[onnx.ValueInfoProto], outer: Scope | None) -> bool:
    """Give every unknown dim a number: that of the scope around, else a usual one; whether there was one."""
    any_unknown = False
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        assumed = outer.assumed.get(value.name, ()) if outer else ()
        sizes = assumed if len(assumed) == len(dims) else (1, *(ASSUMED_SPACE,) * (len(dims) - 1))
        for dim, size in zip(dims, sizes, strict=False):
            if not _is_known(dim):
                any_unknown = True
                dim.dim_value = size
    return any_unknown


def _run(model: onnx.ModelProto, varying: int) -> Types:
    """The types of everything but the weights, which are the inputs from number `varying` on.

    Inference propagates the values of vectors (data_prop), and holds 150 bytes for each element of a vector whose
    length it knows, of a waveform as of a list of sizes. So first come the lengths, without values.
    """
    guarded = GuardedModel(model)
    result = _inferred(guarded, data_prop=False)
    types = _types_but_of_weights(result, varying)
    if _leaves_nothing_open(model.graph, types) or not _has_sizes(model.graph):
        return types
    if _longest_vector(result) > MAX_VECTOR:
        return types
    return _types_but_of_weights(_inferred(guarded, data_prop=True), varying)


def _types_but_of_weights(graph: onnx.GraphProto, varying: int) -> Types:
    return dict(types_of((*graph.value_info, *graph.input[:varying], *graph.output)))


def _leaves_nothing_open(graph: onnx.GraphProto, types: Types) -> bool:
    """Whether all sizes of all tensors are known, so that values of vectors can tell no more."""
    if not sizes_are_known(types):
        return False
    return all(types.keys() >= set(node.output[:]) - {""} for node in graph.node)


def _inferred(guarded: GuardedModel, *, data_prop: bool) -> onnx.GraphProto:
    try:
        return guarded.infer_shapes(data_prop=data_prop)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        # one node that makes no sense, and nothing is inferred: the plan is made from what weights say
        logger.info("shape inference gave up: %s", error)
        return guarded.model.graph


def _has_sizes(graph: onnx.GraphProto) -> bool:
    """Whether there are values to propagate: constants, and sizes of tensors."""
    return bool(graph.initializer) or any(node.op_type in ("Shape", "Size") for node in graph.node)


def _longest_vector(graph: onnx.GraphProto) -> int:
    vectors = (
        value.type.tensor_type.shape.dim[0].dim_value
        for value in (*graph.value_info, *graph.input, *graph.output)
        if len(value.type.tensor_type.shape.dim) == 1
    )
    return max(vectors, default=0)


def types_of(values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, tuple[int, Shape | None]]]:
    """The names, data types and shapes of those that are tensors."""
    decoded: dict[bytes, tuple[int, Shape | None] | None] = {}  # most tensors of a network are like others
    for value in values:
        key = value.type.SerializeToString(deterministic=True)
        if key not in decoded:
            tensor = value.type.tensor_type
            decoded[key] = (tensor.elem_type, _shape(tensor)) if value.type.HasField("tensor_type") else None
        types = decoded[key]
        if types is not None:
            yield value.name, types


def _shape(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    return tuple([dim.dim_value if _is_known(dim) else None for dim in tensor.shape.dim])


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Some exporters write -1 for a dim of any size."""
    return dim.HasField("dim_value") and dim.dim_value >= 0
