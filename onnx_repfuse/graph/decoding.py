"""NodeProtos as graphsurgeon nodes, without any payload.

graphsurgeon's importer takes a whole model and tells its logger about every tensor that has no type. A scope has none,
so only its reading of attributes is used; the nodes and tensors are made here. Tensors do not know their nodes: a
`Scope` keeps an index of its own, and graphsurgeon's is quadratic where one tensor has many readers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnx_repfuse.graph.scope import ONNX_DOMAINS

__all__ = ["bare", "decode", "new_node"]

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


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
