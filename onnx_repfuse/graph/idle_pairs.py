"""Nodes that do nothing because of the one node whose output they read.

A Transpose or Cast that undoes another one gives out what that one reads.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope, optional_input

__all__ = ["transposes_back", "undone"]

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
# Float type -> the types that hold each of its values.
_WIDER: dict[int, tuple[int, ...]] = {
    onnx.TensorProto.FLOAT16: (_FLOAT, _DOUBLE),
    onnx.TensorProto.BFLOAT16: (_FLOAT, _DOUBLE),
    _FLOAT: (_DOUBLE,),
}


def undone(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The producer of what a node reads, if the node gives out what that one reads, at every element."""
    if node.op not in ("Cast", "Transpose"):
        return None
    before = scope.producer.get(optional_input(node, 0))
    if before is None or before.op != node.op or not optional_input(before, 0):
        return None
    is_undone = _is_cast_back(scope, before, node) if node.op == "Cast" else transposes_back(before, node)
    return before if is_undone else None


def transposes_back(before: gs.Node, node: gs.Node) -> bool:
    """Whether two nodes are Transposes of which the second undoes the first."""
    if {before.op, node.op} != {"Transpose"}:
        return False
    first, second = before.attrs.get("perm"), node.attrs.get("perm")
    if first is None or second is None:
        return first is second  # both reverse all axes
    if len(first) != len(second):
        return False
    return [first[axis] for axis in second] == list(range(len(first)))


def _is_cast_back(scope: Scope, before: gs.Node, node: gs.Node) -> bool:
    """A Cast to a type that holds all values, and back."""
    own = scope.data_type(before.inputs[0].name)
    if own is None or node.attrs.get("to") != own:
        return False
    return before.attrs.get("to") in _WIDER.get(own, ())
