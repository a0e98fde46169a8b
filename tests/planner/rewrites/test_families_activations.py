"""Activations that exporters decompose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check


def clipped(net: Net, x: str, low: float = 0.0, high: float = 6.0) -> str:
    if net.opset < 11:
        return str(net.op("Clip", x, min=low, max=high))
    return str(net.op("Clip", x, net.const(low), net.const(high)))


def hard_swish(net: Net, x: str, *, sixth: str = "Div", high: float = 6.0, early: bool = False) -> str:
    gate = clipped(net, net.op("Add", x, net.const(3.0)), high=high)

    def scaled(y: str) -> str:
        return str(net.op(sixth, y, net.const(6.0 if sixth == "Div" else 1 / 6)))

    return str(net.op("Mul", x, scaled(gate))) if early else scaled(net.op("Mul", x, gate))


@pytest.mark.parametrize("opset", [8, 11, 17])
@pytest.mark.parametrize("sixth", ["Div", "Mul"])
@pytest.mark.parametrize("early", [False, True])
def test_hard_swish(opset: int, sixth: str, early: bool) -> None:
    net = Net(4, opset=opset, ir=8)
    out = hard_swish(net, net.op("Relu", "x"), sixth=sixth, early=early)
    if opset < 14:  # no operator for it, and OpenVINO fuses what stands there
        check(net.model(out), None, Reason.OPSET)
        return
    result = check(net.model(out), {"Relu": 1, "HardSwish": 1}, largest=5)
    assert [fold.kind for fold in result.report.folds] == [Kind.ACTIVATION]


def min_of_relu(net: Net, x: str, high: float, *, first: bool = False) -> str:
    relu, limit = net.op("Relu", net.op("Add", x, net.const(3.0))), net.const(high)
    return str(net.op("Min", *((limit, relu) if first else (relu, limit))))


@pytest.mark.parametrize("is_min", [False, True])
@pytest.mark.parametrize("place", ["x", "gate", "product"])
@pytest.mark.parametrize("first", [False, True])
def test_hard_swish_in_other_words(is_min: bool, place: str, first: bool) -> None:
    """The sixth anywhere, and the Clip as a Min of a ReLU."""
    net = Net(4)
    x = net.op("Tanh", "x")
    gate = (
        min_of_relu(net, x, 6.0, first=first) if is_min else clipped(net, net.op("Sub", x, net.const(-3.0)))
    )
    sixth = net.const(1 / 6)
    other = net.op("Mul", sixth, x) if place == "x" else x
    gate = net.op("Mul", gate, sixth) if place == "gate" else gate
    out = net.op("Mul", *((gate, other) if first else (other, gate)))
    out = net.op("Mul", out, sixth) if place == "product" else out
    check(net.model(out), {"Tanh": 1, "HardSwish": 1}, largest=5)


def test_hard_sigmoid_as_a_minimum_of_a_relu() -> None:
    net = Net(4)
    out = net.op("Div", min_of_relu(net, net.op("Tanh", "x"), 6.0), net.const(6.0))
    check(net.model(out), {"Tanh": 1, "HardSigmoid": 1}, largest=5)


@pytest.mark.parametrize("high", [5.0, np.ones((1, 4, 1, 1))])
def test_other_minima_are_no_hard_swish(high: Any) -> None:
    net = Net(4)
    x = net.op("Tanh", "x")
    relu = net.op("Relu", net.op("Add", x, net.const(3.0)))
    model = net.model(net.op("Mul", net.op("Mul", x, net.const(1 / 6)), net.op("Min", relu, net.const(high))))
    limited = {"Tanh": 1, "Add": 1, "Mul": 2, "Clip": 1}
    check(model, limited if isinstance(high, float) else None)
    net = Net(4)  # the factor is that of another tensor
    x = net.op("Tanh", "x")
    other = net.op("Mul", net.op("Exp", "x"), net.const(1 / 6))
    check(net.model(net.op("Mul", other, min_of_relu(net, x, 6.0))), limited | {"Exp": 1})
    net = Net(4)  # somebody else reads the ReLU
    x = net.op("Tanh", "x")
    relu = net.op("Relu", net.op("Add", x, net.const(3.0)))
    check(net.model(net.op("Div", net.op("Min", relu, net.const(6.0)), net.const(6.0)), net.op("Exp", relu)))


def test_hard_swish_behind_a_convolution_is_reported_once() -> None:
    net = Net(4, opset=13)
    result = check(net.model(hard_swish(net, net.conv("x", 4, 4, 3))), None, Reason.OPSET)
    (refusal,) = result.report.refusals
    assert len(refusal.nodes) == 2  # the Add, which is linear, and the Clip


def test_the_parts_of_hard_swish_still_fold() -> None:
    """Before opset 14 its Div goes into the next Conv."""
    net = Net(4, opset=13)
    out = net.conv(hard_swish(net, net.op("Relu", "x")), 4, 4, 3)
    check(net.model(out), {"Relu": 1, "Add": 1, "Clip": 1, "Mul": 1, "Conv": 1}, Reason.OPSET)


@pytest.mark.parametrize("opset", [8, 11, 17])
def test_a_gate_of_another_tensor(opset: int) -> None:
    """x * Clip(y + 3, 0, 6) / 6, as in squeeze-and-excitation."""
    net = Net(4, opset=opset, ir=8)
    gate = clipped(net, net.op("Add", net.op("GlobalAveragePool", "x"), net.const(3.0)))
    out = net.op("Div", net.op("Mul", net.op("Relu", "x"), gate), net.const(6.0))
    result = check(net.model(out), {"GlobalAveragePool": 1, "Relu": 1, "HardSigmoid": 1, "Mul": 1}, largest=5)
    assert [fold.kind for fold in result.report.folds] == [Kind.ACTIVATION]


@pytest.mark.parametrize("opset", [8, 11, 17])
def test_hard_sigmoid_with_a_slope(opset: int) -> None:
    net = Net(4, opset=opset, ir=8)
    y = net.op("Div", net.op("Add", net.op("Relu", "x"), net.const(1.0)), net.const(2.0))
    check(net.model(clipped(net, y, high=1.0)), {"Relu": 1, "HardSigmoid": 1})


def test_learnable_affine_block() -> None:
    """PP-LCNetV3: Conv, affine, HardSwish, affine, padded depthwise Conv."""
    net = Net(4)
    y = net.op("Add", net.op("Mul", net.conv("x", 4, 4, 1), net.const(1.3)), net.const(0.2))
    y = net.op("Add", net.op("Mul", hard_swish(net, y), net.const(0.7)), net.const(-0.4))
    out = net.conv_bn(y, 4, 4, 3, group=4)
    check(net.model(out), {"Conv": 2, "HardSwish": 1, "Add": 1})


@pytest.mark.parametrize("high", [6.0, 5.0])
def test_what_is_not_hard_swish_stays(high: float) -> None:
    net = Net(4)
    x = net.op("Relu", "x")
    if high == 5.0:
        check(net.model(hard_swish(net, x, high=high)), None)
        return
    gate = clipped(net, net.op("Add", x, net.const(3.0)))  # somebody else reads the gate
    out = net.op("Div", net.op("Mul", x, gate), net.const(6.0))
    check(net.model(out, net.op("Sigmoid", gate)), None)


def test_relu6_stays() -> None:
    net = Net(4)
    check(net.model(clipped(net, net.op("Sigmoid", "x"))), None)


@pytest.mark.parametrize("more", [{"options": Options(skip=(Kind.ACTIVATION,))}, {"dtype": np.float16}])
def test_activations_that_are_skipped(more: dict[str, Any]) -> None:
    net = Net(4, dtype=more.get("dtype", np.float32))
    out = hard_swish(net, net.op("Relu", "x"))
    check(net.model(out), None, options=more.get("options"), tolerance=1e-2)


@pytest.mark.parametrize("opset", [9, 13, 14, 18])
@pytest.mark.parametrize("first", [False, True])
def test_a_hard_sigmoid_times_its_argument(opset: int, first: bool) -> None:
    net = Net(4, opset=opset, ir=8)
    x = net.op("Relu", "x")
    gate = net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    model = net.model(net.op("Mul", *((gate, x) if first else (x, gate))))
    if opset < 14:
        check(model, None, Reason.OPSET)
    else:
        result = check(model, {"Relu": 1, "HardSwish": 1}, largest=5)
        assert [fold.kind for fold in result.report.folds] == [Kind.ACTIVATION]


def test_what_is_no_hard_swish() -> None:
    for alpha, beta in ((0.2, 0.5), (1 / 6, 0.4)):
        net = Net(4)
        x = net.op("Relu", "x")
        check(net.model(net.op("Mul", x, net.op("HardSigmoid", x, alpha=alpha, beta=beta))), None)
    net = Net(4)
    x = net.op("Relu", "x")
    gate = net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    check(net.model(net.op("Mul", x, gate), net.op("Sigmoid", gate)), None)  # the gate has another consumer
    net = Net(4)
    gate = net.op("HardSigmoid", net.op("Relu", "x"), alpha=1 / 6, beta=0.5)
    check(net.model(net.op("Mul", "x", gate)), None)  # of another tensor
