"""What a node is in the algebra: `LinearOp`, the linear map from its operands to its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Array, Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.graph.views import View
from onnx_repfuse.records.float_formats import epsilon
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

_ROLES: dict[Kind | None, frozenset[Kind]] = {
    None: frozenset(),
    **{kind: frozenset((kind,)) for kind in Kind},
}

__all__ = ["Context", "Declined", "LinearOp", "Operand", "added", "diagonal", "vector_of"]


@dataclass(frozen=True)
class Declined:
    """Linear, but not safely foldable: why, in a clause that follows the node's name."""

    reason: Reason
    detail: str = ""


class Operand(NamedTuple):
    """A tensor an operator reads: its name, channels and layout as the operator sees them."""

    name: str
    channels: int
    layout: tuple[int, int]


@dataclass(eq=False)  # not frozen, see `algebra.form`
class LinearOp:
    """An operator of the algebra.

    Attributes:
        node, output: the node and which of its outputs this is.
        role: the kind that a fold absorbing this node is of; None for a Conv, which every fold may hold.
        channels, layout: of the output.
        terms: `terms[i].source` is an index into `operands`.
        bias: added once.
        padding_value: what it pads with instead of zero.
        needs_equal_shapes: it is exact only if its operands have equal shapes, which is not proved yet.
        size: positions per axis of its operands, where known.
        inner_nodes: nodes between its operands and `node` that go with it, in topological order.
        view: it is this view of its only operand; `layout` is that of the output, its term that of the operand.
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

    @property
    def roles(self) -> frozenset[Kind]:
        """`role` as a set."""
        return _ROLES[self.role]


@dataclass(frozen=True, eq=False)
class Context:
    """What a lift may ask: the scope and the frames of its tensors."""

    scope: Scope
    channel_layouts: dict[str, ChannelLayout]
    protected: frozenset[int] = field(default_factory=frozenset)

    def channel_layout(self, name: str) -> ChannelLayout | None:
        """The frame of a tensor."""
        return self.channel_layouts.get(name)

    def rank(self, name: str) -> int | None:
        """Number of dims of a tensor."""
        shape = self.scope.shape(name)
        if shape is not None:
            return len(shape)
        frame = self.channel_layouts.get(name)
        return frame.rank + 2 if frame is not None and frame.channel_axis == 1 else None

    def size(self, name: str, rank: int) -> tuple[int, ...] | None:
        """Proved positions per spatial axis of a tensor with channels on axis 1."""
        shape = self.scope.shape(name)
        if shape is None or len(shape) != rank + 2:
            return None
        space = shape[2:]
        return None if None in space else tuple(d for d in space if d is not None)


def diagonal(
    node: gs.Node,
    name: str,
    frame: ChannelLayout,
    role: Kind | None,
    scale: Array,
    shift: Array,
    *,
    output: int = 0,
    terms: Array | None = None,
) -> LinearOp:
    """`scale * x + shift` per channel; `terms` are the magnitudes of what `shift` was summed from."""
    axis, rank = frame.layout
    geometry = Geometry.diagonal(frame.channels, rank, axis)
    return LinearOp(
        node,
        node.outputs[output].name,
        role,
        frame.channels,
        frame.layout,
        (Operand(name, frame.channels, frame.layout),),
        (Term(0, Vector(geometry, scale)),),
        Bias.rounded(shift, epsilon(frame.data_type), terms),
    )


def added(const: Const, channels: int, data_type: int) -> Bias:
    """A constant of one value per channel, or one for all, as what it adds to each.

    One of this run comes as it was made: to read it would read kernels.
    """
    if const.bias is not None and len(const.bias.known) == channels:
        return const.bias
    return Bias.rounded(np.broadcast_to(vector_of(const.read()), (channels,)), epsilon(data_type))


def vector_of(values: object) -> Array:
    """Constants as float64, flat."""
    return np.asarray(values).astype(np.float64).ravel()
