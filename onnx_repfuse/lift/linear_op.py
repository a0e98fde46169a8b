"""What a node is in the algebra: `LinearOp`, the linear map from its operands to one of its outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Kernel, Stored, Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.graph.views import View
from onnx_repfuse.graph.windows import proved_size
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, epsilon
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

# One set per kind, shared: a plan asks for the roles of every operator many times.
_ROLES: dict[Kind | None, frozenset[Kind]] = {
    None: frozenset(),
    **{kind: frozenset((kind,)) for kind in Kind},
}

MAX_CHANNEL_VALUES = 1 << 22  # of all tensors of a scope that are lifted

__all__ = [
    "Context",
    "Declined",
    "LinearOp",
    "Operand",
    "affine_role",
    "bias_of_const",
    "diagonal",
    "equal_taps",
    "flat_float64",
    "from_kernel",
]


@dataclass(frozen=True)
class Declined:
    """Linear, but not safely foldable: why, in a clause that follows the node's name."""

    reason: Reason
    detail: str = ""


class Operand(NamedTuple):
    """A tensor that an operator reads: its name, channels and (channel axis, rank) as the operator sees them."""

    name: str
    channels: int
    layout: tuple[int, int]


@dataclass(eq=False)  # not frozen: a plan makes many, see `algebra.affine_form`
class LinearOp:
    """A node's output as terms over its operands and one bias.

    Attributes:
        node, output: the node, and the name of the output.
        role: the kind of a fold that absorbs this node; None for a Conv or an Identity, which a fold of any kind may
            hold.
        channels, layout: number of channels and (channel axis, rank) of the output.
        operands: the tensors it reads.
        terms: `terms[i].source` is an index into `operands`.
        bias: added once, whatever the number of terms.
        padding_value: what it pads with instead of zero, one value per channel.
        needs_equal_shapes: it is exact only if its operands have equal shapes, which is not proved yet.
        size: positions per spatial axis of its operands, where known.
        inner_nodes: nodes between its operands and `node` that are absorbed with it, in topological order.
        view: it is this view of its only operand; `layout` is that of the output, its term's that of the operand.
        also: another reading of the node: an AveragePool is a depthwise convolution, and a view.
        declined: why it is no convolution, where it is one but for that: told where the node stays.
    """

    node: gs.Node
    output: str
    role: Kind | None
    channels: int
    layout: tuple[int, int]
    operands: tuple[Operand, ...]
    terms: tuple[Term, ...]
    bias: Bias
    padding_value: Bias | None = None
    needs_equal_shapes: bool = False
    size: tuple[int, ...] | None = None
    inner_nodes: tuple[gs.Node, ...] = ()
    view: View | None = None
    also: LinearOp | None = None
    declined: Declined | None = None

    @property
    def roles(self) -> frozenset[Kind]:
        """`role` as a set."""
        return _ROLES[self.role]


