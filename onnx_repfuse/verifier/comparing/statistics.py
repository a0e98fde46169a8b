"""How far two values of an output are apart, in the figures that people know from other tools.

Errors are taken in float64, over all feeds at once. They decide nothing; verdicts come from `outputs.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_repfuse.records.comparison import Bin, ErrorSpread, OutputStatistics
from onnx_repfuse.verifier.distance import FEWEST_CLASSES, Array, cosine, difference, is_inexact

__all__ = ["output_statistics"]

_PERCENTILES = (50, 90, 95, 99)
_MAX_BINS = 16  # decades; smaller errors are counted in the lowest
_TOP_K = (1, 5)
Pairs = Sequence[tuple[Array, Array]]


def output_statistics(name: str, pairs: Pairs, other: str = "") -> OutputStatistics:
    """The statistics of one output.

    Args:
        name: the output, and `other` its name in the second model, where that differs.
        pairs: (value in the first model, value in the second), one per feed. Those of different shapes do not count.
    """
    dtypes = (pairs[0][0].dtype.name, pairs[0][1].dtype.name) if pairs else ("", "")
    pairs = [(first, second) for first, second in pairs if first.shape == second.shape and first.size]
    elements = sum(first.size for first, _ in pairs)
    if not elements or not _are_numbers(pairs):
        return _without_distance(name, other or name, dtypes, pairs)
    gaps = [difference(first, second).ravel() for first, second in pairs]
    gap = np.concatenate(gaps)
    sizes = np.concatenate([_size(first) for first, _ in pairs])
    finite = np.isfinite(gap) & np.isfinite(sizes)
    # `difference` is infinite where only one of the two is NaN or infinite, and where infinities differ.
    only_one_finite = int(np.sum(~np.isfinite(gap)))
    gap, sizes = gap[finite], sizes[finite]
    nonzero = sizes > 0
    with np.errstate(over="ignore"):
        relative = gap[nonzero] / sizes[nonzero]
    differs_from_zero = bool(gap[~nonzero].any())  # which no relative tolerance covers
    at, values = _largest(pairs, gaps)
    return OutputStatistics(
        name,
        other or name,
        dtypes,
        elements,
        different=int(np.count_nonzero(gap)) + only_one_finite,
        only_one_finite=only_one_finite,
        absolute=_spread(gap),
        relative=_spread(relative),
        at=at,
        values=values,
        cosine=cosine(pairs),
        psnr=_psnr(pairs, gap),
        top_k=_top_k(pairs),
        minimum_atol=math.inf if only_one_finite else float(gap.max(initial=0.0)),
        minimum_rtol=math.inf if only_one_finite or differs_from_zero else float(relative.max(initial=0.0)),
        histogram=_histogram(gap),
    )


def _without_distance(name: str, other: str, dtypes: tuple[str, str], pairs: Pairs) -> OutputStatistics:
    """The statistics of an output without elements, or of text: how many elements differ."""
    elements = sum(first.size for first, _ in pairs)
    different = sum(int(np.sum(first != second)) for first, second in pairs)
    infinite = math.inf if different else 0.0
    nothing = None, None, None, None, None, None
    return OutputStatistics(name, other, dtypes, elements, different, 0, *nothing, {}, infinite, infinite, ())


def _are_numbers(pairs: Pairs) -> bool:
    """Whether the values have a distance; text has none."""
    return all(array.dtype.kind in "biu" or is_inexact(array.dtype) for pair in pairs for array in pair)


def _size(array: Array) -> Array:
    wide = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.asarray(np.abs(array.astype(wide, copy=False)).ravel())


def _spread(errors: Array) -> ErrorSpread | None:
    if not errors.size:
        return None
    percentiles = (float(value) for value in np.percentile(errors, _PERCENTILES))
    return ErrorSpread(float(errors.max()), float(errors.mean()), *percentiles)


def _largest(
    pairs: Pairs, gaps: Sequence[Array]
) -> tuple[tuple[int, ...] | None, tuple[float, float] | None]:
    """(index of the largest error in its tensor, the two values there); (None, None) if there is no error."""
    peaks = [float(gap.max()) for gap in gaps]
    worst = int(np.argmax(peaks))
    if not peaks[worst] or any(array.dtype.kind == "c" for array in pairs[worst]):
        return None, None
    first, second = pairs[worst]
    index = np.unravel_index(int(gaps[worst].argmax()), first.shape)
    return tuple(int(axis) for axis in index), (float(first[index]), float(second[index]))


def _psnr(pairs: Pairs, gap: Array) -> float | None:
    """In dB; the peak is the range of the first model's finite values.

    None for an output of one value, which has no range, and for complex numbers, which have no order.
    """
    if not gap.size or any(first.dtype.kind == "c" for first, _ in pairs):
        return None
    values = np.concatenate([first.astype(np.float64, copy=False).ravel() for first, _ in pairs])
    values = values[np.isfinite(values)]
    peak = float(np.ptp(values))
    rms = float(np.sqrt(np.mean(np.square(gap))))
    if rms == 0:
        return math.inf
    return 20 * math.log10(peak / rms) if peak > 0 and math.isfinite(rms) else None


def _top_k(pairs: Pairs) -> dict[str, float]:
    """Per k the share that both have of the k highest scores of each row, whatever their order; else empty."""
    if not all(_are_scores(*pair) for pair in pairs):
        return {}
    fewest = min(first.shape[1] for first, _ in pairs)
    # of as many classes as there are, nothing could differ
    return {str(k): _share_of_highest(pairs, k) for k in _TOP_K if k < fewest}


def _are_scores(first: Array, second: Array) -> bool:
    """Whether both look like scores of classes: floats that have an order, one row per sample."""
    if first.ndim != 2 or first.shape[1] < FEWEST_CLASSES or first.dtype.kind == "c":
        return False
    return is_inexact(first.dtype) and is_inexact(second.dtype)


def _share_of_highest(pairs: Pairs, k: int) -> float:
    common = rows = 0
    for first, second in pairs:
        tops = [_highest(scores, k) for scores in (first, second)]
        common += sum(len(set(a) & set(b)) for a, b in zip(*tops, strict=True))
        rows += first.shape[0]
    return common / (rows * k)


def _highest(scores: Array, k: int) -> list[list[int]]:
    """The columns of the k highest scores of each row; of equal scores, the first columns."""
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
    return [list(row) for row in order[:, :k].tolist()]


def _histogram(gap: Array) -> tuple[Bin, ...]:
    """Counts by decades, the smallest errors first; one bin for no error at all."""
    if not gap.size:
        return ()
    zeros = int(np.sum(gap == 0))
    bins = [Bin(0.0, 0.0, zeros)] if zeros else []
    errors = gap[gap > 0]
    if not errors.size:
        return tuple(bins)
    decades = np.floor(np.log10(errors)).astype(int)
    top = int(decades.max())
    decades = np.maximum(decades, top - _MAX_BINS + 1)
    for decade in range(int(decades.min()), top + 1):
        count = int(np.sum(decades == decade))
        bins.append(Bin(10.0**decade, 10.0 ** (decade + 1), count))
    return tuple(bins)
