"""Whether an output could have shown a fault at all.

It can if a noticeable share of its elements moves visibly with the inputs: by many tolerances, between two feeds
of one shape. A softmax that is all zeros and ones, a constant, or a signal below the noise does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_repfuse.verify.measure import Array, difference
from onnx_repfuse.verify.sample import Sample

__all__ = ["blind"]

_VISIBLE = 16.0  # an element is observed if inputs move it by this many tolerances ...
_SHARE = 0.01  # ... and an output if this share of its elements is


def blind(samples: Sequence[Sample], tolerances: Sequence[Array]) -> str:
    """Why the output could not have shown a fault, as a clause, or "".

    Args:
        samples: of a float output, all with an original.
        tolerances: of each sample, broadcastable to its original.
    """
    alone, changes = True, False
    for i, a in enumerate(samples):
        for j, b in enumerate(samples[:i]):
            if a.scene != b.scene or a.original is None or b.original is None:
                continue
            if a.original.shape != b.original.shape:
                return ""
            alone = False
            gap = difference(a.original, b.original)
            changes = changes or bool(gap.any())
            if gap.size and (gap > _VISIBLE * np.maximum(tolerances[i], tolerances[j])).mean() >= _SHARE:
                return ""
    if alone:
        for sample, tolerance in zip(samples, tolerances, strict=True):
            if sample.original is not None and _varies(sample.original, tolerance):
                return ""
        return "is constant or drowned in noise"
    return "is saturated or drowned in noise" if changes else "does not depend on the inputs"


def _varies(value: Array, tolerance: Array) -> bool:
    """With a single feed: whether the elements differ from each other."""
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        return False
    gap = difference(wide, np.full_like(wide, np.median(finite)))
    return bool((gap > _VISIBLE * tolerance).mean() >= _SHARE)
