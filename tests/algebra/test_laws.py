"""Every law against the oracle: (g @ f)(x) == g(f(x)) and (f + g)(x) == f(x) + g(x)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.affine_conv import AffineConv
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Total
from onnx_repfuse.errors import Inexact
from onnx_repfuse.records.reasons import Reason


def random_affine(geometry: Geometry, seed: int, *, bias: bool = True) -> AffineConv:
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=geometry.c_out) if bias else np.zeros(geometry.c_out)
    return AffineConv(geometry, rng.normal(size=geometry.weight_shape), shift)


def random_input(geometry: Geometry, size: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if geometry.channel_axis == -1:
        return rng.normal(size=(2, 3, geometry.c_in))
    return rng.normal(size=(2, geometry.c_in, *size))


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


def reason(attempt) -> Reason | None:
    try:
        attempt()
    except Inexact as refusal:
        return refusal.reason
    return None


def exists(geometry: Geometry, size: tuple[int, ...]) -> bool:
    return min(geometry.output(size), default=1) > 0


@st.composite
def geometries(draw, rank: int, c_in: int | None = None, c_out: int | None = None) -> Geometry:
    """Convolutions that may pad, crop (negative pads), stride and dilate; small ones at rank 3."""
    channels = st.sampled_from((1, 2, 4))
    c_in, c_out = c_in or draw(channels), c_out or draw(channels)
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if c_in % g == c_out % g == 0]))

    def axes(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * count))

    # one draw in three is plain, because two wild geometries seldom compose
    wild = draw(st.integers(0, 2)) > 0
    kernel = axes(1, 2 if rank == 3 else 4 if rank == 1 else 3)
    if not wild:
        return Geometry.conv(c_in, c_out, kernel, groups=groups)
    return Geometry.conv(
        c_in,
        c_out,
        kernel,
        groups=groups,
        strides=axes(1, 3 if rank == 1 else 2),
        dilations=axes(1, 3 if rank == 1 else 2),
        pads=axes(-1 if rank == 1 else 0, 3 if rank == 1 else 2, 2 * rank),
    )


def sizes(rank: int, largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, largest)] * rank)


seeds = st.integers(0, 2**16)
ranks = pytest.mark.parametrize("rank", [0, 1, 2, 3])
LARGEST = {0: 1, 1: 7, 2: 5, 3: 3}
EXAMPLES = {0: 25, 1: 200, 2: 80, 3: 30}


@ranks
def test_composition_holds_or_is_refused(rank: int) -> None:
    @settings(max_examples=EXAMPLES[rank])
    @given(st.data(), sizes(rank, LARGEST[rank]), seeds, st.booleans())
    def law(data, size, seed, bias) -> None:
        f = random_affine(data.draw(geometries(rank)), seed, bias=bias)
        g = random_affine(data.draw(geometries(rank, c_in=f.geometry.c_out)), seed + 1)
        assume(exists(f.geometry, size) and exists(g.geometry, f.geometry.output(size)))
        assume(reason(lambda: g @ f) is None)
        folded = g @ f
        x = random_input(f.geometry, size, seed + 2)
        assert_equal(folded(x), g(f(x)))

    law()


@ranks
def test_sum_holds_or_is_refused(rank: int) -> None:
    @settings(max_examples=EXAMPLES[rank])
    @given(st.data(), sizes(rank, LARGEST[rank]), seeds)
    def law(data, size, seed) -> None:
        one = data.draw(geometries(rank))
        other = data.draw(geometries(rank, one.c_in, one.c_out))
        # same strides and slack, anything else as drawn: the pads follow
        other = replace(other, strides=one.strides, slack=one.slack)
        assume(exists(one, size))
        f, g = random_affine(one, seed), random_affine(other, seed + 1)
        x = random_input(one, size, seed + 2)
        assert_equal((f + g)(x), f(x) + g(x))
        assert_equal((g + f)(x), f(x) + g(x))

    law()


@pytest.mark.parametrize("rank", [1, 2])
@settings(max_examples=150)
@given(data=st.data(), seed=seeds)
def test_unlike_slacks_add_where_a_known_size_gives_equal_positions(rank: int, data, seed) -> None:
    one = data.draw(geometries(rank))
    other = replace(data.draw(geometries(rank, one.c_in, one.c_out)), strides=one.strides)
    size = data.draw(sizes(rank, 6))
    assume(exists(one, size) and exists(other, size))
    f, g = random_affine(one, seed), random_affine(other, seed + 1)
    if one.output(size) != other.output(size):
        with pytest.raises(Inexact) as refusal:
            laws.total(one, other, size)
        assert refusal.value.reason is Reason.GRID
        return
    geometry = laws.total(one, other, size)
    weight = Total(geometry, (f.kernel, g.kernel)).rows(0, geometry.c_out)
    x = random_input(one, size, seed)
    assert_equal(AffineConv(geometry, weight, f.bias + g.bias)(x), f(x) + g(x))


@settings(max_examples=60)
@given(seed=seeds, channels=st.tuples(*[st.integers(1, 5)] * 3))
def test_matrix_products_on_the_last_axis_compose_and_add(seed: int, channels) -> None:
    a, b, c = channels
    f = random_affine(Geometry.dense(a, b), seed)
    g = random_affine(Geometry.dense(b, c), seed + 1)
    h = random_affine(Geometry.dense(a, b), seed + 2)
    x = random_input(f.geometry, (), seed)
    assert_equal(f(x), x @ f.weight.T + f.bias)
    assert_equal((g @ f)(x), g(f(x)))
    assert_equal((f + h)(x), f(x) + h(x))
    scale = random_affine(Geometry.diagonal(b, 0, -1), seed + 3)
    assert_equal((g @ scale @ f)(x), g(scale(f(x))))


@st.composite
def transposed(draw, rank: int, groups: int) -> Geometry:
    """Transposed convolutions of 4 to 8 channels."""

    def axes(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * count))

    return Geometry.conv_transpose(
        4,
        8,
        axes(1, 3),
        groups=groups,
        strides=axes(1, 3),
        dilations=axes(1, 2),
        pads=axes(0, 2, 2 * rank),
        output_padding=axes(0, 1),
    )


@settings(max_examples=80)
@given(data=st.data(), seed=seeds)
def test_transposed_convolutions_compose_with_pointwise_ones_and_add(data, seed: int) -> None:
    rank, groups = data.draw(st.integers(1, 2)), st.sampled_from((1, 2, 4))
    geometry = data.draw(transposed(rank, data.draw(groups)))
    other = data.draw(transposed(rank, data.draw(groups)))
    other = replace(other, strides=geometry.strides, slack=geometry.slack)
    size, points = data.draw(sizes(rank, 4)), (1,) * rank
    assume(exists(geometry, size))
    f, g = random_affine(geometry, seed), random_affine(other, seed + 1)
    x = random_input(geometry, size, seed)
    assert_equal((f + g)(x), f(x) + g(x))
    behind = [Geometry.diagonal(8, rank), Geometry.conv(8, 6, points), Geometry.conv(8, 4, points, groups=4)]
    for point in behind:
        after = random_affine(point, seed + 2)
        assert_equal((after @ f)(x), after(f(x)))
    before = [Geometry.diagonal(4, rank), Geometry.conv(4, 4, points), Geometry.conv(4, 4, points, groups=2)]
    for point in before:
        inner = random_affine(point, seed + 3, bias=False)
        assert_equal((f @ inner)(x), f(inner(x)))
        shifted = random_affine(point, seed + 4)
        assert reason(lambda f=f, shifted=shifted: f @ shifted) is Reason.BORDER
    wide = random_affine(Geometry.conv(8, 4, (3,) * rank), seed)
    assert reason(lambda: wide @ f) is Reason.UNSUPPORTED


@settings(max_examples=80)
@given(data=st.data(), seed=seeds)
def test_a_crop_behind_a_transposed_convolution(data, seed: int) -> None:
    rank = data.draw(st.integers(1, 2))
    geometry = data.draw(transposed(rank, data.draw(st.sampled_from((1, 2, 4)))))
    size, pads = data.draw(sizes(rank, 4)), data.draw(st.tuples(*[st.integers(-3, 0)] * (2 * rank)))
    f = random_affine(geometry, seed)
    crop = random_affine(Geometry.conv(8, 8, (1,) * rank, groups=8, pads=pads), seed + 1)
    left = [
        slack + begin + end
        for slack, begin, end in zip(geometry.slack, pads[:rank], pads[rank:], strict=True)
    ]
    if min(left) < 1 and any(pads):
        assert reason(lambda: crop @ f) is Reason.SHAPE
    elif exists(geometry, size):
        x = random_input(geometry, size, seed)
        assert_equal((crop @ f)(x), crop(f(x)))


def test_a_convolution_and_a_transposed_one_do_not_add() -> None:
    one = random_affine(Geometry.conv(4, 8, (1,), strides=(2,)), 0)
    other = random_affine(Geometry.conv_transpose(4, 8, (1,), strides=(2,)), 1)
    assert reason(lambda: one + other) is Reason.GRID


# --- refusals ------------------------------------------------------------------------------------


def naive(g: AffineConv, f: AffineConv) -> AffineConv:
    """`g @ f` with the border law ignored: what a careless fuser would write."""
    with patch.object(laws, "_check_border"):
        return g @ f


def differs_somewhere(g: AffineConv, f: AffineConv, largest: int) -> bool:
    folded = naive(g, f)
    for n in range(1, largest + 1):
        if not (exists(f.geometry, (n,)) and exists(g.geometry, f.geometry.output((n,)))):
            continue
        x = random_input(f.geometry, (n,), n)
        if not np.allclose(folded(x), g(f(x)), rtol=1e-9, atol=1e-9):
            return True
    return False


@pytest.mark.parametrize("bias", [False, True])
def test_the_border_law_refuses_exactly_where_a_counterexample_exists(bias: bool) -> None:
    """Random 1-D pairs: the refused ones differ at some small size, the others at none."""
    rng = np.random.default_rng(7)
    refused = allowed = 0
    for seed in range(200):
        k, s, d = rng.integers(1, 4, size=(3, 2)).tolist()
        pads = rng.integers(-1, 5, size=4).tolist()
        one, other = (
            Geometry.conv(1, 1, (k[i],), strides=(s[i],), dilations=(d[i],), pads=tuple(pads[2 * i :][:2]))
            for i in (0, 1)
        )
        f, g = random_affine(one, seed, bias=bias), random_affine(other, seed + 1000)
        verdict = reason(lambda g=g, f=f: g @ f)
        assert verdict in (None, Reason.BORDER)
        found = differs_somewhere(g, f, largest=22)
        assert found == (verdict is not None), (one, other)
        refused, allowed = refused + found, allowed + (not found)
    assert refused > 55
    assert allowed > 22


def test_the_border_law_in_two_dimensions_refuses_where_one_axis_does() -> None:
    outer = Geometry.conv(1, 1, (3, 3), pads=(1, 1, 1, 1))
    line = Geometry.conv(1, 1, (3,), pads=(1, 1))
    choices = [(1, 0), (3, 0), (3, 1), (3, 2)]  # kernel, pad
    for axes in product(choices, repeat=2):
        kernel, pads = zip(*axes, strict=True)
        lines = [Geometry.conv(1, 1, (k,), pads=(p, p)) for k, p in axes]
        alone = [reason(lambda f=f: laws.compose(line, f, zero_bias=True)) for f in lines]
        inner = Geometry.conv(1, 1, kernel, pads=pads * 2)
        expected = Reason.BORDER if Reason.BORDER in alone else None
        assert reason(lambda inner=inner: laws.compose(outer, inner, zero_bias=True)) is expected


def test_the_classic_silent_bug_is_refused() -> None:
    """1x1 Conv with bias, then a padded 3x3: inside, the naive fold is right; on the border it is not."""
    point = random_affine(Geometry.conv(2, 3, (1, 1)), 0)
    three = random_affine(Geometry.conv(3, 4, (3, 3), pads=(1,) * 4), 1)
    valid = random_affine(Geometry.conv(3, 4, (3, 3)), 1)
    silent = AffineConv(point.geometry, point.weight, np.zeros(3))
    assert reason(lambda: three @ point) is Reason.BORDER
    assert reason(lambda: three @ silent) is None
    assert reason(lambda: valid @ point) is None
    x = random_input(point.geometry, (5, 5), 2)
    wrong, right = naive(three, point)(x), three(point(x))
    assert_equal(wrong[:, :, 1:-1, 1:-1], right[:, :, 1:-1, 1:-1])
    assert not np.isclose(wrong[:, :, 0], right[:, :, 0]).any()


def test_unlike_strides_slacks_and_kinds_do_not_add() -> None:
    base = Geometry.conv(2, 2, (3,), pads=(1, 1))
    assert (
        reason(lambda: laws.total(base, Geometry.conv(2, 2, (3,), strides=(2,), pads=(1, 1)))) is Reason.GRID
    )
    assert reason(lambda: laws.total(base, Geometry.conv(2, 2, (3,)))) is Reason.GRID
    assert reason(lambda: laws.total(base, Geometry.conv(2, 2, (3,)), (5,))) is Reason.GRID
    up = Geometry.conv_transpose(2, 2, (3,), pads=(1, 1))
    assert reason(lambda: laws.total(up, Geometry.conv_transpose(2, 2, (3,)))) is Reason.GRID
    assert reason(lambda: laws.total(up, base)) is Reason.GRID


def test_stride_two_branches_of_unlike_alignment_add_only_at_known_sizes() -> None:
    three = Geometry.conv(1, 1, (3,), strides=(2,), pads=(1, 1))  # floor((n - 1)/2) + 1
    four = Geometry.conv(1, 1, (4,), strides=(2,), pads=(1, 1))  # floor((n - 2)/2) + 1
    assert reason(lambda: laws.total(three, four)) is Reason.GRID
    assert reason(lambda: laws.total(three, four, (8,))) is None
    assert reason(lambda: laws.total(three, four, (7,))) is Reason.GRID


def test_unlike_channels_and_layouts_are_refused() -> None:
    base = Geometry.conv(2, 2, (3,), pads=(1, 1))
    plane = Geometry.conv(2, 2, (3, 3), pads=(1,) * 4)
    for other in (plane, Geometry.conv(2, 4, (3,), pads=(1, 1)), Geometry.dense(2, 2)):
        assert reason(lambda other=other: laws.total(base, other)) is Reason.SHAPE
    for other in (plane, Geometry.conv(4, 2, (3,)), Geometry.dense(2, 2)):
        assert reason(lambda other=other: laws.compose(other, base, zero_bias=True)) is Reason.SHAPE
    last = Geometry.diagonal(2, 0, -1)
    assert reason(lambda: laws.compose(Geometry.diagonal(2, 0), last, zero_bias=True)) is Reason.SHAPE


def test_inner_refusal_says_why_in_words() -> None:
    with pytest.raises(Inexact) as refusal:
        laws.compose(Geometry.conv(1, 1, (3,), pads=(1, 1)), Geometry.conv(1, 1, (3,)), zero_bias=True)
    assert "never computes" in refusal.value.detail
    with pytest.raises(Inexact) as refusal:
        laws.compose(Geometry.conv(1, 1, (3,), pads=(1, 1)), Geometry.conv(1, 1, (1,)), zero_bias=False)
    assert refusal.value.detail == Reason.BORDER.prose


# --- identities that follow ----------------------------------------------------------------------


@settings(max_examples=80)
@given(seed=seeds, pad=st.integers(0, 2), size=sizes(2, 5), groups=st.sampled_from((1, 2)))
def test_a_border_that_holds_the_inner_bias_composes(seed: int, pad: int, size, groups: int) -> None:
    """DBB: if g pads with f's bias, `g(pad_v(f(x)))` is the naive fold of f and the padded g."""
    f = random_affine(Geometry.conv(2, 4, (1, 1), groups=groups), seed)
    g = random_affine(Geometry.conv(4, 2, (3, 3), pads=(pad,) * 4), seed + 1)
    assume(exists(g.geometry, size))
    x = random_input(f.geometry, size, seed)
    y = f(x)
    padded = np.broadcast_to(f.bias[:, None, None], (2, 4, *(n + 2 * pad for n in size))).copy()
    padded[:, :, pad : pad + size[0], pad : pad + size[1]] = y
    valid = AffineConv(Geometry.conv(4, 2, (3, 3)), g.weight, g.bias)
    linear = AffineConv(f.geometry, f.weight, np.zeros(4))
    folded = g @ linear
    shifted = AffineConv(folded.geometry, folded.weight, folded.bias + (valid @ f).bias - valid.bias)
    assert_equal(shifted(x), valid(padded))


