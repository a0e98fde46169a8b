"""Positive factors pass maxima and activations to where they fold; others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts


def positive_bn(net: Net, x: str, channels: int = 4, *, negative: bool = False) -> str:
    scale, *others = net.statistics(channels)
    values = net.rng.uniform(0.5, 1.5, channels)
    values[0] *= -1 if negative else 1
    del scale
    return net.op("BatchNormalization", x, net.const(values), *others)


def factor(net: Net, x: str, channels: int = 4, *, negative: bool = False) -> str:
    values = net.rng.uniform(0.5, 1.5, (channels, 1, 1))
    values[1] *= -1 if negative else 1
    return net.op("Mul", x, net.const(values))


def max_pool(net: Net, x: str, **attrs: Any) -> str:
    return net.op("MaxPool", x, **{"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, **attrs})


ACTIVATIONS: dict[str, Callable[[Net, str], str]] = {
    "relu": lambda net, x: net.op("Relu", x),
    "leaky": lambda net, x: net.op("LeakyRelu", x, alpha=0.3),
    "prelu": lambda net, x: net.op("PRelu", x, net.channel(4)),
    "abs": lambda net, x: net.op("Abs", x),
    "clip": lambda net, x: net.op("Clip", x, net.const(0.0)),
    "pool": max_pool,
}


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"kernel_shape": [2, 2], "pads": [0] * 4},
        {"dilations": [2, 2], "pads": [0] * 4},
        {"ceil_mode": 1},
        {"ceil_mode": 1, "pads": [0] * 4},
    ],
)
def test_norm_before_a_max_pool_before_a_convolution(pool: dict[str, Any], kernel: int) -> None:
    net = Net(4)
    y = max_pool(net, positive_bn(net, net.op("Relu", "x")), **pool)
    result = check(
        net.model(net.conv(y, 4, 5, kernel, pad=0)), {"Relu": 1, "MaxPool": 1, "Conv": 1}, largest=16
    )
    assert {fold.kind for fold in result.report.folds} == {Kind.COMMUTE}


@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_norm_behind_a_max_pool_behind_a_convolution(ceil_mode: int) -> None:
    net = Net(4)
    y = positive_bn(net, max_pool(net, net.conv("x", 4, 4, 3), ceil_mode=ceil_mode))
    check(net.model(net.op("Relu", y)), {"Conv": 1, "MaxPool": 1, "Relu": 1}, largest=8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_factor_behind_an_activation_behind_a_convolution(activation: str) -> None:
    net = Net(4)
    y = factor(net, ACTIVATIONS[activation](net, net.conv("x", 4, 4, 3)))
    model = net.model(net.op("Sigmoid", y))
    check(model, {op: n for op, n in counts(model).items() if op != "Mul"}, largest=8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_factor_before_an_activation_before_a_convolution(activation: str) -> None:
    net = Net(4)
    y = ACTIVATIONS[activation](net, factor(net, net.op("Sigmoid", "x")))
    model = net.model(net.conv(y, 4, 5, 3))
    check(model, {op: n for op, n in counts(model).items() if op != "Mul"}, largest=8)


@pytest.mark.parametrize("activation", ["leaky", "relu", "abs"])
def test_factor_before_an_activation_before_a_transposed_convolution(activation: str) -> None:
    """HiFi-GAN divides the sum of its residual blocks by their number, in front of the next upsampling."""
    net = Net(4)
    total = net.op("Add", net.op("Sigmoid", "x"), net.op("Tanh", "x"))
    y = ACTIVATIONS[activation](net, net.op("Div", total, net.const(3.0)))
    model = net.model(net.op("ConvTranspose", y, net.random(4, 3, 4, 4), net.random(3), strides=[2, 2]))
    check(model, {op: n for op, n in counts(model).items() if op != "Div"}, largest=5)


def test_shift_before_a_transposed_convolution_stays() -> None:
    net = Net(4)
    y = max_pool(net, positive_bn(net, net.op("Relu", "x")))
    model = net.model(net.op("ConvTranspose", y, net.random(4, 3, 4, 4), strides=[2, 2]))
    assert counts(fuse(model).model)["MaxPool"] == 1
    kinds = [node.op_type for node in fuse(model).model.graph.node]
    assert kinds.index("MaxPool") > kinds.index(
        "BatchNormalization" if "BatchNormalization" in kinds else "Add"
    )


def test_through_several_operators() -> None:
    net = Net(4)
    y = max_pool(net, net.op("Relu", factor(net, net.op("Sigmoid", "x"))))
    check(net.model(net.conv(y, 4, 5, 3)), {"Sigmoid": 1, "Relu": 1, "MaxPool": 1, "Conv": 1}, largest=8)


@pytest.mark.parametrize("activation", ["relu", "pool"])
@pytest.mark.parametrize("behind", [False, True])
def test_factors_that_are_not_positive_stay(activation: str, behind: bool) -> None:
    net = Net(4)
    if behind:
        y = factor(net, ACTIVATIONS[activation](net, net.conv("x", 4, 4, 3)), negative=True)
        check(net.model(net.op("Sigmoid", y)), None, Reason.SIGN, largest=8)
    else:
        y = ACTIVATIONS[activation](net, factor(net, net.op("Sigmoid", "x"), negative=True))
        check(net.model(net.conv(y, 4, 5, 3)), None, Reason.SIGN, largest=8)


def test_norm_with_a_factor_that_is_not_positive_stays() -> None:
    net = Net(4)
    y = max_pool(net, positive_bn(net, net.op("Relu", "x"), negative=True))
    check(net.model(net.conv(y, 4, 5, 3, pad=0)), None, Reason.SIGN, largest=8)


TRAPS: dict[str, Callable[[Net, str], str]] = {
    "elu": lambda net, x: net.op("Elu", x),
    "sigmoid": lambda net, x: net.op("Sigmoid", x),
    "hard swish": lambda net, x: net.op("HardSwish", x),
    "clip to 6": lambda net, x: net.op("Clip", x, net.const(0.0), net.const(6.0)),
    "clip from 1": lambda net, x: net.op("Clip", x, net.const(1.0)),
    "rounds up into padding": lambda net, x: max_pool(
        net, x, ceil_mode=1, kernel_shape=[2, 2], pads=[0, 0, 1, 1]
    ),
    "rounds up past a stride": lambda net, x: max_pool(
        net, x, ceil_mode=1, kernel_shape=[1, 1], pads=[0] * 4
    ),
    "rounds up dilated": lambda net, x: max_pool(net, x, ceil_mode=1, dilations=[2, 2], pads=[0] * 4),
    "windows of padding": lambda net, x: max_pool(net, x, dilations=[2, 2]),
    "average of others": lambda net, x: net.op("LpPool", x, kernel_shape=[2, 2]),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap: str) -> None:
    net = Net(4)
    check(net.model(net.op("Tanh", factor(net, TRAPS[trap](net, net.conv("x", 4, 4, 3))))), None, largest=8)


@pytest.mark.parametrize("activation", ["relu", "prelu", "abs"])
def test_shifts_do_not_pass_activations(activation: str) -> None:
    net = Net(4)
    y = positive_bn(net, ACTIVATIONS[activation](net, net.conv("x", 4, 4, 3)))
    check(net.model(net.op("Tanh", y)), None, largest=6)


def test_a_shift_before_a_padded_convolution_stays() -> None:
    net = Net(4)
    y = max_pool(net, positive_bn(net, net.op("Relu", "x")))
    check(net.model(net.conv(y, 4, 5, 3, pad=1)), None, largest=6)


def test_half_precision_moves_no_factor_up() -> None:
    """Scaled, all positions are stored, not only the largest, which may be far from those that overflow."""
    net = Net(4, dtype=np.float16)
    y = factor(net, max_pool(net, net.conv("x", 4, 4, 3)))
    check(net.model(net.op("Relu", y)), None, tolerance=1e-2)


def reduced(
    net: Net, x: str, op: str = "ReduceMax", axes: tuple[int, ...] = (2, 3), keepdims: int = 1
) -> str:
    if net.opset >= 18:
        return str(net.op(op, x, net.const(np.array(axes)), keepdims=keepdims))
    return str(net.op(op, x, axes=list(axes), keepdims=keepdims))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [(2, 3), (-1,)])
def test_norm_before_an_extreme_over_positions(opset: int, op: str, axes: tuple[int, ...]) -> None:
    """torch's amax and amin, as in the channel attention of CBAM."""
    net = Net(4, opset=opset)
    y = reduced(net, positive_bn(net, net.op("Relu", "x")), op, axes)
    check(net.model(net.conv(y, 4, 5, 1)), {"Relu": 1, op: 1, "Conv": 1})


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_norm_behind_an_extreme_over_positions(op: str) -> None:
    net = Net(4)
    y = positive_bn(net, reduced(net, net.conv("x", 4, 4, 3), op))
    check(net.model(net.op("Relu", y)), {"Conv": 1, op: 1, "Relu": 1})


