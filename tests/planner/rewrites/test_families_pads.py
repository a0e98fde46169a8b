"""Pads before windows that are no convolutions of constant weights: average pools, and Convs of computed weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, check, counts
from tests.versions import since


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


ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Abs": (), "Exp": (), "HardSigmoid": (), "Softplus": (), "Clip": ("low", "high"),
}  # fmt: skip


@pytest.mark.parametrize("opset", [8, 13, 19])
@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("window", [{}, {"strides": [2, 2]}, {"pads": [0, 1, 1, 0]}])
def test_zeros_before_a_maximum_of_what_is_never_negative(
    opset: int, op: str, window: dict[str, Any]
) -> None:
    """As TensorFlow's ResNets pad."""
    net = Net(4, opset=opset, ir=8)
    if op == "Clip":
        y = (
            net.op(op, "x", min=0.0, max=6.0)
            if opset < 11
            else net.op(op, "x", net.const(0.0), net.const(6.0))
        )
    else:
        y = net.op(op, "x")
    y = net.op("MaxPool", padded(net, y, [1, 0, 1, 2]), kernel_shape=[4, 3], **window)
    check(net.model(y), {op: 1, "MaxPool": 1}, largest=6)


@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("opset", [8, 13])
def test_the_lowest_value_before_a_maximum(opset: int, value: float) -> None:
    net = Net(4, opset=opset, ir=8)
    y = net.conv("x", 4, 4, 3)
    listed = [0, 0, 1, 0, 0, 0, 1, 2]
    if opset < 11:
        y = net.op("Pad", y, pads=listed, value=value)
    else:
        y = net.op("Pad", y, net.const(np.array(listed)), net.const(value))
    pools = [net.op("MaxPool", y, kernel_shape=[k, 3]) for k in (2, 3)]
    check(net.model(*pools), {"Conv": 1, "MaxPool": 2}, largest=6)


@pytest.mark.parametrize(
    "trap",
    [
        *(
            "may be negative",
            "low",
            "high",
            "any high",
            "other value",
            "dilated",
            "padding alone",
            "consumer",
        ),
        *("indices", "ceil", "sign of zero"),
    ],
)
def test_what_a_maximum_may_see_of_its_padding_stays(trap: str) -> None:
    net = Net(4)
    x = net.conv("x", 4, 4, 3)
    if trap == "low":
        y = net.op("Clip", x, net.const(-1.0), net.const(1.0))
    elif trap == "high":  # below the minimum: all values are the maximum
        y = net.op("Clip", x, net.const(0.0), net.const(-1.0))
    elif trap == "any high":
        y = net.op("Clip", x, net.const(0.0), net.op("ReduceMin", x, keepdims=0))
    else:
        y = net.op("LeakyRelu" if trap == "may be negative" else "Relu", x)
    value = [net.const(1.0)] if trap == "other value" else []
    pad = net.op("Pad", y, net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), *value)
    attrs: dict[str, Any] = {
        "dilated": {"dilations": [2, 2]},
        "ceil": {"ceil_mode": 1, "strides": [2, 2]},
    }.get(trap, {})
    window = [1, 1] if trap == "padding alone" else [3, 3]
    pool = net.op("MaxPool", pad, kernel_shape=window, outputs=2 if trap == "indices" else 1, **attrs)
    outputs = pool if trap == "indices" else [pool]
    if trap == "sign of zero":
        outputs = [net.op("Reciprocal", pool)]
    others = [net.op("Tanh", pad)] if trap == "consumer" else []
    result = fuse(net.model(outputs[0], *others), options=Options(check=False))
    assert counts(result.model)["Pad"] == 1
    net = Net(4)
    low = net.op("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), net.const(-np.inf))
    weight = net.default(np.ones((4, 4, 3, 3)))  # which a Conv of its own would multiply with -inf
    check(net.model(net.op("MaxPool", low, kernel_shape=[3, 3]), net.op("Conv", low, weight)), None)


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


REFLECTS = since(
    "ONNX Runtime before 1.24 reads beyond what is too small to be reflected", onnxruntime="1.24"
)


@pytest.mark.parametrize(
    "trap", [pytest.param(trap, marks=REFLECTS if trap == "reflects" else ()) for trap in TRAPS]
)
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
