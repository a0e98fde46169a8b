"""From a document to scopes: nodes decoded, types inferred, constants collected, and no payload read.

Tensors do not know their nodes: a `Scope` has an index of its own, as graphsurgeon's is quadratic where one tensor has
many consumers.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.constant_folding import ConstantNodes, from_attributes
from onnx_repfuse.graph.decode import bare, decode
from onnx_repfuse.graph.dims import note_sizes
from onnx_repfuse.graph.function_calls import agreed_arguments, with_arguments
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.planning_order import canonical_order, captures_in_order
from onnx_repfuse.graph.scope import (
    ONNX_DOMAINS,
    Const,
    Infer,
    Scope,
    Shape,
    Sizes,
    Types,
    input_names,
    shape_in,
    static,
)
from onnx_repfuse.graph.shape_inference import infer
from onnx_repfuse.graph.shape_parts import ShapeParts
from onnx_repfuse.graph.subgraph_inputs import carried_tensors, first_shapes, widened
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.edit import ScopeKey
from onnx_repfuse.modelfile.node_order import inner_graphs, outer_names

__all__ = ["read_scopes"]

# A Shape of what was inferred is a constant, with which inference gets further. Each round starts from scratch.
MAX_INFERENCES = 16
# Each widens a shape that a Loop carries; what is not settled then is not proved.
MAX_INDUCTIONS = 8
_Read = tuple[list[gs.Node], Types, Sizes]
Nested = tuple[int, onnx.NodeProto, tuple[str | int, ...], onnx.GraphProto]


@dataclass(frozen=True, eq=False)
class _Source:
    """A graph to read, and where it is in the model.

    Attributes:
        graph: the main graph, a subgraph, or the body of a function.
        key, label, opset: as in `Scope`.
        outer: the scope around it.
        visible: names of tensors of the scopes around it.
        ambiguous: names that are an initializer here or further inside, and another tensor further outside. ONNX
            Runtime takes now one of them, now the other.
        function: the function whose body it is.
        node: the node whose subgraph it is.
    """

    graph: onnx.GraphProto
    key: ScopeKey
    label: str
    opset: int
    outer: Scope | None = None
    visible: Set[str] = frozenset()
    ambiguous: Set[str] = frozenset()
    function: onnx.FunctionProto | None = None
    node: onnx.NodeProto | None = None

    @cached_property
    def nested(self) -> list[Nested]:
        """Its subgraphs."""
        return list(_inner_graphs(self.graph))


def read_scopes(document: Document, *, freeze_initializers: bool = False) -> list[Scope]:
    """Every scope of the model, outer scopes before inner ones.

    `freeze_initializers` treats initializers that are also graph inputs as constants (they are in IR < 4).
    """
    model, scopes, taken = document.model, [], set[str]()
    # until IR 3 every initializer had to be an input, too, and runtimes took them for constants
    may_override = model.ir_version >= 4 and not freeze_initializers
    opset = _opset(model.opset_import)
    # a stack: what is inside a scope comes right behind it
    pending = [_Source(model.graph, (), "", opset), *_function_bodies(model, opset)][::-1]
    while pending:
        source = pending.pop()
        scope = _scope(document, source, taken, may_override=may_override)
        scopes.append(scope)
        taken.update(_names(source.graph, scope))
        pending += reversed(list(_subgraphs(source, scope)))
    return scopes


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return max((i.version for i in imports if i.domain in ONNX_DOMAINS), default=0)


def _function_bodies(model: onnx.ModelProto, opset: int) -> Iterator[_Source]:
    arguments = agreed_arguments(model)
    for number, function in enumerate(model.functions):
        given = arguments.get((function.domain, function.name, function.overload), {})
        body = onnx.GraphProto(node=with_arguments(function.node, given), name=function.name)
        body.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
        body.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
        label = f"function '{function.domain}:{function.name}'"
        version = _opset(function.opset_import) or opset
        yield _Source(body, ("function", number), label, version, function=function)


def _scope(document: Document, source: _Source, taken: set[str], *, may_override: bool) -> Scope:
    graph, outer = source.graph, source.outer
    initializers = _initializers(document, graph)
    inputs = {i.name for i in graph.input}
    # of the initializers around it, a subgraph sees those that it does not hide
    visible = {} if outer is None else _not_hidden(outer.constants, graph)
    overridable = outer.overridable & visible.keys() if outer else set()
    overridable |= source.ambiguous & (initializers.keys() | visible.keys())
    if may_override and not source.key:  # only the main graph's inputs are fed by callers
        overridable |= inputs & initializers.keys()
    constants = {**visible, **initializers}
    reading = _Reading(document, source, constants, overridable)
    (nodes, types, assumed), shapes = reading.proved()
    captures: dict[int, list[str]] = {}
    for position, *_, inner in source.nested:
        captures.setdefault(id(nodes[position]), []).extend(captures_in_order(inner))
    scope = Scope(
        source.key,
        source.label,
        source.opset,
        graph,
        nodes,
        types,
        assumed,
        constants,
        inputs - initializers.keys(),
        {o.name for o in graph.output},
        {name for *_, inner in source.nested for name in outer_names(inner)},
        initializers=initializers,
        overridable=overridable,
        taken=taken,
        order=partial(canonical_order, outputs=[o.name for o in graph.output], captures=captures),
        infer=reading.inference(shapes),
    )
    note_sizes(scope)
    return scope


def _names(graph: onnx.GraphProto, scope: Scope) -> Iterator[str]:
    """All names of tensors and nodes, but those of subgraphs."""
    yield from (*scope.producer, *scope.consumers, *scope.inputs, *scope.initializers)
    yield from (node.name for node in scope.nodes)
    yield from (i.name for i in (*graph.output, *graph.value_info))
    yield from (i.values.name for i in graph.sparse_initializer)


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[Nested]:
    """The subgraphs of each node: position of the node, the node, end of the scope key, and the subgraph."""
    for position, node in enumerate(graph.node):
        for tail, inner in inner_graphs(node):
            yield position, node, tail, inner


def _subgraphs(source: _Source, scope: Scope) -> Iterator[_Source]:
    if not source.nested:
        return
    visible = source.visible | scope.inputs | scope.initializers.keys() | scope.producer.keys()
    inside = {tensor.name for *_, inner in source.nested for tensor in _all_initializers(inner)}
    for position, node, tail, inner in source.nested:
        label = f"{node.op_type} '{node.name or position}' {' '.join(map(str, tail))}"
        yield _Source(
            inner,
            (*source.key, position, *tail),
            f"{source.label} / {label}" if source.label else label,
            source.opset,
            scope,
            visible,
            source.ambiguous | (visible & inside),
            node=node,
        )


def _initializers(document: Document, graph: onnx.GraphProto) -> dict[str, Const]:
    return {
        tensor.name: Const(tuple(tensor.dims[:]), tensor.data_type, partial(document.array, tensor))
        for tensor in graph.initializer
    }


def _all_initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of a graph and of all graphs inside it."""
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for *_, inner in _inner_graphs(graph):
        yield from _all_initializers(inner)


