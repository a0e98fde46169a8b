"""A Pad of an image whose channels come last goes into the Conv or pool behind the Transpose."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import fuse
from tests.build import Net, check, counts

SAME = [0, 1, 1, 0, 0, 2, 0, 0]  # N, H, W, C: begins, then ends
IMAGE = ("N", "H", "W", 3)


def padded(net: Net, x: str, pads: list[int], **attrs: object) -> str:
    if net.opset < 11:
        return str(net.op("Pad", x, pads=pads, **attrs))
    axes = {"axes": net.const(np.array([1, 2]))} if len(pads) == 4 else {}
    return str(net.op("Pad", x, net.const(np.array(pads)), *(["", *axes.values()] if axes else []), **attrs))


def transposed(net: Net, x: str) -> str:
    return str(net.op("Transpose", x, perm=[0, 3, 1, 2]))


@pytest.mark.parametrize(("opset", "pads"), [(9, SAME), (13, SAME), (18, [1, 0, 2, 1])])
def test_before_a_conv(opset: int, pads: list[int]) -> None:
    net = Net(shape=IMAGE, opset=opset)
    y = net.conv(transposed(net, padded(net, "x", pads)), 3, 4, 3, pad=0, strides=[2, 2])
    check(net.model(net.op("Relu", y)), {"Transpose": 1, "Conv": 1, "Relu": 1}, largest=6)


def test_behind_arithmetic_as_keras_normalizes() -> None:
    net = Net(shape=IMAGE, opset=13)
    y = padded(
        net, net.op("Div", net.op("Sub", "x", net.const([0.1, 0.2, 0.3])), net.const([0.5, 0.6, 0.7])), SAME
    )
    y = net.conv(transposed(net, y), 3, 4, 3, pad=0)
    check(net.model(net.op("Relu", y)), {"Add": 1, "Transpose": 1, "Conv": 1, "Relu": 1}, largest=6)


def test_before_several_windows() -> None:
    net = Net(shape=IMAGE, opset=13)
    y = transposed(net, padded(net, net.op("Relu", "x"), SAME))
    pool = net.op("AveragePool", y, kernel_shape=[3, 3])
    model = net.model(net.op("Tanh", net.conv(y, 3, 4, 3, pad=0)), net.op("Exp", pool))
    left = {"Relu": 1, "Transpose": 1, "Conv": 1, "AveragePool": 1, "Tanh": 1, "Exp": 1}
    check(model, left, largest=6)


@pytest.mark.parametrize(
    "trap", ["channels", "crop", "reflect", "value", "output", "other consumer", "not read by a window"]
)
def test_pads_that_stay_where_they_are(trap: str) -> None:
    net = Net(shape=("N", 5, 5, 3), opset=13)
    pads = {"channels": [0, 0, 0, 1, 0, 0, 0, 0], "crop": [0, -1, 0, 0, 0, 0, 0, 0]}.get(trap, SAME)
    value = [net.const(1.0)] if trap == "value" else []
    mode = {"mode": "reflect"} if trap == "reflect" else {}
    pad = net.op("Pad", "x", net.const(np.array(pads)), *value, **mode)
    y = transposed(net, pad)
    channels = 4 if trap == "channels" else 3
    z = net.op("Tanh", y if trap.startswith("not") else net.conv(y, channels, 4, 3, pad=0))
    more = {"output": [y], "other consumer": [net.op("Exp", pad)]}.get(trap, [])
    result = fuse(net.model(z, *more))
    assert counts(result.model)["Pad"] == 1
    order = [node.op_type for node in result.model.graph.node]
    assert order.index("Pad") < order.index("Transpose")
