"""Operators that the user's target cannot run, so that none is written; and which operator a step becomes."""

from __future__ import annotations

from collections.abc import Iterable, Set

from onnx_repfuse.planner.pricing.steps import Step
from onnx_repfuse.planner.search.select import Selection

__all__ = ["creates_avoided", "operator_of"]

_OPERATORS = {"Shift": "Add", "Norm": "BatchNormalization", "SizesMul": "Mul", "SizesAdd": "Add"}


def operator_of(step: Step) -> str:
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
    created = [operator_of(step) for step in selection.lowered.steps]
    present = [node.op for node in selection.nodes]
    return any(_rises(operator, created, present) for operator in avoided)


def _rises(operator: str, created: Iterable[str], present: Iterable[str]) -> bool:
    return list(created).count(operator) > list(present).count(operator)
