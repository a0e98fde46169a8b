"""One output's verdict from its samples.

A float output passes where no element differs by more than its tolerance, see `tolerance`; other types are compared
exactly. An output that could not have shown a fault is *not observed*, which is never a pass: a noticeable share of
its elements must move visibly, by many tolerances, between two feeds of one shape. A constant, a softmax that is all
zeros and ones, or a signal below the noise does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.verifier.distance import (
    Array,
    cosine,
    difference,
    is_inexact,
    is_structure,
    largest,
    median,
    relative_to,
    top1,
)
from onnx_repfuse.verifier.inputs import FeedKey
from onnx_repfuse.verifier.outputs.tolerance import (
    Sample,
    Tolerance,
    UserTolerance,
    calibrated_tolerance,
    is_judged_by_twin,
    twin_error,
    twin_tolerance,
)

__all__ = ["failing_feeds", "judge_output", "verdict_without_figures"]

_VISIBLE_TOLERANCES = 16.0  # an element is observed if other inputs move it by this many tolerances ...
_OBSERVED_SHARE = 0.01  # ... and an output if this share of its elements is
_INFINITY = float("inf")
_TWIN = "the original in float32"


class _Pair(NamedTuple):
    """A sample of which both values are there.

    `by_twin`: the tolerance is that of a model in half precision. The result is compared with the original's float32
    twin then, unless it has another precision itself: that of a float32 model is what the twin stands for.
    """

    sample: Sample
    original: Array
    fused: Array
    by_twin: bool = False

    @property
    def is_from_twin(self) -> bool:
        """Whether `gap` is the distance from the twin."""
        return self.by_twin and not self.sample.other_precision

    @property
    def gap(self) -> Array:
        """How far the result is off, in float64."""
        if self.is_from_twin:
            return twin_error(self.sample, self.fused)
        return difference(self.original, self.fused)


def judge_output(name: str, samples: Sequence[Sample], user: UserTolerance | None = None) -> OutputVerdict:
    """The verdict over all samples; `user`, if given, replaces the calibrated tolerance."""
    for sample in samples:
        mismatch = _mismatch(sample)
        if mismatch:
            dtype = "" if sample.original is None else sample.original.dtype.name
            return verdict_without_figures(name, Status.FAILED, dtype, f"'{name}' {mismatch}")
    pairs = _pairs(samples)
    dtype = pairs[0].original.dtype.name if pairs else ""
    if not any(pair.original.size for pair in pairs):
        return verdict_without_figures(name, Status.NOT_OBSERVED, dtype, f"'{name}' is empty")
    if is_inexact(pairs[0].original.dtype):
        return _judge_floats(name, pairs, user)
    return _judge_exactly(name, pairs)


def failing_feeds(samples: Sequence[Sample]) -> set[FeedKey]:
    """The feeds on which a float output differs by more than the calibrated tolerance."""
    failing = set()
    pairs = [
        pair for pair in _pairs(samples) if is_inexact(pair.original.dtype) and not _mismatch(pair.sample)
    ]
    for pair in _with_reference(pairs, None):
        if (pair.gap > _tolerance(pair, samples, None).allowed).any():
            failing.add(pair.sample.key)
    return failing


def verdict_without_figures(name: str, status: Status, dtype: str, message: str) -> OutputVerdict:
    """For values that are equal (all figures are 0), or that cannot be compared and FAILED (infinite)."""
    figure = _INFINITY if status is Status.FAILED else 0.0
    return OutputVerdict(
        name, status, dtype, figure, figure, figure, (0.0, 0.0), 0.0, figure, message=message
    )


def _pairs(samples: Sequence[Sample]) -> list[_Pair]:
    return [
        _Pair(sample, sample.original, sample.fused)
        for sample in samples
        if sample.original is not None and sample.fused is not None
    ]


def _with_reference(pairs: Sequence[_Pair], user: UserTolerance | None) -> list[_Pair]:
    """The pairs of one float output, told whether they are compared with the original or with its float32 twin."""
    by_twin = user is None and is_judged_by_twin([pair.sample for pair in pairs])
    return [pair._replace(by_twin=by_twin) for pair in pairs]


def _mismatch(sample: Sample) -> str:
    original, fused = sample.original, sample.fused
    if original is None or fused is None:
        return "" if original is fused else "is present in only one of the two"
    is_same_kind = sample.other_precision and is_inexact(original.dtype) and is_inexact(fused.dtype)
    if original.dtype != fused.dtype and not is_same_kind:
        return f"has type {fused.dtype.name} instead of {original.dtype.name}"
    if original.shape != fused.shape:
        return f"has shape {list(fused.shape)} instead of {list(original.shape)}"
    return ""


def _judge_exactly(name: str, pairs: Sequence[_Pair]) -> OutputVerdict:
    """Integers, booleans and strings."""
    dtype = pairs[0].original.dtype
    different = sum(int((pair.original != pair.fused).sum()) for pair in pairs)
    if different:
        total = sum(pair.original.size for pair in pairs)
        numeric = dtype.kind in "iub"  # strings have no distance
        worst = max(largest(difference(p.original, p.fused)) for p in pairs) if numeric else _INFINITY
        message = f"{different} of {total} elements of '{name}' differ"
        return OutputVerdict(
            name, Status.FAILED, dtype.name, float(different), different / total, _INFINITY, (0.0, 0.0), 0.0,
            worst, message=message,
        )  # fmt: skip
    with_elements = [pair for pair in pairs if pair.original.size]
    why = "" if is_structure(name) else _why_exact_unobservable(with_elements)
    if not why:
        return verdict_without_figures(name, Status.PASSED, dtype.name, f"'{name}' is equal")
    message = f"'{name}' is equal, but it {why}"
    return verdict_without_figures(name, Status.NOT_OBSERVED, dtype.name, message)


def _why_exact_unobservable(pairs: Sequence[_Pair]) -> str:
    """Why an output that is compared exactly could not have shown a fault, as a clause, or ""."""
    same_inputs = [
        not np.array_equal(first.original, second.original)
        for first, second in combinations(pairs, 2)
        if first.sample.key.group == second.sample.key.group
    ]
    if same_inputs:
        return "" if any(same_inputs) else "does not depend on the inputs"
    # With a single feed of each shape, the elements must differ from each other, as for floats.
    if any((pair.original != pair.original.flat[0]).any() for pair in pairs):
        return ""
    return "is constant on the one feed there is of each shape"


def _judge_floats(name: str, pairs: Sequence[_Pair], user: UserTolerance | None) -> OutputVerdict:
    samples = [pair.sample for pair in pairs]
    pairs = _with_reference(pairs, user)
    tolerances = [_tolerance(pair, samples, user) for pair in pairs]
    compared = zip(pairs, tolerances, strict=True)
    size = max(largest(pair.original) for pair in pairs)
    distances = [_distance(pair, tolerance, size) for pair, tolerance in compared if pair.original.size]
    worst = max(distances, key=lambda distance: distance.ratio)
    largest_of = _Distance(*(max(column) for column in zip(*distances, strict=True)))
    is_from_twin = pairs[0].is_from_twin
    source = f" from {_TWIN}" if is_from_twin else ""
    if worst.ratio > 1:
        status = Status.FAILED
        message = f"differs by {worst.error:.3g}{source} where {worst.allowed:.3g} is allowed"
    elif why := _why_unobservable(pairs, _smallest_visible(tolerances, user)):
        status, message = Status.NOT_OBSERVED, f"{why}, so it cannot show a fault"
    else:
        status = Status.PASSED
        message = f"differs by {largest_of.max_abs:.2g}{source}, {largest_of.over_noise:.2g} times the noise"
    has_failed = status is Status.FAILED
    values = [(pair.original, pair.fused) for pair in pairs]
    return OutputVerdict(
        name,
        status,
        pairs[0].original.dtype.name,
        max_abs=worst.error if has_failed else largest_of.max_abs,
        max_rel=largest_of.max_rel,
        over_noise=largest_of.over_noise,
        noise=(_largest_change(samples, "by_inputs") or 0.0, _largest_change(samples, "by_weights") or 0.0),
        tolerance=worst.allowed if has_failed else largest_of.max_allowed,
        minimum_tolerance=largest_of.max_abs,
        cosine=cosine(values),
        top1=top1(values),
        optimized=_largest_change(samples, "optimized"),
        message=f"'{name}' {message}",
        against=f"compared with {_TWIN}" if is_from_twin else "",
    )


def _tolerance(pair: _Pair, samples: Sequence[Sample], user: UserTolerance | None) -> Tolerance:
    if pair.by_twin:
        return twin_tolerance(pair.sample, samples, pair.original)
    calibrated = calibrated_tolerance(pair.sample, samples, pair.original)
    return calibrated if user is None else calibrated._replace(allowed=user.allowed(pair.original))


def _smallest_visible(tolerances: Sequence[Tolerance], user: UserTolerance | None) -> Sequence[Tolerance]:
    """The changes that show that an output reacts at all: of a tolerance that was given, any.

    An output that never leaves a given tolerance cannot fail, but that is no objection: the user meant it.
    """
    if user is None:
        return tolerances
    return [tolerance._replace(allowed=np.zeros(())) for tolerance in tolerances]


class _Distance(NamedTuple):
    """One sample's largest differences. `error` and `allowed` belong to the element with the highest `ratio`."""

    ratio: float  # difference / allowed; above 1, the sample fails
    error: float
    allowed: float
    max_abs: float
    max_allowed: float
    max_rel: float
    over_noise: float


