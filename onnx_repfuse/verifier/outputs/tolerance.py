"""How far an output may be from the original's: the noise floor, and the tolerance that follows from it.

    noise = max(b, c), at least one ulp of max|y|
    allowed = 4 * max(b, c) + 8 * ulp(max|y|)

y is the original's output; b and c are the changes of y when all inputs, or all weights, move by one ulp. Two correct
implementations of a network round differently at every step, and so differ by about this noise, whatever the depth
and scale of the network: correct folds were measured at 0.8 to 2.2 times the noise. The factor 4 leaves room for the
largest of many elements. The ulps are for outputs that are exact by luck, where b and c are 0. A fixed relative
tolerance misfires both ways: PP-OCRv5's detector outputs 2.8e-5 with a noise of 1.8e-7.

Folds are judged by tolerances of their own, see `folds.error_bound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnx_repfuse.verifier.distance import Array, difference, largest, ulp
from onnx_repfuse.verifier.inputs import FeedKey
from onnx_repfuse.verifier.noise import noise_tolerance

__all__ = ["Sample", "Tolerance", "UserTolerance", "calibrated_tolerance", "user_tolerance"]

_MIN_SLICE_ELEMENTS = 256  # elements an index of an axis needs for its largest to be typical
_MAX_SLICES = 2048


@dataclass(frozen=True)
class Sample:
    """One output on one feed.

    Attributes:
        key: of the feed. Noise and variation are compared within a group only, whose feeds have one shape.
        original, fused: the two values, None where an optional is absent.
        by_inputs, by_weights: the original's value with inputs, or weights, moved by one ulp; None where not measured.
        optimized: the original's value under ORT_ENABLE_ALL, or None.
    """

    key: FeedKey
    original: Array | None
    fused: Array | None
    by_inputs: Array | None = None
    by_weights: Array | None = None
    optimized: Array | None = None

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
    peak = _peak(np.abs(_finite(value.astype(np.float64))), axis)
    step = np.vectorize(lambda top: ulp(float(top), value.dtype), otypes=[float])(peak)
    noise = np.zeros_like(peak)
    for change in _changes(sample, samples, value):
        noise = np.maximum(noise, _peak(change, axis))
    return Tolerance(np.maximum(noise, step), noise_tolerance(noise, step))


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


def _finite(array: Array) -> Array:
    return np.where(np.isfinite(array), array, 0.0)
