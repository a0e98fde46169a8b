"""The places where a scope is changed, and what changed since it was read, as an `Edit` of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_repfuse.graph.decode import read_instead
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.modelfile.edit import Edit, NewTensor, ScopeKey

__all__ = [
    "forget_unread_captures",
    "is_as_in_file",
    "let_shapes_read",
    "needed_nodes",
    "present_proto",
    "remove_dead_nodes",
    "replace_aliases",
    "replace_nodes",
    "scope_edit",
    "to_proto",
    "used_names",
]


def replace_nodes(scope: Scope, replaced: Mapping[int, Sequence[gs.Node]]) -> None:
    """Replace nodes, given by id(), by others that compute the same outputs; one pass over the scope."""
    if not replaced:
        return
    result: list[gs.Node] = []
    for node in scope.nodes:
        fresh = replaced.get(id(node))
        if fresh is None:
            result.append(node)
            continue
        for new in fresh:  # the file's writer puts it where the replaced node is
            scope.anchor[id(new)] = scope.anchor[id(node)]
            result.append(new)
    scope.nodes = result


def replace_aliases(scope: Scope, aliases: Mapping[str, str]) -> None:
    """Let every consumer of an alias read the tensor it stands for, through chains of aliases."""

    def target(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    for node in scope.nodes if aliases else ():
        for tensor in node.inputs:
            if tensor.name in aliases:
                tensor.name = target(tensor.name)


def let_shapes_read(scope: Scope, name: str, instead: str) -> None:
    """Let what asks for the shape of a tensor that goes ask for that of another one, which is the same."""
    for node in scope.consumers.get(name, ()):
        if operator(node).of_shape is not None:
            read_instead(node, 0, instead)


def remove_dead_nodes(scope: Scope, alive: set[int]) -> None:
    """Remove the nodes of `alive` (ids of nodes that were needed before) that nobody needs any more."""
    fan_out = Counter(tensor.name for node in scope.nodes for tensor in node.inputs)
    kept: list[gs.Node] = []
    for node in reversed(scope.nodes):  # a dead consumer makes its producers dead
        names = [tensor.name for tensor in node.outputs if tensor.name]
        is_needed = any(fan_out[name] or scope.is_seen(name) for name in names)
        if is_needed or id(node) not in alive:
            kept.append(node)
        else:
            fan_out.subtract(tensor.name for tensor in node.inputs)
    scope.nodes = kept[::-1]
    scope.index()


def forget_unread_captures(scopes: Sequence[Scope]) -> None:
    """Remove the nodes around a subgraph that only it needed, and needs no more since it was folded.

    Weights that only it read are no longer among the captured names then, so that `scope_edit` removes them. Scopes are
    planned from the outside to the inside: when an outer one is planned, nobody knows what its subgraphs will read.

    Args:
        scopes: all of a model, outer scopes before inner ones.
    """
    children: dict[ScopeKey, list[Scope]] = {scope.key: [] for scope in scopes}
    for scope in scopes:
        around = _key_around(scope.key, children)
        if around is not None:
            children[around].append(scope)
    for scope in reversed(scopes):  # what an inner scope forgets, the one around it may forget, too
        unread = scope.captured - used_names(children[scope.key])
        if unread:
            alive = needed_nodes(scope)
            scope.captured -= unread
            remove_dead_nodes(scope, alive)


def _key_around(key: ScopeKey, keys: Container[ScopeKey]) -> ScopeKey | None:
    """The key of the scope whose node holds this one; None for the main graph and for functions."""
    outermost = 2 if key[:1] == ("function",) else 0  # ("function", its number)
    if len(key) == outermost:
        return None
    # behind it: the node's position, the attribute's name, and the number of a graph in a list of graphs
    return next((key[:-tail] for tail in (2, 3) if key[:-tail] in keys), None)


def needed_nodes(scope: Scope) -> set[int]:
    """ids of the nodes with an output that somebody reads."""
    used = used_names([scope])
    return {id(node) for node in scope.nodes if not used.isdisjoint([t.name for t in node.outputs])}


def to_proto(node: gs.Node) -> onnx.NodeProto:
    """A new node as a NodeProto."""
    proto: onnx.NodeProto = OnnxExporter.export_node(node)
    return proto


def present_proto(scope: Scope, node: gs.Node) -> onnx.NodeProto:
    """A node of a scope as it will be in the file."""
    if id(node) not in scope.original:
        return to_proto(node)
    proto: onnx.NodeProto = scope.proto.node[scope.anchor[id(node)]]
    if is_as_in_file(scope, node):
        return proto
    rewired = onnx.NodeProto()
    rewired.CopyFrom(proto)
    rewired.input[:] = [tensor.name for tensor in node.inputs]
    return rewired


def is_as_in_file(scope: Scope, node: gs.Node) -> bool:
    """Whether a node is one of the file's, and reads what it reads there."""
    if id(node) not in scope.original:
        return False
    proto: onnx.NodeProto = scope.proto.node[scope.anchor[id(node)]]
    names: list[str] = proto.input[:]
    return [tensor.name for tensor in node.inputs] == names


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
    edit = Edit()
    _edit_present_nodes(edit, scope)
    for node in scope.nodes:
        if id(node) not in scope.original:
            edit.inserted.setdefault(scope.anchor[id(node)], []).append(to_proto(node))
    # what was unused before is not ours to remove
    edit.removed_initializers = (scope.initializers.keys() - used - kept_inputs) & scope.used_before
    edit.removed_values |= edit.removed_initializers
    for name, const in scope.created.items():
        if name in used:
            edit.new_tensors.append(NewTensor(name, const.data_type, const.shape, const.read))
    return edit


def _edit_present_nodes(edit: Edit, scope: Scope) -> None:
    """Nodes that were removed, and inputs that nodes now read under other names."""
    present = {scope.anchor[id(node)]: node for node in scope.nodes if id(node) in scope.original}
    computed = {t.name for node in scope.nodes for t in node.outputs}
    for position, proto in enumerate(scope.proto.node):
        node = present.get(position)
        if node is None:
            edit.removed_nodes.add(position)
            edit.removed_values.update(set(proto.output) - computed - {""})
            continue
        names = zip(proto.input, [t.name for t in node.inputs], strict=True)
        renamed = {before: now for before, now in names if before not in ("", now)}
        if renamed:
            edit.rewired[position] = renamed