@pytest.mark.parametrize(
    ("axes", "keepdims"), [((1,), 1), ((1, 2, 3), 1), ((0, 2), 1), ((-3,), 1), ((), 1), ((2, 3), 0)]
)
def test_extremes_over_channels_or_images_and_those_that_remove_axes_stay(
    axes: tuple[int, ...], keepdims: int
) -> None:
    net = Net(4, shape=(3, 4, 5, 6))
    y = positive_bn(net, net.op("Relu", "x"))
    y = reduced(net, y, "ReduceMax", axes, keepdims) if axes else net.op("ReduceMax", y)
    net.op("Sigmoid", y)
    check(net.model(net.nodes[-1].output[0]), None)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("as_mul", [False, True])
@pytest.mark.parametrize("scalar", [False, True])
def test_what_is_before_an_extreme_that_removes_axes(opset: int, op: str, as_mul: bool, scalar: bool) -> None:
    """torch's amax(x, (2, 3)) before a Linear; constants of (C, 1, 1) are of (C,) behind it."""
    net = Net(4, opset=opset)
    factors = np.linspace(0.5, 2, 4).reshape(4, 1, 1)
    y = net.op("Relu", net.conv("x", 4, 4, 3))
    if as_mul:
        y = net.op("Mul", y, net.const(np.full((1, 1, 1, 1), 1.7) if scalar else factors))
        y = net.op("Add", y, net.const(0.3) if scalar else net.channel(4))
    else:
        y = positive_bn(net, y)
    y = reduced(net, y, op, (2, 3), 0)
    check(
        net.model(net.op("Gemm", y, net.random(4, 3), net.random(3))),
        {"Conv": 1, "Relu": 1, op: 1, "Gemm": 1},
    )


