"""Non-negative least squares on relative errors.

Given measured times t_i and features A_i (numbers of multiply-adds, elements, nodes), find prices p >= 0 that minimize
sum_i ((A_i p - t_i) / t_i)^2. There are few features, so we try every subset of them as the support. The answer is
the best subset whose unconstrained solution is non-negative.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def nonnegative(features: Array, times: Array) -> Array:
    """Prices of the features, float64 (features,).

    Args:
        features: float64 (cases, features).
        times: float64 (cases,), positive.
    """
    relative = features / times[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    relative = relative / scale
    count = features.shape[1]
    best, prices = np.inf, np.zeros(count)
    for size in range(1, count + 1):
        for support in combinations(range(count), size):
            chosen = list(support)
            solved = np.linalg.lstsq(relative[:, chosen], np.ones(len(times)), rcond=None)[0]
            if (solved < 0).any():
                continue
            loss = float(((relative[:, chosen] @ solved - 1) ** 2).sum())
            if loss < best:
                best, prices = loss, np.zeros(count)
                prices[chosen] = solved
    return prices / scale


def errors(features: Array, times: Array, prices: Array) -> Array:
    """Predicted / measured time, float64 (cases,)."""
    return features @ prices / times