@settings(max_examples=80)
@given(data=st.data(), seed=seeds, size=sizes(1, 6))
def test_an_affine_before_a_padded_convolution_leaves_one_add(data, seed: int, size) -> None:
    """conv(s*x + t) == conv_s(x + t/s), whatever the padding."""
    geometry = data.draw(geometries(1))
    assume(exists(geometry, size))
    conv = random_affine(geometry, seed)
    rng = np.random.default_rng(seed)
    s, t = rng.uniform(0.5, 2, size=(2, geometry.c_in))
    x = random_input(geometry, size, seed)
    scale = AffineConv(Geometry.diagonal(geometry.c_in, 1), s.reshape(-1, 1, 1), np.zeros(geometry.c_in))
    assert_equal((conv @ scale)(x + (t / s)[:, None]), conv(s[:, None] * x + t[:, None]))


def test_composition_is_associative_and_distributes() -> None:
    f = random_affine(Geometry.conv(2, 4, (3, 2), groups=2, strides=(2, 1)), 0)
    g = random_affine(Geometry.conv(4, 4, (2, 3), groups=4, dilations=(2, 1)), 1)
    e = random_affine(Geometry.conv(4, 4, (1, 1)), 2)
    h = random_affine(Geometry.conv(4, 2, (1, 1)), 3)
    for left, right in [((h @ g) @ f, h @ (g @ f)), ((e + e) @ f, e @ f + e @ f)]:
        assert left.geometry == right.geometry
        assert_equal(left.weight, right.weight)
        assert_equal(left.bias, right.bias)


