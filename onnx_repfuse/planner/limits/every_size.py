"""Whether a fold is as good at every size that is known only at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.planner.limits.refusals import size_refusal, window_refusal
from onnx_repfuse.planner.limits.run_time_sizes import may_rise
from onnx_repfuse.planner.limits.small_inputs import too_small_for
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection
from onnx_repfuse.records.report import Refusal

__all__ = ["RefusalOf", "why_not_at_every_size"]

RefusalOf = Callable[[Scope, Sequence[gs.Node]], Refusal]


def why_not_at_every_size(cover: Cover, selection: Selection) -> RefusalOf | None:
    """What makes the refusal of a selection, given its nodes; None if it may be made."""
    window = too_small_for(cover, selection)
    if window is not None:
        return partial(window_refusal, node=window)
    return size_refusal if may_rise(cover, selection) else None
