"""Nodes of a file as graphsurgeon's nodes.

Its importer takes a whole model and warns of every tensor without a type, which are all of them here, so only its
decoding of attributes is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnx_repfuse.graph.enforced import refers_to_call
from onnx_repfuse.graph.scope import ONNX_DOMAINS, OPAQUE

__all__ = ["bare", "decode", "new_node", "read_instead"]

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(eq=False, slots=True)
class _Tensor:
    """The part of `gs.Variable` that is used here; it is made in a tenth of the time."""

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

    The operator of another domain than ONNX's gets the domain before its name, so that it cannot be taken for ONNX's
    operator of that name. A node with an attribute that is not UTF-8, or that is unknown until a function is called,
    becomes an operator of an unknown domain.
    """
    # its warnings are not for our users
    gs.logger.logger.G_LOGGER.severity = gs.logger.logger.G_LOGGER.ULTRA_VERBOSE + 100
    tensors: dict[str, _Tensor] = {}

    def tensor(name: str) -> _Tensor:
        if not name:
            return _Tensor("")  # each input that is left out is a tensor of its own
        if name not in tensors:
            tensors[name] = _Tensor(name)
        return tensors[name]

    result: list[gs.Node] = []
    for node in nodes:
        op, domain = node.op_type, node.domain
        if domain not in ONNX_DOMAINS:
            op = f"{domain}.{op}"
        attributes = None if refers_to_call(node) else _attributes(node)
        if attributes is None:
            op, attributes = OPAQUE + op, {}
        inputs, outputs = [tensor(name) for name in node.input[:]], [tensor(name) for name in node.output[:]]
        result.append(_node(op, node.name, attributes, inputs, outputs, domain))
    return result


def _attributes(node: onnx.NodeProto) -> dict[str, Any] | None:
    """The attributes of a bare node, decoded; None where one is not UTF-8."""
    try:
        return dict(OnnxImporter.import_attributes(node.attribute, {}, {}, None, None))
    except UnicodeDecodeError:
        return None


def new_node(
    op: str, name: str, attrs: dict[str, Any], inputs: Iterable[str], outputs: Iterable[str]
) -> gs.Node:
    """A node of ONNX's own domain, with tensors that no other node shares."""
    return _node(op, name, attrs, list(map(_Tensor, inputs)), list(map(_Tensor, outputs)), None)


def read_instead(node: gs.Node, place: int, name: str) -> None:
    """Let one input of a node be another tensor, and leave the tensor's other consumers alone."""
    node.inputs[place] = _Tensor(name)


def _node(
    op: str,
    name: str,
    attrs: dict[str, Any],
    inputs: list[_Tensor],
    outputs: list[_Tensor],
    domain: str | None,
) -> gs.Node:
    """`gs.Node(...)` without its `__setattr__`, which checks every assignment."""
    node: gs.Node = object.__new__(gs.Node)
    vars(node).update(op=op, name=name, attrs=attrs, inputs=inputs, outputs=outputs, domain=domain)
    return node