def test_unlike_dilations_widen_only_as_far_as_needed() -> None:
    """UniRepLKNet: 13x13 with dilated 5x5 d1, 7x7 d2, 3x3 d3, d4, d5 stays 13x13 and depthwise."""
    big = Geometry.conv(8, 8, (13, 13), groups=8, pads=(6,) * 4)
    total = big
    for k, d in [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)]:
        pad = d * (k - 1) // 2
        branch = Geometry.conv(8, 8, (k, k), groups=8, dilations=(d, d), pads=(pad,) * 4)
        total = laws.total(total, branch)
    assert total == big
    sparse = laws.total(
        Geometry.conv(1, 1, (3,), dilations=(4,), pads=(4, 4)),
        Geometry.conv(1, 1, (5,), dilations=(2,), pads=(4, 4)),
    )
    assert (sparse.kernel, sparse.dilations) == ((5,), (2,))


def test_macs_are_weights_times_positions() -> None:
    assert Geometry.conv(4, 8, (3, 3), groups=2).macs(10) == 8 * 2 * 9 * 10
    assert prod(Geometry.dense(3, 5).weight_shape) == Geometry.dense(3, 5).macs(1)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_unlike_slacks_add_at_multiples_of_the_stride(stride: int) -> None:
    """x[::s] and x[s-1::s] have equally many positions where s divides n, and only there."""
    point = replace(Geometry.diagonal(3, 1), strides=(stride,))
    first, last = point, replace(point, origin=(stride - 1,), slack=(-stride,))
    for of in range(1, 13):
        equal = all(first.output((n,)) == last.output((n,)) for n in range(of, 40 * of, of))
        assert equal == (of % stride == 0)
        try:
            laws.total(first, last, (laws.Multiple(of),))
        except Inexact:
            assert not equal
        else:
            assert equal
