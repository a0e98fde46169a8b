"""Kernels that add up to zero keep doing so when they are rounded to half precision.

The taps of an edge filter (Sobel, Laplace) add up to zero: it does not see how bright an image is. Each tap is rounded
by itself, so the rounded taps add up to some ulps. That sum times the brightness is added to every output. The sum is
known, so it is given back, one ulp at a time, to taps that were rounded in its direction, the largest first. Thus no
tap is farther than one ulp from where it should be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.records.float_formats import FLOAT_FORMATS

__all__ = ["keep_zero_sums"]

Weights = NDArray[Any]
NEGLIGIBLE = 2.0**-40  # of the sum of the magnitudes: what float64 leaves of a sum that is zero
HALF = {limits.dtype for limits in FLOAT_FORMATS.values() if limits.is_half}


def keep_zero_sums(exact: NDArray[np.float64], rounded: Weights) -> Weights:
    """Rounded weights whose sums are as near to zero as can be, wherever those of the exact ones are zero.

    Args:
        exact: (output channels, input channels, *kernel).
        rounded: the same in the model's type, of the same shape; changed in place if that is half precision.
    """
    if rounded.dtype not in HALF or exact.size == 0:
        return rounded
    channels, inputs = exact.shape[:2]
    taps = exact.reshape(channels * inputs, -1)
    by_input = _is_zero_sum(taps).reshape(channels, inputs)
    _give_back(taps, rounded.reshape(channels * inputs, -1), by_input.ravel())
    # A whole output channel may add up to zero, though no kernel of it does.
    rows = exact.reshape(channels, -1)
    _give_back(rows, rounded.reshape(channels, -1), _is_zero_sum(rows) & ~by_input.any(axis=1))
    return rounded


def _is_zero_sum(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows add up to zero without being zero; (rows,)."""
    magnitude = np.abs(rows).sum(axis=1)
    return np.asarray((magnitude > 0) & (np.abs(rows.sum(axis=1)) <= NEGLIGIBLE * magnitude))


def _give_back(exact: NDArray[np.float64], rounded: Weights, chosen: NDArray[np.bool_]) -> None:
    """Move taps of the chosen rows by an ulp, until the rows add up to zero; (rows, taps), changed in place."""
    rows = np.flatnonzero(chosen)
    if not rows.size:
        return
    values = rounded[rows]
    errors = values.astype(np.float64) - exact[rows]
    left = values.astype(np.float64).sum(axis=1)
    line = np.arange(len(rows))
    for tap in np.argsort(-np.abs(exact[rows]), axis=1, kind="stable").T:
        value = values[line, tap]
        towards = np.where(left > 0, -np.inf, np.inf).astype(value.dtype)
        moved = np.nextafter(value, towards)
        step = moved.astype(np.float64) - value.astype(np.float64)
        # Only where it brings the sum nearer to zero, and takes back an error of the same sign.
        is_better = (np.abs(left + step) < np.abs(left)) & (errors[line, tap] * left > 0) & np.isfinite(step)
        values[line, tap] = np.where(is_better, moved, value)
        left = left + np.where(is_better, step, 0.0)
    rounded[rows] = values
