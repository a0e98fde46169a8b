"""Which tensors can be thin: all of their consumers read every g-th position only.

Consumers come first: a 1x1 convolution of stride s wants every s-th position, an element-wise operator wants of its
operands what is wanted of its output, and of a tensor is wanted what any consumer wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd, prod

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, input_names
from onnx_repfuse.lift import Context
from onnx_repfuse.planner.folds.replacements import IsFree
from onnx_repfuse.planner.rewrites.sampling import (
    Strides,
    is_elementwise,
    may_subsample,
    movable_pads,
    strides_read,
)

__all__ = ["ThinTensors"]

MAX_NODES_BACK = 8  # between a strided 1x1 convolution and the one before it
POOLED_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)  # that runtimes take averages of


@dataclass(eq=False)
class ThinTensors:
    """The tensors of one scope that can be thin.

    A tensor that is not wanted whole is thin if a convolution or pool computes it, or an element-wise operator that
    reads a thin tensor. Then everything that reads it wants at most the positions that it has.

    Attributes:
        wanted: tensor -> the strides with which all of its consumers read it; none where they read all of it.
        thin: tensor -> the strides by which it is thinned.
    """

    context: Context
    is_free: IsFree
    wanted: dict[str, Strides] = field(default_factory=dict)
    thin: dict[str, Strides] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Strides of windows that read several positions for each of their own skip nothing.
        candidates = [node for node in self.scope.nodes if node.inputs and may_subsample(node)]
        if all(prod(self.own_strides(node)) == 1 for node in candidates):
            return
        for node in reversed(self.scope.nodes):
            for name, strides in self.reads(node):
                self.wanted[name] = _common(self.wanted.get(name, strides), strides)
        for node in self.scope.nodes:
            strides = self.wanted_of(node)
            if strides and self.can_be_thin(node, len(strides)):
                self.thin[node.outputs[0].name] = strides

    @property
    def scope(self) -> Scope:
        return self.context.scope

    def wanted_of(self, node: gs.Node) -> Strides:
        """The strides with which a node's only output is read, () if it is read whole."""
        if len(node.outputs) != 1 or self.scope.is_seen(node.outputs[0].name):
            return ()
        strides = self.wanted.get(node.outputs[0].name, ())
        return strides if prod(strides) > 1 else ()

    def reads(self, node: gs.Node) -> Iterator[tuple[str, Strides]]:
        """What a node reads, and with which strides; () stands for all of it."""
        names = input_names(node)
        if not names:
            return
        thinned, count = self.thinned_inputs(node, len(names))
        yield from ((name, thinned if place < count else ()) for place, name in enumerate(names))

    def thinned_inputs(self, node: gs.Node, count: int) -> tuple[Strides, int]:
        """The strides with which a node reads its first inputs, and how many of its `count` inputs these are."""
        wanted, strides = self.wanted_of(node), self.own_strides(node)
        if strides and self.is_free(node):
            if not wanted or movable_pads(self.context, node) is None:
                return strides, 1
            return tuple(own * more for own, more in zip(strides, wanted, strict=True)), 1
        if wanted and self.passes_on(node, len(wanted)):
            # a BatchNormalization reads its parameters whole
            return wanted, 1 if operator(node).normalizes else count
        return (), 0

    def own_strides(self, node: gs.Node) -> Strides:
        """The strides with which a node reads its first input, () if it reads more than one position for each."""
        name = node.inputs[0].name
        rank = (self.context.rank(name) or 2) - 2
        if rank <= 0 or (node.op == "Slice" and not self.can_be_copied(name)):
            return ()
        return strides_read(self.context, node, rank) or ()

    def can_be_thin(self, node: gs.Node, rank: int) -> bool:
        """Whether fewer positions of a node's output can be computed, and it saves more than its own work.

        An element-wise operator is not worth it alone: its consumers can read every g-th position by themselves.
        """
        if self.is_free(node) and movable_pads(self.context, node) is not None:
            return True
        return any(self.thin_operands(node)) and self.passes_on(node, rank)

    def passes_on(self, node: gs.Node, rank: int) -> bool:
        """Whether an element-wise operator can be computed at every g-th position, whatever its operands are."""
        if not self.is_free(node) or not is_elementwise(self.context, node, rank):
            return False
        operands = [tensor.name for tensor in node.inputs if tensor.name]
        return all(self.scope.const(name) is not None or self.can_be_copied(name) for name in operands)

    def can_be_copied(self, name: str) -> bool:
        """Whether every g-th position of a tensor can be read, see `subsampling`."""
        return self.scope.data_type(name) in POOLED_TYPES

    def may_shrink(self, name: str) -> bool:
        """Whether a convolution or pool computes a tensor, but for a few element-wise operators."""
        for _ in range(MAX_NODES_BACK):
            producer = self.scope.producer.get(name)
            if producer is None or not self.is_free(producer) or not producer.inputs:
                return False
            if movable_pads(self.context, producer) is not None:
                return True
            if not operator(producer).elementwise and not operator(producer).normalizes:
                return False
            name = producer.inputs[0].name
        return False

    def groups(self) -> list[list[gs.Node]]:
        """The nodes that make or read thin tensors, those together that depend on each other."""
        leader: dict[int, int] = {}

        def find(key: int) -> int:
            while leader.setdefault(key, key) != key:
                leader[key] = key = leader[leader[key]]
            return key

        nodes = [node for node in self.scope.nodes if self.touches(node)]
        for node in nodes:
            for name in self.thin_operands(node):
                leader[find(id(node))] = find(id(self.scope.producer[name]))
        groups: dict[int, list[gs.Node]] = {}
        for node in nodes:
            groups.setdefault(find(id(node)), []).append(node)
        return list(groups.values())

    def touches(self, node: gs.Node) -> bool:
        return any(tensor.name in self.thin for tensor in (*node.inputs, *node.outputs))

    def thin_operands(self, node: gs.Node) -> list[str]:
        return [tensor.name for tensor in node.inputs if tensor.name in self.thin]


def _common(some: Strides, others: Strides) -> Strides:
    """The strides of all positions that either takes; () where one takes all, or reads the tensor along other axes."""
    return tuple(map(gcd, some, others)) if len(some) == len(others) else ()
