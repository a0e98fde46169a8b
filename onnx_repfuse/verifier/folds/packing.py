"""Rows of impulses in fewer rows, where these do not meet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.fold_case import FoldCase

__all__ = ["packed", "spread"]

_SPACING = 6  # positions between impulses in one row


def packed(case: FoldCase, data: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """(rows of impulses as fewer rows with one impulse at each position, their number).

    Only for folds that treat every position alone: (rows, *space, C) -> (rows / positions, *space, C).
    """
    channels_last = {s.name: np.moveaxis(data[s.name], s.channel, -1) for s in case.sources}
    positions = min(math.prod(array.shape[1:-1]) for array in channels_last.values())
    if positions < 2:
        return dict(data), len(next(iter(data.values())))
    results = {}
    for source in case.sources:
        array = channels_last[source.name]
        rows = array.reshape(len(array), -1, array.shape[-1])
        count = -(-len(array) // positions)
        result = np.zeros((count, *rows.shape[1:]), array.dtype)
        for number, row in enumerate(rows):
            result[number // positions] += np.roll(row, number % positions, axis=0)
        whole = result.reshape(count, *array.shape[1:])
        results[source.name] = np.ascontiguousarray(np.moveaxis(whole, -1, source.channel))
    return results, count


def spread(case: FoldCase, data: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """(rows of impulses as fewer rows with several impulses each, their number), the impulses far from each other.

    What a Resize or a small window makes of them does not meet, or meets in few outputs, whose sums get longer.
    """
    rows = len(next(iter(data.values())))
    moved = {source.name: np.moveaxis(data[source.name], source.channel, 1) for source in case.sources}
    # Sources may have axes and sizes of their own; what each of them sets need not meet what another does.
    places = {
        name: list(itertools.product(*(range(max(1, size // _SPACING)) for size in array.shape[2:])))
        for name, array in moved.items()
        if array.any()
    }
    each = min(map(len, places.values()), default=1)
    if each < 2:
        return dict(data), rows
    results = {}
    for source in case.sources:
        array = moved[source.name]
        result = np.zeros((-(-rows // each), *array.shape[1:]), array.dtype)
        for number, row in enumerate(array if source.name in places else ()):
            shift = [_SPACING * step for step in places[source.name][number % each]]
            result[number // each] += np.roll(row, shift, tuple(range(1, row.ndim)))
        results[source.name] = np.ascontiguousarray(np.moveaxis(result, 1, source.channel))
    return results, len(next(iter(results.values())))
