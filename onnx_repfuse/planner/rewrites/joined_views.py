"""Arithmetic whose operands are all moved in the same way comes first, and its result is moved.

    Add(DepthToSpace(a), DepthToSpace(b))  ->  DepthToSpace(Add(a, b))

One view is left of several, and what is before them, as convolutions to be added, meets without a view in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import equal_shapes
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.size_lists import constant_list
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.records.report import Kind

__all__ = ["join_views"]

_ARITHMETIC = ("Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum")
_VIEWS = ("DepthToSpace", "Flatten", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze")


def join_views(plan: ScopePlan, is_free: IsFree) -> bool:
    """Write all such arithmetic before one view, or before several in a row; whether there was any.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
    """
    if plan.scope.opset < NUMPY_BROADCAST_SINCE or not _join(plan, is_free):
        return False
    while _join(plan, is_free):
        pass
    return True


def _join(plan: ScopePlan, is_free: IsFree) -> bool:
    scope, replacements = plan.scope, Replacements(plan)
    protected: frozenset[int] | None = None
    for node in scope.nodes:
        views = _views_before(scope, node)
        if not views or not all(map(is_free, (*views, node))):
            continue
        if not replacements.nodes.keys().isdisjoint(map(id, views)):
            continue
        protected = protected_nodes(scope) if protected is None else protected
        if protected.isdisjoint(map(id, (*views, node))):
            replacements.fold(
                node.outputs[0].name, {Kind.COMMUTE}, [*views, node], _written(scope, views, node)
            )
    return replacements.write()


def _views_before(scope: Scope, node: gs.Node) -> list[gs.Node]:
    """The views that compute all operands of arithmetic, for it alone and all in the same way; else nothing."""
    if node.op not in _ARITHMETIC or len(node.inputs) < 2:
        return []
    views: list[gs.Node] = []
    for tensor in node.inputs:
        view = scope.private_producer(tensor.name)
        if view is None or view.op not in _VIEWS:
            return []
        views.append(view)
    return views if _are_alike(scope, views) else []


def _are_alike(scope: Scope, views: Sequence[gs.Node]) -> bool:
    """Whether views move the elements of tensors of one shape in one way; to a Transpose, ranks suffice."""
    first, *others = views
    if any((view.op, view.attrs) != (first.op, first.attrs) for view in others):
        return False
    if any(_lists(scope, view) != _lists(scope, first) for view in others):
        return False
    sources = [view.inputs[0].name for view in views]
    if any(scope.const(source) is not None for source in sources):
        return False
    if first.op == "Transpose":
        ranks = {len(shape) if (shape := scope.shape(source)) is not None else None for source in sources}
        return len(ranks) == 1 and None not in ranks
    return equal_shapes(scope, sources)


def _lists(scope: Scope, view: gs.Node) -> list[list[int] | str]:
    """What a view reads beside the tensor: numbers where they are known, else by name."""
    names = [tensor.name for tensor in view.inputs[1:]]
    return [constant_list(scope, name) or name for name in names]


def _written(scope: Scope, views: Sequence[gs.Node], node: gs.Node) -> list[gs.Node]:
    """The arithmetic, and then the view."""
    output, view = str(node.outputs[0].name), views[0]
    sources = [str(one.inputs[0].name) for one in views]
    name = scope.fresh(f"{output}_unmoved")
    scope.declare_like(name, sources[0])
    if not equal_shapes(scope, sources):
        shape = scope.shape(sources[0]) or ()
        scope.types[name] = scope.data_type(sources[0]) or 0, (None,) * len(shape)
        scope.assumed.pop(name, None)
    further = [tensor.name for tensor in view.inputs[1:]]
    return [
        new_node(node.op, scope.fresh(f"{output}_unmoved"), node.attrs, sources, [name]),
        new_node(view.op, scope.fresh(f"{output}_moved"), view.attrs, [name, *further], [output]),
    ]
