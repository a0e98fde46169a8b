"""The oracle does not copy the parts of a large Concat into one tensor for a Conv."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse.verifier.oracle import resize as oracle_resize
from onnx_repfuse.verifier.oracle import shape as oracle_shape
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from tests.verifier.small_models import build, info


@pytest.mark.parametrize(("kernel", "channels"), [(1, (5, 3, 4)), (3, (5, 3, 4)), (3, (200, 300, 400))])
@pytest.mark.parametrize("power", [1, 2])
def test_a_large_concat_is_summed_part_by_part(
    kernel: int, channels: tuple[int, ...], power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are those of one tensor, also where something else than a Conv reads it; so are the terms."""
    rng = np.random.default_rng(0)
    sizes = {name: (2, count, 9, 7) for name, count in zip("abc", channels, strict=True)}
    join = helper.make_node("Concat", list(sizes), ["t"], axis=1)
    convolve = helper.make_node("Conv", ["t", "w", "bias"], ["u"], pads=[kernel // 2] * 4)
    add = helper.make_node("ReduceMean", ["t"], ["m"], axes=[1])
    total = helper.make_node("Add", ["u", "m"], ["y"])
    weights = {
        "w": rng.standard_normal((90, sum(channels), kernel, kernel)).astype(np.float32),
        "bias": rng.standard_normal(90).astype(np.float32),
    }
    inputs = [info(name, shape) for name, shape in sizes.items()]
    model = build([join, convolve, add, total], inputs, [info("y", None)], weights)
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    feed["b"][1] = 0  # of this row fewer terms are summed
    results = []
    for least in (1 << 40, 1):
        monkeypatch.setattr(oracle_shape, "_LARGE_CONCAT", least)
        results.append(Oracle(model, power)(feed))
    one, parts = results
    assert np.allclose(one.value, parts.value, rtol=1e-12, atol=1e-12)
    assert np.allclose(one.magnitude, parts.magnitude, rtol=1e-5)
    assert one.terms.tolist() == parts.terms.tolist()


def test_parts_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle_shape, "_LARGE_CONCAT", 1)
    join = helper.make_node("Concat", ["a", "b"], ["t"], axis=1)
    convolve = helper.make_node("Conv", ["t", "w"], ["y"])
    weights = {"w": np.ones((2, 5, 1, 1), np.float32)}
    model = build([join, convolve], [info(name, None) for name in "ab"], [info("y", None)], weights)
    for second in ((1, 3, 4, 5), (1, 2, 4, 6)):  # five channels in all, or the same size
        with pytest.raises(ValueError, match="fit"):
            Oracle(model)({"a": np.ones((1, 3, 4, 5)), "b": np.ones(second)})


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_conv_of_one_tap_is_taken_of_images_before_they_are_resized(
    mode: str, kernel: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and among the parts of a Concat; the values are those of the resized image, also for other readers."""
    rng = np.random.default_rng(1)
    inputs = [info("a", (2, 4, 5, 6)), info("b", (2, 4, 10, 9)), info("c", (2, 2, 3, 3))]
    sizes = {"p": np.array([2, 4, 10, 9], np.int64), "q": np.array([2, 2, 10, 9], np.int64)}
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node("Resize", ["a", "", "", "p"], ["u"], mode=mode),
        helper.make_node("Resize", ["c", "", "", "q"], ["v"], mode=mode),
        helper.make_node("Conv", ["u", "w1", "bias"], ["x"], pads=pads, group=groups),
        helper.make_node("Concat", ["u", "b", "v"], ["t"], axis=1),
        helper.make_node("Conv", ["t", "w2"], ["z"], pads=pads, group=groups),
        helper.make_node("Sum", ["x", "z", "m"], ["y"]),
    ]
    nodes.insert(5, helper.make_node("ReduceMean", ["u"], ["m"], axes=[1]))
    weights = {
        "w1": rng.standard_normal((6, 4 // groups, kernel, kernel)).astype(np.float32),
        "w2": rng.standard_normal((6, 10 // groups, kernel, kernel)).astype(np.float32),
        "bias": rng.standard_normal(6).astype(np.float32),
    }
    model = build(nodes, inputs, [info("y", None)], {**weights, **sizes})
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in _shapes(model).items()}
    monkeypatch.setattr(oracle_shape, "_LARGE_CONCAT", 1)
    for power in (1, 2):
        results = []
        for least in (1 << 40, 1):
            monkeypatch.setattr(oracle_resize, "_LARGE_RESULT", least)
            results.append(Oracle(model, power)(feed))
        one, other = results
        assert np.allclose(one.value, other.value, rtol=1e-12, atol=1e-12)
        assert np.allclose(one.magnitude, other.magnitude, rtol=1e-5)
        assert one.terms.tolist() == other.terms.tolist()


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    }
