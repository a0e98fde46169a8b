"""The statistics of an output, against numpy by hand: floats, NaN and infinities, integers, booleans, text, nothing."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnx_repfuse.records.comparison import Bin, ErrorSpread
from onnx_repfuse.verifier.comparing.statistics import output_statistics

RNG = np.random.default_rng(3)
FIRST = RNG.standard_normal((4, 7)).astype(np.float32)
SECOND = (FIRST + 1e-3 * RNG.standard_normal((4, 7))).astype(np.float32)


def spread(errors: Any) -> ErrorSpread:
    percentiles = (np.percentile(errors, q) for q in (50, 90, 95, 99))
    return ErrorSpread(float(errors.max()), float(errors.mean()), *map(float, percentiles))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_floats_as_numpy_has_them(dtype: Any) -> None:
    a, b = FIRST.astype(dtype), SECOND.astype(dtype)
    result = output_statistics("y", [(a, b)])
    x, y = a.astype(np.float64), b.astype(np.float64)
    gap = np.abs(x - y)
    assert (result.elements, result.different, result.only_one_finite) == (28, int((gap > 0).sum()), 0)
    assert result.absolute == spread(gap)
    assert result.relative == spread(gap.ravel() / np.abs(x).ravel())
    at = np.unravel_index(gap.argmax(), gap.shape)
    assert result.at == at
    assert result.values == (x[at], y[at])
    assert result.cosine == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
    assert result.psnr == pytest.approx(20 * np.log10((x.max() - x.min()) / np.sqrt((gap**2).mean())))
    assert result.minimum_atol == gap.max()
    assert result.minimum_rtol == (gap / np.abs(x)).max()
    assert np.allclose(x, y, rtol=0, atol=result.minimum_atol)
    assert sum(entry.count for entry in result.histogram) == 28


def test_feeds_of_other_sizes_count_together() -> None:
    result = output_statistics("y", [(FIRST, SECOND), (FIRST[:2], FIRST[:2])])
    gap = np.concatenate([np.abs(FIRST.astype(float) - SECOND).ravel(), np.zeros(14)])
    assert result.absolute == spread(gap)
    assert result.elements == 42


def test_the_histogram_has_a_bin_for_each_decade() -> None:
    first = np.zeros(6)
    second = np.array([0, 0, 2e-3, 3e-3, 5e-2, 1.0])
    assert output_statistics("y", [(first, second)]).histogram == (
        Bin(0.0, 0.0, 2),
        Bin(10.0**-3, 10.0**-2, 2),
        Bin(10.0**-2, 10.0**-1, 1),
        Bin(10.0**-1, 1.0, 0),
        Bin(1.0, 10.0, 1),
    )
    tiny = output_statistics("y", [(np.zeros(2), np.array([1e-300, 1.0]))]).histogram
    assert len(tiny) == 16
    assert (tiny[0].count, tiny[-1].count) == (1, 1)


def test_nan_and_infinity_equal_themselves_only() -> None:
    first = np.array([np.nan, np.inf, np.inf, 1.0, np.nan, 2.0], np.float32)
    second = np.array([np.nan, np.inf, -np.inf, np.nan, 3.0, 2.5], np.float32)
    result = output_statistics("y", [(first, second)])
    assert (result.elements, result.different, result.only_one_finite) == (6, 4, 3)
    assert result.absolute == spread(np.array([0.5]))  # of what is finite in both
    assert result.relative == spread(np.array([0.25]))
    assert result.minimum_atol == result.minimum_rtol == math.inf
    everywhere = output_statistics("y", [(np.full(3, np.nan), np.full(3, np.nan))])
    assert (everywhere.different, everywhere.absolute, everywhere.psnr) == (0, None, None)
    assert everywhere.minimum_atol == 0


def test_no_relative_tolerance_helps_where_the_first_is_zero() -> None:
    result = output_statistics("y", [(np.array([0.0, 2.0]), np.array([0.1, 2.0]))])
    assert result.relative == spread(np.array([0.0]))
    assert (result.minimum_atol, result.minimum_rtol) == (0.1, math.inf)


def test_equal_values_have_no_error() -> None:
    result = output_statistics("y", [(FIRST, FIRST)], other="z")
    assert (result.name, result.other, result.different, result.at) == ("y", "z", 0, None)
    assert result.psnr == math.inf
    assert result.top_k == {"1": 1.0, "5": 1.0}
    assert result.minimum_atol == result.minimum_rtol == 0


def test_integers_and_booleans_have_distances() -> None:
    whole = output_statistics("y", [(np.array([1, 5, 9]), np.array([1, 6, 4]))])
    assert whole.absolute == spread(np.array([0.0, 1.0, 5.0]))
    assert (whole.different, whole.at, whole.values) == (2, (2,), (9.0, 4.0))
    flags = output_statistics("y", [(np.array([True, False]), np.array([True, True]))])
    assert (flags.different, flags.minimum_atol) == (1, 1.0)
    assert flags.top_k == {}


def test_text_and_nothing_have_none() -> None:
    words = output_statistics("y", [(np.array(["a", "b"], object), np.array(["a", "c"], object))])
    assert (words.elements, words.different, words.absolute, words.minimum_atol) == (2, 1, None, math.inf)
    empty = output_statistics("y", [(np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32))])
    assert (empty.elements, empty.absolute, empty.dtypes) == (0, None, ("float32", "float32"))
    shapes = output_statistics("y", [(np.zeros(3), np.zeros(4))])
    assert (shapes.elements, shapes.absolute, shapes.histogram) == (0, None, ())
    assert output_statistics("y", []).dtypes == ("", "")


def test_complex_numbers_have_sizes_and_no_order() -> None:
    result = output_statistics("y", [(np.array([3 + 4j]), np.array([3 + 3j]))])
    assert result.absolute == spread(np.array([1.0]))
    assert result.relative == spread(np.array([0.2]))
    assert (result.psnr, result.at, result.cosine) == (None, None, None)


def test_top_k_counts_what_both_have_of_each_row() -> None:
    first = np.arange(24.0).reshape(2, 12)
    second = first.copy()
    second[1, [0, 11]] = second[1, [11, 0]]  # the highest of the second row is the lowest now
    assert output_statistics("y", [(first, second)]).top_k == {"1": 0.5, "5": 0.9}
    few = np.arange(10.0).reshape(2, 5)
    assert output_statistics("y", [(few, few)]).top_k == {"1": 1.0}  # five of five say nothing
