"""Crops, pads that repeat positions, Expand and Tile: a pointwise Conv works where there are fewer positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, check

BY_MACS = Options(cost="macs")
Map = Callable[[Net, str], str]


def cropped(net: Net, x: str) -> str:
    ends = net.const(np.array([4, 5]))
    return str(net.op("Slice", x, net.const(np.array([1, 0])), ends, net.const(np.array([2, 3]))))


def padded(mode: str) -> Map:
    pads = np.array([0, 0, 1, 2, 0, 0, 2, 1])
    return lambda net, x: str(net.op("Pad", x, net.const(pads), mode=mode))


def expanded(net: Net, x: str) -> str:
    mean = net.op("GlobalAveragePool", x)
    return str(net.op("Expand", mean, net.const(np.array([1, 1, 3, 4]))))


def expanded_with_channels(net: Net, x: str) -> str:
    mean = net.op("GlobalAveragePool", x)
    return str(net.op("Expand", mean, net.const(np.array([2, 6, 3, 4]))))


def tiled(net: Net, x: str) -> str:
    return str(net.op("Tile", x, net.const(np.array([1, 1, 2, 3]))))


ENLARGE = [padded("edge"), padded("reflect"), tiled, expanded, expanded_with_channels]


def test_crop_of_a_pointwise_conv() -> None:
    net = Net(6, shape=(2, 6, 5, 7))
    y = cropped(net, net.conv(net.op("Relu", "x"), 6, 4, 1))
    result = check(net.model(net.op("Relu", y)), {"Relu": 2, "Slice": 1, "Conv": 1}, options=BY_MACS)
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Slice", "Conv", "Relu"]


@pytest.mark.parametrize("space_map", ENLARGE)
def test_pointwise_conv_of_what_is_repeated(space_map: Map) -> None:
    net = Net(6, shape=(2, 6, 5, 7))
    model = net.model(net.op("Relu", net.conv(space_map(net, net.op("Relu", "x")), 6, 4, 1)))
    before = [node.op_type for node in model.graph.node]
    result = check(model, {op: before.count(op) for op in before}, options=BY_MACS)
    after = [node.op_type for node in result.model.graph.node]
    assert after[-3:] == ["Conv", before[-3], "Relu"]


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_norm_behind_a_pad_goes_into_the_conv_before_it(mode: str) -> None:
    net = Net(4, opset=19, shape=(1, 4, 5, 7))
    y = net.bn(padded(mode)(net, net.conv("x", 4, 4, 3)), 4)
    check(net.model(net.op("Relu", y)), {"Conv": 1, "Pad": 1, "Relu": 1})


def test_channels_that_are_padded_or_repeated_stay() -> None:
    net = Net(4, shape=(1, 4, 5, 7))
    y = net.op("Pad", net.conv("x", 4, 4, 3), net.const(np.array([0, 1, 0, 0, 0, 1, 0, 0])), mode="edge")
    check(net.model(net.bn(y, 6)), None)
    net = Net(4, shape=(1, 4, 5, 7))
    y = net.op("Tile", net.conv("x", 4, 4, 3), net.const(np.array([1, 2, 1, 1])))
    check(net.model(net.bn(y, 8)), None)


@pytest.mark.parametrize("behind", ["nothing", "norm", "factor", "sum", "difference"])
def test_a_slice_of_all_positions_is_no_convolution(behind: str) -> None:
    """It takes no multiply-add, and nothing that it folds with does."""
    net = Net(shape=(2, 3, 3, 3))
    bounds = [net.const(np.array([number])) for number in (-5, np.iinfo(np.int64).max, 3, 1)]
    x = net.bn(net.op("Slice", "x", *(net.const(np.array([number])) for number in (0, 2, 1))), 2)
    y = net.op("Slice", x, *bounds)
    y = net.bn(y, 2) if behind == "norm" else y
    y = net.op("Mul", y, net.channel(2)) if behind == "factor" else y
    y = net.add(y, net.op("Mul", x, net.channel(2))) if behind == "sum" else y
    y = net.op("Sub", x, net.op("Mul", y, net.channel(2))) if behind == "difference" else y
    report = fuse(net.model(y), options=Options(check=False)).report
    assert "Conv" not in report.after.ops
    assert report.after.macs == 0
