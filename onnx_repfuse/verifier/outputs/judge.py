"""One output's verdict from its samples.

    tolerance = 4 * max(b, c) + 8 ulp(max|y|)

b and c are the original's own changes when its inputs and its weights move by one ulp. They are measured on
the first sample of each shape; another of that shape scales them by its size, unless its own were measured.
Correct folds measure 0.8 to 2.2 times the noise, so 4 leaves room for the largest of many elements, and the
ulps for what is exact by luck. Where one tensor holds quantities of different scales (boxes in pixels beside
class scores), each index of that axis has a tolerance of its own.

Whether an output could have shown a fault at all.

It can if a noticeable share of its elements moves visibly with the inputs: by many tolerances, between two feeds
of one shape. A softmax that is all zeros and ones, a constant, or a signal below the noise does not.

What is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.verifier.distance import Array, cosine, difference, is_inexact, largest, top1, ulp
from onnx_repfuse.verifier.noise import noise_tolerance

__all__ = ["Sample", "beyond", "judge_output", "why_unobservable"]

_SLICE = 256  # elements a slice needs for its largest to be typical
_SLICES = 2048
_HOPELESS = (float("inf"), float("inf"), float("inf"), (0.0, 0.0), 0.0, float("inf"))
_NOTHING = (0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0)
_VISIBLE = 16.0  # an element is observed if inputs move it by this many tolerances ...
_SHARE = 0.01  # ... and an output if this share of its elements is


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
    if not any(first.size for first, _ in pairs):
        dtype = pairs[0][0].dtype.name if pairs else ""
        return OutputVerdict(name, Status.NOT_OBSERVED, dtype, *_NOTHING, message=f"'{name}' is empty")
    if not is_inexact(pairs[0][0].dtype):
        return _discrete(name, samples, pairs)
    return _float(name, [s for s in samples if s.original is not None], pairs, rtol, atol)


def beyond(samples: Sequence[Sample]) -> list[int]:
    """The samples of a float output that differ by more than the calibrated tolerance."""
    found = []
    for index, sample in enumerate(samples):
        first, second = sample.original, sample.fused
        if first is None or second is None or _structure(sample) or not is_inexact(first.dtype):
            continue
        if bool((difference(first, second) > _tolerance(sample, samples, first)[1]).any()):
            found.append(index)
    return found


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
        numeric = pairs[0][0].dtype.kind in "iub"
        worst = max(largest(difference(a, b)) for a, b in pairs) if numeric else float("inf")
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
    fixed = rtol is not None or atol is not None
    ratio, error, allowed, over, rel = -1.0, 0.0, 0.0, 0.0, 0.0
    largest_error, largest_allowed = 0.0, 0.0
    tolerances: list[Array] = []
    for sample, (first, second) in zip(samples, pairs, strict=True):
        gap = difference(first, second)
        noise, tolerance = _tolerance(sample, samples, first)
        if fixed:
            tolerance = (atol or 0.0) + (rtol or 0.0) * np.abs(np.nan_to_num(first.astype(np.float64)))
        tolerances.append(tolerance)
        if not gap.size:
            continue
        limits = np.broadcast_to(tolerance, gap.shape)
        with np.errstate(all="ignore"):
            share = np.where(gap == 0, 0.0, gap / limits)
            above = np.where(gap == 0, 0.0, gap / noise)
        at = int(share.argmax())
        if float(share.flat[at]) > ratio:
            ratio, error, allowed = float(share.flat[at]), float(gap.flat[at]), float(limits.flat[at])
        over = max(over, float(above.max()))
        largest_error = max(largest_error, float(gap.max()))
        largest_allowed = max(largest_allowed, float(np.max(limits)))
        size = largest(first)
        rel = max(rel, float(gap.max()) / size if size > 0 else (0.0 if not gap.any() else float("inf")))
    why = "" if ratio > 1 else why_unobservable(samples, tolerances)
    status = Status.FAILED if ratio > 1 else (Status.NOT_OBSERVED if why else Status.PASSED)
    if status is not Status.FAILED:
        error, allowed = largest_error, largest_allowed
    message = {
        Status.PASSED: f"'{name}' differs by {error:.2g}, {over:.2g} times the noise",
        Status.FAILED: f"'{name}' differs by {error:.3g} where {allowed:.3g} is allowed",
        Status.NOT_OBSERVED: f"'{name}' {why}, so it cannot show a fault",
    }[status]
    return OutputVerdict(
        name, status, dtype.name, error, rel, over, _noises(samples), allowed, largest_error,
        cosine(pairs), top1(pairs), _optimized(samples), message,
    )  # fmt: skip


def _tolerance(sample: Sample, samples: Sequence[Sample], value: Array) -> tuple[Array, Array]:
    """(noise, at least an ulp; tolerance), each broadcastable to `value`."""
    axis = _slicing(value.shape)
    size = _peak(np.abs(_finite(value.astype(np.float64))), axis)
    step = np.vectorize(lambda top: ulp(float(top), value.dtype), otypes=[float])(size)
    noise = np.zeros_like(size)
    measured = [s for s in samples if s.scene == sample.scene and _has_noise(s)]
    for other in [sample] if _has_noise(sample) else measured[:1]:
        base = other.original
        if base is None or base.shape != value.shape:
            continue
        scale = 1.0
        if other is not sample and largest(base) > 0:
            scale = max(1.0, largest(value) / largest(base))
        for moved in (other.by_inputs, other.by_weights):
            if moved is not None and moved.shape == base.shape:
                noise = np.maximum(noise, scale * _peak(_finite(difference(base, moved)), axis))
    return np.maximum(noise, step), noise_tolerance(noise, step)


def _slicing(shape: tuple[int, ...]) -> int | None:
    """The axis (never the batch) whose indices are judged apart: the shortest with enough elements each."""
    total = int(np.prod(shape))
    axes = [a for a in range(1, len(shape)) if 1 < shape[a] <= _SLICES and total // shape[a] >= _SLICE]
    return min(axes, key=lambda axis: shape[axis], default=None)


def _peak(array: Array, axis: int | None) -> Array:
    """The largest element, per index of `axis`, kept broadcastable."""
    if not array.size:
        return np.zeros((1,) * array.ndim)
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.asarray(array.max(others, keepdims=True))


def _finite(array: Array) -> Array:
    """Noise that flips an overflow says nothing of the other elements."""
    return np.where(np.isfinite(array), array, 0.0)


def _has_noise(sample: Sample) -> bool:
    return sample.by_inputs is not None or sample.by_weights is not None


def _noises(samples: Sequence[Sample]) -> tuple[float, float]:
    found = [0.0, 0.0]
    for sample in samples:
        for index, moved in enumerate((sample.by_inputs, sample.by_weights)):
            if moved is not None and sample.original is not None and moved.shape == sample.original.shape:
                found[index] = max(found[index], largest(difference(sample.original, moved)))
    return found[0], found[1]


def _optimized(samples: Sequence[Sample]) -> float | None:
    gaps = [
        largest(difference(sample.original, sample.optimized))
        for sample in samples
        if sample.original is not None and sample.optimized is not None
        if sample.original.shape == sample.optimized.shape
    ]
    return max(gaps, default=None)


def why_unobservable(samples: Sequence[Sample], tolerances: Sequence[Array]) -> str:
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