def _distance(pair: _Pair, tolerance: Tolerance, size_of_all: float) -> _Distance:
    """`size_of_all`, the largest value of any sample, stands for the size of a sample that is zero."""
    gap = pair.gap
    allowed = np.broadcast_to(tolerance.allowed, gap.shape)
    with np.errstate(all="ignore"):
        # A NaN in one of the two is an infinite gap. It fails even where rtol * |y| overflows to infinity.
        ratio = np.where(gap == 0, 0.0, np.where(np.isinf(gap), _INFINITY, gap / allowed))
        over_noise = np.where(gap == 0, 0.0, gap / tolerance.noise)
    at = int(ratio.argmax())
    max_abs, size = float(gap.max()), largest(pair.original) or size_of_all
    max_rel = relative_to(size, max_abs)
    error, limit = float(gap.flat[at]), float(allowed.flat[at])
    return _Distance(
        float(ratio.flat[at]), error, limit, max_abs, float(allowed.max()), max_rel, float(over_noise.max())
    )


def _largest_change(samples: Sequence[Sample], variant: str) -> float | None:
    """What a variant of the original's run changes; None where it was not measured.

    A change of shape (NonZero's output after a flip) has no size, and does not count.
    """
    changes = []
    for sample in samples:
        moved = getattr(sample, variant)
        if sample.original is not None and moved is not None and moved.shape == sample.original.shape:
            changes.append(largest(difference(sample.original, moved)))
    return max(changes, default=None)


