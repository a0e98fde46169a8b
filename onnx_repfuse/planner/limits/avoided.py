"""Operators that the user's target cannot run, so that none is written; and which operator a step becomes.

`cover` asks before it chooses, to find another way. Whatever wrote a fold,
`rewrites.avoided_operators` has the last word: a fold that wrote such an operator is given up, as one that failed its
proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from onnx_repfuse.planner.pricing.steps import Step
from onnx_repfuse.planner.search.select import Selection

__all__ = ["creates_avoided", "rises"]

_OPERATORS = {"Shift": "Add", "Norm": "BatchNormalization", "SizesMul": "Mul", "SizesAdd": "Add"}


def _operator_of(step: Step) -> str:
    """The ONNX operator that `emit` writes for a step."""
    if step.view is not None:
        return str(step.view.node.op)
    if step.op != "Conv" or step.kernel is None:
        return _OPERATORS.get(step.op, step.op)
    geometry = step.kernel.geometry
    if geometry.channel_axis == -1:
        return "MatMul" if step.bias is None else "Gemm"
    return "ConvTranspose" if geometry.transposed else "Conv"


def creates_avoided(selection: Selection, avoided: Set[str]) -> bool:
    """Whether a fold would write more nodes of an avoided operator than it takes away."""
    created = [_operator_of(step) for step in selection.lowered.steps]
    present = [node.op for node in selection.nodes]
    return any(rises(operator, created, present) for operator in avoided)


def rises(operator: str, created: Iterable[str], present: Iterable[str]) -> bool:
    """Whether there are more nodes of an operator among those created than among those that were there."""
    return list(created).count(operator) > list(present).count(operator)
