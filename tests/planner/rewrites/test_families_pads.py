"""Pads before windows that are no convolutions of constant weights: average pools, and Convs of computed weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.build import Net, check


def padded(net: Net, x: str, amounts: list[int], **attrs: Any) -> str:
    """Pad of height and width: begins, then ends."""
    top, left, bottom, right = amounts
    listed = [0, 0, top, left, 0, 0, bottom, right]
    if net.opset < 11:
        return str(net.op("Pad", x, pads=listed, **attrs))
    return str(net.op("Pad", x, net.const(np.array(listed)), **attrs))


@pytest.mark.parametrize("opset", [8, 13, 19])
@pytest.mark.parametrize("amounts", [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
@pytest.mark.parametrize("window", [{}, {"strides": [2, 2]}, {"count_include_pad": 1, "pads": [0, 1, 1, 0]}])
def test_before_an_average_pool(opset: int, amounts: list[int], window: dict[str, Any]) -> None:
    """With a stride only where no window sticks out of the padded tensor: runtimes cut it, and divide by fewer."""
    is_cut = "strides" in window and amounts != [1] * 4
    net = Net(4, opset=opset, ir=8, shape=("N", 4, 7, 8) if is_cut else None)
    y = net.op("AveragePool", padded(net, net.op("Relu", "x"), amounts), kernel_shape=[3, 3], **window)
    check(net.model(y), {"Relu": 1, "AveragePool": 1}, largest=6)


def test_several_consumers() -> None:
    net = Net(4)
    y = padded(net, net.op("Relu", "x"), [1] * 4)
    pools = [net.op("AveragePool", y, kernel_shape=[k, k]) for k in (2, 3)]
    out = net.op("Relu", net.conv(y, 4, 4, 3, pad=0))
    check(net.model(*pools, out), {"Relu": 2, "AveragePool": 2, "Conv": 1}, largest=6)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER"])
def test_before_a_convolution_of_a_computed_weight(auto_pad: str) -> None:
    net = Net(4)
    net.more_inputs = [onnx.helper.make_tensor_value_info("w", 1, [6, 4, 3, 3])]
    y = net.op("Conv", padded(net, "x", [1, 2, 0, 1]), net.op("Tanh", "w"), auto_pad=auto_pad)
    check(net.model(y), {"Tanh": 1, "Conv": 1}, largest=6)


@pytest.mark.parametrize("opset", [8, 13])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pads_by_nothing(opset: int, mode: str) -> None:
    """torch's legacy exporter writes one before every AveragePool."""
    net = Net(4, opset=opset, ir=8)
    y = net.op("AveragePool", padded(net, net.op("Relu", "x"), [0] * 4, mode=mode), kernel_shape=[2, 2])
    check(net.model(y), {"Relu": 1, "AveragePool": 1})
    net = Net(4, opset=opset, ir=8)
    y = net.op("MaxPool", padded(net, net.op("Relu", "x"), [0] * 4, mode=mode), kernel_shape=[2, 2])
    result = check(net.model(y), {"Relu": 1, "MaxPool": 1})
    assert result.report.changes


TRAPS: dict[str, tuple[list[int], dict[str, Any], dict[str, Any]]] = {
    "counts its own pads only": ([1] * 4, {}, {"pads": [1] * 4}),
    "rounds up": ([1] * 4, {}, {"strides": [2, 2], "ceil_mode": 1}),
    "reflects": ([1] * 4, {"mode": "reflect"}, {}),
    "crops": ([-1, 0, 1, 1], {}, {}),
    "may be larger than its input": ([1, 0, 0, 1], {}, {"strides": [2, 2]}),
    "pads by a whole window": ([3, 0, 0, 0], {}, {}),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap: str) -> None:
    amounts, pad, pool = TRAPS[trap]
    net = Net(4)
    y = net.op("AveragePool", padded(net, net.op("Relu", "x"), amounts, **pad), kernel_shape=[3, 3], **pool)
    check(net.model(y), None, largest=6)


def test_pads_that_others_read_or_of_other_values_stay() -> None:
    net = Net(4)
    y = padded(net, net.op("Relu", "x"), [1] * 4)
    check(net.model(net.op("AveragePool", y, kernel_shape=[3, 3]), y), None, largest=6)
    net = Net(4)
    y = padded(net, net.op("Relu", "x"), [1] * 4)
    pools = [net.op(op, y, kernel_shape=[3, 3]) for op in ("AveragePool", "MaxPool")]
    check(net.model(*pools), None, largest=6)
    net = Net(4)
    y = net.op("Pad", net.op("Relu", "x"), net.const(np.array([0, 0, 1, 1] * 2)), net.const(1.0))
    check(net.model(net.op("AveragePool", y, kernel_shape=[3, 3])), None, largest=6)
