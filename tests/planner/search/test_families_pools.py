"""Averages over windows: a pointwise Conv moves to the side of the pool where it is cheaper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options
from onnx_repfuse.api import Result
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check

BY_MACS = Options(cost="macs")  # of so few channels, the pool is most of the cost in ONNX Runtime
HALVES: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
# Every row of these sums to one.
MEANS: list[dict[str, Any]] = [
    HALVES,
    {**HALVES, "count_include_pad": 0, "pads": [1, 0, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1] * 4},
    {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [2, 2]},
]
# The border of these is another mean than the middle.
OTHERS: list[dict[str, Any]] = [
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER", "count_include_pad": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [2, 2], "pads": [1] * 4},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1},
]


def order(result: Result) -> list[str]:
    return [node.op_type for node in result.model.graph.node]


def writes_nothing(attrs: dict[str, Any]) -> bool:
    """Whether a pool makes no position of one: its window is larger by the stride."""
    is_padded = bool(attrs.get("pads")) or attrs.get("auto_pad", "VALID") != "VALID"
    return not is_padded and attrs != HALVES


def transition(attrs: dict[str, Any], *, bias: bool, opset: int = 19, is_known: bool | None = None) -> Net:
    """DenseNet's: Relu, 1x1 Conv, average."""
    known = writes_nothing(attrs) if is_known is None else is_known
    net = Net(opset=opset, shape=("N", 8, 7, 6) if known else ("N", 8, "H", "W"))
    net.op("AveragePool", net.conv(net.op("Relu", "x"), 8, 4, 1, bias=bias), **attrs)
    return net


@pytest.mark.parametrize("attrs", MEANS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_then_average(attrs: dict[str, Any], bias: bool) -> None:
    net = transition(attrs, bias=bias)
    result = check(
        net.model(f"averagepool_{net.count}"),
        {"Relu": 1, "AveragePool": 1, "Conv": 1},
        largest=7,
        options=BY_MACS,
    )
    assert order(result) == ["Relu", "AveragePool", "Conv"]


@pytest.mark.parametrize("attrs", OTHERS, ids=str)
def test_an_average_that_counts_padding_lets_no_bias_through(attrs: dict[str, Any]) -> None:
    net = transition(attrs, bias=True)
    check(net.model(f"averagepool_{net.count}"), None, largest=7)
    net = transition(attrs, bias=False)
    result = check(
        net.model(f"averagepool_{net.count}"),
        {"Relu": 1, "AveragePool": 1, "Conv": 1},
        largest=7,
        options=BY_MACS,
    )
    assert order(result) == ["Relu", "AveragePool", "Conv"]


@pytest.mark.parametrize("attrs", [attrs for attrs in MEANS + OTHERS if writes_nothing(attrs)], ids=str)
def test_a_conv_does_not_move_behind_a_pool_that_may_write_nothing(attrs: dict[str, Any]) -> None:
    """There it would not run."""
    net = transition(attrs, bias=False, is_known=False)
    check(net.model(f"averagepool_{net.count}"), None, Reason.SHAPE, largest=7, options=BY_MACS)


def test_a_window_that_may_be_larger_than_its_input_lets_no_bias_through() -> None:
    """ONNX Runtime may run it, and divides by taps that are not there."""
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "count_include_pad": 1}
    net = transition(attrs, bias=True, is_known=False)
    check(net.model(f"averagepool_{net.count}"), None, largest=7, options=BY_MACS)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    net = Net(shape=("N", 8, *("D", "H", "W")[:rank]))
    y = net.conv(net.op("Relu", "x"), 8, 4, (1,) * rank)
    out = net.op("AveragePool", y, kernel_shape=[2] * rank, strides=[2] * rank)
    assert order(check(net.model(out), {"Relu": 1, "AveragePool": 1, "Conv": 1}, options=BY_MACS)) == [
        "Relu",
        "AveragePool",
        "Conv",
    ]


@pytest.mark.parametrize("attrs", [one for one in MEANS if one.get("pads")] + OTHERS, ids=str)
def test_norm_behind_an_average_goes_into_the_conv_before_it(attrs: dict[str, Any]) -> None:
    """Where its shift is the same at the border; else an Add would stay in its place."""
    net = Net(4, opset=19)
    y = net.op("AveragePool", net.conv("x", 4, 4, 3), **attrs)
    ops = {"Conv": 1, "AveragePool": 1} if attrs in MEANS else None
    if attrs == OTHERS[0]:
        ops = {"Conv": 2}  # a depthwise one is the average, with the shift as its bias
    check(net.model(net.bn(y, 4)), ops, largest=7)


