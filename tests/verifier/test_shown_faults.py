"""Faults that show at some values, sizes or positions alone: the probes have to go there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import TensorProto

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase, total_extent, total_stride
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import EQUAL
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.folds.structures import Structures
from tests.verifier.test_fold_proofs import build, fold, info, node

PASSED, FAILED = Status.PASSED, Status.FAILED
CHANNELS = 24


def sloped(seed: int, wrong: float) -> FoldCase:
    """A factor of each channel moved behind a PRelu, of which one slope may be wrong."""
    rng = np.random.default_rng(seed)
    scale = np.abs(rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32)) + np.float32(0.3)
    slope = rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32)
    other = slope.copy()
    other.flat[rng.integers(CHANNELS)] *= 1 + wrong
    before = [node("Mul", "x s", "m"), node("PRelu", "m p", "y")]
    after = [node("PRelu", "x q", "m"), node("Mul", "m s", "y")]
    inputs = [info("x", ["n", CHANNELS, "h", "w"])]
    return fold(before, after, inputs, {"s": scale, "p": slope}, {"s": scale, "q": other})


def clipped(seed: int, wrong: float, space: Sequence[int | str] = ("h", "w")) -> FoldCase:
    """A factor of each channel moved before a Clip, of which one upper limit may be wrong."""
    rng = np.random.default_rng(seed)
    scale = np.abs(rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32)) + np.float32(0.3)
    high = scale * np.float32(6)
    high.flat[rng.integers(CHANNELS)] *= 1 + wrong
    low, six = np.float32(0), np.float32(6)
    before = [node("Clip", "x l h", "c"), node("Mul", "c s", "y")]
    after = [node("Mul", "x s", "m"), node("Max", "m l", "k"), node("Min", "k h", "y")]
    inputs = [info("x", [1, CHANNELS, *space])]
    return fold(before, after, inputs, {"l": low, "h": six, "s": scale}, {"l": low, "h": high, "s": scale})


@pytest.mark.parametrize("make", [sloped, clipped])
@pytest.mark.parametrize("seed", range(4))
def test_each_channel_is_shown_on_both_sides_of_what_bends_it(make: type, seed: int) -> None:
    """One value of a channel, of either sign, shows a slope or a limit by luck alone."""
    shared = Structures()
    for _ in range(2):
        verdict = probe(make(seed, 0.0), structures=shared)
        assert verdict.status is PASSED, verdict.message
    assert probe(make(seed, 0.5)).status is FAILED
    assert probe(make(seed, 0.5), structures=shared).status is FAILED


def test_a_limit_is_shown_at_a_large_fixed_size() -> None:
    assert probe(clipped(0, 0.0, (128, 128))).status is PASSED
    assert all(probe(clipped(seed, 0.5, (128, 128))).status is FAILED for seed in range(4))


def padded(pads: Sequence[int], kernel: int, stride: int, dilation: int = 1) -> FoldCase:
    """Conv - Mul as one Conv, which may pad otherwise."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 4, kernel)).astype(np.float32)
    scale = rng.standard_normal((4, 1)).astype(np.float32)
    how = {"strides": [stride], "dilations": [dilation]}
    before = [node("Conv", "x w", "a", pads=[0, 0], **how), node("Mul", "a s", "y")]
    after = [node("Conv", "x v", "y", pads=pads, **how)]
    moved = {"v": weight * scale[:, :, None]}
    return fold(before, after, [info("x", ["n", 4, "t"])], {"w": weight, "s": scale}, moved)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(2, 4, 2), (1, 8, 1), (3, 8, 1), (5, 4, 1), (5, 7, 2), (9, 5, 2), (16, 16, 1)],
)
def test_sizes_of_all_remainders_by_the_stride_are_tried(kernel: int, stride: int, dilation: int) -> None:
    """One more position behind the input makes one more output at one remainder of its size, and changes no other."""
    assert probe(padded((0, 0), kernel, stride, dilation)).status is PASSED
    assert probe(padded((0, 1), kernel, stride, dilation)).status is FAILED


@pytest.mark.parametrize("stride", [300, 1_000_000])
def test_probes_of_large_strides_are_small(stride: int) -> None:
    def case(wrong: float) -> FoldCase:
        weight = np.ones((4, 4, 1, 1), np.float32)
        scale = np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)
        moved = weight * scale[:, None]
        moved[1, 2] += np.float32(wrong)
        before = [node("Conv", "x w", "a", strides=[stride] * 2), node("Mul", "a s", "y")]
        after = [node("Conv", "x v", "y", strides=[stride] * 2)]
        return fold(before, after, [info("x", ["n", 4, "h", "w"])], {"w": weight, "s": scale}, {"v": moved})

    for of_weights in (False, True):
        feeds = [one.feed["x"] for one in stimuli(case(0.0), (EQUAL,), of_weights=of_weights)]
        assert max(feed.size for feed in feeds) < 1 << 20
    assert probe(case(0.0)).status is PASSED
    assert probe(case(1e-3)).status is FAILED
    x = np.ones((1, 4, 20, 20), np.float32)
    y = np.full((1, 4, 1, 1), 4, np.float32) * np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)
    assert check_in_place(case(0.0), {"x": x, "y": y}).status is PASSED


