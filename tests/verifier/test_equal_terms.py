"""Weights of one value: roundings that are not independent, which bounds of independent ones do not cover."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_repfuse import Options, fuse
from onnx_repfuse.planner.folds import emit
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, counts

CHANNELS, OUT = 256, 64


def constant_filled(seed: int = 0, kernel: int = 1) -> onnx.ModelProto:
    """One channel repeated 256 times, all of whose copies a Conv of one value adds up."""
    net = Net(1, shape=(1, 1, 40, 40), seed=seed)
    copies = net.op("Conv", "x", net.const(np.full((CHANNELS, 1, 1, 1), 0.7)), kernel_shape=[1, 1])
    weight = net.const(np.full((OUT, CHANNELS, kernel, kernel), 0.02))
    y = net.op("Conv", net.op("Relu", copies), weight, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)
    values = (
        net.rng.uniform(0.5, 2.0, OUT),
        net.rng.standard_normal(OUT),
        net.rng.standard_normal(OUT),
        net.rng.uniform(0.5, 2.0, OUT),
    )
    return net.model(net.op("Relu", net.op("BatchNormalization", y, *map(net.const, values))))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_correct_fold_of_equal_terms_is_proved(seed: int, kernel: int) -> None:
    """All partial sums round one way, in the original as in the result."""
    result = fuse(constant_filled(seed, kernel))
    assert counts(result.model) == {"Conv": 2, "Relu": 2}


def test_a_channel_that_almost_cancels_errs_like_the_others() -> None:
    """Its values, and so its tolerance, are small; what is summed to make it is not."""
    net = Net(1, shape=(1, 1, 16, 16))
    low, high = net.const(np.array(0.035480525)), net.const(np.array(0.03556783))
    copies = net.op("Expand", net.op("Clip", "x", low, high), net.const(np.array([1, 64, 16, 16])))
    y = net.op("Conv", copies, net.const(np.full((8, 64, 1, 1), 0.02)), kernel_shape=[1, 1])
    mean = [
        0.031983647,
        -0.073230825,
        -0.09822412,
        -0.16515939,
        -0.16602507,
        0.36926389,
        -0.027121667,
        0.58460557,
    ]
    variance = [
        0.036593746,
        0.021196626,
        0.06894042,
        0.02933012,
        0.022517355,
        0.022868628,
        0.09634133,
        0.038065825,
    ]
    values = (np.ones(8), np.zeros(8), np.array(mean), np.array(variance))
    model = net.model(net.op("BatchNormalization", y, *map(net.const, values)))
    assert "BatchNormalization" not in counts(fuse(model).model)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_wrong_weight_among_equal_terms_is_seen(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    materialized = emit.materialized

    def wrong(weight_kernel: object, data_type: int) -> NDArray[np.float32]:
        weight = np.array(materialized(weight_kernel, data_type))  # type: ignore[arg-type]
        weight.flat[-1] *= 1.001
        return weight

    monkeypatch.setattr(emit, "materialized", wrong)
    result = fuse(constant_filled(0, kernel), options=Options())
    assert {refusal.reason for refusal in result.report.refusals} == {Reason.VERIFICATION}
    assert not result.report.folds
