"""One output's verdict from its samples.

A float output passes where no element differs by more than its tolerance, see `tolerance`; other types are compared
exactly. An output that could not have shown a fault is *not observed*, which is never a pass: a noticeable share of
its elements must move visibly, by many tolerances, between two feeds of one shape. A constant, a softmax that is all
zeros and ones, or a signal below the noise does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.verifier.distance import Array, cosine, difference, is_inexact, largest, top1
from onnx_repfuse.verifier.outputs.tolerance import Sample, Tolerance, UserTolerance, calibrated_tolerance

__all__ = ["failing_samples", "judge_output", "verdict_without_figures"]

_VISIBLE_TOLERANCES = 16.0  # an element is observed if other inputs move it by this many tolerances ...
_OBSERVED_SHARE = 0.01  # ... and an output if this share of its elements is
_INFINITY = float("inf")
Pair = tuple[Array, Array]


def judge_output(name: str, samples: Sequence[Sample], user: UserTolerance | None = None) -> OutputVerdict:
    """The verdict over all samples; `user`, if given, replaces the calibrated tolerance."""
    for sample in samples:
        problem = _mismatch(sample)
        if problem:
            dtype = "" if sample.original is None else sample.original.dtype.name
            return verdict_without_figures(name, Status.FAILED, dtype, f"'{name}' {problem}")
    present = [sample for sample in samples if sample.original is not None]
    pairs = [(s.original, s.fused) for s in present if s.original is not None and s.fused is not None]
    if not any(original.size for original, _ in pairs):
        dtype = pairs[0][0].dtype.name if pairs else ""
        return verdict_without_figures(name, Status.NOT_OBSERVED, dtype, f"'{name}' is empty")
    if is_inexact(pairs[0][0].dtype):
        return _judge_floats(name, present, pairs, user)
    return _judge_exactly(name, present, pairs)


def failing_samples(samples: Sequence[Sample]) -> list[int]:
    """Indices of the samples of a float output that differ by more than the calibrated tolerance."""
    failing = []
    for index, sample in enumerate(samples):
        original, fused = sample.original, sample.fused
        if original is None or fused is None or _mismatch(sample) or not is_inexact(original.dtype):
            continue
        allowed = calibrated_tolerance(sample, samples, original).allowed
        if (difference(original, fused) > allowed).any():
            failing.append(index)
    return failing


def verdict_without_figures(name: str, status: Status, dtype: str, message: str) -> OutputVerdict:
    """For values that are equal (all figures are 0), or that cannot be compared and FAILED (infinite)."""
    figure = _INFINITY if status is Status.FAILED else 0.0
    return OutputVerdict(
        name, status, dtype, figure, figure, figure, (0.0, 0.0), 0.0, figure, message=message
    )


def _mismatch(sample: Sample) -> str:
    original, fused = sample.original, sample.fused
    if original is None or fused is None:
        return "" if original is fused else "is present in only one of the two"
    if original.dtype != fused.dtype:
        return f"has type {fused.dtype.name} instead of {original.dtype.name}"
    if original.shape != fused.shape:
        return f"has shape {list(fused.shape)} instead of {list(original.shape)}"
    return ""


def _judge_exactly(name: str, samples: Sequence[Sample], pairs: Sequence[Pair]) -> OutputVerdict:
    """Integers, booleans and strings."""
    dtype = pairs[0][0].dtype
    different = sum(int((original != fused).sum()) for original, fused in pairs)
    total = sum(original.size for original, _ in pairs)
    if different:
        numeric = dtype.kind in "iub"
        worst = max(largest(difference(*pair)) for pair in pairs) if numeric else _INFINITY
        message = f"{different} of {total} elements of '{name}' differ"
        return OutputVerdict(
            name, Status.FAILED, dtype.name, float(different), different / total, _INFINITY, (0.0, 0.0), 0.0,
            worst, message=message,
        )  # fmt: skip
    if len(pairs) == 1 or _varies_with_inputs(samples):
        return verdict_without_figures(name, Status.PASSED, dtype.name, f"'{name}' is equal")
    message = f"'{name}' is equal, but it does not depend on the inputs"
    return verdict_without_figures(name, Status.NOT_OBSERVED, dtype.name, message)


def _varies_with_inputs(samples: Sequence[Sample]) -> bool:
    """Whether two feeds of one shape give different values."""
    first_of_group: dict[int, Array | None] = {}
    for sample in samples:
        first = first_of_group.setdefault(sample.group, sample.original)
        if first is not None and sample.original is not None and not np.array_equal(first, sample.original):
            return True
    return False


def _judge_floats(
    name: str, samples: Sequence[Sample], pairs: Sequence[Pair], user: UserTolerance | None
) -> OutputVerdict:
    tolerances = [
        calibrated_tolerance(sample, samples, pair[0]) for sample, pair in zip(samples, pairs, strict=True)
    ]
    if user is not None:
        tolerances = [
            t._replace(allowed=user.allowed(pair[0])) for t, pair in zip(tolerances, pairs, strict=True)
        ]
    distances = [
        _distance(*pair, tolerance) for pair, tolerance in zip(pairs, tolerances, strict=True) if pair[0].size
    ]
    worst = max(distances, key=lambda distance: distance.ratio)
    max_abs = max(distance.max_abs for distance in distances)
    over_noise = max(distance.over_noise for distance in distances)
    if worst.ratio > 1:
        status, error, allowed = Status.FAILED, worst.error, worst.allowed
        message = f"'{name}' differs by {error:.3g} where {allowed:.3g} is allowed"
    else:
        error, allowed = max_abs, max(distance.max_allowed for distance in distances)
        why = _why_unobservable([sample.group for sample in samples], [pair[0] for pair in pairs], tolerances)
        status = Status.NOT_OBSERVED if why else Status.PASSED
        message = f"'{name}' differs by {error:.2g}, {over_noise:.2g} times the noise"
        if why:
            message = f"'{name}' {why}, so it cannot show a fault"
    noise_of_inputs = _largest_change((sample.original, sample.by_inputs) for sample in samples)
    noise_of_weights = _largest_change((sample.original, sample.by_weights) for sample in samples)
    return OutputVerdict(
        name,
        status,
        pairs[0][0].dtype.name,
        max_abs=error,
        max_rel=max(distance.max_rel for distance in distances),
        over_noise=over_noise,
        noise=(noise_of_inputs or 0.0, noise_of_weights or 0.0),
        tolerance=allowed,
        minimum_tolerance=max_abs,
        cosine=cosine(pairs),
        top1=top1(pairs),
        optimized=_largest_change((sample.original, sample.optimized) for sample in samples),
        message=message,
    )


class _Distance(NamedTuple):
    """One sample's largest differences. `error` and `allowed` belong to the element with the highest `ratio`."""

    ratio: float  # difference / allowed; above 1, the sample fails
    error: float
    allowed: float
    max_abs: float
    max_allowed: float
    max_rel: float
    over_noise: float


