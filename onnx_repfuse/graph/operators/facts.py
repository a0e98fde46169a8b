"""What the tool knows about an ONNX operator: one record, which every pass asks.

The functions in a record get what they need in one argument and decide about one node. They never look at neighbours:
that is the passes' work (`channel_axis`, `views`, `unreliable_shapes`, `constant_folding`, `model_size`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from math import inf
from typing import Any

import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.extents import Dims
from onnx_repfuse.graph.operators.channel_rules import BY_SHAPE, ChannelRule
from onnx_repfuse.graph.scope import Scope, Shape

__all__ = [
    "HAVE_SUBGRAPHS",
    "MALFORMED",
    "Attributes",
    "Doubt",
    "Layout",
    "Operator",
    "Passes",
    "SizeCase",
    "SpaceMap",
    "SpaceMapSort",
    "Values",
    "ViewCase",
    "WeightChannels",
    "all_pads",
    "auto_pad",
    "per_axis",
]

MALFORMED = (  # what computing with attributes and values that make no sense raises
    ArithmeticError,
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
)
HAVE_SUBGRAPHS = frozenset(("If", "Loop", "Scan"))  # the operators of ONNX that hold graphs
Attributes = Mapping[str, Any]
Values = NDArray[Any]
Layout = tuple[int, int]  # channel axis (1 or -1) and spatial rank
WeightChannels = Callable[[gs.Node, Sequence[int]], tuple[int, int]]


def auto_pad(attrs: Attributes) -> str:
    """How a window pads: NOTSET where its `pads` say it."""
    return str(attrs.get("auto_pad") or "NOTSET")


def all_pads(attrs: Attributes, rank: int) -> tuple[int, ...]:
    """The `pads` of a window, all begins, then all ends; none where a node leaves them out."""
    return tuple(attrs.get("pads") or (0,) * (2 * rank))


def per_axis(attrs: Attributes, name: str, rank: int) -> tuple[int, ...]:
    """Strides or dilations, one for each spatial axis: 1 where a node leaves them out."""
    return tuple(attrs.get(name) or (1,) * rank)


class SpaceMapSort(Enum):
    """What a view does with the positions of a tensor."""

    RESHAPES = "keeps the elements and their order, changes the dims"
    PERMUTES = "keeps the elements, changes their order"
    JOINS = "moves channels to positions"
    REPEATS = "writes a position of the input to several of the output"
    INTERPOLATES = "writes weighted means of neighbouring positions"
    AVERAGES = "writes means or sums of positions"
    CHOOSES = "takes some of the positions"


@dataclass(frozen=True, eq=False)
class ViewCase:
    """A node that may be a view, and the tensor it reads.

    Attributes:
        scope, node: for its constants.
        before: layout of the operand.
        channels: of operand and output.
        shape, result: proved shapes of operand and output, both of rank 2 or more.
        demanded: the layout and the channels that the consumers of the output demand, if any do.
        dims: those of operand and output as far as they follow from others (`graph.extents`); () where not even the
            rank is known.
    """

    scope: Scope
    node: gs.Node
    before: Layout
    channels: int
    shape: Shape
    result: Shape
    demanded: tuple[Layout, int] | None = None
    dims: Callable[[], tuple[Dims, Dims]] = lambda: ((), ())

    @property
    def channel(self) -> int:
        """The channel axis of the operand, counted from the front."""
        return self.before[0] % len(self.shape)

    @property
    def is_spatial(self) -> bool:
        """Whether the operand is (N, C, ...)."""
        return self.before[0] == 1


@dataclass(frozen=True)
class SpaceMap:
    """A view: it moves, repeats or averages positions, and treats all channels alike.

    Attributes:
        sort: what a node does with positions.
        layout: the layout of the output; None where the node is not a view of these channels.
        copies: whether the output is the operand, for a node that is a view.
        keeps_constants: whether it is certain that it maps a constant to the same constant: each row sums to one.
        work: what computing an element of the output costs, as a multiple of moving one.
        multiply_adds: for an element of the output.
        positions: per spatial axis those of the output, of those of the operand; below 1 where it does not run.
        channels: of the output.
    """

    sort: Callable[[gs.Node], SpaceMapSort]
    layout: Callable[[ViewCase], Layout | None]
    copies: Callable[[ViewCase], bool] = lambda case: False
    keeps_constants: Callable[[ViewCase], bool] = lambda case: True
    work: Callable[[gs.Node], int] = lambda node: 0
    multiply_adds: Callable[[gs.Node], int] = lambda node: 0
    positions: Callable[[gs.Node, Sequence[int]], Sequence[int]] | None = None
    channels: Callable[[ViewCase], int] = lambda case: case.channels

    @classmethod
    def of_sort(cls, sort: SpaceMapSort, layout: Callable[[ViewCase], Layout | None]) -> SpaceMap:
        """Of an operator whose nodes are all of one sort, and only move elements."""
        return cls(lambda node: sort, layout)


class Passes(Enum):
    """What may change places with an operator that is not linear, if it is positive."""

    FACTORS = "f(s*x) = s*f(x) for s > 0: ReLU and its kind"
    AFFINE = "f(s*x + t) = s*f(x) + t for s > 0: a maximum over positions"


class Doubt(Enum):
    """What is not certain of an output, beyond the sizes of single axes."""

    SHAPE = "not even the rank"
    VALUE = "its value, from which later sizes follow"


@dataclass(frozen=True, eq=False)
class SizeCase:
    """A node whose inferred sizes may be wrong.

    Attributes:
        names: of its inputs, '' where left out.
        attrs: its attributes.
        shape, result: inferred shapes of the first input and the first output.
        shapes: inferred shapes of all inputs.
        inputs: flat values of the inputs; None where unknown or too long to decide a size.
        opset: version of the ONNX operator set in force.
    """

    names: Sequence[str]
    attrs: Mapping[str, Any]
    shape: Shape
    result: Shape
    shapes: Sequence[Shape | None]
    inputs: Sequence[list[Any] | None]
    opset: int

    @property
    def space(self) -> list[int]:
        """The spatial axes of (N, C, ...)."""
        return list(range(2, len(self.shape)))

    @property
    def pads_automatically(self) -> bool:
        """Whether `auto_pad` is SAME_UPPER or SAME_LOWER."""
        return self.attrs.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")

    @property
    def pads_twice(self) -> bool:
        """Whether there are `pads` beside an `auto_pad`, which the standard forbids and runtimes accept."""
        return bool(self.attrs.get("pads")) and self.attrs.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"")


@dataclass(frozen=True)
class Operator:
    """The facts of one ONNX operator; the defaults are those of an operator nobody described.

    Attributes:
        name: as in the ONNX standard.
        channels: how channel layouts pass through it, forwards and backwards.
        outputs_are_alike: all its outputs have the layout of the first, with channels of their own.
        space_map: set for an operator that may be a view.
        weight: (node, shape of its second input) -> (channels read, channels written), for an operator that sums over
            channels by a weight. Also called with the sizes of its dims unknown to be constant.
        is_quantized: it computes in integers, whose scales belong to the weights as they are.
        multiply_adds: of a node at the assumed sizes; None where they are unknown.
        scatters: it adds into windows of the output (ConvTranspose), where a Conv reads windows of the input.
        normalizes: its other inputs are scale, shift, mean and variance of each channel.
        stays_for_a_reason: the user is told why one stays that is linear; others cost little or nothing.
        operations: arithmetic operations per output element, besides multiply-adds: for costs.
        has_window: it slides a window of `kernel_shape` over its input, or its output if it `scatters`.
        elementwise: each element of its output is computed from those at the same place of its operands, which
            broadcast as in numpy.
        passes: what passes it per channel, if positive.
        since: the opset that brought it.
        attributes_are_inputs_since: the opset from which axes, starts, pads, min, ... are inputs, attributes before.
        of_shape: its output, from the dims of its input alone.
        gain: by what factor a change of its inputs may grow that is far smaller than ordinary values: 0 where they hide
            it, inf where it may show however small it is. `planner.flush.gains` knows those that depend on constants.
        is_bounded: no output is large, whatever it reads.
        shaped_by_shapes: the values of its inputs decide no shape, nor do those of its outputs further on.
        doubts: which of its inferred sizes are not certain: axes of its outputs, or a `Doubt`.
    """

    name: str
    _: KW_ONLY
    channels: ChannelRule = BY_SHAPE
    outputs_are_alike: bool = False
    space_map: SpaceMap | None = None
    weight: WeightChannels | None = None
    is_quantized: bool = False
    multiply_adds: Callable[[Scope, gs.Node], int | None] | None = None
    scatters: bool = False
    normalizes: bool = False
    stays_for_a_reason: bool = False
    operations: int = 1
    has_window: bool = False
    elementwise: bool = False
    passes: Passes | None = None
    since: int = 1
    attributes_are_inputs_since: int = 1
    of_shape: Callable[[Attributes, tuple[int, ...]], Values] | None = None
    gain: float = inf
    is_bounded: bool = False
    shaped_by_shapes: bool = False
    doubts: Callable[[SizeCase], Sequence[int] | Doubt] | None = None

    def uses_attributes(self, opset: int) -> bool:
        """Whether, in that opset, axes, starts, pads, min, ... are attributes and not inputs."""
        return opset < self.attributes_are_inputs_since
