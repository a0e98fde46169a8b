"""Large kernels and large strides: few samples that see every tap, in little memory."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import candidate_rules
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.oracle import conv, large_windows

RNG = np.random.default_rng(0)
SCALE = np.float32(1.3)


def case(weight: NDArray[np.float32], folded: NDArray[np.float32], **attributes: object) -> FoldCase:
    """A Conv and a factor, against one Conv."""
    groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
    models = []
    for constants, names in (({"w": weight, "k": SCALE}, ("a", "y")), ({"w": folded}, ("y",))):
        nodes = [helper.make_node("Conv", ["x", "w"], [names[0]], **attributes)]
        if len(names) == 2:
            nodes.append(helper.make_node("Mul", ["a", "k"], ["y"]))
        value = helper.make_tensor_value_info
        x = value("x", TensorProto.FLOAT, ["n", weight.shape[1] * groups, "h", "w_"])
        y = value("y", TensorProto.FLOAT, None)
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "fold", [x], [y], tensors)
        models.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return FoldCase(*models)


def kernel(*shape: int) -> NDArray[np.float32]:
    return (RNG.standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize("tap", [None, (0, 0), (50, 50), (100, 37), (13, 99)])
@pytest.mark.parametrize(("shape", "attributes"), [((2, 2, 101, 101), {}), ((2, 1, 101, 101), {"group": 2})])
def test_one_wrong_tap_of_a_101x101_kernel_is_seen(
    tap: tuple[int, int] | None, shape: tuple[int, ...], attributes: dict[str, int]
) -> None:
    weight = kernel(*shape)
    folded = weight * SCALE
    if tap is not None:
        folded[1, 0, tap[0], tap[1]] += 1e-3
    verdict = probe(case(weight, folded, pads=[50] * 4, **attributes))
    assert verdict.status is (Status.PASSED if tap is None else Status.FAILED), verdict.message


def test_each_axis_has_the_impulses_of_its_own_stride() -> None:
    weight = kernel(4, 1, 1, 256)
    fold = case(weight, weight * SCALE, strides=[1, 256])
    assert probe(fold).status is Status.PASSED
    shapes = [s.feed["x"].shape for s in stimuli(fold, next(candidate_rules(fold))) if s.kind == "impulse"]
    assert [shape[0] for shape in shapes] == [256]


def test_the_impulses_of_large_strides_are_sampled() -> None:
    weight = kernel(4, 8, 3, 3)
    fold = case(weight, weight * SCALE, strides=[300, 300])
    assert probe(fold).status is Status.PASSED
    for stimulus in stimuli(fold, next(candidate_rules(fold))):
        assert stimulus.feed["x"].size <= 1 << 24


@pytest.mark.parametrize("limit", [1 << 22, 2000, 100])
@pytest.mark.parametrize("groups", [1, 2])
def test_taps_taken_in_blocks_give_the_same_sums(
    limit: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = RNG.standard_normal((3, 4, 9, 11)), RNG.standard_normal((6, 4 // groups, 3, 5))
    x[0, :, :4] = 0
    window = conv.Window((3, 5), (2, 1), (1, 2), (1, 4), (1, 2))
    expected = conv.correlate(x, w, groups, window)
    monkeypatch.setattr(conv, "PATCH_ELEMENTS", limit)
    assert np.allclose(conv.correlate(x, w, groups, window), expected, rtol=1e-12, atol=1e-12)


WINDOWS = [
    conv.Window((3, 9), (1, 1), (1, 1), (1, 4), (1, 4)),
    conv.Window((3, 9), (2, 3), (1, 2), (0, 5), (3, 1)),
    conv.Window((1, 12), (1, 2), (1, 1), (0, 11), (0, 11)),
    conv.Window((2, 8), (1, 1), (3, 2), (2, 0), (0, 9), ceil=True),
    conv.Window((9,), (2,), (3,), (7,), (8,)),
    conv.Window((2, 2, 8), (1, 2, 1), (1, 1, 2), (1, 0, 3), (0, 1, 4)),
]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "x".join(map(str, window.kernel)))
def test_the_short_ways_of_large_kernels_give_the_same_sums(
    window: conv.Window, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against tap by tap, at sizes where padding is most of what is read; also with zeros around what is not."""
    w = RNG.standard_normal((8, 4 // groups, *window.kernel))
    for space in (*window.kernel,), (*(size + 7 for size in window.kernel),), (*(20 for _ in window.kernel),):
        noise = RNG.standard_normal((2, 4, *space))
        impulse = np.zeros_like(noise)
        impulse[(0, 1, *(size // 2 for size in space))] = 3.0
        flat = np.broadcast_to(RNG.standard_normal((2, 4, *(1 for _ in space))), noise.shape)
        for x in (noise, impulse, flat, np.zeros_like(noise)):
            monkeypatch.setattr(large_windows, "_LARGE", 1 << 40)
            try:
                expected = conv.correlate(x, w, groups, window)
            except ValueError:  # the window does not fit
                monkeypatch.setattr(large_windows, "_LARGE", 1)
                with pytest.raises(ValueError, match="does not fit"):
                    conv.correlate(x, w, groups, window)
                continue
            monkeypatch.setattr(large_windows, "_LARGE", 1)
            np.testing.assert_allclose(conv.correlate(x, w, groups, window), expected, rtol=1e-10, atol=1e-12)
            convert = conv.correlate(
                x, w.astype(np.float32), groups, window, lambda block: block.astype(np.float64)
            )
            np.testing.assert_allclose(convert, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_stays_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_windows, "_LARGE", 1)
    window = conv.Window((1, 8), (1, 1), (1, 1), (0, 0), (0, 0))
    x = np.ones((1, 1, 1, 20))
    x[..., 0] = np.inf
    assert np.isfinite(conv.correlate(x, np.ones((1, 1, 1, 8)), 1, window)).sum() == 12
