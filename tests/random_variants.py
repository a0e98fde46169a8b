"""Ways to write one model differently, none of which may change what is folded.

Names, the order of nodes, where a constant is kept, Identity nodes and recorded shapes carry no meaning. `same_plan`
folds a model and a variant of it and compares what is left. `outlined` is for results only: a function is folded
without knowing the types of its inputs, so less may be folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_repfuse import Options, fuse

Variant = Callable[[onnx.ModelProto, int], onnx.ModelProto]
_BOOKKEEPING = ("Constant", "Identity")  # a variant may have more of these


def same_plan(
    model: onnx.ModelProto, fused: onnx.ModelProto, variant: str, options: Options, seed: int = 0
) -> None:
    """Raise AssertionError if a variant of the model (see `VARIANTS`) is folded to other nodes than the model was."""
    plain, other = ops(fused), ops(fuse(VARIANTS[variant](model, seed), options=options).model)
    assert plain == other, f"{variant}: {dict(plain - other)} became {dict(other - plain)}"


def ops(model: onnx.ModelProto) -> Counter[str]:
    """Operators and how often each stands in a model; functions count once per call."""
    found: Counter[str] = Counter()
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    pending = list(model.graph.node)
    while pending:
        node = pending.pop()
        body = bodies.get((node.domain, node.op_type))
        if body is not None:
            pending += body
        elif node.op_type not in _BOOKKEEPING:
            found[node.op_type] += 1
        pending += [child for graph in _graphs(node) for child in graph.node]
    return found


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _graphs(node):
            yield from _every_graph(inner)


def renamed(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """All inner tensors and nodes get new names, whose alphabetical order is another one."""
    model = _copy(model)
    rng = np.random.default_rng(seed)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    names: dict[str, str] = {name: name for name in kept}

    def new(name: str) -> str:
        return names.setdefault(name, f"{rng.integers(1 << 30):x}_{len(names)}")

    for graph in _every_graph(model.graph):
        for tensor in graph.initializer:
            tensor.name = new(tensor.name)
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.name = new(value.name)
        for node in graph.node:
            node.name = f"{rng.integers(1 << 30):x}_{node.name}"
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
    return model


def permuted(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The nodes of the main graph in another order, each behind those it reads."""
    model = _copy(model)
    rng = np.random.default_rng(seed)
    left = list(model.graph.node)
    missing = {name for node in left for name in node.output}
    ordered: list[onnx.NodeProto] = []
    while left:
        ready = [i for i, node in enumerate(left) if missing.isdisjoint(_reads(node))]
        node = left.pop(ready[rng.integers(len(ready))])
        missing -= set(node.output)
        ordered.append(node)
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    return model


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, also in its subgraphs."""
    names = set(node.input)
    for graph in _graphs(node):
        names |= {value.name for value in graph.output}
        for child in graph.node:
            names |= _reads(child)
    return names


def constants_as_nodes(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Every initializer becomes a Constant node."""
    model = _copy(model)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in tensors.items()]
    nodes += graph.node
    # IR version 3 lists them there, too
    inputs = [value for value in graph.input if value.name not in tensors]
    for field, values in ((graph.node, nodes), (graph.input, inputs), (graph.initializer, [])):
        kept: list[Any] = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(kept)
    return model


def with_identities(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Identity nodes before some inputs of nodes of the main graph, weights among them."""
    model = _copy(model)
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name and rng.random() < 0.25:
                between = f"{name}_same_{len(nodes)}"
                nodes.append(helper.make_node("Identity", [name], [between]))
                node.input[place] = between
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def without_shapes(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """No shapes of inner tensors are recorded."""
    model = _copy(model)
    for graph in _every_graph(model.graph):
        del graph.value_info[:]
    return model


def outlined(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The nodes of the main graph become a function, and the call holds some of their attributes."""
    model = constants_as_nodes(model, seed)
    rng = np.random.default_rng(seed)
    graph = model.graph
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    call = helper.make_node(
        "Outlined", [v.name for v in graph.input], [v.name for v in graph.output], domain="outlined"
    )
    moved: list[str] = []
    for node in nodes:
        for attribute in node.attribute:
            plain = attribute.type in _MOVED and not attribute.ref_attr_name
            if plain and len(moved) < 3 and rng.random() < 0.2:
                name = f"a{len(moved)}"
                value = call.attribute.add()
                value.CopyFrom(attribute)
                value.name = name
                title, kind = attribute.name, attribute.type
                attribute.Clear()
                attribute.name, attribute.type, attribute.ref_attr_name = title, kind, name
                moved.append(name)
    body = helper.make_function(
        "outlined", "Outlined", call.input, call.output, nodes, model.opset_import, moved
    )
    del graph.node[:], graph.value_info[:]
    graph.node.append(call)
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("outlined", 1))
    model.ir_version = max(model.ir_version, 8)
    return model


_MOVED = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT)
VARIANTS: dict[str, Variant] = {
    "renamed": renamed,
    "permuted": permuted,
    "constants as nodes": constants_as_nodes,
    "with Identity nodes": with_identities,
    "without recorded shapes": without_shapes,
}
