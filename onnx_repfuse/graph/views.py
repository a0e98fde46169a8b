"""Views: operators that move, repeat or average positions and leave channels alone.

AveragePool, GlobalAveragePool, ReduceMean over space, Resize, Flatten, Reshape, Squeeze, Unsqueeze, Transpose. A view
treats every channel alike, and most views map a constant per channel to the same constant. So for any pointwise A and
bias b

    view(A x + b) = A view(x) + b         for b = 0, if the view does not keep constants

`behind_view` says where the channels are behind a view, `is_identity` when a chain of views does nothing. Both trust
proved shapes only: a node whose shapes are not proved is no view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.extents import Dims
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import ChannelLayout
from onnx_repfuse.graph.operators.facts import HAVE_SUBGRAPHS, Layout, SpaceMap, SpaceMapSort, ViewCase
from onnx_repfuse.graph.operators.resize import resized_axes
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Const, Scope, Shape

__all__ = [
    "Behind",
    "Layout",
    "View",
    "behind_view",
    "computed_from_shapes",
    "is_identity",
    "proved_rank",
    "restored_from",
    "whole_shape_of",
]

MAX_SHAPE_NODES = 32  # between the shapes of tensors and the size that is computed from them
_NONE: Mapping[str, gs.Node] = MappingProxyType({})


@dataclass(eq=False)
class View:
    """A view of one tensor.

    Attributes:
        node: the operator, to be copied.
        operand, output: names of its tensors.
        channels, channels_behind: of operand and output. They differ where each of the fewer stands for several, as in
            DepthToSpace or in a Flatten of positions.
        before, after: (channel axis, rank) of both.
        dims: number of dims of the output.
        entry: for an operator that lists sizes, the position of the channels in that list, to be replaced for other
            channels; None where it works on any number of channels.
        target: that list, if it is constant.
        listed_in: the name of that list, if it is not constant, and the channels' entry may be replaced.
        start, end: proved shapes of operand and output.
        sizes, sizes_behind: their dims, as far as they follow from others.
        like: the tensor whose Shape a Reshape restores.
        is_copy: the output is the operand.
        keeps_constants: it maps a constant to the same constant, so that a bias moves through it.
    """

    node: gs.Node
    operand: str
    output: str
    channels: int
    channels_behind: int
    before: Layout
    after: Layout
    dims: int
    entry: int | None
    target: Const | None
    listed_in: str
    start: Shape
    end: Shape
    like: str
    is_copy: bool
    keeps_constants: bool
    sizes: Dims = ()
    sizes_behind: Dims = ()

    @cached_property
    def sort(self) -> SpaceMapSort:
        """What it does with positions."""
        return _space_map(self.node).sort(self.node)

    @cached_property
    def work(self) -> int:
        """What computing an element costs, as a multiple of moving one."""
        return _space_map(self.node).work(self.node)

    def positions(self, operand: Sequence[int]) -> Sequence[int] | None:
        """Per spatial axis those of the output, where the node's own rule tells; None where it has none."""
        rule = _space_map(self.node).positions
        return None if rule is None else rule(self.node, operand)

    @cached_property
    def multiply_adds(self) -> int:
        """For an element of the output."""
        return _space_map(self.node).multiply_adds(self.node)

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution of several taps."""
        return self.multiply_adds > 1

    @property
    def times(self) -> int:
        """How many channels on one side stand for one on the other."""
        return max(self.channels, self.channels_behind) // min(self.channels, self.channels_behind)

    @property
    def parts_are_neighbours(self) -> bool:
        """Whether the channels that stand for one follow each other.

        Those of a Flatten of (N, H, W, C) do not: position p of channel c becomes channel `p*C + c`.
        """
        if self.node.op == "DepthToSpace":
            return bool(self.node.attrs.get("mode", "DCR") == "CRD")
        return self.channels_behind <= self.channels or self.before[0] == 1

    def behind(self, channels: int) -> int:
        """Channels of the output for so many of the operand."""
        return channels * self.channels_behind // self.channels

    def fits(self, channels: int) -> bool:
        """Whether it can be written for that many channels of its output."""
        if self.node.op == "Reshape" and self.channels_behind < self.channels:
            return channels == self.channels_behind  # its list tells how the many are those of one
        if self.entry is None or channels == self.channels:
            return True
        return self.target is not None or bool(self.listed_in)

    @property
    def listed(self) -> int:
        """How many sizes the list of a Resize or Reshape has."""
        return self.dims if self.node.op == "Reshape" else len(resized_axes(self.node, len(self.start)))


def _space_map(node: gs.Node) -> SpaceMap:
    space_map = operator(node).space_map
    assert space_map is not None
    return space_map


class Behind(NamedTuple):
    """Layout and shape behind a view; see `View` for the others."""

    layout: Layout
    channels: int
    shape: Shape
    is_copy: bool
    keeps_constants: bool


def behind_view(
    scope: Scope, node: gs.Node, before: Layout, channels: int, demanded: ChannelLayout | None = None
) -> Behind | None:
    """What is behind a view of a tensor with channels at `before`; None if it is not a view.

    Args:
        demanded: what the consumers of the output demand of it, which tells sizes that inference did not find.
    """
    space_map = operator(node).space_map
    if space_map is None or not node.inputs or len(node.outputs) != 1:
        return None
    case = _case(scope, node, before, channels, demanded)
    if case is None:
        return None
    try:
        layout = space_map.layout(case)
        if layout is None:
            return None
        behind = space_map.channels(case)
        is_copy, keeps_constants = space_map.copies(case), space_map.keeps_constants(case)
    except Inexact:  # of a constant that cannot be computed
        return None
    result = case.result
    keeps_channels = result[layout[0] % len(result)] == behind
    return Behind(layout, behind, result, is_copy, keeps_constants) if keeps_channels else None


def _case(
    scope: Scope, node: gs.Node, before: Layout, channels: int, demanded: ChannelLayout | None
) -> ViewCase | None:
    """What a view's rules ask for; None where the shapes are not proved, or contradict the layout."""
    shape, result = scope.shape(node.inputs[0].name) or (), _result_shape(scope, node)
    if demanded is not None and demanded.allows_dims(len(result)):
        result = _with_channels(result, demanded)
    if min(len(shape), len(result)) < 2:
        return None
    axis, rank = before
    if axis == 1 and len(shape) != rank + 2:
        return None  # the layout was learned elsewhere, and the shape disproves it
    wanted = None if demanded is None else (demanded.layout, demanded.channels)
    return ViewCase(scope, node, before, channels, shape, result, wanted, partial(_dims, scope, node))


