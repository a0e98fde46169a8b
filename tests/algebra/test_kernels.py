"""The lazy kernels: blocks of rows equal the whole, selections equal slices, special cases equal the general one."""

from __future__ import annotations

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.affine_conv import AffineConv
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Block, Stacked
from onnx_repfuse.algebra.kernels import Composed, Kernel, Scaled, Stored, Total, Vector, push


def affine(geometry: Geometry, seed: int = 0) -> AffineConv:
    rng = np.random.default_rng(seed)
    return AffineConv(geometry, rng.normal(size=geometry.weight_shape), rng.normal(size=geometry.c_out))


def whole(kernel: Kernel) -> np.ndarray:
    """The kernel's weight, after checking that every block of it is the same numbers."""
    count = kernel.geometry.c_out
    weight = kernel.rows(0, count)
    assert weight.shape == kernel.geometry.weight_shape
    assert weight.dtype == np.float64
    for lo in range(count):
        for hi in range(lo + 1, count + 1):
            np.testing.assert_allclose(kernel.rows(lo, hi), weight[lo:hi], rtol=1e-13, atol=1e-13)
    return weight


def dense(f: AffineConv) -> np.ndarray:
    """The weight with explicit zeros where its groups read nothing: (c_out, c_in, *kernel)."""
    g = f.geometry
    rows, columns = g.c_out // g.groups, g.c_in // g.groups
    result = np.zeros((g.c_out, g.c_in, *g.kernel))
    for group in range(g.groups):
        o, i = slice(group * rows, (group + 1) * rows), slice(group * columns, (group + 1) * columns)
        result[o, i] = f.weight[o]
    return result


# --- compositions and sums -----------------------------------------------------------------------

KINDS = {
    "dense": lambda k: Geometry.conv(8, 8, (k,)),
    "grouped": lambda k: Geometry.conv(8, 8, (k,), groups=2),
    "finer": lambda k: Geometry.conv(8, 8, (k,), groups=4, dilations=(2,)),
    "depthwise": lambda k: Geometry.conv(8, 8, (k,), groups=8),
    "diagonal": lambda k: Geometry.diagonal(8, 1),
}


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_composed_is_the_sum_over_pairs_of_taps(outer: str, inner: str) -> None:
    g, f = affine(KINDS[outer](3), 1), affine(KINDS[inner](2), 2)
    geometry = laws.compose(g.geometry, f.geometry, zero_bias=False)
    folded = AffineConv(geometry, whole(Composed(geometry, g.kernel, f.kernel)), np.zeros(8))
    step_g, step_f = g.geometry.dilations[0], f.geometry.dilations[0]
    expected = np.zeros((8, 8, step_g * (g.weight.shape[2] - 1) + step_f * (f.weight.shape[2] - 1) + 1))
    for a in range(g.weight.shape[2]):
        for b in range(f.weight.shape[2]):
            expected[:, :, step_g * a + step_f * b] += dense(g)[:, :, a] @ dense(f)[:, :, b]
    np.testing.assert_allclose(dense(folded), expected[:, :, :: geometry.dilations[0]], atol=1e-13)
    np.testing.assert_allclose((g @ f).weight, folded.weight, atol=1e-13)


def test_composed_with_a_channel_multiplier() -> None:
    g = affine(Geometry.conv(4, 8, (3,), groups=4), 1)
    for groups in (1, 2, 4):
        f = affine(Geometry.conv(8, 4, (2,), groups=groups), 2)
        geometry = laws.compose(g.geometry, f.geometry, zero_bias=False)
        x = np.random.default_rng(3).normal(size=(1, 8, 9))
        folded = AffineConv(geometry, whole(Composed(geometry, g.kernel, f.kernel)), (g @ f).bias)
        np.testing.assert_allclose(folded(x), g(f(x)), atol=1e-12)


