"""Where a factor and a shift per channel may be written as one BatchNormalization: only where there was one before, or
an InstanceNormalization, whose target has both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.records.report import Kind

__all__ = ["Norms"]

_NORMS = ("BatchNormalization", "InstanceNormalization")
MAX_NODES_TO_NORM = 8  # per-channel operators between a node and the BatchNormalization before it


@dataclass(frozen=True, eq=False)
class Norms:
    """The BatchNormalizations of one scope.

    Attributes:
        lifts: the operators of the scope.
        may_write: whether the target can run it.
    """

    scope: Scope
    lifts: Mapping[str, LinearOp]
    may_write: bool
    _follow: dict[str, bool] = field(default_factory=dict)  # answers of `_follows_norm`

    def may_compute(self, lifted: LinearOp, roles: frozenset[Kind]) -> bool:
        """Whether an operator's output may be computed by a BatchNormalization.

        Below opset 7 it may not: with `is_test`, it is another operator.

        Args:
            lifted: the operator.
            roles: kinds of what it is computed from.
        """
        if not self.may_write or self.scope.opset < NUMPY_BROADCAST_SINCE:
            return False
        return operator(lifted.node).normalizes or (self._follows_norm(lifted) and Kind.AFFINE in roles)

    def _follows_norm(self, lifted: LinearOp) -> bool:
        """Whether a normalization is right before, through operators of one operand."""
        answer = self._follow.get(lifted.output)
        if answer is None:
            answer = self._follow[lifted.output] = self._finds_norm(lifted)
        return answer

    def _finds_norm(self, lifted: LinearOp) -> bool:
        for _ in range(MAX_NODES_TO_NORM):
            name = lifted.operands[0].name
            producer = self.scope.producer.get(name)
            if producer is None or any(operand.name != name for operand in lifted.operands):
                return False
            if producer.op in _NORMS:
                return True
            if name not in self.lifts:
                return False
            lifted = self.lifts[name]
        return False
