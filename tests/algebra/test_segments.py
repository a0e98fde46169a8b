"""Segments of a form hold against the sum of its terms, evaluated channel by channel."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Kernel, Stored, Vector, input_channels
from onnx_repfuse.algebra.segments import grouped, segmented
from onnx_repfuse.algebra.support import reached

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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_consecutive_channels_are_groups_of_one(groups: int, transposed: bool) -> None:
    shape = (8, 4 // groups, 3)
    geometry = Geometry.conv_transpose if transposed else Geometry.conv
    weights = RNG.standard_normal((3, *shape))
    kernels = [Stored(geometry(4, 8, (3,), groups=groups), partial(np.copy, weight)) for weight in weights]
    terms = [Term("x", kernel, 2 + 4 * i, 8 * i) for i, kernel in enumerate(kernels)]
    segments = segmented(_form(24, *terms))
    together = grouped(segments or ())
    assert together is not None
    ((channels, (term,)),) = together
    g = term.kernel.geometry
    assert (channels, term.lo_in, term.lo_out) == ((0, 24), 2, 0)
    assert (g.c_in, g.c_out, g.groups, g.transposed) == (12, 24, 3 * groups, transposed)
    rows = term.kernel.rows(0, 24)
    assert np.array_equal(rows, np.concatenate([kernel.read() for kernel in kernels]))
    assert np.array_equal(term.kernel.rows(6, 18), rows[6:18])
    read = np.concatenate([4 * i + input_channels(kernel.geometry, 0, 8) for i, kernel in enumerate(kernels)])
    assert np.array_equal(input_channels(g, 0, 24), read)
    start = np.zeros(12, np.bool_)
    start[5] = True
    reaches = (read == 5).any(axis=1)
    assert np.array_equal(reached(term.kernel, start, False), reaches)
    assert np.array_equal(reached(term.kernel, reaches, True), np.isin(np.arange(12), read[reaches]))


@pytest.mark.parametrize(
    "second",
    [
        Term("x", _dense(2, 3), 0, 3),  # of the same channels, which are stacked
        Term("x", _dense(2, 3), 3, 3),
        Term("y", _dense(2, 3), 2, 3),
        Term("x", _dense(2, 4), 2, 3),
        Term("x", _dense(1, 3), 2, 3),
        Term("x", Vector(Geometry.diagonal(3, 1), np.ones(3)), 2, 3),
    ],
)
def test_other_neighbours_are_no_groups(second: Term) -> None:
    first = Term("x", _dense(2, 3), 0, 0)
    segments = segmented(_form(3 + second.kernel.geometry.c_out, first, second))
    assert grouped(segments or ()) is None
