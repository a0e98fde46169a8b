"""Nodes that were lifted together, as one operator."""

from __future__ import annotations

from onnx_repfuse.graph.lift import Lifted
from onnx_repfuse.graph.scope import Scope

__all__ = ["only_readers"]


def only_readers(scope: Scope, lifts: dict[str, Lifted]) -> dict[str, Lifted]:
    """Forget what the inner nodes of groups are by themselves; which tensors a group alone reads, and which one."""
    result: dict[str, Lifted] = {}
    for group in [found for found in lifts.values() if found.also]:
        inside = {id(node) for node in (*group.also, group.node)}
        for node in group.also:
            for tensor in node.outputs:
                lifts.pop(tensor.name, None)
        for operand in group.operands:
            seen = operand.name in scope.outputs or operand.name in scope.captured
            if not seen and all(id(reader) in inside for reader in scope.readers[operand.name]):
                result[operand.name] = group
    return result
