"""How far an output may be from the original's: the noise floor, and the tolerance that follows from it.

    noise = max(b, c), at least one ulp of max|y|
    allowed = 4 * max(b, c) + 8 * ulp(max|y|)

y is the original's output; b and c are the changes of y when all inputs, or all weights, move by one ulp. Two correct
implementations of a network round differently at every step, and so differ by about this noise, whatever the depth
and scale of the network: correct folds were measured at 0.8 to 2.2 times the noise. The factor 4 leaves room for the
largest of many elements. The ulps are for outputs that are exact by luck, where b and c are 0. A fixed relative
tolerance misfires both ways: PP-OCRv5's detector outputs 2.8e-5 with a noise of 1.8e-7.

Equal terms round coherently, which b and c do not show. Where a result would fail, the original is evaluated in float64
(`own_error`). With e = max|y - float64| / allowed, 3 e times as much is allowed, if that is more.

In half precision 4 * noise is a good part of the output itself. There the result is compared with the original's
float32 twin, from which it may be as far as the noise, or twice as far as the original:

    allowed = max(max(b, c) + ulp(max|y|), 2 * max|y - twin|)

The ulp is for b and c, which are differences of rounded values. A float32 model is compared with its version in half
precision itself, y, and the two distances add up: 2 * max(b, c) + ulp(max|y|) + max|y - twin|.

Where weights too small to show became zero, what that may change is allowed in any case (`Sample.floor`).

Folds are judged by tolerances of their own, see `folds.error_bound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np

from onnx_repfuse.verifier.distance import Array, difference, largest, median, ulp
from onnx_repfuse.verifier.inputs import FeedKey
from onnx_repfuse.verifier.noise import noise_tolerance

__all__ = [
    "Sample",
    "Tolerance",
    "UserTolerance",
    "calibrated_tolerance",
    "is_judged_by_twin",
    "twin_error",
    "twin_tolerance",
    "user_tolerance",
]

_MIN_SLICE_ELEMENTS = 256  # elements an index of an axis needs for its largest to be typical
_MAX_SLICES = 2048
_TWIN_FACTOR = 2.0  # how many times the original's own distance from its float32 twin the result may have
# Between a float32 network and its float16 version. Once was too little for 4 of 270 comparisons.
_ROUNDED_NOISES = 2.0
_SAME_SIZE = 4.0  # times the median: the largest error of indices that are one quantity
# of its tolerance: n equal terms err up to sqrt(n) times as much as independent ones
_LARGEST_OWN_SHARE = 16.0


@dataclass(frozen=True)
class Sample:
    """One output on one feed.

    Attributes:
        key: of the feed. Noise and variation are compared within a group only, whose feeds have one shape.
        original, fused: the two values, None where an optional is absent.
        by_inputs, by_weights: the original's value with inputs, or weights, moved by one ulp; None where not measured.
        optimized: the original's value under ORT_ENABLE_ALL, or None.
        twin: the value of the original's float32 twin, if half precision leads to this output, or None.
        own_error: how far `original` is from float64, or None where not measured.
        floor: a difference that is always allowed.
        other_precision: the two may have other float types, and are compared with each other, not with the twin.
    """

    key: FeedKey
    original: Array | None
    fused: Array | None
    by_inputs: Array | None = None
    by_weights: Array | None = None
    optimized: Array | None = None
    twin: Array | None = None
    own_error: Array | None = None
    _: KW_ONLY
    floor: float = 0.0
    other_precision: bool = False

    @property
    def has_noise(self) -> bool:
        """Whether the noise was measured on this very feed."""
        return self.by_inputs is not None or self.by_weights is not None


class Tolerance(NamedTuple):
    """Both in the output's unit, and broadcastable to its value."""

    noise: Array
    allowed: Array


class UserTolerance(NamedTuple):
    """`--rtol` and `--atol`: |difference| <= atol + rtol * |y|, as numpy.allclose has it."""

    rtol: float
    atol: float

    def allowed(self, value: Array) -> Array:
        """Per element of the original's value, in float64."""
        return np.asarray(self.atol + self.rtol * np.abs(np.nan_to_num(value.astype(np.float64))))


def user_tolerance(rtol: float | None, atol: float | None) -> UserTolerance | None:
    """None where the user gave neither; one of them alone makes the other 0."""
    if (rtol, atol) == (None, None):
        return None
    return UserTolerance(rtol or 0.0, atol or 0.0)


def calibrated_tolerance(sample: Sample, samples: Sequence[Sample], value: Array) -> Tolerance:
    """The tolerance for one sample of a float output.

    Where a tensor holds quantities of different scales (boxes in pixels beside class scores), each index of that axis
    has a tolerance of its own.

    Args:
        sample: to judge.
        samples: all of this output. A sample without a noise of its own takes that of the first one in its group.
        value: the original's value in `sample`.
    """
    axis = _sliced_axis(value.shape)
    step = _ulp_of_peak(value, axis)
    noise = np.zeros_like(step)
    for change in _changes(sample, samples, value):
        noise = np.maximum(noise, _peak(change, axis))
    allowed = np.maximum(noise_tolerance(noise, step), sample.floor)
    noise = np.maximum(np.maximum(noise, step), sample.floor)
    return Tolerance(noise, _raised_by_own_error(samples, axis, allowed))