def _dims(scope: Scope, node: gs.Node) -> tuple[Dims, Dims]:
    """`ViewCase.dims`."""
    return dims_of(scope, node.inputs[0].name) or (), dims_of(scope, node.outputs[0].name) or ()


def _result_shape(scope: Scope, node: gs.Node) -> Shape:
    """The proved shape of the output, that of another tensor if the node restores it; () if an input may vary.

    The target of a Reshape and the sizes of a Resize may also follow from shapes: then inference has proved what it
    could.
    """
    output = node.outputs[0].name
    varying = [t.name for t in node.inputs[1:] if t.name and scope.const(t.name) is None]
    if not varying:
        return scope.shape(output) or ()
    restored = restored_from(scope, node)
    if restored:
        return scope.shape(restored) or ()
    lists_sizes = node.op in ("Expand", "Reshape", "Resize")
    if not lists_sizes or not all(computed_from_shapes(scope, name) for name in varying):
        return ()
    return scope.shape(output) or ()


def _with_channels(shape: Shape, layout: ChannelLayout) -> Shape:
    """A shape with the channels of a layout, where it does not say how many there are."""
    place = layout.channel_axis % len(shape)
    return (*shape[:place], layout.channels if shape[place] is None else shape[place], *shape[place + 1 :])


def proved_rank(scope: Scope, name: str) -> int | None:
    """The number of dims of a tensor: by its shape, or by the permutation or list of sizes of what computes it."""
    shape, producer = scope.shape(name), scope.producer.get(name)
    if shape is not None:
        return len(shape)
    if producer is None:
        return None
    if producer.op == "Transpose":
        return len(producer.attrs.get("perm", ())) or None
    if producer.op == "Reshape" and len(producer.inputs) == 2:  # an attribute before opset 5
        (length,) = scope.shape(producer.inputs[1].name) or (None,)
        return length
    return None