@pytest.mark.parametrize("one", [1, 2, 3, 6])
@pytest.mark.parametrize("other", [1, 2, 3, 6])
def test_groups_become_the_gcd(one: int, other: int) -> None:
    """Groups that do not nest, such as 2 and 3, leave one dense block."""
    g = affine(Geometry.conv(6, 6, (2,), groups=one), 1)
    f = affine(Geometry.conv(6, 6, (2,), groups=other), 2)
    assert (g @ f).geometry.groups == (g + f).geometry.groups == gcd(one, other)
    x = np.random.default_rng(3).normal(size=(1, 6, 4))
    np.testing.assert_allclose((g @ f)(x), g(f(x)), atol=1e-12)
    np.testing.assert_allclose((g + f)(x), g(x) + f(x), atol=1e-12)


def test_total_lays_unlike_dilations_and_groups_on_one_grid() -> None:
    parts = [
        affine(Geometry.conv(4, 4, (5,), groups=4, dilations=(2,), pads=(4, 4)), 0),
        affine(Geometry.conv(4, 4, (3,), groups=2, dilations=(4,), pads=(4, 4)), 1),
        affine(Geometry.conv(4, 4, (1,), groups=2), 2),
    ]
    geometry = parts[0].geometry
    for part in parts[1:]:
        geometry = laws.total(geometry, part.geometry)
    assert (geometry.kernel, geometry.dilations, geometry.groups) == ((5,), (2,), 2)
    total = AffineConv(geometry, whole(Total(geometry, tuple(p.kernel for p in parts))), np.zeros(4))
    expected = dense(parts[0])
    expected[:, :, ::2] += dense(parts[1])
    expected[:, :, 2:3] += dense(parts[2])
    np.testing.assert_allclose(dense(total), expected, atol=1e-14)


def test_total_of_origins_an_odd_distance_apart_has_dilation_one() -> None:
    f = affine(Geometry.conv(1, 1, (2,), dilations=(4,), pads=(2, 3)), 0)
    g = affine(Geometry.conv(1, 1, (2,), dilations=(2,), pads=(1, 2)), 1)
    geometry = laws.total(f.geometry, g.geometry)
    assert (geometry.kernel, geometry.dilations, geometry.origin) == ((5,), (1,), (-2,))
    taps = whole(Total(geometry, (f.kernel, g.kernel)))[0, 0]
    a, b = f.weight[0, 0], g.weight[0, 0]
    np.testing.assert_array_equal(taps, [a[0], b[0], 0, b[1], a[1]])


@pytest.mark.parametrize("transposed", [False, True])
def test_scaled_multiplies_rows_and_columns(transposed: bool) -> None:
    make = Geometry.conv_transpose if transposed else Geometry.conv
    f = affine(make(4, 6, (3, 2), groups=2))
    outer, inputs = np.arange(1.0, 7.0), np.arange(2.0, 6.0)
    expected = np.diag(outer) @ np.moveaxis(dense(f), (2, 3), (0, 1)) @ np.diag(inputs)
    scaled = AffineConv(f.geometry, whole(Scaled(f.geometry, f.kernel, outer, inputs)), f.bias)
    np.testing.assert_allclose(np.moveaxis(dense(scaled), (2, 3), (0, 1)), expected, atol=1e-14)
    np.testing.assert_array_equal(whole(Scaled(f.geometry, f.kernel, None)), f.weight)


def test_vector_and_stored_give_their_numbers_in_float64() -> None:
    values = np.array([1.0, 2.0, 3.0])
    assert whole(Vector(Geometry.diagonal(3, 2), values)).ravel().tolist() == values.tolist()
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    stored = Stored(Geometry.dense(3, 2), lambda: half)
    assert whole(stored).tolist() == half.tolist()


def test_nothing_is_read_before_rows() -> None:
    def read() -> np.ndarray:
        raise AssertionError("read while planning")

    geometry = Geometry.conv(4, 4, (3,))
    stored = Stored(geometry, read)
    composed = Composed(laws.compose(geometry, geometry, zero_bias=False), stored, stored)
    total = Total(composed.geometry, (composed, composed))
    assert Scaled(total.geometry, total, None).depth == 3


# --- channels ------------------------------------------------------------------------------------

