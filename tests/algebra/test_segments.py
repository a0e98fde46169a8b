"""Segments of a form hold against the sum of its terms, evaluated channel by channel."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Stored, Vector
from onnx_repfuse.algebra.segments import segmented

RNG = np.random.default_rng(0)


def _dense(c_in: int, c_out: int) -> Kernel:
    weight = RNG.standard_normal((c_out, c_in, 1))
    return Stored(Geometry.conv(c_in, c_out, (1,)), lambda: weight)


def _form(channels: int, *terms: Term) -> Form:
    return Form(channels, (1, 1), terms, Bias.zeros(channels))


def _matrix(terms: list[Term], channels: int, source: str) -> np.ndarray:
    """The matrix that the terms apply to each position of a source of four channels."""
    total = np.zeros((channels, 4))
    for term in terms:
        if term.source == source:
            g = term.kernel.geometry
            rows = term.kernel.rows(0, g.c_out).reshape(g.c_out, -1)
            rows = np.diag(rows.ravel()) if g.groups > 1 else rows
            total[term.lo_out : term.lo_out + g.c_out, term.lo_in : term.lo_in + g.c_in] += rows
    return total


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1), (3, 4, 1, 0, 2)])
def test_segments_are_the_terms_in_order_with_equal_neighbours_stacked(order: tuple[int, ...]) -> None:
    terms = [
        Term("x", _dense(4, 2), lo_out=0),
        Term("x", _dense(4, 3), lo_out=2),
        Term("y", _dense(4, 1), lo_out=5),
        Term("x", _dense(4, 4), lo_out=6),
        Term("y", Vector(Geometry.diagonal(4, 1), RNG.standard_normal(4)), lo_out=6),
    ]
    segments = segmented(_form(10, *(terms[i] for i in order)))
    assert segments is not None
    assert [channels for channels, _ in segments] == [(0, 5), (5, 6), (6, 10)]
    stacked = [term for _, terms_of_one in segments for term in terms_of_one]
    assert len(stacked) == 4
    for source in "xy":
        assert np.array_equal(_matrix(stacked, 10, source), _matrix(terms, 10, source))


@pytest.mark.parametrize(
    ("channels", "ranges"),
    [
        (4, []),
        (4, [(1, 3)]),  # the first channel is nobody's
        (4, [(0, 3)]),  # nor the last
        (6, [(0, 2), (3, 3)]),
        (4, [(0, 3), (2, 2)]),  # two overlap
        (4, [(0, 4), (0, 2)]),
        (4, [(0, 4), (2, 2)]),
    ],
)
def test_channels_left_out_or_written_twice_have_no_segments(
    channels: int, ranges: list[tuple[int, int]]
) -> None:
    terms = [Term("x", _dense(4, count), lo_out=start) for start, count in ranges]
    assert segmented(_form(channels, *terms)) is None
    assert segmented(_form(channels, *reversed(terms))) is None
