"""Whether a fold is as good at every size that is known only at run time."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.planner.limits.refusals import size_refusal, window_refusal
from onnx_repfuse.planner.limits.run_time_sizes import may_rise
from onnx_repfuse.planner.limits.small_inputs import too_small_for
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection
from onnx_repfuse.records.report import Refusal

__all__ = ["NotMade", "why_not_at_every_size"]


@dataclass(frozen=True)
class NotMade:
    """A selection that is not made.

    Attributes:
        nodes: all that it would have absorbed.
        window: the one that is too small for some size; None if multiply-adds may rise.
    """

    nodes: tuple[gs.Node, ...]
    window: gs.Node | None

    @property
    def clause(self) -> str:
        """Why, in a few words."""
        if self.window is not None:
            return "at some size a window would be larger than what it reads"
        return "more multiply-adds at some size"

    def refusal(self, scope: Scope, present: Set[int]) -> Refusal | None:
        """Why its nodes stay; None if they did not.

        Args:
            scope: theirs.
            present: ids of the nodes that are left. What stands beside a window may have been folded otherwise.
        """
        left = [node for node in self.nodes if id(node) in present]
        if self.window is not None:
            return window_refusal(scope, left, self.window) if id(self.window) in present else None
        return size_refusal(scope, left) if len(left) == len(self.nodes) else None


def why_not_at_every_size(cover: Cover, selection: Selection) -> NotMade | None:
    """Why a selection is not made; None if it may be."""
    window = too_small_for(cover, selection)
    if window is None and not may_rise(cover, selection):
        return None
    return NotMade(selection.nodes, window)