def test_average_of_fewer_channels() -> None:
    """Inception's branch: the pool takes longer than what it saves."""
    net = Net(16)
    pooled = net.op("AveragePool", net.op("Relu", "x"), kernel_shape=[3, 3], pads=[1] * 4)
    result = check(net.model(net.conv(pooled, 16, 4, 1)), {"Relu": 1, "Conv": 1, "AveragePool": 1})
    assert order(result) == ["Relu", "Conv", "AveragePool"]


@pytest.mark.parametrize("counted", [0, 1])
def test_pool_mixer(counted: int) -> None:
    """PoolFormer's x + s*(pool(x) - x): one depthwise Conv where the border is divided by all taps."""
    net = Net(8)
    pooled = net.op("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=counted)
    mixed = net.op("Add", "x", net.op("Mul", net.op("Sub", pooled, "x"), net.channel(8)))
    model = net.model(net.op("Relu", mixed))
    result = check(
        model, {"Conv": 1, "Relu": 1} if counted else {"AveragePool": 1, "Mul": 2, "Add": 1, "Relu": 1}
    )
    assert result.report.before.macs == result.report.after.macs
    if not counted:
        assert Reason.POOLING in {refusal.reason for refusal in result.report.refusals}


def test_a_pool_alone_stays_a_pool() -> None:
    net = Net(8)
    check(net.model(net.op("AveragePool", net.op("Relu", "x"), kernel_shape=[3, 3])), None)


def test_a_conv_that_is_not_pointwise_becomes_one_with_the_average() -> None:
    net = Net(2)
    y = net.op("AveragePool", net.conv("x", 2, 8, (1, 2), bias=False, pad=0), kernel_shape=[1, 2])
    check(net.model(net.conv(y, 8, 2, (1, 1))), {"Conv": 1})


def summed(net: Net, y: str, *axes: int, keeps: bool = True) -> str:
    """A ReduceSum, whose axes are an input from opset 13 on."""
    if net.opset < 13:
        return str(net.op("ReduceSum", y, axes=list(axes), keepdims=int(keeps)))
    return str(net.op("ReduceSum", y, net.const(np.array(axes)), keepdims=int(keeps)))


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_factor_of_a_sum_over_space(rank: int, keeps: bool, opset: int) -> None:
    net = Net(shape=("N", 4, *"HWD"[:rank]), opset=opset)
    y = summed(net, net.conv("x", 4, 6, (3,) * rank), *range(2, 2 + rank), keeps=keeps)
    y = net.op("Div", y, net.const(16.0))
    check(net.model(net.op("Mul", y, net.channel(6, rank if keeps else 0))), {"Conv": 1, "ReduceSum": 1})


def test_a_factor_of_a_sum_over_one_axis() -> None:
    net = Net(4)
    y = summed(net, net.conv("x", 4, 6, 3), -1)
    check(net.model(net.op("Mul", y, net.channel(6))), {"Conv": 1, "ReduceSum": 1})


def test_products_around_a_sum_over_tokens() -> None:
    net = Net(shape=("N", "L", 8))
    y = summed(net, net.op("MatMul", "x", net.random(8, 16)), 1, keeps=False)
    check(net.model(net.op("MatMul", y, net.random(16, 4))), {"ReduceSum": 1, "MatMul": 1})


def test_a_shift_in_front_of_a_sum_counts_once_for_each_position() -> None:
    net = Net(shape=("N", "L", 8))
    y = net.op("Add", net.op("Relu", "x"), net.random(8))
    net.op("MatMul", summed(net, y, 1, keeps=False), net.random(8, 4))
    check(net.model(f"matmul_{net.count}"), None)


@pytest.mark.parametrize("axes", [(1,), (0,), (1, 2, 3), ()])
def test_a_sum_over_channels_images_or_everything_is_no_view(axes: tuple[int, ...]) -> None:
    net = Net(shape=(3, 4, 5, 6))
    y = summed(net, net.conv("x", 4, 4, 3), *axes) if axes else net.op("ReduceSum", net.conv("x", 4, 4, 3))
    check(net.model(net.op("Mul", y, net.const(np.array([0.5, 2, 3, 4, 5, 6])))), None)
