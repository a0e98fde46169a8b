"""Choices of channels composed and added, against what the operators compute one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_repfuse.algebra.affine_conv import AffineConv
from onnx_repfuse.algebra.affine_form import Form, Term, side_by_side
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Picked, picked
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_products import columns, composed, narrowed, rows, sums_of, total
from onnx_repfuse.algebra.kernels import Kernel, Stored, Vector
from onnx_repfuse.algebra.spread import Spreading, spread
from onnx_repfuse.errors import Inexact
from tests.algebra.test_laws import exists, geometries, random_affine

seeds = st.integers(0, 2**16)


def evaluated(kernel: Kernel, x: np.ndarray) -> np.ndarray:
    """A kernel without a bias, by the slow evaluation."""
    g = kernel.geometry
    return AffineConv(g, kernel.rows(0, g.c_out), np.zeros(g.c_out))(x)


def chosen(draw, c_in: int, c_out: int, rank: int) -> Kernel:
    """A choice of channels under nothing, factors, or a kernel for each."""
    index = np.array(draw(st.lists(st.integers(0, c_in - 1), min_size=c_out, max_size=c_out)), np.intp)
    taps: Kernel = Vector.unit(c_out, (1, rank))
    sort = draw(st.integers(0, 2))
    rng = np.random.default_rng(draw(seeds))
    if sort == 1:
        taps = Vector(taps.geometry, rng.normal(size=c_out))
    if sort == 2:
        g = draw(geometries(rank, 1, 1))
        g = replace(g, c_in=c_out, c_out=c_out, groups=c_out)
        weight = rng.normal(size=g.weight_shape)
        taps = Stored(g, lambda: weight)
    return picked(index, taps, c_in)


@pytest.mark.parametrize("choice_first", [True, False])
@settings(max_examples=150)
@given(st.data(), st.integers(1, 6), seeds)
def test_a_choice_before_and_behind_a_convolution(choice_first: bool, data, size: int, seed: int) -> None:
    convolution = data.draw(geometries(1, data.draw(st.sampled_from((2, 4)))))
    kernel: Kernel = random_affine(convolution, seed, bias=False).kernel
    if data.draw(st.booleans()):
        kernel = chosen(data.draw, convolution.c_in, 4, 1)
    g = kernel.geometry
    if choice_first:
        f, g = chosen(data.draw, data.draw(st.integers(1, 5)), g.c_in, 1), kernel
    else:
        f, g = kernel, chosen(data.draw, g.c_out, data.draw(st.integers(1, 5)), 1)
    assume(exists(f.geometry, (size,)) and exists(g.geometry, f.geometry.output((size,))))
    try:
        both = composed(g, f, zero_bias=True)
    except Inexact:
        assume(False)
        return
    x = np.random.default_rng(seed).normal(size=(2, f.geometry.c_in, size))
    expected = evaluated(g, evaluated(f, x))
    np.testing.assert_allclose(evaluated(both, x), expected, rtol=1e-11, atol=1e-11)
    # some of its rows, and some of its columns
    lo, hi = 0, data.draw(st.integers(1, both.geometry.c_out))
    if both.geometry.groups == 1:
        some, first = rows(both, lo, hi)
        part = x[:, first : first + some.geometry.c_in]
        np.testing.assert_allclose(evaluated(some, part), expected[:, lo:hi], rtol=1e-11, atol=1e-11)
        lo = data.draw(st.integers(0, both.geometry.c_in - 1))
        some, first = columns(both, lo, both.geometry.c_in)
        masked = np.where(np.arange(x.shape[1])[:, None] >= lo, x, 0.0)
        result = evaluated(both, masked)[:, first : first + some.geometry.c_out]
        np.testing.assert_allclose(evaluated(some, x[:, lo:]), result, rtol=1e-11, atol=1e-11)


@settings(max_examples=50)
@given(st.data(), seeds)
def test_a_choice_plus_what_has_its_size(data, seed: int) -> None:
    one = chosen(data.draw, 4, 4, 1)
    other = data.draw(
        st.sampled_from([one, Vector.unit(4, (1, 1)), random_affine(Geometry.conv(4, 4, (1,)), seed).kernel])
    )
    assume(one.geometry.slack == other.geometry.slack and one.geometry.strides == other.geometry.strides)
    assume(exists(one.geometry, (5,)))
    x = np.random.default_rng(seed).normal(size=(1, 4, 5))
    expected = evaluated(one, x) + evaluated(other, x)
    np.testing.assert_allclose(evaluated(total((one, other)), x), expected, rtol=1e-11, atol=1e-11)


def test_a_bias_goes_through_a_choice() -> None:
    taps = Vector(Geometry.diagonal(3, 1), np.array([1.0, 2.0, -1.0]))
    through = Bias(np.array([5.0, 7.0])).through(picked(np.array([1, 0, 1]), taps, 2))
    assert through.value().tolist() == [7.0, 10.0, -7.0]


@pytest.mark.parametrize("are_neighbours", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_map_of_few_channels_is_one_of_the_many_that_stand_for_them(
    groups: int, are_neighbours: bool
) -> None:
    point = random_affine(Geometry.conv(4, 8 if groups < 4 else 4, (1,), groups=groups), 3)
    inner = point.kernel if groups < 4 else Vector(point.geometry, point.weight.ravel())
    few = Form(point.geometry.c_out, (1, 1), (Term("x", inner),), Bias(point.bias))
    many = spread(few, Spreading(3, are_neighbours), 4)
    assert many is not None
    x = np.random.default_rng(0).normal(size=(2, 12, 5))

    def as_positions(values: np.ndarray) -> np.ndarray:
        """Each part of a channel as further positions, what a DepthToSpace does."""
        if are_neighbours:
            return values.reshape(2, -1, 3, 5).reshape(2, -1, 15)
        return np.swapaxes(values.reshape(2, 3, -1, 5), 1, 2).reshape(2, -1, 15)

    (term,) = many.terms
    actual = evaluated(term.kernel, x) + many.bias.value()[:, None]
    np.testing.assert_allclose(as_positions(actual), point(as_positions(x)), rtol=1e-11)


def test_some_channels_of_several_are_all_their_parts_of_the_many() -> None:
    few = Form(2, (1, 1), (Term("x", Vector.unit(2, (1, 1))),), Bias.zeros(2))
    assert spread(few, Spreading(3, are_neighbours=True), 4) is not None
    apart = spread(few, Spreading(3, are_neighbours=False), 4)
    assert apart is not None  # channel 1 of 4 has the channels 1, 5 and 9
    assert isinstance(apart.terms[0].kernel, Picked)
    assert apart.terms[0].kernel.index.tolist() == [0, 1, 4, 5, 8, 9]
    dense = Form(
        2, (1, 1), (Term("x", Stored(Geometry.conv(2, 2, (1,)), lambda: np.ones((2, 2, 1)))),), few.bias
    )
    assert spread(dense, Spreading(3, are_neighbours=False), 4) is None
    assert spread(few, Spreading(3, are_neighbours=False), 2) is not None


def test_choices_side_by_side_are_one() -> None:
    unit = Vector.unit(1, (1, 2))
    (term,) = side_by_side([Term("x", unit, lo, place) for place, lo in enumerate((2, 1, 3))])
    assert isinstance(term.kernel, Picked)
    assert (term.lo_in, term.kernel.index.tolist()) == (1, [1, 0, 2])
    (term,) = side_by_side([Term("x", unit, 1 + place, place) for place in range(3)])
    assert (term.lo_in, term.kernel.geometry.c_in, narrowed(term.kernel)) == (1, 3, (term.kernel, 0))
    terms = [Term("x", unit, 0, 0), Term("y", unit, 0, 1), Term("x", unit, 0, 2)]
    assert side_by_side(terms) == terms


def test_a_sum_of_several_that_fit_in_pairs() -> None:
    rng = np.random.default_rng(0)

    def kernel(k: int, groups: int) -> Kernel:
        g = Geometry.conv(8, 8, (k,), groups=groups, pads=(k // 2,) * 2)
        weight = rng.normal(size=g.weight_shape)
        return Stored(g, lambda: weight)

    points, wide = [kernel(1, 1) for _ in range(2)], [kernel(3, 8) for _ in range(2)]
    sums = sums_of([*points, *wide, Vector.unit(8, (1, 1))])
    assert sorted((one.geometry.kernel, one.geometry.groups) for one in sums) == [((1,), 1), ((3,), 8)]
    x = rng.normal(size=(1, 8, 5))
    expected = x + sum(evaluated(one, x) for one in (*points, *wide))
    np.testing.assert_allclose(sum(evaluated(one, x) for one in sums), expected, rtol=1e-11)