def _raised_by_own_error(samples: Sequence[Sample], axis: int | None, allowed: Array) -> Array:
    """A tolerance raised to 3 times the original's own error from float64, where that was measured and is more.

    A correct result may be twice as far from float64, and on its other side. The feed and the index that take the
    largest share of their tolerance count for all: the same operators made them, and one of them may be exact by luck.
    Where the errors of all indices are of one size, so does the largest error: the indices are one quantity, and an
    index of small values, which has a small tolerance, errs like the others. A share so large that float64 evaluation
    must have read the model otherwise does not count.
    """
    factor, error = 1.0, 0.0
    for sample in samples:
        if sample.own_error is None:
            continue
        own = _peak(_finite(sample.own_error), axis)
        if own.shape != allowed.shape or not own.size:
            continue
        with np.errstate(all="ignore"):
            share = float(np.max(np.where(own == 0, 0.0, own / allowed)))
        if share <= _LARGEST_OWN_SHARE:
            factor = max(factor, (_TWIN_FACTOR + 1) * share)
            is_one_quantity = float(own.max()) <= _SAME_SIZE * median(own)
            error = max(error, float(own.max()) if is_one_quantity else 0.0)
    return np.maximum(allowed * factor, (_TWIN_FACTOR + 1) * error)


def is_judged_by_twin(samples: Sequence[Sample]) -> bool:
    """Whether a float output is compared with the float32 twin: wherever its samples have that value.

    The noise of the weights has to be known. It covers that folded weights are rounded once more, and the original's
    own error does not: runtimes without half-precision kernels compute the original in float32.
    """
    present = [sample for sample in samples if sample.original is not None]
    has_noise = any(sample.by_weights is not None for sample in present)
    return has_noise and all(_has_twin(sample) for sample in present)


def twin_error(sample: Sample, value: Array) -> Array:
    """|value - twin| where both the original and its twin are finite; else |value - original|."""
    assert sample.original is not None
    assert sample.twin is not None
    original, twin = sample.original.astype(np.float64), sample.twin.astype(np.float64)
    # An overflow of the original has to be one of the result, too.
    is_finite = np.isfinite(original) & np.isfinite(twin)
    return np.where(is_finite, difference(twin, value), difference(original, value))


def twin_tolerance(sample: Sample, samples: Sequence[Sample], value: Array) -> Tolerance:
    """The tolerance for the distance from the float32 twin; the arguments are those of `calibrated_tolerance`.

    For a model of other precision, the tolerance for the distance from the original itself: the twin has the rounded
    weights of the original, which the noise of the weights covers, and the original is `own` away from its twin.
    """
    axis = _sliced_axis(value.shape)
    noise = calibrated_tolerance(sample, samples, value).noise
    own = _peak(_finite(twin_error(sample, value)), axis)
    if sample.other_precision:
        return Tolerance(noise, 3.0 * noise + _ulp_of_peak(value, axis) + own)
    return Tolerance(noise, np.maximum(noise + _ulp_of_peak(value, axis), _TWIN_FACTOR * own))


def _has_twin(sample: Sample) -> bool:
    if sample.original is None or sample.twin is None:
        return False
    return bool(sample.twin.shape == sample.original.shape)


def _changes(sample: Sample, samples: Sequence[Sample], value: Array) -> Iterator[Array]:
    """What one ulp of the inputs, and of the weights, changes; scaled where it was measured on another feed."""
    source = _noise_source(sample, samples)
    if source.original is None or source.original.shape != value.shape:
        return
    # Rounding grows with the values. A smaller output does not shrink it: constants may be what rounds.
    scale = 1.0
    if source is not sample and largest(source.original) > 0:
        scale = max(1.0, largest(value) / largest(source.original))
    for moved in (source.by_inputs, source.by_weights):
        if moved is not None and moved.shape == value.shape:
            # An overflow that the noise flips says nothing about the other elements.
            yield scale * _finite(difference(source.original, moved))


def _noise_source(sample: Sample, samples: Sequence[Sample]) -> Sample:
    """The sample itself, or the first of the same shape on which the noise was measured."""
    for other in (sample, *samples):
        if other.has_noise and other.key.group == sample.key.group:
            return other
    return sample


def _sliced_axis(shape: tuple[int, ...]) -> int | None:
    """The axis (never the batch) whose indices are judged apart: the shortest with enough elements each.

    (1, 84, 8400) -> 1: four box coordinates and eighty class scores of a YOLO detector.
    """
    total = int(np.prod(shape))
    # Not the batch: its entries hold the same quantity, and more of them make the largest noise more typical.
    axes = [
        axis
        for axis in range(1, len(shape))
        if 1 < shape[axis] <= _MAX_SLICES and total // shape[axis] >= _MIN_SLICE_ELEMENTS
    ]
    return min(axes, key=lambda axis: shape[axis], default=None)


def _peak(array: Array, axis: int | None) -> Array:
    """The largest element, per index of `axis`, kept broadcastable."""
    if not array.size:
        return np.zeros((1,) * array.ndim)
    others = tuple(other for other in range(array.ndim) if other != axis)
    return np.asarray(array.max(others, keepdims=True))


def _ulp_of_peak(value: Array, axis: int | None) -> Array:
    """One ulp of the largest element, per index of `axis`, kept broadcastable."""
    peak = _peak(np.abs(_finite(value.astype(np.float64))), axis)
    return np.asarray(np.vectorize(lambda top: ulp(float(top), value.dtype), otypes=[float])(peak))


def _finite(array: Array) -> Array:
    return np.where(np.isfinite(array), array, 0.0)