@dataclass(frozen=True, eq=False)
class Context:
    """What lifting a node may ask for, in a scope as it is.

    Attributes:
        scope: the graph around the node.
        channel_layouts: tensor name -> its `ChannelLayout`, where known.
        protected: id(node) of the nodes that stay because a runtime fuses them as one pattern.
        answers: of `lift`, by id(node) and the number of the output; each with its node, which lives as long.
    """

    scope: Scope
    channel_layouts: dict[str, ChannelLayout]
    protected: frozenset[int] = field(default_factory=frozenset)
    answers: dict[tuple[int, int], tuple[gs.Node, LinearOp | Declined | None]] = field(default_factory=dict)

    @cached_property
    def max_channels(self) -> int | None:
        """The most channels that a lifted tensor may have; None: any number.

        Several values per channel are kept of each lifted tensor: some 100 bytes. A file of 1 MB may say that 20,000
        nodes have 16,384 channels each. What a model keeps in weights, planning may take, too.
        """
        layouts = [
            self.channel_layouts.get(node.outputs[0].name) for node in self.scope.nodes if node.outputs
        ]
        channels = [layout.channels for layout in layouts if layout is not None]
        weights = sum([const.size for const in self.scope.initializers.values()])
        most = max(MAX_CHANNEL_VALUES, weights)
        return None if sum(channels) <= most else most // len(channels)

    def channel_layout(self, name: str) -> ChannelLayout | None:
        """Channel axis, spatial rank, channels and data type of a tensor, if known."""
        return self.channel_layouts.get(name)

    def float_layout(self, *names: str) -> ChannelLayout | None:
        """The layout of the first tensor for which one is known; None if that tensor is not of a float type."""
        for name in names:
            channel_layout = self.channel_layouts.get(name)
            if channel_layout is not None:
                return channel_layout if channel_layout.data_type in FLOAT_FORMATS else None
        return None

    def rank(self, name: str) -> int | None:
        """Number of dims of a tensor, if known."""
        shape = self.scope.shape(name)
        if shape is not None:
            return len(shape)
        channel_layout = self.channel_layouts.get(name)
        if channel_layout is None or channel_layout.channel_axis != 1:
            return None  # channels on the last axis say nothing about the axes before it
        return channel_layout.rank + 2  # (N, C, *space)

    def size(self, name: str, rank: int) -> tuple[int, ...] | None:
        """Proved positions per spatial axis of a (N, C, *space) tensor with `rank` spatial axes."""
        return proved_size(self.scope, name, rank)


def from_kernel(
    node: gs.Node,
    name: str,
    kernel: Kernel,
    role: Kind | None,
    bias: Bias | None = None,
    *,
    size: tuple[int, ...] | None = None,
    padding_value: Bias | None = None,
) -> LinearOp:
    """The node's first output as `kernel` applied to the tensor `name`, plus a bias (default: none)."""
    geometry = kernel.geometry
    operand = Operand(name, geometry.c_in, geometry.layout)
    bias = Bias.zeros(geometry.c_out) if bias is None else bias
    return LinearOp(
        node,
        node.outputs[0].name,
        role,
        geometry.c_out,
        geometry.layout,
        (operand,),
        (Term(0, kernel),),
        bias,
        size=size,
        padding_value=padding_value,
    )


def diagonal(
    node: gs.Node,
    name: str,
    channel_layout: ChannelLayout,
    scale: Array,
    shift: Array,
    *,
    terms: Array | None = None,
) -> LinearOp:
    """`scale * x + shift`, both of shape (channels,); `terms` are the magnitudes of what `shift` was summed from."""
    geometry = Geometry.diagonal(channel_layout.channels, channel_layout.rank, channel_layout.channel_axis)
    bias = Bias.rounded(shift, epsilon(channel_layout.data_type), terms)
    return from_kernel(node, name, Vector(geometry, scale), affine_role(geometry.layout), bias)


def equal_taps(geometry: Geometry, value: float) -> Stored:
    """A kernel with the same number everywhere."""
    weight = np.broadcast_to(value, geometry.weight_shape)
    return Stored(geometry, lambda: weight)


def affine_role(layout: tuple[int, int]) -> Kind:
    """The role of a value per channel: with channels on the last axis it folds into matrix products."""
    return Kind.MATMUL if layout == (-1, 0) else Kind.AFFINE


def bias_of_const(const: Const, channels: int, data_type: int) -> Bias:
    """A constant of one value per channel, or one for all, as what it adds to each.

    The bias of a node that an earlier round created is taken as it is: reading its value would read kernels.
    """
    if const.bias is not None and len(const.bias.known) == channels:
        return const.bias
    return Bias.rounded(np.broadcast_to(flat_float64(const.read()), (channels,)), epsilon(data_type))


def flat_float64(values: object) -> Array:
    """The elements of a constant, shape (size,), float64."""
    return np.asarray(values).astype(np.float64).ravel()
