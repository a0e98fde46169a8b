"""The oracle does not copy the parts of a large Concat into one tensor for a Conv."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

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
