"""The size of a model, from its skeleton or from planned scopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import OPAQUE, Scope
from onnx_repfuse.records.report import Counts

__all__ = ["count"]


def count(scopes: Iterable[Scope], used: set[str] | None, nbytes: int) -> Counts:
    """Counts of the scopes as they are now.

    Args:
        scopes: all of a model.
        used: the tensors still read; None: everything counts.
        nbytes: of the file, with external data.
    """
    ops: Counter[str] = Counter()
    parameters, macs = 0, None
    for scope in scopes:
        ops.update(node.op.removeprefix(OPAQUE) for node in scope.nodes)
        if scope.key == ():
            macs = _macs(scope)
        parameters += sum(_constant_node_size(scope)) + _weights_size(scope, used)
    return Counts(dict(sorted(ops.items())), parameters, nbytes, macs)


def _constant_node_size(scope: Scope) -> Iterable[int]:
    names = (node.outputs[0].name for node in scope.nodes if node.op == "Constant" and node.outputs)
    return (scope.constants[name].size for name in names if name in scope.constants)


def _weights_size(scope: Scope, used: set[str] | None) -> int:
    if used is None:
        return sum(const.size for const in scope.initializers.values())
    # what was unread before stays
    present = [
        const for name, const in scope.initializers.items() if name in used or name not in scope.used_before
    ]
    return sum(const.size for const in present) + sum(
        const.size for name, const in scope.created.items() if name in used
    )


def _macs(scope: Scope) -> int | None:
    """Multiply-adds of one run at the assumed sizes; None where one of them is unknown."""
    total = 0
    for node in scope.nodes:
        multiply_adds = operator(node).multiply_adds
        if multiply_adds is not None:
            macs = multiply_adds(scope, node)
            if macs is None:
                return None
            total += macs
    return total
