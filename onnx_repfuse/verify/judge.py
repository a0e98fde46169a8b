"""One output's verdict from its samples.

    tolerance = 4 * max(b, c) + 8 ulp(max|y|)

b and c are the original's own changes when its inputs and its weights move by one ulp. They are measured on
one sample per shape; another sample of that shape scales them by its size. Correct folds measure 0.8 to 2.2
times the noise, so 4 leaves room for the largest of many elements, and the ulps for what is exact by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_repfuse.verify.measure import Array, cosine, difference, is_float, largest, top1, ulp
from onnx_repfuse.verify.verdict import OutputVerdict, Status

__all__ = ["Sample", "judge_output"]

_FACTOR = 4.0
_ULPS = 8.0
_VISIBLE = 16.0  # an element is observed if inputs move it by this many tolerances ...
_SHARE = 0.01  # ... and an output if this share of its elements is


@dataclass(frozen=True)
class Sample:
    """One output on one feed.

    Attributes:
        scene: which shape; noise and variation are only compared within it.
        original, fused: the two values, None where an optional is absent.
        by_inputs, by_weights: the original's values with inputs, or weights, moved by one ulp;
            None where not measured.
        optimized: the original's values under ORT_ENABLE_ALL, or None.
    """

    scene: int
    original: Array | None
    fused: Array | None
    by_inputs: Array | None = None
    by_weights: Array | None = None
    optimized: Array | None = None


def judge_output(
    name: str, samples: Sequence[Sample], rtol: float | None = None, atol: float | None = None
) -> OutputVerdict:
    """The verdict over all samples; `rtol` and `atol`, if given, replace the calibrated tolerance."""
    for sample in samples:
        problem = _structure(sample)
        if problem:
            dtype = "" if sample.original is None else sample.original.dtype.name
            return OutputVerdict(name, Status.FAILED, dtype, *_HOPELESS, message=f"'{name}' {problem}")
    pairs = [(s.original, s.fused) for s in samples if s.original is not None and s.fused is not None]
    if not pairs or not any(first.size for first, _ in pairs):
        return OutputVerdict(
            name,
            Status.NOT_OBSERVED,
            pairs[0][0].dtype.name if pairs else "",
            *_NOTHING,
            message=f"'{name}' is empty",
        )
    if not is_float(pairs[0][0].dtype):
        return _discrete(name, samples, pairs)
    return _float(name, [s for s in samples if s.original is not None], pairs, rtol, atol)


_HOPELESS = (float("inf"), float("inf"), float("inf"), (0.0, 0.0), 0.0, float("inf"))
_NOTHING = (0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0)


def _structure(sample: Sample) -> str:
    first, second = sample.original, sample.fused
    if first is None or second is None:
        return "" if first is second else "is present in only one of the two"
    if first.dtype != second.dtype:
        return f"has type {second.dtype.name} instead of {first.dtype.name}"
    if first.shape != second.shape:
        return f"has shape {list(second.shape)} instead of {list(first.shape)}"
    return ""


def _discrete(name: str, samples: Sequence[Sample], pairs: Sequence[tuple[Array, Array]]) -> OutputVerdict:
    differ = sum(int((first != second).sum()) for first, second in pairs)
    total = sum(first.size for first, _ in pairs)
    dtype = pairs[0][0].dtype.name
    if differ:
        gaps = [
            largest(difference(first, second)) if first.dtype.kind in "iub" else float("inf")
            for first, second in pairs
        ]
        worst = max(gaps)
        return OutputVerdict(
            name, Status.FAILED, dtype, float(differ), differ / total, float("inf"), (0.0, 0.0), 0.0, worst,
            message=f"{differ} of {total} elements of '{name}' differ",
        )  # fmt: skip
    varies = any(
        a.original is not None and b.original is not None and not np.array_equal(a.original, b.original)
        for a in samples for b in samples if a.scene == b.scene
    )  # fmt: skip
    status = Status.PASSED if varies or len(pairs) == 1 else Status.NOT_OBSERVED
    message = "equal" if status is Status.PASSED else "equal, but it does not depend on the inputs"
    return OutputVerdict(name, status, dtype, *_NOTHING, message=f"'{name}' is {message}")


def _float(
    name: str,
    samples: Sequence[Sample],
    pairs: Sequence[tuple[Array, Array]],
    rtol: float | None,
    atol: float | None,
) -> OutputVerdict:
    dtype = pairs[0][0].dtype
    b, c, optimized = _noise(samples)
    worst, allowed, ratio, rel, needed = 0.0, 0.0, -1.0, 0.0, 0.0
    tolerances: list[float] = []
    floor = 0.0
    for sample, (first, second) in zip(samples, pairs, strict=True):
        gap = difference(first, second)
        size = largest(first)
        noise = max(b.get(sample.scene, 0.0), c.get(sample.scene, 0.0)) * _scale(sample, samples)
        tolerance = _FACTOR * noise + _ULPS * ulp(size, dtype)
        floor = max(floor, noise, ulp(size, dtype))
        if rtol is not None or atol is not None:
            limit = (atol or 0.0) + (rtol or 0.0) * np.abs(np.nan_to_num(first.astype(np.float64)))
            excess = np.where(gap > limit, gap, 0.0)
            tolerance = float(limit.max()) if limit.size else 0.0
            here = largest_gap(excess)
            score = float("inf") if here > 0 else 0.0
        else:
            score = largest_gap(gap) / tolerance if tolerance > 0 else (float("inf") if gap.any() else 0.0)
        tolerances.append(tolerance)
        top = largest_gap(gap)
        needed = max(needed, top)
        if score > ratio:
            ratio, worst, allowed = score, top, tolerance
        rel = max(rel, top / size if size > 0 else (0.0 if top == 0 else float("inf")))
    worst = max(worst, needed) if ratio <= 1 else worst
    noises = (max(b.values(), default=0.0), max(c.values(), default=0.0))
    blind = "" if ratio > 1 else _blind(samples, tolerances)
    status = Status.FAILED if ratio > 1 else (Status.NOT_OBSERVED if blind else Status.PASSED)
    over = worst / floor if floor > 0 else (0.0 if worst == 0 else float("inf"))
    message = {
        Status.PASSED: f"'{name}' differs by {worst:.2g}, {over:.2g} times the noise",
        Status.FAILED: f"'{name}' differs by {worst:.3g} where {allowed:.3g} is allowed",
        Status.NOT_OBSERVED: f"'{name}' {blind}, so it cannot show a fault",
    }[status]
    return OutputVerdict(
        name, status, dtype.name, worst, rel, over, noises, allowed, needed,
        cosine(pairs), top1(pairs), optimized, message,
    )  # fmt: skip


def largest_gap(gap: Array) -> float:
    """max of a difference, where infinity means disagreement."""
    return float(gap.max()) if gap.size else 0.0


def _noise(samples: Sequence[Sample]) -> tuple[dict[int, float], dict[int, float], float | None]:
    b: dict[int, float] = {}
    c: dict[int, float] = {}
    optimized: float | None = None
    for sample in samples:
        first = sample.original
        assert first is not None
        for other, target in ((sample.by_inputs, b), (sample.by_weights, c)):
            if other is not None and other.shape == first.shape:
                target[sample.scene] = max(target.get(sample.scene, 0.0), _finite_gap(first, other))
        if sample.optimized is not None and sample.optimized.shape == first.shape:
            optimized = max(optimized or 0.0, _finite_gap(first, sample.optimized))
    return b, c, optimized


def _finite_gap(first: Array, second: Array) -> float:
    """The noise where both are finite: an overflow that noise flips says nothing of the other elements."""
    gap = difference(first, second)
    return largest(gap)


def _scale(sample: Sample, samples: Sequence[Sample]) -> float:
    """How much larger this sample is than the one its scene's noise was measured on."""
    measured = [
        s
        for s in samples
        if s.scene == sample.scene and (s.by_inputs is not None or s.by_weights is not None)
    ]
    if not measured or measured[0] is sample or measured[0].original is None or sample.original is None:
        return 1.0
    base = largest(measured[0].original)
    return max(1.0, largest(sample.original) / base) if base > 0 else 1.0


def _blind(samples: Sequence[Sample], tolerances: Sequence[float]) -> str:
    """Why the output could not have shown a fault, or ""."""
    alone = True
    changes = False
    for i, a in enumerate(samples):
        for j, b in enumerate(samples[:i]):
            if a.scene != b.scene or a.original is None or b.original is None:
                continue
            if a.original.shape != b.original.shape:
                return ""
            alone = False
            gap = difference(a.original, b.original)
            if not gap.size:
                continue
            changes = changes or bool(gap.any())
            if (gap > _VISIBLE * max(tolerances[i], tolerances[j])).mean() >= _SHARE:
                return ""
    if alone:
        for sample, tolerance in zip(samples, tolerances, strict=True):
            value = sample.original
            if value is not None and value.size:
                middle = np.full_like(value, np.nanmedian(value.astype(np.float64)))
                if (difference(value, middle) > _VISIBLE * tolerance).mean() >= _SHARE:
                    return ""
        return "is constant or drowned in noise"
    if not changes:
        return "does not depend on the inputs"
    return "is saturated or drowned in noise"
