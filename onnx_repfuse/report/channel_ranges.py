"""How far the channels of Convs differ in range, before and after, for those who quantize the result."""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnx_repfuse.records.report import Fold, NodeRef
from onnx_repfuse.report.formatting import figure

__all__ = ["ranges_of_fold", "ranges_sentence"]


def ranges_of_fold(fold: Fold) -> str:
    """The largest ratios of the two sides, such as `channel ranges 2.24 -> 1.27`; "" where no Conv was written."""
    before, after = _largest(fold.absorbed), _largest(fold.created)
    return "" if after is None else f"channel ranges {figure(before)} -> {figure(after)}"


def ranges_sentence(folds: Iterable[Fold]) -> str:
    """What the widest channels mean for a quantizer; "" where no Conv was written."""
    folds = list(folds)
    after = _largest(node for fold in folds for node in fold.created)
    if after is None:
        return ""
    before = _largest(node for fold in folds for node in fold.absorbed)
    was = f" (before: {figure(before)})" if before is not None else ""
    return (
        f"Channel ranges: in fused Convs, the widest output channel's weights are up to {figure(after)} times those "
        f"of the median channel{was}. Quantized per tensor, the median channel gets {math.log2(after):.1f} bits fewer "
        "than the widest; quantized per channel, each gets all."
    )


def _largest(nodes: Iterable[NodeRef]) -> float | None:
    return max((node.range_ratio for node in nodes if node.range_ratio is not None), default=None)
