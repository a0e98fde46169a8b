"""Transposes that cancel each other around element-wise operators: these read the tensor as it was before.

    Transpose(f(Transpose(x)))  ->  f(x)        where the second one undoes the first, and f takes one element to one

Converters write activations so that run on another layout than the convolutions around them.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.idle_pairs import transposes_back
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.records.report import Kind

__all__ = ["apply_transposes"]


class _Step(NamedTuple):
    """An element-wise operator, and which of its inputs is no constant."""

    node: gs.Node
    place: int


def apply_transposes(plan: ScopePlan, is_free: IsFree) -> bool:
    """Remove every such pair of Transposes; whether there was any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    last = [node for node in scope.nodes if node.op == "Transpose" and is_free(node)]
    protected = protected_nodes(scope) if last else frozenset()
    for node in last:
        steps = _steps_before(scope, node)
        first = scope.producer.get(steps[0].node.inputs[steps[0].place].name) if steps else None
        if first is None or id(first) in replacements.nodes or not transposes_back(first, node):
            continue
        absorbed = [first, *(step.node for step in steps), node]
        is_private = scope.is_private(first.outputs[0].name)
        if is_private and all(map(is_free, absorbed)) and protected.isdisjoint(map(id, absorbed)):
            output = node.outputs[0].name
            replacements.fold(
                output, {Kind.COMMUTE}, absorbed, _written(scope, first.inputs[0].name, steps, output)
            )
    return replacements.write()


def _steps_before(scope: Scope, node: gs.Node) -> list[_Step]:
    """The row of element-wise operators before a Transpose, each of them read by the next one alone."""
    steps: list[_Step] = []
    name = node.inputs[0].name
    while scope.is_private(name):
        step = _step(scope, scope.producer.get(name))
        if step is None:
            break
        steps.insert(0, step)
        name = step.node.inputs[step.place].name
    return steps


def _step(scope: Scope, node: gs.Node | None) -> _Step | None:
    """An operator that computes each element from the one at its place, and from numbers."""
    if node is None or not operator(node).elementwise or node.op == "Dropout" or len(node.outputs) != 1:
        return None
    names = [tensor.name for tensor in node.inputs]
    tensors = [place for place, name in enumerate(names) if name and not _is_number(scope, name)]
    return _Step(node, tensors[0]) if len(tensors) == 1 else None


def _is_number(scope: Scope, name: str) -> bool:
    """Whether it is a constant without axes, which adds none to a tensor beside it."""
    const = scope.const(name)
    return const is not None and const.shape == ()


def _written(scope: Scope, source: str, steps: list[_Step], output: str) -> list[gs.Node]:
    """The operators again, of a tensor of another layout."""
    created: list[gs.Node] = []
    name = source
    for step in steps:
        node, inputs = step.node, [tensor.name for tensor in step.node.inputs]
        inputs[step.place] = name
        is_last = step is steps[-1]
        name = output if is_last else scope.fresh(f"{node.outputs[0].name}_untransposed")
        if not is_last:
            scope.declare_like(name, source)
            scope.types[name] = scope.data_type(node.outputs[0].name) or 0, scope.shape(source)
        created.append(
            new_node(node.op, scope.fresh(f"{node.name}_untransposed"), node.attrs, inputs, [name])
        )
    return created