def _why_unobservable(pairs: Sequence[_Pair], tolerances: Sequence[Tolerance]) -> str:
    """Why a float output could not have shown a fault, as a clause, or ""."""
    changes = []  # between any two feeds of one shape: whether anything moved at all
    for (a, tolerance_a), (b, tolerance_b) in combinations(zip(pairs, tolerances, strict=True), 2):
        if a.sample.key.group != b.sample.key.group:
            continue
        if a.original.shape != b.original.shape:  # the shape depends on the values
            return ""
        gap = difference(a.original, b.original)
        if _is_visible(gap, np.maximum(tolerance_a.allowed, tolerance_b.allowed)):
            return ""
        changes.append(gap.any())
    if changes:
        return "is saturated or drowned in noise" if any(changes) else "does not depend on the inputs"
    # With a single feed of each shape, the elements must differ from each other; the median stands for a constant.
    for pair, tolerance in zip(pairs, tolerances, strict=True):
        value = pair.original.astype(np.float64)
        finite = value[np.isfinite(value)]
        if finite.size:
            gap = difference(value, np.full_like(value, median(finite)))
            if _is_visible(gap, tolerance.allowed):
                return ""
    return "is constant or drowned in noise"


def _is_visible(gap: Array, allowed: Array) -> bool:
    return gap.size > 0 and bool((gap > _VISIBLE_TOLERANCES * allowed).mean() >= _OBSERVED_SHARE)