def test_strides_of_windows_in_a_row_multiply_and_of_windows_side_by_side_do_not() -> None:
    weight = np.ones((4, 4, 3), np.float32)
    how = {"strides": [2], "pads": [1, 1]}
    row = [node("Conv", "x w", "a", **how), node("Conv", "a w", "y", **how)]
    case = fold(row, row, [info("x", ["n", 4, "t"])], {"w": weight}, {"w": weight})
    assert (total_stride(case), total_extent(case)) == (4, 7)
    beside = [node("Conv", "x w", "a", **how), node("Conv", "x w", "b", **how), node("Add", "a b", "y")]
    case = fold(beside, beside, [info("x", ["n", 4, "t"])], {"w": weight}, {"w": weight})
    assert (total_stride(case), total_extent(case)) == (2, 3)


@pytest.mark.parametrize("large", [1 << 20, 1 << 40])
def test_of_integers_the_next_one_is_wrong(large: int) -> None:
    a, b = np.array([large + 3, 7], np.int64), np.array([3, 5], np.int64)

    def case(off: int) -> FoldCase:
        before = build([node("Mul", "a b", "y")], [], {"a": a, "b": b}, TensorProto.INT64)
        return FoldCase(before, build([], [], {"y": a * b + np.array([off, 0])}, TensorProto.INT64))

    assert probe(case(0)).status is PASSED
    assert probe(case(1)).status is FAILED


@pytest.mark.parametrize(
    ("target", "sizes"),
    [((16, 64, 64), (64, 64)), ((1, 64, 64, 16), (64, 1)), ((1, 64, 64, 4, 4), (64, 1, 1))],
)
def test_factors_of_tokens_that_are_as_many_as_the_channels_are_shown(
    target: Sequence[int], sizes: Sequence[int]
) -> None:
    """Of a large image of fixed sizes, a good part of the positions holds zeros, which hide factors of their own."""
    rng = np.random.default_rng(3)
    kernel = (rng.standard_normal((64, 64, 3, 3)) / 30).astype(np.float32)
    factors = rng.standard_normal(sizes).astype(np.float32)
    shape, two = np.array(target, np.int64), np.float32(2)
    conv = [node("Conv", "x k", "a", pads=[1] * 4), node("Reshape", "a r", "t")]
    before = [*conv, node("Mul", "t m", "u"), node("Mul", "u two", "y")]
    after = [*conv, node("Mul", "t n", "y")]

    def case(wrong: int | None) -> FoldCase:
        moved = factors * two
        if wrong is not None:
            moved.reshape(64, -1)[wrong] *= np.float32(1.3)
        first = {"k": kernel, "r": shape, "m": factors, "two": two}
        return fold(before, after, [info("x", [1, 64, 32, 32])], first, {"k": kernel, "r": shape, "n": moved})

    assert probe(case(None)).status is PASSED
    for token in (30, 37, 44, 51):
        assert probe(case(token)).status is FAILED


@pytest.mark.parametrize(("shape", "status"), [((2, 4, 0), PASSED), ((2, 0, 4), FAILED), ((2, 4, 1), FAILED)])
@pytest.mark.parametrize("reads_sizes", [True, False])
def test_an_empty_constant_is_as_good_as_its_shape(
    shape: tuple[int, ...], status: Status, reads_sizes: bool
) -> None:
    if reads_sizes:
        first = [node("Shape", "x", "n", end=2), node("Concat", "n z", "s", axis=0)]
        inputs, data = [info("x", [2, 4, 8])], {"z": np.zeros(1, np.int64)}
    else:
        first, inputs, data = [], [], {"s": np.array([2, 4, 0], np.int64)}
    before = build([*first, node("ConstantOfShape", "s", "y")], inputs, data)
    after = build([], inputs, {"y": np.zeros(shape, np.float32)})
    assert probe(FoldCase(before, after)).status is status


@pytest.mark.parametrize("target", [[0, 0, -1, 8], [0, 0, 7, -1], [0, 2, 2, -1, 8], [0, 4, 16, -1]])
@pytest.mark.parametrize("kernel", [1, 3])
def test_sizes_that_a_reshape_divides_are_tried(target: list[int], kernel: int) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 4, kernel, kernel)).astype(np.float32)
    shape, two = np.array(target, np.int64), np.float32(2)
    how = {"pads": [kernel // 2] * 4}

    def case(wrong: float) -> FoldCase:
        moved = weight * two
        moved.flat[7] += np.float32(wrong)
        before = [node("Conv", "x w", "a", **how), node("Reshape", "a r", "t"), node("Mul", "t c", "y")]
        after = [node("Conv", "x v", "a", **how), node("Reshape", "a r", "y")]
        inputs = [info("x", ["n", 4, "h", "w"])]
        return fold(before, after, inputs, {"w": weight, "r": shape, "c": two}, {"v": moved, "r": shape})

    verdict = probe(case(0.0))
    assert verdict.status is PASSED, verdict.message
    assert probe(case(1e-3)).status is FAILED
