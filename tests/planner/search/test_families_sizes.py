"""Sums whose operands have equal sizes although no size is known: what follows them goes into both operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check

SHAPES: dict[str, tuple[Any, ...]] = {
    "batch": ("N", 4, 9, 8),
    "all": ("N", 4, "H", "W"),
    "height": (1, 4, "H", 8),
    "none": (1, 4, 9, 8),
}
BEHIND: dict[str, Callable[[Net, str], str]] = {
    "bn": lambda net, y: net.bn(y, 4),
    "mul": lambda net, y: net.op("Mul", y, net.channel(4)),
    "add": lambda net, y: net.op("Add", y, net.channel(4)),
    "scalar": lambda net, y: net.op("Div", y, net.const(3.0)),
}


def two_convs(net: Net, x: str = "x", **attrs: Any) -> list[str]:
    """Of dilations that no small kernel holds: they stay two."""
    return [net.conv(x, 4, 4, 3, dilations=[d, d], **attrs) for d in (1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("behind", BEHIND)
def test_behind_a_sum_of_two_convolutions(shape: str, behind: str) -> None:
    net = Net(4, shape=SHAPES[shape])
    out = BEHIND[behind](net, net.add(*two_convs(net)))
    check(net.model(out), {"Conv": 2, "Add": 1}, largest=8)


def residual_pair(net: Net) -> list[str]:
    """The last Conv of a bottleneck, and the downsampling beside it."""
    inner = net.op("Relu", net.conv("x", 4, 6, 3, strides=[2, 2], pad=1))
    return [net.conv(inner, 6, 4, 1), net.conv("x", 4, 4, 1, strides=[2, 2])]


def pooled_pair(net: Net) -> list[str]:
    """Both stride 2: a pool beside a 3x3."""
    pooled = net.op("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return [net.conv(pooled, 4, 4, 1), net.conv("x", 4, 4, 5, strides=[2, 2])]


def windows_one_after_the_other(net: Net) -> list[str]:
    """Two strides of 2 beside one of 4."""
    inner = net.op("Relu", net.conv(net.op("Relu", net.conv("x", 4, 6, 2, strides=[2, 2], pad=0)), 6, 6, 2,
                                    strides=[2, 2], pad=0))  # fmt: skip
    return [net.conv(inner, 6, 4, 1), net.conv(net.op("Relu", "x"), 4, 4, 4, strides=[4, 4], pad=0)]


def branches_of_a_split(net: Net) -> list[str]:
    y = net.op("Relu", net.conv("x", 4, 8, 3))
    return [net.conv(net.op("Relu", half), 4, 4, 3) for half in net.op("Split", y, outputs=2, axis=1)]


def behind_a_concat(net: Net) -> list[str]:
    y = net.op("Concat", net.op("Relu", "x"), net.op("Sigmoid", "x"), axis=1)
    return [net.conv(y, 8, 4, 3), net.conv(net.op("Tanh", "x"), 4, 4, 1)]


def through_element_wise_operators(net: Net) -> list[str]:
    y = net.op("Mul", net.op("Relu", "x"), net.op("Sigmoid", net.op("GlobalAveragePool", "x")))
    return [net.conv(y, 4, 4, 3), net.conv(net.op("Clip", "x", net.const(0.0), net.const(6.0)), 4, 4, 1)]


PAIRS = {
    pair.__name__: pair
    for pair in (
        residual_pair, pooled_pair, windows_one_after_the_other, branches_of_a_split, behind_a_concat,
        through_element_wise_operators,
    )
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_of_other_tensors(pair: str) -> None:
    net = Net(4)
    out = net.bn(net.add(*PAIRS[pair](net)), 4)
    result = check(net.model(out), _without(net), largest=9)
    assert "BatchNormalization" not in {node.op_type for node in result.model.graph.node}


def _counts(net: Net) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in net.nodes:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def _without(net: Net) -> dict[str, int]:
    return {op: count for op, count in _counts(net).items() if op != "BatchNormalization"}


def _two_inputs(net: Net) -> list[str]:
    net.more_inputs = [onnx.helper.make_tensor_value_info("y", 1, ["N", 4, "H", "W"])]
    return [net.conv("x", 4, 4, 3), net.conv("y", 4, 4, 3)]


def _other_windows(net: Net) -> list[str]:
    """Equal at odd sizes only, where the other has one position it does not broadcast."""
    return [
        net.conv("x", 4, 4, 3, strides=[2, 2], pad=1),
        net.conv(net.op("Relu", "x"), 4, 4, 2, strides=[2, 2], pad=0),
    ]


def _rounded_up(net: Net) -> list[str]:
    pooled = net.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return [net.conv(pooled, 4, 4, 1), net.conv("x", 4, 4, 1, strides=[2, 2])]


def _cut(net: Net) -> list[str]:
    """At one position, runtimes have one average of it, and no convolution."""
    pooled = net.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])
    return [net.conv(pooled, 4, 4, 1), net.conv("x", 4, 4, 2, strides=[2, 2], pad=0)]


def _a_slice(net: Net) -> list[str]:
    arguments = [[0], [1], [0]]
    cut = net.op("Slice", "x", *(net.const(np.array(a)) for a in arguments))
    return [net.conv("x", 4, 4, 3), net.conv(net.op("Relu", cut), 4, 4, 3)]


@pytest.mark.parametrize("pair", [_two_inputs, _other_windows, _rounded_up, _cut, _a_slice])
def test_of_sizes_that_may_differ(pair: Callable[[Net], list[str]]) -> None:
    net = Net(4)
    check(net.model(net.bn(net.add(*pair(net)), 4)), None, Reason.BROADCAST, largest=5)