def _not_hidden(constants: dict[str, Const], graph: onnx.GraphProto) -> dict[str, Const]:
    """What a graph sees of the constants around it: its inputs and tensors hide what has their names."""
    hidden = {i.name for i in graph.input} | {i.values.name for i in graph.sparse_initializer}
    hidden.update(name for node in graph.node for name in node.output[:])
    return {name: const for name, const in constants.items() if name not in hidden}


@dataclass(frozen=True, eq=False)
class _Reading:
    """A graph while it is read.

    Attributes:
        document, source: where it is.
        constants: what is known to be constant, by tensor name; what nodes compute from constants alone is added.
        overridable: names of those that may have another value when the model runs.
    """

    document: Document
    source: _Source
    constants: dict[str, Const]
    overridable: set[str]

    def proved(self) -> tuple[_Read, Mapping[str, Shape | None]]:
        """The nodes, with the shapes of a subgraph's inputs that hold in every iteration, and these."""
        source, node, outer = self.source, self.source.node, self.source.outer
        if node is None or outer is None or not source.graph.input:
            return self.once({}), {}
        carried = carried_tensors(node, source.graph, source.opset)
        shapes = first_shapes(node, source.graph, outer, source.opset)
        for _ in range(MAX_INDUCTIONS):
            trial = replace(self, constants=dict(self.constants))
            result = trial.once(shapes)
            before, shapes = shapes, widened(shapes, carried, partial(trial.known_shape, result[1]))
            if shapes == before:
                self.constants.update(trial.constants)
                return result, shapes
        return self.once({}), {}

    def known_shape(self, types: Types, name: str) -> Shape | None:
        """The shape of a tensor, given what was inferred."""
        if name in self.constants and name not in self.overridable:
            return self.constants[name].shape
        return shape_in(types, name)

    def inference(self, input_shapes: Mapping[str, Shape | None]) -> Infer:
        """`infer` for the nodes of the graph, given what is proved of a subgraph's inputs; see there."""
        source, model = self.source, self.document.model
        place = source.graph, source.outer
        return partial(infer, *place, self.constants, self.overridable, input_shapes, source.opset, model)

    def once(self, input_shapes: Mapping[str, Shape | None]) -> _Read:
        """The nodes, and types and assumed sizes of their tensors.

        Constants and shapes tell of each other: a Shape of what was inferred is a constant, with which inference gets
        further. So both are found in turns, until neither tells more.

        Args:
            input_shapes: those that are proved of a subgraph's inputs.
        """
        protos = bare(self.source.graph.node)
        nodes = decode(protos)
        self.read_constant_nodes(nodes)
        computed = ConstantNodes(self.source.opset, self.constants)
        infer_types = self.inference(input_shapes)
        types, assumed = infer_types(protos)
        # inference of all nodes tells more, in less time, than a run of each node whose shape is not known
        waits = True
        for _ in range(MAX_INFERENCES):
            is_found = self.find_constants(nodes, protos, computed, types, waits=waits)
            if not is_found and waits and computed.has_waiting:
                waits = False
                is_found = self.find_constants(nodes, protos, computed, types, waits=waits)
            if not is_found:
                break
            fixed = {name: const for name, const in self.constants.items() if name not in self.overridable}
            if _leaves_nothing_open(nodes, types, fixed):
                return nodes, *_with_constants(types, assumed, fixed)
            unknown = _unknown(types)
            types, assumed = infer_types(_varying(nodes, protos, fixed))
            is_told = _unknown(types) < unknown
            if not is_told and not waits:
                break
            waits = is_told
            computed.has_waiting = False
        return nodes, types, assumed

    def read_constant_nodes(self, nodes: Iterable[gs.Node]) -> None:
        """Note the values of Constant nodes."""
        for node, proto in zip(nodes, self.source.graph.node, strict=True):
            if node.op == "Constant" and node.outputs:
                const = from_attributes(proto, self.document.array)
                if const is not None:
                    self.constants[node.outputs[0].name] = const

    def find_constants(
        self,
        nodes: list[gs.Node],
        protos: list[onnx.NodeProto],
        computed: ConstantNodes,
        types: Types,
        *,
        waits: bool,
    ) -> bool:
        """Find the nodes that compute constants, proved sizes that they pick of a Shape among them; whether there are.

        Args:
            protos: of the nodes.
            computed: those found so far.
            types: what was inferred.
            waits: see `ConstantNodes.add`.
        """
        constants = self.constants
        before = len(constants)
        fixed = constants.keys() - self.overridable
        parts = ShapeParts(nodes, constants, types)
        for node, proto in zip(nodes, protos, strict=True):
            names = [tensor.name for tensor in node.outputs]
            if not names or not fixed.isdisjoint(names):
                continue
            found = _of_shape(node, constants, fixed, types) or parts.constant(node, fixed)
            if found is not None:
                constants[names[0]] = found
                fixed.add(names[0])
            elif _reads_constants_alone(node, fixed):
                fixed.update(computed.add(proto, types, waits=waits))
        return len(constants) > before