@pytest.mark.parametrize("factor", [(4,), (1, 4), ()])
def test_a_factor_behind_an_extreme_that_removes_axes(factor: tuple[int, ...]) -> None:
    net = Net(4)
    y = reduced(net, net.conv("x", 4, 4, 3), "ReduceMax", (2, 3), 0)
    y = net.op("Mul", y, net.const(net.rng.uniform(0.5, 2, factor)))
    check(net.model(net.op("Relu", y)), {"Conv": 1, "ReduceMax": 1, "Relu": 1})


def test_an_extreme_along_one_axis_that_it_removes() -> None:
    net = Net(4)
    y = reduced(net, positive_bn(net, net.op("Relu", "x")), "ReduceMax", (3,), 0)
    check(net.model(net.conv(y, 4, 5, (1,))), {"Relu": 1, "ReduceMax": 1, "Conv": 1})


def test_negative_factors_do_not_pass_an_extreme() -> None:
    net = Net(4)
    y = reduced(net, positive_bn(net, net.op("Relu", "x"), negative=True))
    check(net.model(net.conv(y, 4, 5, 1)), None, Reason.SIGN)


@pytest.mark.parametrize("pool", ["GlobalMaxPool", "MaxPool"])
@pytest.mark.parametrize("equal", [True, False])
def test_factors_along_the_last_axis_do_not_pass_a_window_over_it(pool: str, equal: bool) -> None:
    """A MatMul's channels are positions for a pool, whose output has fewer of them."""
    net = Net(3, shape=(2, 3, 5, 4))
    rows = net.op("MatMul", "x", net.random(4, 4))
    values = np.full(4, 2.0) if equal else net.rng.uniform(0.5, 1.5, 4)
    scaled = net.op("Mul", net.op("Sigmoid", rows), net.const(values))
    attrs = {} if pool == "GlobalMaxPool" else {"kernel_shape": [1, 4]}
    y = net.conv(net.op(pool, scaled, **attrs), 3, 2, 1)
    check(net.model(y), None, options=Options(check=False))
