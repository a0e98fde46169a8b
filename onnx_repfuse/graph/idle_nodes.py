"""Nodes that nothing needs: they stay in the file, but no plan depends on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import read_instead
from onnx_repfuse.graph.scope import Scope

__all__ = ["put_back_idle_nodes", "take_out_idle_nodes"]


def take_out_idle_nodes(scope: Scope, stays: Callable[[gs.Node], bool]) -> list[gs.Node]:
    """Take out, and return, the nodes from which no way leads to an output, to a subgraph or to a node that stays.

    They would be consumers that keep tensors from being absorbed, and say where channels are: plans would depend on
    what has no meaning.
    """
    needed = {*scope.outputs, *scope.captured}
    kept: list[gs.Node] = []
    idle: list[gs.Node] = []
    for node in reversed(scope.nodes):
        is_needed = not needed.isdisjoint([tensor.name for tensor in node.outputs])
        # what a subgraph reads is not among the inputs of its node
        if is_needed or stays(node) or _has_subgraph(scope, node):
            needed.update(tensor.name for tensor in node.inputs)
            kept.append(node)
        else:
            idle.append(node)
    if idle:
        scope.nodes = kept[::-1]
        scope.index()
    return idle[::-1]


def _has_subgraph(scope: Scope, node: gs.Node) -> bool:
    proto: onnx.NodeProto = scope.proto.node[scope.anchor[id(node)]]
    return any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute)


def _computed_no_more(scope: Scope) -> set[str]:
    """The tensors that nodes of the file compute, and none of the nodes that are there now."""
    there = {tensor.name for node in scope.nodes for tensor in node.outputs}
    return {name for node in scope.proto.node for name in node.output} - there - {""}


def put_back_idle_nodes(scope: Scope, idle: Sequence[gs.Node], stand_in: Callable[[str], str]) -> None:
    """Put nodes back that were taken out, but those that read what nobody computes any more.

    Args:
        idle: in topological order.
        stand_in: the tensor that is read now in place of another one.
    """
    if not idle:
        return
    gone = _computed_no_more(scope)
    constants = {node.outputs[0].name: node for node in scope.original.values() if node.op == "Constant"}
    back: list[gs.Node] = []
    for node in idle:
        names = [stand_in(tensor.name) for tensor in node.inputs]
        if not (gone - constants.keys()).isdisjoint(names):
            continue
        back += [constants[name] for name in dict.fromkeys(names) if name in gone]
        for place, name in enumerate(names):
            read_instead(node, place, name)
        back.append(node)
        gone.difference_update(tensor.name for one in back for tensor in one.outputs)
    scope.nodes = scope.order([*scope.nodes, *back])
    scope.index()
