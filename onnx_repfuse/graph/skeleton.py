"""From a document to scopes: constants collected, types inferred, nodes decoded - without any payload.

Types are inferred from scratch, on graph inputs and weights alone: annotations in the file may be wrong,
and a wrong shape would make a wrong proof. A second inference with a number for every unknown input dim
gives the sizes the cost model works with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.constants import Const, fold_constant, from_attributes
from onnx_repfuse.graph.document import Document
from onnx_repfuse.graph.save import ScopeKey
from onnx_repfuse.graph.scope import ONNX_DOMAINS, Scope, Shape, inner_graphs, outer_names

__all__ = ["read_scopes"]

INFERENCES = 8  # folding Shape of what was inferred may let inference go further
TELLING = 64  # elements of a constant that may decide a shape
SCALES = 5
UNKNOWN_SPACE = 224  # an unknown height, width or length, for costs only
logger = logging.getLogger("onnx_repfuse")
Types = dict[str, tuple[int, Shape | None]]


def read_scopes(document: Document, *, freeze_initializers: bool = False) -> list[Scope]:
    """Every scope of the model, outer scopes before inner ones.

    `freeze_initializers` treats initializers that are also graph inputs as constants (they are in IR < 4).
    """
    model = document.model
    taken = _all_names(model)
    opset = _opset(model.opset_import)
    scopes: list[Scope] = []
    overridable: set[str] = set()
    if model.ir_version >= 4 and not freeze_initializers:
        overridable = {i.name for i in model.graph.input} & {i.name for i in model.graph.initializer}

    def visit(graph: onnx.GraphProto, key: ScopeKey, label: str, outer: Scope | None, version: int) -> None:
        inputs = overridable if outer is None else outer.overridable
        scope = _read(document, graph, key, label, outer, version, taken, inputs)
        scopes.append(scope)
        for position, node in enumerate(graph.node):
            for tail, inner in inner_graphs(node):
                name = f"{node.op_type} '{node.name or position}' {' '.join(map(str, tail))}"
                visit(inner, (*key, position, *tail), f"{label} / {name}" if label else name, scope, version)

    visit(model.graph, (), "", None, opset)
    for number, function in enumerate(model.functions):
        body = onnx.GraphProto(node=function.node, name=function.name)
        body.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
        body.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
        label = f"function '{function.domain}:{function.name}'"
        visit(body, ("function", number), label, None, _opset(function.opset_import) or opset)
    return scopes


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return max((i.version for i in imports if i.domain in ONNX_DOMAINS), default=0)


def _all_names(model: onnx.ModelProto) -> set[str]:
    taken: set[str] = set()

    def visit(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        for node in graph.node:
            taken.add(node.name)
            taken.update(node.input)
            taken.update(node.output)
            for _, inner in inner_graphs(node):
                visit(inner)
        if isinstance(graph, onnx.GraphProto):
            taken.update(i.name for i in (*graph.input, *graph.output, *graph.initializer, *graph.value_info))
            taken.update(i.values.name for i in graph.sparse_initializer)

    visit(model.graph)
    for function in model.functions:
        visit(function)
    return taken


def _read(
    document: Document,
    graph: onnx.GraphProto,
    key: ScopeKey,
    label: str,
    outer: Scope | None,
    opset: int,
    taken: set[str],
    overridable: set[str],
) -> Scope:
    constants = dict(outer.constants) if outer else {}
    for tensor in graph.initializer:
        constants[tensor.name] = Const(tuple(tensor.dims), tensor.data_type, _reader(document, tensor))
    captured: set[str] = set()
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS and node.output:
            const = from_attributes(node, document.array)
            if const is not None:
                constants[node.output[0]] = const
        for _, inner in inner_graphs(node):
            captured |= outer_names(inner)
    nodes = _decode(graph, opset)
    types, assumed = _infer(document, graph, outer, constants, overridable, opset, document.model.ir_version)
    for _ in range(INFERENCES):
        if not _fold(nodes, constants, types, overridable):
            break
        unknown = _unknown(types)
        types, assumed = _infer(
            document, graph, outer, constants, overridable, opset, document.model.ir_version
        )
        if _unknown(types) >= unknown:
            break
    return Scope(
        key,
        label,
        opset,
        nodes,
        types,
        assumed,
        constants,
        {i.name for i in graph.input} - {i.name for i in graph.initializer},
        {o.name for o in graph.output},
        captured,
        overridable=overridable,
        taken=taken,
    )


def _unknown(types: Types) -> int:
    return sum(1 for _, shape in types.values() if shape is None or None in shape)


def _reader(document: Document, tensor: onnx.TensorProto) -> Callable[[], NDArray[Any]]:
    return lambda: document.array(tensor)


def _fold(nodes: list[gs.Node], constants: dict[str, Const], types: Types, overridable: set[str]) -> bool:
    """Find the nodes that compute constants, the Shape of a tensor of proved shape among them."""
    before = len(constants)
    for node in nodes:
        if node.op == "Constant" or node.domain not in ONNX_DOMAINS or len(node.outputs) != 1:
            continue
        output = node.outputs[0].name
        if output in constants or any(_is_reference(value) for value in node.attrs.values()):
            continue
        names = [t.name for t in node.inputs if t.name]
        data_type, shape = types.get(output, (0, None))
        static = _static(shape)
        if node.op == "Shape" and names and _static(types.get(names[0], (0, None))[1]) is not None:
            dims = _static(types[names[0]][1]) or ()
            value = np.array(dims, np.int64)[node.attrs.get("start", 0) : node.attrs.get("end")]
            constants[output] = Const(value.shape, onnx.TensorProto.INT64, partial(np.copy, value))
            continue
        inputs = [constants.get(name) for name in names if name not in overridable]
        if not inputs or len(inputs) < len(names) or any(c is None for c in inputs):
            continue
        const = fold_constant(node.op, node.attrs, [c for c in inputs if c], static, data_type or None)
        if const is not None:
            constants[output] = const
    return len(constants) > before


def _static(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None or None in shape else tuple(d for d in shape if d is not None)


def _is_reference(value: object) -> bool:
    return isinstance(value, gs.Node.AttributeRef)


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy without subgraphs, documentation and metadata."""
    copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    copy.input.extend(node.input)
    copy.output.extend(node.output)
    copy.attribute.extend(
        a for a in node.attribute if a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    )
    return copy


