"""The size of a model, from its skeleton or from planned scopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.records.report import Counts

__all__ = ["count"]


def count(scopes: Iterable[Scope], used: set[str] | None, nbytes: int) -> Counts:
    """Counts of the scopes as they are now; `used` are the tensors still read (None: everything counts)."""
    ops: Counter[str] = Counter()
    parameters, macs, known = 0, 0, True
    for scope in scopes:
        for node in scope.nodes:
            ops[node.op] += 1
            if node.op == "Constant" and node.outputs[0].name in scope.constants:
                parameters += scope.constants[node.outputs[0].name].size
        if scope.key == ():
            found = _macs(scope)
            known, macs = found is not None, found or 0
        weights = (*scope.initializers.items(), *scope.created.items())
        parameters += sum(const.size for name, const in weights if used is None or name in used)
    return Counts(dict(sorted(ops.items())), parameters, nbytes, macs if known else None)


def _macs(scope: Scope) -> int | None:
    """Multiply-adds of the scope's Conv, ConvTranspose, MatMul and Gemm at the assumed sizes."""
    total = 0
    for node in scope.nodes:
        if node.op not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            continue
        shape = scope.shape(node.inputs[1].name) if len(node.inputs) > 1 else None
        data, out = scope.assumed.get(node.inputs[0].name), scope.assumed.get(node.outputs[0].name)
        if node.op == "MatMul":
            if data is None or out is None:
                return None
            total += prod(out) * data[-1]
            continue
        if shape is None or None in shape or (out is None if node.op != "ConvTranspose" else data is None):
            return None
        weight = [d for d in shape if d is not None]
        if node.op == "Conv":
            total += prod(out or ()) * prod(weight[1:])
        elif node.op == "ConvTranspose":
            total += prod(data or ()) * prod(weight[1:])
        else:
            inner = weight[1 if node.attrs.get("transB", 0) else 0]
            total += prod(out or ()) * inner
    return total