RANGES = [(lo, hi) for lo in range(8) for hi in range(lo + 1, 9)]


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_rows_selects_output_channels(groups: int) -> None:
    f = affine(Geometry.conv(8, 8, (2,), groups=groups))
    x = np.random.default_rng(1).normal(size=(1, 8, 3))
    for lo, hi in RANGES:
        geometry, first, last = laws.select_outputs(f.geometry, lo, hi)
        part = AffineConv(geometry, whole(Block(geometry, f.kernel, lo, first)), f.bias[lo:hi])
        assert geometry.c_in == last - first
        np.testing.assert_allclose(part(x[:, first:last]), f(x)[:, lo:hi], atol=1e-13)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_columns_selects_input_channels(groups: int) -> None:
    f = affine(Geometry.conv(8, 8, (2,), groups=groups))
    x = np.random.default_rng(1).normal(size=(1, 8, 3))
    for lo, hi in RANGES:
        geometry, first, last = laws.select_inputs(f.geometry, lo, hi)
        part = AffineConv(geometry, whole(Block(geometry, f.kernel, first, lo)), f.bias[first:last])
        only = np.zeros_like(x)
        only[:, lo:hi] = x[:, lo:hi]
        expected = f(only)
        np.testing.assert_allclose(part(x[:, lo:hi]), expected[:, first:last], atol=1e-13)
        untouched = np.delete(expected, np.s_[first:last], axis=1)
        bias = np.delete(f.bias, np.s_[first:last])
        np.testing.assert_array_equal(untouched, np.broadcast_to(bias[:, None], untouched.shape))


def test_selections_of_uneven_groups() -> None:
    f = affine(Geometry.conv(6, 4, (1,), groups=2))  # three inputs, two outputs a group
    x = np.random.default_rng(1).normal(size=(1, 6, 2))
    for lo, hi in [(0, 2), (2, 4), (1, 3), (0, 1), (3, 4), (0, 4)]:
        geometry, first, last = laws.select_outputs(f.geometry, lo, hi)
        part = AffineConv(geometry, whole(Block(geometry, f.kernel, lo, first)), f.bias[lo:hi])
        np.testing.assert_allclose(part(x[:, first:last]), f(x)[:, lo:hi], atol=1e-13)


def test_only_a_selection_of_whole_groups_keeps_groups() -> None:
    f = Geometry.conv(8, 8, (1,), groups=4)
    assert laws.select_outputs(f, 2, 6)[0].groups == 2
    assert laws.select_outputs(f, 1, 5)[0].groups == 1
    assert laws.select_inputs(f, 4, 8)[0].groups == 2
    assert laws.select_inputs(f, 3, 8)[0].groups == 1


# --- bias ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    groups=st.sampled_from((1, 2, 4)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 2)),
)
def test_push_is_the_call_on_a_constant_interior(seed: int, groups: int, kernel) -> None:
    f = affine(Geometry.conv(4, 8, kernel, groups=groups, strides=(2, 1)), seed)
    bias = np.random.default_rng(seed).normal(size=4)
    x = np.broadcast_to(bias[None, :, None, None], (1, 4, 5, 4))
    result = f(x) - f.bias[:, None, None]
    expected = np.broadcast_to(push(f.kernel, bias)[:, None, None], result.shape[1:])
    np.testing.assert_allclose(result[0], expected, atol=1e-13)


def test_push_of_large_rows_works_in_blocks() -> None:
    """A row of more than 2**20 weights is a block of its own."""
    geometry = Geometry.conv(1 << 20, 2, (2,))
    weight = np.broadcast_to(np.array([1.0, 2.0])[:, None, None], geometry.weight_shape)
    bias = np.full(1 << 20, 0.5)
    assert push(Stored(geometry, lambda: weight), bias).tolist() == [1 << 20, 2 << 20]


def test_stacked_concatenates_rows() -> None:
    parts = [affine(Geometry.conv(2, n, (3,)), n) for n in (1, 3, 2)]
    stacked = Stacked(Geometry.conv(2, 6, (3,)), tuple(p.kernel for p in parts))
    np.testing.assert_array_equal(whole(stacked), np.concatenate([p.weight for p in parts]))
    assert stacked.depth == 1