def _decode(graph: onnx.GraphProto, opset: int) -> list[gs.Node]:
    bare = onnx.GraphProto(name="scope")
    for node in graph.node:
        copy = _bare(node)
        if not _decodable(copy):
            copy.op_type, copy.domain = "Opaque", "onnx_repfuse"
            del copy.attribute[:]
        bare.node.append(copy)
    gs.logger.logger.G_LOGGER.severity = gs.logger.logger.G_LOGGER.ULTRA_VERBOSE + 100
    model = onnx.ModelProto(graph=bare, ir_version=8)
    model.opset_import.add(domain="", version=opset or 1)
    return list(gs.import_onnx(model).nodes)


def _decodable(node: onnx.NodeProto) -> bool:
    try:
        for attr in node.attribute:
            attr.s.decode()
            for text in attr.strings:
                text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _infer(
    document: Document,
    graph: onnx.GraphProto,
    outer: Scope | None,
    constants: dict[str, Const],
    overridable: set[str],
    opset: int,
    ir_version: int,
) -> tuple[Types, dict[str, tuple[int, ...]]]:
    """Proved types, and assumed sizes."""
    bare = onnx.GraphProto(name="scope")
    initial = {i.name for i in graph.initializer}
    for value in graph.input:
        if value.name not in initial and value.type.HasField("tensor_type"):
            bare.input.add(name=value.name).type.CopyFrom(value.type)
    for name in sorted(outer_names(graph)) if outer else ():
        data_type, shape = outer.types.get(name, (0, None)) if outer else (0, None)
        if data_type and name not in constants:
            _declare(bare.input.add(name=name), data_type, shape)
    for name in _used(graph):
        const = constants.get(name)
        if const is None:
            continue
        if _may_tell(const) and name not in overridable:
            bare.initializer.append(onnx.numpy_helper.from_array(const.read(), name))
        else:
            _declare(bare.input.add(name=name), const.data_type, const.shape)
    made = {i.name for i in bare.input} | {i.name for i in bare.initializer}
    for node in graph.node:
        if not made.issuperset(node.output):
            bare.node.append(_bare(node))
    for value in graph.output:
        bare.output.add(name=value.name)
    proved = _run_inference(bare, document.model, opset, ir_version)
    unknown = False
    for number, value in enumerate(bare.input):
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                unknown = True
                given = outer.assumed.get(value.name) if outer else None
                size = (
                    given[axis] if given and len(given) == len(dims) else (1 if axis == 0 else UNKNOWN_SPACE)
                )
                bare.input[number].type.tensor_type.shape.dim[axis].dim_value = size
    sized = _run_inference(bare, document.model, opset, ir_version) if unknown else proved
    assumed = {
        name: tuple(d for d in shape if d is not None)
        for name, (_, shape) in sized.items()
        if shape is not None and None not in shape
    }
    return proved, assumed


def _may_tell(const: Const) -> bool:
    """Whether its value may decide a shape: integers, and the scales of a Resize."""
    if const.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return const.size <= TELLING
    return const.data_type == onnx.TensorProto.FLOAT and const.size <= SCALES and len(const.shape) <= 1


def _used(graph: onnx.GraphProto) -> list[str]:
    return list(dict.fromkeys(name for node in graph.node for name in node.input if name))


def _declare(value: onnx.ValueInfoProto, data_type: int, shape: Shape | None) -> None:
    tensor = value.type.tensor_type
    tensor.elem_type = data_type
    if shape is not None:
        tensor.shape.SetInParent()
        for dim in shape:
            added = tensor.shape.dim.add()
            if dim is not None:
                added.dim_value = dim


def _run_inference(graph: onnx.GraphProto, model: onnx.ModelProto, opset: int, ir_version: int) -> Types:
    whole = onnx.ModelProto(graph=graph, ir_version=max(ir_version, 4))
    whole.opset_import.add(domain="", version=opset)
    whole.opset_import.extend(i for i in model.opset_import if i.domain not in ONNX_DOMAINS)
    try:
        result = onnx.shape_inference.infer_shapes(whole, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError) as error:
        logger.info("shape inference gave up: %s", error)
        result = whole
    types: Types = {}
    for value in (*result.graph.value_info, *result.graph.input, *result.graph.output):
        if value.type.HasField("tensor_type"):
            tensor = value.type.tensor_type
            types[value.name] = (tensor.elem_type, _dims(tensor))
    for tensor in result.graph.initializer:
        types[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    return types


def _dims(tensor: onnx.TypeProto.Tensor) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    dims: Sequence[onnx.TensorShapeProto.Dimension] = tensor.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in dims)
