"""Tensors whose channels correspond one by one, from the convolutions that compute them to those that sum over them.

Between a Conv that writes channels and one that reads them stand operators that keep channels apart: activations,
pools, depthwise convolutions, arithmetic. A channel may leave all of them at once, if nobody else reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.planner.folds.replacements import IsFree

__all__ = ["Region", "axis_of_parameter", "regions"]

WEIGHT, BIAS = 1, 2  # the inputs of a convolution
MAX_NODES = 64  # of a region: a fold of more is nothing that a person can follow, or a proof can bound
_CONVOLUTIONS = ("Conv", "ConvTranspose")
# Operators with one parameter per channel, and those that treat all channels alike, beside the elementwise ones.
_NORMALIZES = "BatchNormalization"
_ALIKE = {
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "ReduceMax", "ReduceMean", "ReduceSum",
    "Resize", "Upsample",
}  # fmt: skip


@dataclass(eq=False)
class Region:
    """Tensors with the same channels.

    Attributes:
        channels: how many.
        tensors: their names.
        producers: convolutions that write them, as rows of a weight.
        keepers: nodes in between, which read and write such tensors.
        sinks: convolutions that sum over them, as columns of a weight.
    """

    channels: int
    tensors: dict[str, None] = field(default_factory=dict)
    producers: list[gs.Node] = field(default_factory=list)
    keepers: list[gs.Node] = field(default_factory=list)
    sinks: list[gs.Node] = field(default_factory=list)

    @property
    def nodes(self) -> list[gs.Node]:
        """All of them."""
        return [*self.producers, *self.keepers, *self.sinks]


def regions(scope: Scope, layouts: Mapping[str, ChannelLayout], is_free: IsFree) -> Iterator[Region]:
    """The regions of which every consumer and producer is known and may be replaced.

    Args:
        layouts: of the tensors whose channels are known.
        is_free: whether a node may be replaced.
    """
    seen: set[str] = set()
    left: set[str] = set()  # tensors of regions that are none, so that none grows from their other tensors
    for node in scope.nodes:
        if not _writes_channels(scope, node) or node.outputs[0].name in seen:
            continue
        region = _Grower(scope, layouts, is_free, left).grown(node.outputs[0].name)
        seen.update(region.tensors)
        if (
            not region.is_closed and region.region.channels > 1
        ):  # of one, inputs are left out that are alike for all
            left.update(region.tensors)
        if region.is_closed and region.region.sinks and region.region.producers:
            yield region.region


class _Grower:
    """A region while it grows from one tensor; `is_closed` until something unknown reads or writes one."""

    def __init__(
        self, scope: Scope, layouts: Mapping[str, ChannelLayout], is_free: IsFree, left: Set[str]
    ) -> None:
        self.scope, self.layouts, self.is_free, self.left = scope, layouts, is_free, left
        self.is_closed = True

    @property
    def tensors(self) -> dict[str, None]:
        return self.region.tensors

    def grown(self, first: str) -> _Grower:
        layout = self.layouts.get(first)
        self.region = Region(0 if layout is None else layout.channels)
        pending, nodes = [first], set[int]()
        while pending and self.is_closed:
            name = pending.pop()
            if name in self.tensors:
                continue
            self.tensors[name] = None
            producer = self.scope.producer.get(name)
            if producer is None or not self._may_change(name) or len(nodes) > MAX_NODES:
                self.is_closed = False
                break
            for node in (producer, *self.scope.consumers.get(name, ())):
                if id(node) not in nodes:
                    pending += self._joined(node, name, nodes)
        return self

    def _may_change(self, name: str) -> bool:
        """Whether a tensor has the region's channels, and may have fewer of them."""
        stays = name in self.left or self.scope.is_seen(name)
        return not stays and self._has_channels(name)

    def _has_channels(self, name: str) -> bool:
        layout = self.layouts.get(name)
        return layout is not None and layout.channel_axis == 1 and layout.channels == self.region.channels

    def _joined(self, node: gs.Node, name: str, nodes: set[int]) -> list[str]:
        """The further tensors of the region that a node reads or writes."""
        if not self.is_free(node):
            self.is_closed = False
        elif is_convolution(self.scope, node) and not is_depthwise(self.scope, node):
            self._note_convolution(node, name)
        elif keeps_channels(self.scope, self.layouts, node):
            nodes.add(id(node))
            self.region.keepers.append(node)
            return [*self._kept_inputs(node), node.outputs[0].name]
        else:
            self.is_closed = False
        return []

    def _note_convolution(self, node: gs.Node, name: str) -> None:
        """Note a convolution that writes or reads a tensor: it ends the region, if it has one group."""
        # It may be both, of two regions: once for each tensor that it touches.
        is_sink = node.outputs[0].name != name
        side = self.region.sinks if is_sink else self.region.producers
        if not any(node is other for other in side):
            side.append(node)
        is_parameter = name in (optional_input(node, WEIGHT), optional_input(node, BIAS))
        is_known = has_one_group(node) and not is_parameter and self._weighs_all(node, is_sink=is_sink)
        self.is_closed = self.is_closed and is_known

    def _weighs_all(self, node: gs.Node, *, is_sink: bool) -> bool:
        """Whether its weight has a row, or column, for each channel: one that has not does not run."""
        axis = int(is_sink != (node.op == "ConvTranspose"))
        const = self.scope.const(optional_input(node, WEIGHT))
        return const is not None and len(const.shape) > 1 and const.shape[axis] == self.region.channels

    def _kept_inputs(self, node: gs.Node) -> list[str]:
        """The inputs with the region's channels; one channel for all of them is no member."""
        names = [
            tensor.name for tensor in node.inputs if self.scope.const(tensor.name) is None and tensor.name
        ]
        return [name for name in names if not self._is_alike_for_all(name)]

    def _is_alike_for_all(self, name: str) -> bool:
        shape = self.scope.shape(name)
        return shape is not None and len(shape) >= 2 and shape[1] == 1


