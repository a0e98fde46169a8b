"""Which axis of a tensor holds its channels.

An Add or a Mul by a scalar does not say. A Conv reads channels from axis 1, a MatMul from the last axis; the nodes
between inherit from what they read or, where that says nothing, from what reads them. What each operator says stands
in its record, `graph.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import ChannelLayout, Demand, Layouts
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.views import behind_view

__all__ = ["ChannelLayout", "channel_layouts"]


def channel_layouts(
    scope: Scope, before: Mapping[str, ChannelLayout] | None = None
) -> dict[str, ChannelLayout]:
    """The layout of every tensor for which one is known; `before` are those known already."""
    layouts = Layouts(scope, dict(before or {}))
    _forwards(layouts)
    by_consumers = _backwards(layouts)
    if by_consumers:
        layouts.known.update(by_consumers)
        _forwards(layouts)
    return layouts.known


def _forwards(layouts: Layouts) -> None:
    """From producers to consumers: the layouts of outputs."""
    for node in layouts.scope.nodes:
        if not node.outputs or node.outputs[0].name in layouts.known:
            continue
        layout = _output_layout(layouts, node)
        # what a rule says may be wrong where files contradict themselves; a proved shape is not
        if layout is not None and layout.agrees(layouts.output_shape(node)):
            layouts.known[node.outputs[0].name] = layout
            if operator(node).outputs_are_alike:
                _further_outputs(layouts, node, layout)


def _output_layout(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    facts = operator(node)
    layout = _behind_view(layouts, node) if facts.space_map is not None else None
    return layout or facts.channels.forwards(layouts, node)


def _behind_view(layouts: Layouts, node: gs.Node) -> ChannelLayout | None:
    first = layouts.first(node)
    view = None if first is None else behind_view(layouts.scope, node, first.layout, first.channels)
    if first is None or view is None:
        return None
    axis, rank = view.layout
    return ChannelLayout(axis, rank, view.channels, first.data_type)


def _before_view(layouts: Layouts, node: gs.Node) -> Sequence[Demand]:
    """The layout of what a view reads: the one behind which the view has the layout of its output."""
    wanted = layouts.output(node) if operator(node).space_map is not None else None
    name = node.inputs[0].name
    shape = layouts.scope.shape(name) or ()
    if wanted is None or len(shape) < 2:
        return ()
    # (N, C) has its channels on the last axis, as every matrix
    possible = ((-1, 0),) if len(shape) == 2 else ((-1, 0), (1, len(shape) - 2))
    found = []
    for before in possible:
        if shape[before[0]] != wanted.channels:
            continue
        behind = behind_view(layouts.scope, node, before, wanted.channels, wanted)
        if behind is not None and behind.layout == wanted.layout:
            found.append(before)
    if len(found) != 1:  # nothing, or both axes
        return ()
    return [(name, ChannelLayout(*found[0], wanted.channels, wanted.data_type))]


def _further_outputs(layouts: Layouts, node: gs.Node, first: ChannelLayout) -> None:
    """The outputs of a Split but the first: the same layout, each with its own channels."""
    for tensor in node.outputs[1:]:
        layout = first.with_channels_of(layouts.scope.shape(tensor.name))
        if layout is not None:
            layouts.known[tensor.name] = layout


def _backwards(layouts: Layouts) -> dict[str, ChannelLayout]:
    """From consumers to producers: layouts of tensors of which their producers said nothing."""
    scope = layouts.scope
    wanted = (scope.consumers.keys() | scope.producer.keys()) - layouts.known.keys()
    wanted -= scope.constants.keys() - scope.overridable
    learned: dict[str, ChannelLayout] = {}
    both = Layouts(scope, dict(layouts.known)) if wanted else layouts
    for node in reversed(scope.nodes) if wanted else ():
        if not node.inputs or wanted.isdisjoint([t.name for t in (*node.inputs, *node.outputs)]):
            continue
        for name, layout in (*operator(node).channels.backwards(both, node), *_before_view(both, node)):
            if name in wanted:
                learned[name] = both.known[name] = layout
                wanted.remove(name)
    return learned