def _varying(
    nodes: list[gs.Node], protos: list[onnx.NodeProto], constants: Container[str]
) -> list[onnx.NodeProto]:
    """The nodes with an output that is no constant."""
    pairs = zip(nodes, protos, strict=True)
    return [proto for node, proto in pairs if any(tensor.name not in constants for tensor in node.outputs)]


def _unknown(types: Types) -> int:
    return sum(static(shape) is None for _, shape in types.values())


def _leaves_nothing_open(nodes: list[gs.Node], types: Types, constants: Mapping[str, Const]) -> bool:
    """Whether all sizes of all tensors but constants are known, so that the constants can tell no more."""
    names = {tensor.name for node in nodes for tensor in node.outputs} | types.keys()
    return all(static(shape_in(types, name)) is not None for name in names - constants.keys() - {""})


def _with_constants(types: Types, assumed: Sizes, constants: Mapping[str, Const]) -> tuple[Types, Sizes]:
    """What inference would say: constants have the types and shapes that were found for them."""
    found = {name: constants[name] for name in types.keys() & constants.keys()}
    declared = {name: (const.data_type, const.shape) for name, const in found.items()}
    return types | declared, assumed | {name: const.shape for name, const in found.items()}


def _reads_constants_alone(node: gs.Node, fixed: set[str]) -> bool:
    """Nearly all nodes end here: a node whose first input is no constant computes none."""
    names = input_names(node)
    return bool(names) and names[0] in fixed and fixed.issuperset(names)


def _of_shape(node: gs.Node, constants: dict[str, Const], fixed: set[str], types: Types) -> Const | None:
    """What a Shape computes, where the shape that it reads is known."""
    of_shape = operator(node).of_shape
    if of_shape is None or len(node.inputs) != 1:
        return None
    name = node.inputs[0].name
    shape = static(shape_in(types, name))
    if shape is None and name in fixed:
        shape = constants[name].shape
    if shape is None:
        return None
    value = of_shape(node.attrs, shape)
    return Const(value.shape, onnx.TensorProto.INT64, partial(np.copy, value))