def _distance(original: Array, fused: Array, tolerance: Tolerance) -> _Distance:
    gap = difference(original, fused)
    allowed = np.broadcast_to(tolerance.allowed, gap.shape)
    with np.errstate(all="ignore"):
        # A NaN in one of the two is an infinite gap, and fails though an overflow of rtol * |y| allows infinity.
        ratio = np.where(gap == 0, 0.0, np.where(np.isinf(gap), _INFINITY, gap / allowed))
        over_noise = np.where(gap == 0, 0.0, gap / tolerance.noise)
    at = int(ratio.argmax())
    max_abs, size = float(gap.max()), largest(original)
    return _Distance(
        ratio=float(ratio.flat[at]),
        error=float(gap.flat[at]),
        allowed=float(allowed.flat[at]),
        max_abs=max_abs,
        max_allowed=float(allowed.max()),
        max_rel=max_abs / size if size > 0 else (_INFINITY if max_abs > 0 else 0.0),
        over_noise=float(over_noise.max()),
    )


def _largest_change(pairs: Iterable[tuple[Array | None, Array | None]]) -> float | None:
    """None where nothing was measured. Values whose shape depends on the inputs may change their shape; these do not
    count."""
    changes = [
        largest(difference(before, after))
        for before, after in pairs
        if before is not None and after is not None and before.shape == after.shape
    ]
    return max(changes, default=None)


def _why_unobservable(
    groups: Sequence[int], originals: Sequence[Array], tolerances: Sequence[Tolerance]
) -> str:
    """Why a float output could not have shown a fault, as a clause, or ""; per sample, its group, value, tolerance."""
    compared, changes = False, False
    for i, j in combinations(range(len(originals)), 2):
        if groups[i] != groups[j]:
            continue
        if originals[i].shape != originals[j].shape:
            return ""
        compared = True
        gap = difference(originals[i], originals[j])
        changes = changes or bool(gap.any())
        if _is_visible(gap, np.maximum(tolerances[i].allowed, tolerances[j].allowed)):
            return ""
    if compared:
        return "is saturated or drowned in noise" if changes else "does not depend on the inputs"
    # No two feeds have one shape: the elements must differ from each other instead.
    for value, tolerance in zip(originals, tolerances, strict=True):
        wide = value.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        if finite.size:
            gap = difference(wide, np.full_like(wide, np.median(finite)))
            if _is_visible(gap, tolerance.allowed):
                return ""
    return "is constant or drowned in noise"


def _is_visible(gap: Array, allowed: Array) -> bool:
    return gap.size > 0 and bool((gap > _VISIBLE_TOLERANCES * allowed).mean() >= _OBSERVED_SHARE)
