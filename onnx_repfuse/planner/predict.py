"""The time that a planned scope is predicted to take, by the prices that planning uses.

Only its ratio to that of another scope that computes the same tells anything: what both have is priced roughly.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import channel_layouts
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.pricing.cost import CostModel, cost_model, node_price
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.search.lift_scope import lift_all

__all__ = ["predicted_cost"]


def predicted_cost(scope: Scope, cost: str) -> int:
    """Of all nodes of a scope as it is now, in the unit of the cost model; never 0 for a scope with nodes.

    Args:
        cost: "ort-cpu" or "macs", as of `Options.cost`.
    """
    model = cost_model(cost)
    context = Context(scope, channel_layouts(scope), protected_nodes(scope))
    every = lift_all(context, lambda node: False, None, set())
    lifts = {one.output: one.outcome for one in every if isinstance(one.outcome, LinearOp)}
    sizes = Sizes(context, lifts)
    inner = {id(node) for lifted in lifts.values() for node in lifted.inner_nodes}
    total = 0
    for node in scope.nodes:
        if id(node) in inner or _is_fused(context, node) or _is_constant(scope, node):
            continue
        found = [lifts[tensor.name] for tensor in node.outputs if tensor.name in lifts]
        costs = [node_price(one, model, sizes.elements, scope.is_used).cost for one in found]
        total += sum(costs) if costs else _price(scope, node, model)
    return total


def _is_fused(context: Context, node: gs.Node) -> bool:
    """Whether runtimes compute it in the kernel of another node that is priced."""
    return id(node) in context.protected or (node.op == "Relu" and _follows_conv(context.scope, node))


def _is_constant(scope: Scope, node: gs.Node) -> bool:
    """Whether runtimes compute all of it once, when they load the model: a Constant, and what reads constants alone."""
    return all(scope.const(tensor.name) is not None for tensor in node.outputs if tensor.name)


def _follows_conv(scope: Scope, node: gs.Node) -> bool:
    producer = scope.producer.get(node.inputs[0].name)
    return (
        producer is not None and producer.op == "Conv" and scope.consumers.get(node.inputs[0].name) == [node]
    )


def _price(scope: Scope, node: gs.Node, model: CostModel) -> int:
    """Of a node that is not read as linear."""
    count = operator(node).multiply_adds
    macs = count(scope, node) if count is not None else 0
    names = {tensor.name for tensor in (*node.inputs, *node.outputs) if scope.const(tensor.name) is None}
    moved = sum(scope.elements(name) or 0 for name in names if name)
    return (macs or 0) * model.dense_mac + model.elementwise(moved)
