"""What all calls of a function hand it: attributes that are one value in every call are that value in its body.

Functions of a model are called by its own nodes only. So an attribute of the body that refers to an argument is known
if all calls agree, or all leave it out and take the function's default, or none.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnx_repfuse.modelfile.node_order import all_nodes

__all__ = ["agreed_arguments", "with_arguments"]

FunctionKey = tuple[str, str, str]
Arguments = dict[str, onnx.AttributeProto | None]  # by name; None for one that every call leaves out


def agreed_arguments(model: onnx.ModelProto) -> dict[FunctionKey, Arguments]:
    """For each function that is called, the attributes that are the same in all calls."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    agreed: dict[FunctionKey, Arguments] = {}
    if not functions:
        return agreed
    for nodes in (model.graph.node, *(function.node for function in functions.values())):
        for node in all_nodes(nodes):
            key = node.domain, node.op_type, node.overload
            if key not in functions:
                continue
            given = _arguments(functions[key], node)
            before = agreed.setdefault(key, given)
            agreed[key] = {
                name: value for name, value in before.items() if name in given and value == given[name]
            }
    return agreed


def _arguments(function: onnx.FunctionProto, call: onnx.NodeProto) -> Arguments:
    """What a call hands a function, but what is itself an argument of the function around the call."""
    given: Arguments = dict.fromkeys(function.attribute)
    given.update((attribute.name, attribute) for attribute in (*function.attribute_proto, *call.attribute))
    return {name: value for name, value in given.items() if value is None or not value.ref_attr_name}


def with_arguments(nodes: Iterable[onnx.NodeProto], arguments: Arguments) -> list[onnx.NodeProto]:
    """The nodes of a body, with the values of these arguments in place of references to them."""
    return [_bound(node, arguments) if _refers(node) else node for node in nodes]


def _refers(node: onnx.NodeProto) -> bool:
    """Whether an attribute of a node, or of one in its subgraphs, is an argument of the call."""
    return any(attribute.ref_attr_name for inner in all_nodes([node]) for attribute in inner.attribute)


def _bound(node: onnx.NodeProto, arguments: Arguments) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        name = attribute.ref_attr_name
        value = arguments.get(name)
        if name in arguments and value is None:
            continue  # the operator takes its own default
        bound = result.attribute.add()
        bound.CopyFrom(attribute)
        if value is not None and value.type == attribute.type:
            bound.CopyFrom(value)
            bound.name = attribute.name
        _bind_graphs(bound, arguments)
    return result


def _bind_graphs(attribute: onnx.AttributeProto, arguments: Arguments) -> None:
    """As `with_arguments`, of the graphs that an attribute holds, in place."""
    graphs = [attribute.g] if attribute.HasField("g") else []
    for graph in (*graphs, *attribute.graphs):
        nodes = with_arguments(graph.node, arguments)
        copies = [onnx.NodeProto.FromString(child.SerializeToString()) for child in nodes]
        del graph.node[:]
        graph.node.extend(copies)
