"""From a document to scopes: constants collected, types inferred, nodes decoded - without any payload.

NodeProtos as graphsurgeon nodes, without any payload.

graphsurgeon's importer takes a whole model and tells its logger about every tensor that has no type. A scope has none,
so only its reading of attributes is used; the nodes and tensors are made here. Tensors do not know their nodes: a
`Scope` keeps an index of its own, and graphsurgeon's is quadratic where one tensor has many readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnx_repfuse.graph.constant_folding import fold_constant, from_attributes
from onnx_repfuse.graph.operators import Operator, operator
from onnx_repfuse.graph.scope import ONNX_DOMAINS, Const, Scope, Shape, inner_graphs, outer_names
from onnx_repfuse.graph.shape_inference import Sizes, Types, infer
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import ScopeKey

__all__ = ["bare", "decode", "new_node", "read_scopes"]

MAX_INFERENCES = 8  # folding Shape of what was inferred may let inference go further
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def read_scopes(document: Document, *, freeze_initializers: bool = False) -> list[Scope]:
    """Every scope of the model, outer scopes before inner ones.

    `freeze_initializers` treats initializers that are also graph inputs as constants (they are in IR < 4).
    """
    model = document.model
    taken: set[str] = set()
    opset = _opset(model.opset_import)
    scopes: list[Scope] = []

    def visit(
        graph: onnx.GraphProto,
        key: ScopeKey,
        label: str,
        outer: Scope | None,
        version: int,
        visible: Set[str] = frozenset(),
        unsure: Set[str] = frozenset(),
        function: onnx.FunctionProto | None = None,
    ) -> None:
        nested = [(i, node, *found) for i, node in enumerate(graph.node) for found in inner_graphs(node)]
        captured = {name for *_, inner in nested for name in outer_names(inner)}
        own = _initializers(document, graph)
        inputs = {i.name for i in graph.input}
        seen = {} if outer is None else _without_own(outer.constants, graph)
        overridable = {name for name in outer.overridable if name in seen} if outer else set()
        overridable |= unsure & (own.keys() | seen.keys())
        if not key and model.ir_version >= 4 and not freeze_initializers:
            overridable |= inputs & own.keys()
        nodes, types, assumed, constants = _read(document, graph, own, seen, outer, version, overridable)
        scope = Scope(
            key,
            label,
            version,
            graph if function is None else function,
            nodes,
            types,
            assumed,
            constants,
            inputs - own.keys(),
            {o.name for o in graph.output},
            captured,
            initializers=own,
            overridable=overridable,
            taken=taken,
        )
        scopes.append(scope)
        taken.update(scope.producer, scope.consumers, [node.name for node in scope.nodes])
        taken.update(inputs, own, (i.name for i in (*graph.output, *graph.value_info)))
        taken.update(i.values.name for i in graph.sparse_initializer)
        names = visible | inputs | own.keys() | scope.producer.keys()
        # of an initializer and what has its name around it, ONNX Runtime takes now this one, now that one
        doubled = unsure | names & {i.name for *_, inner in nested for i in _all_initializers(inner)}
        for position, node, tail, inner in nested:
            name = f"{node.op_type} '{node.name or position}' {' '.join(map(str, tail))}"
            around = f"{label} / {name}" if label else name
            visit(inner, (*key, position, *tail), around, scope, version, names, doubled)

    visit(model.graph, (), "", None, opset)
    for number, function in enumerate(model.functions):
        body = onnx.GraphProto(node=function.node, name=function.name)
        body.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
        body.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
        label = f"function '{function.domain}:{function.name}'"
        version = _opset(function.opset_import) or opset
        visit(body, ("function", number), label, None, version, function=function)
    return scopes


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return max((i.version for i in imports if i.domain in ONNX_DOMAINS), default=0)


def _initializers(document: Document, graph: onnx.GraphProto) -> dict[str, Const]:
    return {
        tensor.name: Const(tuple(tensor.dims[:]), tensor.data_type, partial(document.array, tensor))
        for tensor in graph.initializer
    }


def _all_initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of a graph and of all graphs inside it."""
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        for _, inner in inner_graphs(node):
            yield from _all_initializers(inner)


def _without_own(constants: dict[str, Const], graph: onnx.GraphProto) -> dict[str, Const]:
    """What a graph sees of the constants around it: its own inputs and tensors hide what has their names."""
    own = {i.name for i in graph.input} | {i.values.name for i in graph.sparse_initializer}
    own.update(name for node in graph.node for name in node.output[:])
    return {name: const for name, const in constants.items() if name not in own}


def _read(
    document: Document,
    graph: onnx.GraphProto,
    own: dict[str, Const],
    seen: dict[str, Const],
    outer: Scope | None,
    opset: int,
    overridable: set[str],
) -> tuple[list[gs.Node], Types, Sizes, dict[str, Const]]:
    """The nodes of a graph, types and assumed sizes of its tensors, and what is constant: its `own` initializers, what
    is `seen` of the scopes around it, and what nodes compute of these."""
    constants = {**seen, **own}
    protos = bare(graph.node)
    nodes = decode(protos)
    for node, proto in zip(nodes, graph.node, strict=True):
        if node.op == "Constant" and node.outputs:
            const = from_attributes(proto, document.array)
            if const is not None:
                constants[node.outputs[0].name] = const
    infer_types = partial(infer, graph, protos, outer, constants, overridable, opset, document.model)
    types, assumed = infer_types()
    for _ in range(MAX_INFERENCES):
        if not _fold(nodes, constants, types, overridable):
            break
        unknown = _unknown(types)
        types, assumed = infer_types()
        if _unknown(types) >= unknown:
            break
    return nodes, types, assumed, constants


