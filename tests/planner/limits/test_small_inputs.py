"""Where a tensor is smaller than the window that reads it, a result runs as its original does, or is not made."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts
from tests.random_properties import UNCHECKED, the_same_at_small_sizes

END = np.iinfo(np.int64).max
POOLS = [
    {"kernel_shape": [k], "strides": [s], "count_include_pad": counted}
    for k, s, counted in ((2, 1, 0), (2, 2, 0), (2, 3, 1), (3, 1, 1), (3, 2, 1), (4, 3, 0))
]
BEFORE = ("nothing", "conv 1", "conv 2", "conv 3 padded", "pad", "slice", "transposed", "norm")
BEHIND = ("norm", "conv 1", "conv 2", "conv 3 padded", "conv 3, stride 2", "pool", "slice", "sum")


def step(net: Net, x: str, what: str, attrs: dict[str, Any]) -> str:
    """One operator on three channels and one spatial axis."""
    if what == "nothing":
        return x
    if what == "norm":
        return net.bn(x, 3)
    if what == "pad":
        return str(net.op("Pad", x, net.const(np.array([0, 0, 1, 0, 0, 1]))))
    if what == "slice":
        bounds = [net.const(np.array([number])) for number in (1, END, 2, 2)]
        return str(net.op("Slice", x, *bounds))
    if what == "transposed":
        return str(net.op("ConvTranspose", x, net.random(3, 3, 2), strides=[2]))
    if what == "pool":
        return str(net.op("AveragePool", x, **attrs))
    if what == "sum":
        return net.add(x, net.bn(x, 3))
    strides = [2] if "stride" in what else [1]
    return net.conv(x, 3, 3, (int(what.split()[1][0]),), pad=int("padded" in what), strides=strides)


@pytest.mark.parametrize("before", BEFORE)
def test_a_pool_between_linear_operators(before: str) -> None:
    for number, (attrs, behind) in enumerate(product(POOLS, BEHIND)):
        net = Net(shape=("N", 3, "L"), seed=number)
        y = step(net, step(net, "x", before, attrs), "pool", attrs)
        model = net.model(step(net, y, behind, attrs))
        fused = fuse(model, options=UNCHECKED)
        the_same_at_small_sizes(model, fused.model, number)


@pytest.mark.parametrize("behind", BEHIND)
def test_a_slice_between_linear_operators(behind: str) -> None:
    for number, before in enumerate(BEFORE):
        net = Net(shape=("N", 3, "L"), seed=number)
        y = step(net, step(net, "x", before, POOLS[0]), "slice", {})
        model = net.model(step(net, y, behind, POOLS[0]))
        the_same_at_small_sizes(model, fuse(model, options=UNCHECKED).model, number)


@pytest.mark.parametrize("attrs", [POOLS[0], POOLS[1], POOLS[4]], ids=str)
def test_a_window_that_may_be_cut_is_no_convolution(attrs: dict[str, Any]) -> None:
    net = Net(shape=("N", 3, "L"))
    check(net.model(net.bn(net.op("AveragePool", "x", **attrs), 3)), None, Reason.SHAPE)


def test_a_slice_that_may_be_empty_is_no_convolution() -> None:
    net = Net(shape=("N", 3, "L"))
    check(net.model(net.bn(step(net, "x", "slice", {}), 3)), None)


@pytest.mark.parametrize("pads", [1, 2])
def test_padding_before_a_window_proves_that_it_fits(pads: int) -> None:
    """In front of the pool, or far before it."""
    net = Net(shape=("N", 3, "L"))
    padded = net.op("Pad", "x", net.const(np.array([0, 0, pads, 0, 0, pads])))
    between = net.op("Relu", padded) if pads == 2 else padded
    made = net.bn(net.op("AveragePool", between, kernel_shape=[3], strides=[2]), 3)
    assert counts(fuse(net.model(made)).model)["Conv"] == 1


def test_known_sizes_prove_it() -> None:
    net = Net(shape=("N", 3, 6))
    check(net.model(net.bn(net.op("AveragePool", "x", kernel_shape=[3], strides=[2]), 3)), {"Conv": 1})


def test_the_reason_is_told_where_what_is_before_the_window_folds_otherwise() -> None:
    net = Net(3, shape=("N", 3, "L"))
    y = net.op("Relu", "x")
    for _ in range(2):
        y = net.op("Mul", y, net.channel(3, 1))
    model = net.model(net.op("AveragePool", y, kernel_shape=[2], strides=[2]))
    result = check(model, {"Relu": 1, "Mul": 1, "AveragePool": 1}, Reason.SHAPE)
    assert [refusal.nodes for refusal in result.report.refusals] == [(model.graph.node[-1].name,)]
