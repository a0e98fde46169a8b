"""Where a factor and a shift per channel may be written as one BatchNormalization: only where there was one before."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.records.report import Kind

__all__ = ["may_normalize"]

MAX_NODES_TO_NORM = 8  # per-channel operators between a node and the BatchNormalization before it


def may_normalize(
    scope: Scope, lifts: Mapping[str, LinearOp], lifted: LinearOp, roles: frozenset[Kind]
) -> bool:
    """Whether an operator's output may be computed by a BatchNormalization.

    Below opset 7 it may not: with `is_test`, it is another operator.

    Args:
        scope: of the operator.
        lifts: the operators of the scope.
        lifted: the operator.
        roles: kinds of what it is computed from.
    """
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return False
    if operator(lifted.node).normalizes:
        return True
    return Kind.AFFINE in roles and _follows_norm(scope, lifts, lifted)


def _follows_norm(scope: Scope, lifts: Mapping[str, LinearOp], lifted: LinearOp) -> bool:
    """Whether a BatchNormalization is right before, through operators of one operand."""
    for _ in range(MAX_NODES_TO_NORM):
        name = lifted.operands[0].name
        producer = scope.producer.get(name)
        if producer is None or any(operand.name != name for operand in lifted.operands):
            return False
        if operator(producer).normalizes:
            return True
        if name not in lifts:
            return False
        lifted = lifts[name]
    return False
