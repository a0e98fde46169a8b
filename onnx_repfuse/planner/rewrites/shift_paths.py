"""Where a scalar shift may go: as a scalar factor (`scalar_paths`), but past views alone.

    view(x) + t = view(x + t)           of a sound, `Unsqueeze((x - mean))` in front of a Conv: the Conv's bias

Every output of a view is one of its inputs, so a shift passes as a factor does. It does not pass a product. It is
absorbed where it costs nothing: by an operator that has a bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.rewrites.factor_patterns import Pattern
from onnx_repfuse.planner.rewrites.scalar_paths import VIEWS, Paths

__all__ = ["ShiftPaths"]

_SHIFTS = ("Add", "Sub", "Sum")
_HAVE_BIAS = ("Conv", "ConvTranspose", "Gemm")
_CHOOSE = frozenset(("Gather", "Slice"))  # what others choose of the same tensor has no such shift


@dataclass(eq=False)
class ShiftPaths(Paths):
    """The ways of scalar shifts in one scope, as it is."""

    def factors(self) -> Iterator[gs.Node]:
        """The nodes that may be scalar shifts."""
        return (node for node in self.scope.nodes if node.op in _SHIFTS)

    def scaled_input(self, node: gs.Node) -> int | None:
        """The input to which a node adds one finite number, not zero, without widening it; None for others."""
        return self.input_beside_scalar(node, commutes=True) if node.op in _SHIFTS else None

    def consumer_that_absorbs(self, name: str) -> LinearOp | None:
        """The operator that alone reads a tensor, and whose bias takes a shift of it: none that reads padding."""
        sink = super().consumer_that_absorbs(name)
        return None if sink is None or sink.terms[0].kernel.geometry.reads_padding else sink

    def _is_absorbing(self, lifted: LinearOp) -> bool:
        if lifted.view is not None or lifted.inner_nodes or len(lifted.operands) != 1:
            return False
        node = lifted.node
        return node.op in _HAVE_BIAS or operator(node).normalizes or node.op in _SHIFTS

    def _passable(self, node: gs.Node, pattern: Pattern | None = None) -> tuple[int, ...]:
        return (0,) if node.op in VIEWS - _CHOOSE and len(node.outputs) == 1 else ()

    def _enlarges_half(self, factor: gs.Node, place: int) -> bool:
        return False