def computed_from_shapes(scope: Scope, name: str, gone: Mapping[str, gs.Node] = _NONE) -> list[gs.Node]:
    """The nodes that compute a tensor from nothing but constants and shapes, in topological order; [] if others do.

    Args:
        gone: those that are not in the scope any more.
    """
    nodes: dict[int, gs.Node] = {}  # each once, behind all that it reads
    pending = [name]
    seen: set[int] = set()
    while pending:
        producer = scope.producer.get(pending[-1]) or gone.get(pending[-1])
        if producer is None or producer.op in HAVE_SUBGRAPHS or len(seen) > MAX_SHAPE_NODES:
            return []
        if id(producer) in seen:  # all that it reads has been visited
            nodes.setdefault(id(producer), producer)
            pending.pop()
            continue
        seen.add(id(producer))
        if operator(producer).of_shape is None:
            pending += [t.name for t in producer.inputs if t.name and scope.const(t.name) is None]
    return list(nodes.values())


def restored_from(scope: Scope, node: gs.Node) -> str:
    """The tensor whose whole Shape a Reshape takes as its target, or ''."""
    if node.op != "Reshape" or len(node.inputs) != 2:
        return ""
    if node.attrs.get("allowzero"):  # opset 14: without it, a 0 would copy another size
        return ""
    return whole_shape_of(scope, node.inputs[1].name)


def whole_shape_of(scope: Scope, name: str) -> str:
    """The tensor whose whole Shape a list of sizes is, or ''."""
    target = scope.producer.get(name)
    if target is None or target.op != "Shape":
        return ""
    if target.attrs.get("start") or target.attrs.get("end") is not None:
        return ""  # opset 15: a part of the shape
    return str(target.inputs[0].name)


def is_identity(chain: Sequence[View]) -> bool:
    """Whether views applied one after the other give back what the first one read."""
    first, last = chain[0], chain[-1]
    if first is last and first.is_copy:  # as a Resize by factors of 1
        return True
    if first.before != last.after:
        return False
    if any(view.channels_behind != view.channels for view in chain):
        return False
    # chains of several sorts, and averages, are never taken for nothing
    sorts = {view.sort for view in chain}
    if sorts == {SpaceMapSort.RESHAPES}:  # the elements are in order: only the dims may differ
        return last.like == first.operand or _same_positions(first, last)
    return sorts == {SpaceMapSort.PERMUTES} and _restores_order(chain)


def _restores_order(transposes: Sequence[View]) -> bool:
    """Whether Transposes one after the other leave every axis where it was."""
    order = list(range(len(transposes[0].start)))
    for view in transposes:
        order = [order[axis] for axis in permutation(view.node, len(order))]
    return order == sorted(order)


def _same_positions(first: View, last: View) -> bool:
    """Whether the dims but that of the channels are the same before and behind, whatever they are."""
    if first.sizes and last.sizes_behind:
        sizes = _without_channels(first.sizes, first.before)
        if sizes == _without_channels(last.sizes_behind, last.after):
            return True
    start, end = _without_channels(first.start, first.before), _without_channels(last.end, last.after)
    if start.count(None) > 1:
        return False  # two unknown sizes may change places
    return start == end


def _without_channels(dims: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
    """Dims with 0 for the channels, to compare positions."""
    channel = layout[0] % len(dims)
    return (*dims[:channel], 0, *dims[channel + 1 :])
