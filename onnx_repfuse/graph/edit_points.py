"""Changing a scope: new nodes for a tensor, dead nodes out; and the difference to the input, as an `Edit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.edit import Edit, NewTensor

__all__ = [
    "needed_nodes",
    "remove_dead_nodes",
    "replace_aliases",
    "replace_nodes",
    "scope_edit",
    "to_proto",
    "used_names",
]


def replace_nodes(scope: Scope, replaced: Mapping[int, Sequence[gs.Node]]) -> None:
    """Replace nodes, given by id(), by others that compute the same outputs; one pass over the scope."""
    result: list[gs.Node] = []
    for node in scope.nodes:
        fresh = replaced.get(id(node))
        if fresh is None:
            result.append(node)
            continue
        for new in fresh:
            scope.anchor[id(new)] = scope.anchor[id(node)]
            result.append(new)
    scope.nodes = result


def replace_aliases(scope: Scope, aliases: Mapping[str, str]) -> None:
    """Let every reader of an alias read the tensor it stands for, through chains of aliases."""

    def target(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    for node in scope.nodes if aliases else ():
        for tensor in node.inputs:
            if tensor.name in aliases:
                tensor.name = target(tensor.name)


def remove_dead_nodes(scope: Scope, alive: set[int]) -> None:
    """Remove the nodes of `alive` (ids of nodes that were needed before) that nobody needs any more."""
    count: dict[str, int] = {}
    for node in scope.nodes:
        for tensor in node.inputs:
            count[tensor.name] = count.get(tensor.name, 0) + 1
    kept: list[gs.Node] = []
    for node in reversed(scope.nodes):
        names = [t.name for t in node.outputs if t.name]
        needed = any(count.get(n) or n in scope.outputs or n in scope.captured for n in names)
        if needed or id(node) not in alive:
            kept.append(node)
            continue
        for tensor in node.inputs:
            count[tensor.name] -= 1
    scope.nodes = kept[::-1]
    scope.index()


def needed_nodes(scope: Scope) -> set[int]:
    """ids of the nodes with an output that somebody reads."""
    used = used_names([scope])
    return {id(node) for node in scope.nodes if not used.isdisjoint([t.name for t in node.outputs])}


def to_proto(node: gs.Node) -> onnx.NodeProto:
    """A new node as a NodeProto."""
    proto: onnx.NodeProto = OnnxExporter.export_node(node)
    return proto


def used_names(scopes: Iterable[Scope]) -> set[str]:
    """Every tensor some node reads or some scope puts out."""
    names: set[str] = set()
    for scope in scopes:
        names.update(scope.consumers, scope.outputs, scope.captured)
    return names


def scope_edit(scope: Scope, used: set[str], kept_inputs: set[str]) -> Edit:
    """What changed in a scope since it was read.

    Args:
        used: `used_names` of all scopes, now.
        kept_inputs: initializers that stay even when unused, being part of the interface.
    """
    edit, proto = Edit(), scope.proto
    present = {scope.anchor[id(n)]: n for n in scope.nodes if id(n) in scope.original}
    made = {t.name for node in scope.nodes for t in node.outputs}
    for position, node in enumerate(proto.node):
        current = present.get(position)
        if current is None:
            edit.removed_nodes.add(position)
            edit.removed_values.update(n for n in node.output if n and n not in made)
            continue
        moved = {
            old: t.name for old, t in zip(node.input, current.inputs, strict=True) if old and old != t.name
        }
        if moved:
            edit.rewired[position] = moved
    for node in scope.nodes:
        if id(node) not in scope.original:
            edit.inserted.setdefault(scope.anchor[id(node)], []).append(to_proto(node))
    edit.removed_initializers = (scope.initializers.keys() - used - kept_inputs) & scope.used_before
    edit.removed_values |= edit.removed_initializers
    for name, const in scope.created.items():
        if name in used:
            edit.new_tensors.append(NewTensor(name, const.data_type, const.shape, const.read))
    return edit
