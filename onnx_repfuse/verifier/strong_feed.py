"""One more feed for models in half precision: larger values, which move the outputs visibly.

Random inputs of one size lead deep networks to nearly the same output: that of an untrained MobileNetV3 changes by a
hundredth between two of them. Half precision rounds by a thousandth, so nothing would be observed. A larger input
changes the share of the biases in every layer, and with it the whole output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnx_repfuse.records.float_formats import is_float
from onnx_repfuse.verifier.distance import (
    Array,
    difference,
    flatten,
    is_float_array,
    is_inexact,
    largest,
    ulp,
)
from onnx_repfuse.verifier.inputs import Feed, FeedGroup
from onnx_repfuse.verifier.session import DoesNotRun, Session

__all__ = ["with_strong_feed"]

# Normal random values of up to 5 become 20, as in a normalized image of high contrast. The other factors are for
# outputs that sink below the smallest number of the format otherwise.
_FACTORS = (4.0, 64.0, 1024.0, 8192.0)
_VISIBLE_PART = 1 / 8  # of an output's largest value: 250 ulp of float16
_VISIBLE_ULPS = 64.0  # where values are so small that few numbers of the format are left
_VISIBLE_SHARE = 0.01  # of its elements
Outputs = Mapping[str, Array | None]


def with_strong_feed(group: FeedGroup, session: Session) -> FeedGroup:
    """The group with one more feed: its last, times the smallest factor that moves the most outputs.

    The group stays as it is if it has no float inputs, or if the model does not run on such values or overflows.
    """
    feed, outputs = group.feeds[-1], flatten(group.outputs[-1])
    best: tuple[int, Feed] | None = None
    for factor in _FACTORS:
        strong = {name: _times(value, factor) for name, value in feed.items()}
        if all(strong[name] is value for name, value in feed.items()):
            return group
        try:
            found = flatten(session.run(strong))
        except DoesNotRun:
            break
        if not _are_finite(found):
            break
        moved = _count_moved(outputs, found)
        if best is None or moved > best[0]:
            best = (moved, strong)
        if moved == sum(value is not None and is_inexact(value.dtype) for value in found.values()):
            break
    return group if best is None else group.with_run(best[1], group.seeds[-1], session)


def _times(value: Any, factor: float) -> Any:
    """Floats times a factor, also in sequences; any other value as it is."""
    if isinstance(value, list):
        return [_times(item, factor) for item in value]
    if is_float_array(value):
        return (value.astype(np.float64) * factor).astype(value.dtype)
    return value


def _are_finite(outputs: Outputs) -> bool:
    floats = [value for value in outputs.values() if value is not None and is_float(value.dtype)]
    return all(bool(np.isfinite(array.astype(np.float64)).all()) for array in floats)


def _count_moved(first: Outputs, second: Outputs) -> int:
    """How many float outputs differ visibly."""
    return sum(_has_moved(value, second.get(name)) for name, value in first.items())


def _has_moved(before: Array | None, after: Array | None) -> bool:
    if before is None or after is None or not is_inexact(before.dtype):
        return False
    if before.shape != after.shape or not before.size:
        return False
    top = max(largest(before), largest(after))
    visible = difference(before, after) > max(_VISIBLE_PART * top, _VISIBLE_ULPS * ulp(top, before.dtype))
    return bool(visible.mean() >= _VISIBLE_SHARE)