def _writes_channels(scope: Scope, node: gs.Node) -> bool:
    return is_convolution(scope, node) and has_one_group(node) and not is_depthwise(scope, node)


def is_convolution(scope: Scope, node: gs.Node) -> bool:
    """Whether it is a Conv or ConvTranspose of constant weights."""
    if node.op not in _CONVOLUTIONS or len(node.outputs) != 1:
        return False
    parameters = [name for place in (WEIGHT, BIAS) if (name := optional_input(node, place))]
    return all(scope.const(name) is not None for name in parameters)


def has_one_group(node: gs.Node) -> bool:
    """Whether each output channel sums over all input channels."""
    return bool(node.attrs.get("group", 1) == 1)


def is_depthwise(scope: Scope, node: gs.Node) -> bool:
    """Whether each output channel reads the input channel of its number."""
    const = scope.const(optional_input(node, WEIGHT))
    groups = node.attrs.get("group", 1)
    return const is not None and groups > 1 and const.shape[:2] == (groups, 1)


def keeps_channels(scope: Scope, layouts: Mapping[str, ChannelLayout], node: gs.Node) -> bool:
    """Whether output channel c depends on channel c of its inputs alone, and all its parameters are constants."""
    if len([tensor for tensor in node.outputs if tensor.name]) != 1:
        return False
    if node.op in _CONVOLUTIONS:
        return is_depthwise(scope, node)
    if node.op == _NORMALIZES:
        return _normalizes_by_constants(scope, node)
    layout = layouts.get(node.outputs[0].name)
    if layout is None:
        return False
    rank = layout.rank + 2
    if node.op in _ALIKE:
        return _treats_channels_alike(scope, node, rank)
    # an `axis` says how old opsets broadcast, or along which axis a Softmax adds up
    if not operator(node).elementwise or node.op == "Cast" or "axis" in node.attrs:
        return False
    return all(_fits(scope, layouts, tensor.name, rank, layout.channels) for tensor in node.inputs)


def _normalizes_by_constants(scope: Scope, node: gs.Node) -> bool:
    """Whether it is a BatchNormalization as it is in inference."""
    is_constant = all(scope.const(tensor.name) is not None for tensor in node.inputs[1:])
    return is_constant and not node.attrs.get("training_mode", 0)


def _fits(scope: Scope, layouts: Mapping[str, ChannelLayout], name: str, rank: int, channels: int) -> bool:
    """Whether an operand has as many channels as the output, or one for all, on the same axis."""
    const = scope.const(name)
    if not name:
        return True
    if const is not None:
        return len(const.shape) <= rank and axis_of_parameter(const, rank, channels) is not None
    shape = scope.shape(name)
    if shape is not None and len(shape) == rank and shape[1] == 1:
        return True
    layout = layouts.get(name)
    return layout is not None and (layout.layout, layout.channels) == ((1, rank - 2), channels)


def axis_of_parameter(const: Const, rank: int, channels: int) -> int | None:
    """The axis along which a constant operand has a value for each channel; -1 if it is alike for all, None if neither.

    Args:
        rank: of the tensors it broadcasts against, the channels on axis 1.
    """
    axis = len(const.shape) - rank + 1
    if axis < 0 or const.shape[axis] == 1:
        return -1
    return axis if const.shape[axis] == channels else None


def _treats_channels_alike(scope: Scope, node: gs.Node, rank: int) -> bool:
    """Whether a pool, a reduction, a Pad or a Resize leaves batch and channels alone."""
    if any(tensor.name and scope.const(tensor.name) is None for tensor in node.inputs[1:]):
        return False
    if node.op.startswith("Reduce"):
        return _reduces_space(scope, node, rank)
    if node.op == "Pad":
        return _pads_space(scope, node, rank)
    if node.op in ("Resize", "Upsample"):
        return _resizes_space(scope, node, rank)
    return True


def _reduces_space(scope: Scope, node: gs.Node, rank: int) -> bool:
    """Whether a reduction is over spatial axes, which stay with one position each."""
    axes = _ints(scope, node, "axes", 1)
    if not axes or node.attrs.get("keepdims", 1) != 1:
        return False
    return min(axis % rank for axis in axes) >= 2


def _pads_space(scope: Scope, node: gs.Node, rank: int) -> bool:
    """Whether a Pad adds nothing before and after batch and channels."""
    pads = _ints(scope, node, "pads", 1)
    has_axes = bool(optional_input(node, 3))  # then the pads are of these axes alone
    if has_axes or pads is None or len(pads) != 2 * rank:
        return False
    return not any((*pads[:2], *pads[rank : rank + 2]))


def _resizes_space(scope: Scope, node: gs.Node, rank: int) -> bool:
    """Whether a Resize has the scale 1 for batch and channels."""
    # (x, scales) until opset 10, (x, roi, scales, sizes) from 11 on
    place = 1 if len(node.inputs) == 2 else 2
    const = scope.const(optional_input(node, place))
    if optional_input(node, 3) or "axes" in node.attrs or "scales" in node.attrs or const is None:
        return False  # sizes name the channels
    scales = const.computed()
    return scales is not None and len(scales) == rank and bool((scales[:2] == 1).all())


def _ints(scope: Scope, node: gs.Node, attribute: str, place: int) -> list[int] | None:
    if attribute in node.attrs:
        return list(node.attrs[attribute])
    const = scope.const(optional_input(node, place))
    return None if const is None or const.data_type != onnx.TensorProto.INT64 else const.integers()
