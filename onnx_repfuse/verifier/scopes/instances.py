"""Where a scope stands in a model: the way from the main graph through branches, bodies and calls of functions.

The way goes by the outputs of nodes, not by their positions, so that it leads to the same scope in the original and in
the result, which has fewer nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from onnx_repfuse.verifier.session import subgraphs

__all__ = ["Frame", "Step", "Way", "first_output", "instances", "resolve"]

MAX_INSTANCES = 4  # calls of one function that are tried
MAX_DEPTH = 16  # of calls in calls; a function cannot call itself, but a file may say so
Key = Sequence[str | int]  # of a scope: ("function", index), positions of nodes and names of attributes


class Step(NamedTuple):
    """One step inwards: the node with this output, its first with a name, and its attribute; None for a call."""

    output: str
    attribute: str | None


Way = tuple[Step, ...]


@dataclass(frozen=True)
class Frame:
    """A graph on the way.

    Attributes:
        graph: its nodes; in the body of a function, attribute references have the values of the call.
        node: the node that holds or calls it; None for the main graph.
        is_function: whether it is the body of a function, which sees nothing of the graphs around it.
        arguments: name of an input -> the tensor of the graph around it that it starts as.
        opset_import: the operator sets in force.
        slices: the inputs that get one part of that tensor after the other.
    """

    graph: onnx.GraphProto
    node: onnx.NodeProto | None = None
    is_function: bool = False
    arguments: dict[str, str] = field(default_factory=dict)
    opset_import: Sequence[onnx.OperatorSetIdProto] = ()
    slices: frozenset[str] = frozenset()


def instances(model: onnx.ModelProto, key: Key) -> list[Way]:
    """The ways to the scope of a key, at most `MAX_INSTANCES`: a function has one for each call."""
    if _is_in_a_list_of_graphs(key):
        return []
    if key[:1] != ("function",):
        return [_inside(model.graph, key)]
    function = model.functions[int(key[1])]
    rest = _inside(function, key[2:])
    calls = _calls(model, function, model.graph, ())
    return [(*way, *rest) for way, _ in zip(calls, range(MAX_INSTANCES), strict=False)]


def _is_in_a_list_of_graphs(key: Key) -> bool:
    """Whether an attribute of type GRAPHS leads there, which only operators of other domains have."""
    path = key[2:] if key[:1] == ("function",) else key
    return len(path) % 2 == 1 or not all(isinstance(attribute, str) for attribute in path[1::2])


def _inside(graph: onnx.GraphProto | onnx.FunctionProto, key: Key) -> Way:
    """The way by a key of positions and attributes."""
    steps = []
    for position, attribute in zip(key[::2], key[1::2], strict=True):
        node = graph.node[int(position)]
        steps.append(Step(first_output(node), str(attribute)))
        graph = next(a.g for a in node.attribute if a.name == attribute)
    return tuple(steps)


def first_output(node: onnx.NodeProto) -> str:
    """The first output that is not omitted: "" names no node, as any number of nodes may omit outputs."""
    return next(filter(None, node.output), "")


def _calls(
    model: onnx.ModelProto,
    wanted: onnx.FunctionProto,
    graph: onnx.GraphProto | onnx.FunctionProto,
    way: Way,
) -> Iterator[Way]:
    """The ways to the calls of a function, from a graph and all it holds and calls."""
    if len(way) > MAX_DEPTH:
        return
    for node in graph.node:
        output = first_output(node)
        if not output:
            continue  # a call for nothing
        function = _function(model, node)
        if function is not None:
            step = (*way, Step(output, None))
            if function is wanted:
                yield step
            else:
                yield from _calls(model, wanted, function, step)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = (*way, Step(output, attribute.name))
                yield from _calls(model, wanted, attribute.g, inner)


def _function(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.FunctionProto | None:
    functions: Iterable[onnx.FunctionProto] = model.functions
    called = (node.domain, node.op_type)
    return next((function for function in functions if (function.domain, function.name) == called), None)


def resolve(model: onnx.ModelProto, way: Way) -> list[Frame]:
    """The graphs on a way, the main graph first.

    Raises:
        LookupError: the model has no such node or subgraph.
    """
    frames = [Frame(model.graph, opset_import=model.opset_import)]
    for step in way:
        here = frames[-1]
        node = next((n for n in here.graph.node if step.output in n.output), None)
        if node is None:
            raise LookupError(step.output)
        frames.append(_body(model, here, node) if step.attribute is None else _subgraph(here, node, step))
    return frames


def _subgraph(around: Frame, node: onnx.NodeProto, step: Step) -> Frame:
    found = [a.g for a in node.attribute if a.name == step.attribute and a.HasField("g")]
    if not found:
        raise LookupError(step.attribute)
    graph = found[0]
    arguments: dict[str, str] = {}
    if node.op_type == "Loop":  # its first two inputs are the number of the round and the condition
        pairs = zip(graph.input[2:], node.input[2:], strict=False)
        arguments = {inner.name: outer for inner, outer in pairs}
    slices: frozenset[str] = frozenset()
    if node.op_type == "Scan":
        arguments, slices = _scanned(graph, node)
    return Frame(graph, node, arguments=arguments, opset_import=around.opset_import, slices=slices)


def _scanned(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[dict[str, str], frozenset[str]]:
    """(what the inputs of a Scan's body start as, those that are slices). Raises LookupError for other axes."""
    values = {attribute.name: attribute for attribute in node.attribute}
    has_other_axes = "scan_input_axes" in values and any(values["scan_input_axes"].ints)
    if has_other_axes or len(graph.input) != len(node.input):  # before opset 9, there is one input more
        raise LookupError(node.output[0])
    arguments = {inner.name: outer for inner, outer in zip(graph.input, node.input, strict=True)}
    states = len(graph.input) - values["num_scan_inputs"].i
    return arguments, frozenset(value.name for value in graph.input[states:])


def _body(model: onnx.ModelProto, around: Frame, node: onnx.NodeProto) -> Frame:
    function = _function(model, node)
    if function is None:
        raise LookupError(node.op_type)
    values = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
    graph = onnx.GraphProto(name=function.name, node=function.node)
    # a call may leave out inputs, as an operator's
    arguments = {name: outer for name, outer in zip(function.input, node.input, strict=False) if outer}
    omitted = set(function.input) - arguments.keys()
    for inner in graph.node:
        _bind(inner, values)
        inner.input[:] = ["" if name in omitted else name for name in inner.input]
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in function.input if name in arguments)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    return Frame(graph, node, True, arguments, _imports(function, around))


def _imports(function: onnx.FunctionProto, around: Frame) -> list[onnx.OperatorSetIdProto]:
    """The operator sets of a body: its own, and of further domains those around it."""
    imports = [*function.opset_import]
    known = {version.domain for version in imports}
    return imports + [version for version in around.opset_import if version.domain not in known]


def _bind(node: onnx.NodeProto, values: dict[str, onnx.AttributeProto]) -> None:
    """Give attribute references the values of a call; one that the call leaves out is left out."""
    kept = []
    for attribute in node.attribute:
        value = values.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if value is None:
            continue
        copy = onnx.AttributeProto.FromString(value.SerializeToString())
        copy.name = attribute.name
        kept.append(copy)
    del node.attribute[:]
    node.attribute.extend(kept)
    for graph in subgraphs(node):
        for inner in graph.node:
            _bind(inner, values)