def _unknown(types: Types) -> int:
    return sum(1 for _, shape in types.values() if shape is None or None in shape)


def _fold(nodes: list[gs.Node], constants: dict[str, Const], types: Types, overridable: set[str]) -> bool:
    """Find the nodes that compute constants, the Shape of a tensor of proved shape among them."""
    before = len(constants)
    for node in nodes:
        facts = operator(node)
        if facts.evaluate is None or len(node.outputs) != 1:
            continue
        output = node.outputs[0].name
        # nearly all nodes end here: what reads one tensor that is no constant is none itself
        if not facts.reads_shape_only and not (node.inputs and node.inputs[0].name in constants):
            continue
        if output in constants or any(_is_reference(value) for value in node.attrs.values()):
            continue
        const = _folded(node, facts, constants, types, overridable)
        if const is not None:
            constants[output] = const
    return len(constants) > before


def _folded(
    node: gs.Node, facts: Operator, constants: dict[str, Const], types: Types, overridable: set[str]
) -> Const | None:
    """The constant that a node of one output computes."""
    names = [t.name for t in node.inputs]
    while names and not names[-1]:
        names.pop()
    if not names or ("" in names and not facts.takes_omitted_inputs):
        return None
    if facts.reads_shape_only:
        return _of_shape(facts, node, _known_shape(names[0], constants, types, overridable))
    if any(name in overridable or (name and name not in constants) for name in names):
        return None
    data_type, shape = types.get(node.outputs[0].name, (0, None))
    inputs = [constants.get(name) for name in names]
    return fold_constant(facts, node.attrs, inputs, _static(shape), data_type or None)


def _known_shape(
    name: str, constants: dict[str, Const], types: Types, overridable: set[str]
) -> tuple[int, ...] | None:
    shape = _static(types.get(name, (0, None))[1])
    if shape is None and name in constants and name not in overridable:
        return constants[name].shape
    return shape


def _of_shape(facts: Operator, node: gs.Node, shape: tuple[int, ...] | None) -> Const | None:
    if facts.evaluate is None or shape is None:
        return None
    value = facts.evaluate(node.attrs, shape)
    return Const(value.shape, onnx.TensorProto.INT64, partial(np.copy, value))


def _static(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None or None in shape else tuple(d for d in shape if d is not None)


def _is_reference(value: object) -> bool:
    return isinstance(value, gs.Node.AttributeRef)


@dataclass(eq=False, slots=True)
class _Tensor:
    """All that is asked of a `gs.Variable` here, in a tenth of its time."""

    name: str


def bare(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Copies without subgraphs, documentation and metadata."""
    scope = onnx.GraphProto()
    scope.node.extend(nodes)
    copies: list[onnx.NodeProto] = scope.node[:]
    for copy in copies:
        copy.ClearField("doc_string")
        copy.ClearField("metadata_props")
        graphs = [number for number, attribute in enumerate(copy.attribute[:]) if attribute.type in _GRAPHS]
        for number in reversed(graphs):
            del copy.attribute[number]
    return copies


def decode(nodes: Iterable[onnx.NodeProto]) -> list[gs.Node]:
    """Bare nodes as graphsurgeon nodes that share one tensor for each name.

    The operator of another domain than ONNX's has the domain before its name, so that it is taken for no other; what
    has text in it that is none is of a domain nobody knows.
    """
    gs.logger.logger.G_LOGGER.severity = gs.logger.logger.G_LOGGER.ULTRA_VERBOSE + 100
    tensors: dict[str, _Tensor] = {}

    def tensor(name: str) -> _Tensor:
        found = tensors.get(name)
        if found is None:
            found = _Tensor(name)
            if name:  # each input that is left out is a tensor of its own
                tensors[name] = found
        return found

    result: list[gs.Node] = []
    for node in nodes:
        op, domain = node.op_type, node.domain
        if domain not in ONNX_DOMAINS:
            op = f"{domain}.{op}"
        try:
            attributes = OnnxImporter.import_attributes(node.attribute, {}, {}, None, None)
        except UnicodeDecodeError:
            op, attributes = "onnx_repfuse.Opaque", {}
        inputs, outputs = [tensor(name) for name in node.input[:]], [tensor(name) for name in node.output[:]]
        result.append(_node(op, node.name, attributes, inputs, outputs, domain))
    return result


def new_node(
    op: str, name: str, attrs: dict[str, Any], inputs: Iterable[str], outputs: Iterable[str]
) -> gs.Node:
    """A node of ONNX's own domain, with tensors that no other node shares."""
    return _node(op, name, attrs, [_Tensor(one) for one in inputs], [_Tensor(one) for one in outputs], None)


def _node(
    op: str,
    name: str,
    attrs: dict[str, Any],
    inputs: list[_Tensor],
    outputs: list[_Tensor],
    domain: str | None,
) -> gs.Node:
    """`gs.Node(...)`, past its hook on every assignment."""
    node: gs.Node = object.__new__(gs.Node)
    vars(node).update(op=op, name=name, attrs=attrs, inputs=inputs, outputs=outputs, domain=domain)
    return node
