"""Where a scalar factor may go: to what absorbs it, past operators that a factor passes through.

    s * view(x) = view(s * x)        s * (a @ b) = (s * a) @ b = a @ (s * b)

A view here is any operator whose every output is one of its inputs: it needs to know of no channels. A factor moves up
to the product, convolution or other factor that computes what is scaled; or down to the one that reads it; or down to a
product of two tensors and from there up the other operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.views import proved_rank
from onnx_repfuse.lift import Context, LinearOp, lift
from onnx_repfuse.planner.folds.replacements import IsFree
from onnx_repfuse.planner.rewrites.factor_patterns import (
    Pattern,
    by_channel,
    pattern_above,
    pattern_of_choice,
    pattern_of_part,
)
from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["VIEWS", "Path", "Paths", "Step"]

MAX_STEPS = 16
MAX_PARTS = 16  # of one tensor, each of which may have a factor
VIEWS = {
    "DepthToSpace", "Expand", "Flatten", "Gather", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
}  # fmt: skip
_FACTORS = {"Div", "Mul", "Neg"}
_PRODUCTS = {"Einsum", "MatMul"}  # linear in each of two tensors


@dataclass(frozen=True, eq=False)
class Step:
    """A node that is passed, the input through which, and the output from which: a Split has several.

    Attributes:
        others: nodes that choose other elements of the same tensor.
    """

    node: gs.Node
    place: int
    output: int = 0
    others: tuple[gs.Node, ...] = ()


@dataclass(frozen=True, eq=False)
class Path:
    """A way of a factor.

    Attributes:
        factor: the node that multiplies.
        down: the nodes it passes downwards, in their order.
        turn: a product behind them, in front of whose other operand it goes on.
        up: those it passes upwards, from `factor` or from that operand.
        sink: the operator that absorbs it.
        channels: those that it scales there, where it scales some only, shape (channels,).
    """

    factor: gs.Node
    down: tuple[Step, ...]
    turn: Step | None
    up: tuple[Step, ...]
    sink: LinearOp
    channels: NDArray[np.bool_] | None = None

    @property
    def place(self) -> gs.Node:
        """The node in whose place the new ones stand: its output keeps its name."""
        if self.turn is not None:
            return self.turn.node
        return self.down[-1].node if self.down else self.factor

    @property
    def output(self) -> str:
        """The tensor that is computed otherwise."""
        return str(self.place.outputs[0].name)

    @property
    def nodes(self) -> list[gs.Node]:
        """The factor, and the nodes that are written again."""
        turn = () if self.turn is None else (self.turn,)
        others = [node for step in self.up for node in step.others]
        return [self.factor, *(step.node for step in (*self.down, *turn, *self.up)), *others]

    @property
    def passes_product(self) -> bool:
        """Whether it passes a product of two tensors."""
        return any(node.op in _PRODUCTS for node in self.nodes)


class _Way(NamedTuple):
    """Steps upwards to what absorbs a factor, and the channels that it scales there; None for all."""

    steps: tuple[Step, ...]
    sink: LinearOp
    channels: NDArray[np.bool_] | None = None


@dataclass(eq=False)
class Paths:
    """The ways of factors in one scope, as it is.

    Attributes:
        is_free: whether a node may be replaced.
    """

    context: Context
    is_free: IsFree
    _lifted: dict[str, LinearOp | None] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        return self.context.scope

    @property
    def layouts(self) -> Mapping[str, ChannelLayout]:
        return self.context.channel_layouts

    def of(self, factor: gs.Node) -> Path | None:
        """The way of a factor to what absorbs it; None if nothing does, or if it stands beside that."""
        place = self.scaled_input(factor)
        if place is None or not self.may_go(factor):
            return None
        output = factor.outputs[0].name
        if self.absorbs_from_below(factor.inputs[place].name, factor) or self.consumer_that_absorbs(output):
            return None
        enlarges = self._enlarges_half(factor, place)
        found = None if enlarges else self._up(factor.inputs[place].name, (factor,), MAX_STEPS)
        return (
            self._down(factor)
            if found is None
            else Path(factor, (), None, found.steps, found.sink, found.channels)
        )

    def sum_of_product(self, factor: gs.Node) -> gs.Node | None:
        """The Add behind a product of two tensors that keeps a factor from the product."""
        place = self.scaled_input(factor)
        name = "" if place is None else factor.inputs[place].name
        total = self.scope.producer.get(name)
        if total is None or total.op != "Add" or not self.may_go(factor) or not self.is_alone(name, factor):
            return None
        below = [self.scope.producer.get(tensor.name) for tensor in total.inputs]
        return total if any(node is not None and self._passable(node) == (0, 1) for node in below) else None

    def scaled_input(self, node: gs.Node) -> int | None:
        """The input that a node multiplies with one finite number, not zero, without widening it; None for others."""
        if node.op == "Neg":
            return 0
        return self.input_beside_scalar(node, commutes=node.op == "Mul") if node.op in _FACTORS else None

    def input_beside_scalar(self, node: gs.Node, *, commutes: bool) -> int | None:
        """The input that stands beside one finite number, not zero, which does not widen it; None where there is none.

        Args:
            commutes: the number may be the first input.
        """
        if len(node.inputs) != 2:
            return None
        names = [tensor.name for tensor in node.inputs]
        place = 1 if commutes and self.scope.const(names[0]) is not None else 0
        data, const = names[place], self.scope.const(names[1 - place])
        if const is None or self.scope.const(data) is not None or not self._is_factor(names[1 - place]):
            return None
        # a number of shape (1, 1) makes a matrix of a vector
        return None if len(const.shape) > len(self.scope.shape(data) or ()) else place

    def _is_factor(self, name: str) -> bool:
        """Whether a tensor is one finite float, and not zero."""
        value = self.scope.scalar(name)
        is_float = self.scope.data_type(name) in FLOAT_FORMATS
        return is_float and value is not None and 0 < abs(value) < float("inf")

    def reads(self, name: str) -> list[gs.Node]:
        """The nodes that read the values of a tensor, and not only its shape."""
        return [node for node in self.scope.consumers.get(name, ()) if operator(node).of_shape is None]

    def may_go(self, node: gs.Node) -> bool:
        """Whether a node may be replaced: it is free, and no part of a pattern that runtimes fuse."""
        return id(node) not in self.context.protected and self.is_free(node)

    def is_alone(self, name: str, *consumers: gs.Node) -> bool:
        """Whether only these nodes, and nobody outside, read the values of a tensor, once each."""
        reads = sorted(id(node) for node in self.reads(name))
        return not self.scope.is_seen(name) and reads == sorted(map(id, consumers))

    def only_consumer(self, name: str) -> gs.Node | None:
        """The node that alone reads the values of a tensor, which nobody outside reads."""
        consumers = self.reads(name)
        return consumers[0] if len(consumers) == 1 and not self.scope.is_seen(name) else None

    def _enlarges_half(self, factor: gs.Node, place: int) -> bool:
        """Whether it is above 1 in half precision: moved in front of a product, it could overflow what was small."""
        data_type = self.scope.data_type(factor.outputs[0].name) or 0
        limits = FLOAT_FORMATS.get(data_type)
        if limits is None or not limits.is_half or factor.op == "Neg":
            return False
        value = abs(self.scope.scalar(factor.inputs[1 - place].name) or 1.0)
        return (1 / value if factor.op == "Div" else value) > 1

    def _up(
        self, name: str, consumers: tuple[gs.Node, ...], left: int, pattern: Pattern | None = None
    ) -> _Way | None:
        """The way upwards from a tensor, which `consumers` read, to what absorbs a factor of it; at least one step.

        Args:
            left: steps that may be taken.
            pattern: the elements that are scaled; None for all.
        """
        producer = self.scope.producer.get(name)
        if not left or producer is None or not self.may_go(producer) or not self.is_alone(name, *consumers):
            return None
        output = [tensor.name for tensor in producer.outputs].index(name)
        for place in self._passable(producer, pattern):
            others = self._other_choices(producer) if place == 0 else ()
            way = self._past(Step(producer, place, output, others), left, pattern)
            if way is not None:
                return way
        return None

    def _past(self, step: Step, left: int, pattern: Pattern | None) -> _Way | None:
        """The way upwards whose first step is this one; see `_up`."""
        passes, inner = self._pattern_below(step.node, step.output, pattern, step.others)
        if not passes or not self._can_be_tried(step.node):
            return None
        below, consumers = step.node.inputs[step.place].name, (step.node, *step.others)
        way = self._end_of_way(below, consumers, inner) or self._up(below, consumers, left - 1, inner)
        return None if way is None else _Way((step, *way.steps), way.sink, way.channels)

    def _other_choices(self, node: gs.Node) -> tuple[gs.Node, ...]:
        """The nodes that choose parts of what a Gather or Slice reads, too."""
        if node.op not in ("Gather", "Slice"):
            return ()
        others = [other for other in self.reads(node.inputs[0].name) if other is not node]
        are_alike = len(others) < MAX_PARTS and all(
            other.op in ("Gather", "Slice") and self.may_go(other) for other in others
        )
        return tuple(others) if are_alike else ()

    def _end_of_way(self, name: str, consumers: tuple[gs.Node, ...], pattern: Pattern | None) -> _Way | None:
        """Nothing more to pass: what computes a tensor absorbs a factor of these elements."""
        sink = self.absorbs_from_below(name, *consumers)
        if sink is None or pattern is None:
            return None if sink is None else _Way((), sink)
        layout = self.layouts.get(name)
        channels = None if layout is None else by_channel(pattern, layout)
        return None if channels is None else _Way((), sink, channels)

    def _pattern_below(
        self, node: gs.Node, output: int, pattern: Pattern | None, others: tuple[gs.Node, ...]
    ) -> tuple[bool, Pattern | None]:
        """Whether a factor of some elements passes a node, and which elements it scales then."""
        if node.op == "Split":
            inner = pattern_of_part(self.scope, node, output, pattern)
            return inner is not None, inner
        if others or (pattern is not None and node.op in ("Gather", "Slice")):
            inner = pattern_of_choice(self.scope, node, others, pattern)
            return inner is not None, inner
        if pattern is None:
            return True, None
        inner = pattern_above(self.scope, node, pattern)
        return inner is not None, inner

    def _down(self, factor: gs.Node) -> Path | None:
        """The way downwards to what absorbs a factor of what it reads, or up the other operand of a product."""
        node, down = factor, tuple[Step, ...]()
        while len(down) < MAX_STEPS:
            name = node.outputs[0].name
            sink = self.consumer_that_absorbs(name)
            if sink is not None:
                return Path(factor, down, None, (), sink)
            consumer = self.only_consumer(name)
            step = None if consumer is None else self._step_down(consumer, name)
            if step is None:
                return None
            node = step.node
            up = self._up_other_operand(step) if node.op in _PRODUCTS else None
            if up is not None:
                return Path(factor, down, step, up.steps, up.sink, up.channels)
            down = (*down, step)
        return None

    def _step_down(self, node: gs.Node, name: str) -> Step | None:
        """The step past a node, of which a factor of a tensor that it reads is a factor of the output."""
        if node.op == "Split" or not self.may_go(node):  # of a Split it would be a factor of each part
            return None
        place = next((place for place in self._passable(node) if node.inputs[place].name == name), None)
        return None if place is None or not self._can_be_tried(node) else Step(node, place)

    def _up_other_operand(self, product: Step) -> _Way | None:
        """The way upwards from the other operand of a product."""
        other = product.node.inputs[1 - product.place].name
        sink = self.absorbs_from_below(other, product.node)
        return _Way((), sink) if sink is not None else self._up(other, (product.node,), MAX_STEPS)

    def _can_be_tried(self, node: gs.Node) -> bool:
        """Whether enough is known of the sizes of what a node reads to try the fold by itself.

        Operands of a product that are split into heads fit each other at few sizes.
        """
        varying = [t.name for t in node.inputs if t.name and self.scope.const(t.name) is None]
        if node.op not in _PRODUCTS:
            return all(proved_rank(self.scope, name) is not None for name in varying)
        shapes = [self.scope.shape(name) for name in varying]
        return all(shape is not None and shape[1:].count(None) <= 2 for shape in shapes)

    def _passable(self, node: gs.Node, pattern: Pattern | None = None) -> tuple[int, ...]:
        """The inputs of a node whose factor, of some elements, is a factor of its output."""
        if node.op == "Split" and len(node.outputs) <= MAX_PARTS and self.is_alone(node.inputs[0].name, node):
            return (0,)
        if len(node.outputs) != 1 or (pattern is not None and node.op in _PRODUCTS):
            return ()
        if node.op in VIEWS:
            return (0,)
        names = [tensor.name for tensor in node.inputs]
        is_product = node.op in _PRODUCTS and len(names) == 2 and names[0] != names[1]
        return (0, 1) if is_product and all(self.scope.const(name) is None for name in names) else ()

    def absorbs_from_below(self, name: str, *consumers: gs.Node) -> LinearOp | None:
        """The operator that computes a tensor and absorbs a factor of it, maybe through shifts."""
        for _ in range(MAX_STEPS):
            lifted = self.lifted(name)
            if lifted is None or not self.is_alone(name, *consumers) or not self.may_go(lifted.node):
                return None
            if self._is_absorbing(lifted):
                return lifted
            is_shift = len(lifted.operands) == len(lifted.node.outputs) == 1 and lifted.view is None
            if not is_shift or not lifted.terms[0].kernel.geometry.is_diagonal:
                return None
            name, consumers = lifted.operands[0].name, (lifted.node,)
        return None

    def consumer_that_absorbs(self, name: str) -> LinearOp | None:
        """The operator that alone reads a tensor and absorbs a factor of it."""
        consumer = self.only_consumer(name)
        if consumer is None or name not in self.layouts:
            return None
        lifted = self.lifted(consumer.outputs[0].name)
        if lifted is None or [operand.name for operand in lifted.operands] != [name]:
            return None
        return lifted if self.may_go(lifted.node) and self._is_absorbing(lifted) else None

    def _is_absorbing(self, lifted: LinearOp) -> bool:
        """Whether a factor beside an operator goes into its constants: a weight, or a factor."""
        if lifted.view is not None or lifted.inner_nodes:
            return False
        facts = operator(lifted.node)
        return facts.weight is not None or facts.normalizes or lifted.node.op in _FACTORS

    def lifted(self, name: str) -> LinearOp | None:
        """The operator that computes a tensor, if it is linear and acts on channels."""
        if name not in self._lifted:
            node = self.scope.producer.get(name)
            is_first = node is not None and node.outputs[0].name == name
            lifted = lift(self.context, node) if node is not None and is_first else None
            self._lifted[name] = lifted if isinstance(lifted, LinearOp) else None
        return self._lifted[name]

    def factors(self) -> Iterator[gs.Node]:
        """The nodes that may be scalar factors."""
        return (node for node in self.scope.nodes if node.op in _FACTORS)
