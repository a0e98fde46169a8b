"""A bias beside a sum moves behind it, where something takes it.

    x + (y + b)  ->  (x + y) + b        and b goes into the Conv behind, past views

A product over the last axis has no bias of its own: where it is added to a residual stream, an Add stays in between.
Sums of broadcast tensors are associative, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.rewrites.scalar_paths import Paths
from onnx_repfuse.records.report import Kind

__all__ = ["move_biases"]

MAX_STEPS = 16  # views between a sum and what takes the bias


class _Bias(NamedTuple):
    """An Add of a constant, and the tensor beside it in the sum that reads it."""

    lifted: LinearOp
    other: str


def move_biases(plan: ScopePlan, paths: Paths, is_allowed: Callable[[frozenset[Kind]], bool]) -> bool:
    """Move every such bias; whether there were any.

    Args:
        plan: of the scope, which is changed.
        paths: the ways of shifts in it (`ShiftPaths`).
        is_allowed: whether the user allows a fold of these kinds.
    """
    scope = plan.scope
    replacements = Replacements(plan)
    for total in scope.nodes if scope.opset >= NUMPY_BROADCAST_SINCE else ():
        bias = _bias_beside(paths, total)
        if bias is None or not is_allowed(bias.lifted.roles) or not _is_taken_behind(paths, total):
            continue
        add, output = bias.lifted.node, total.outputs[0].name
        tensor = bias.lifted.operands[0].name
        name = scope.fresh(f"{output}_unbiased")
        scope.declare_like(name, output)
        inputs = [name if one.name == tensor else one.name for one in add.inputs]
        created = [
            new_node("Add", scope.fresh(f"{output}_unbiased"), {}, [bias.other, tensor], [name]),
            new_node(add.op, scope.fresh(f"{output}_biased"), dict(add.attrs), inputs, [output]),
        ]
        replacements.fold(output, bias.lifted.roles, [add, total], created)
    return replacements.write()


def _bias_beside(paths: Paths, total: gs.Node) -> _Bias | None:
    """The operand of a sum that is a tensor with a constant per channel, which no operator below can take."""
    if total.op != "Add" or not paths.may_go(total):
        return None
    names = [tensor.name for tensor in total.inputs]
    if any(paths.scope.const(name) is not None for name in names):
        return None
    for name, other in (names, names[::-1]):
        lifted = paths.lifted(name)
        if lifted is not None and _is_bias(lifted) and _may_leave(paths, lifted, total):
            return _Bias(lifted, other)
    return None


def _is_bias(lifted: LinearOp) -> bool:
    """Whether it adds a constant to a tensor, or takes one away."""
    node = lifted.node
    is_right = node.op == "Add" or (node.op == "Sub" and node.inputs[0].name == lifted.operands[0].name)
    return is_right and len(lifted.operands) == 1 and lifted.view is None and not lifted.inner_nodes


def _may_leave(paths: Paths, lifted: LinearOp, total: gs.Node) -> bool:
    """Whether only the sum reads it, and what it is added to has no bias that takes it."""
    below = lifted.operands[0].name
    if not paths.may_go(lifted.node) or not paths.is_alone(lifted.output, total):
        return False
    producer = paths.scope.producer.get(below)
    is_gemm = producer is not None and producer.op == "MatMul" and paths.context.rank(below) == 2
    return not is_gemm and paths.absorbs_from_below(below, lifted.node) is None


def _is_taken_behind(paths: Paths, total: gs.Node) -> bool:
    """Whether a bias of what the sum computes costs nothing behind it, or less, as behind an average."""
    scope, name = paths.scope, total.outputs[0].name
    for _ in range(MAX_STEPS):
        if paths.consumer_that_absorbs(name) is not None:
            return True
        consumer = paths.only_consumer(name)
        lifted = None if consumer is None else paths.lifted(consumer.outputs[0].name)
        if lifted is None or len(lifted.operands) != 1 or not paths.may_go(lifted.node):
            return False
        if lifted.node.op != "MatMul" and not _keeps_biases(lifted):
            return False
        if lifted.view is not None and _shrinks(scope, lifted):
            return True
        name = lifted.output
    return False


def _shrinks(scope: Scope, lifted: LinearOp) -> bool:
    """Whether an operator has fewer elements than what it reads, so that to add a bias behind it costs less."""
    before, behind = scope.elements(lifted.operands[0].name), scope.elements(lifted.output)
    return before is not None and behind is not None and behind < before


def _keeps_biases(lifted: LinearOp) -> bool:
    """Whether a view of a bias per channel is that bias."""
    view = lifted.view
    return view is not None and view.keeps_constants and view.channels == view.channels_behind
