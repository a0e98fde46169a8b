"""ConvTransposes whose pads follow from `output_shape` or `auto_pad`, as TensorFlow's and Keras' converters write."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check

SIZES = (5, 6)


def upsampled(net: Net, x: str, k: int = 3, **attrs: Any) -> str:
    return str(net.op("ConvTranspose", x, net.random(4, 6, k, k), **{"strides": [2, 2], **attrs}))


def of_shape(net: Net, **attrs: Any) -> str:
    return upsampled(net, "x", **{"output_shape": [2 * size for size in SIZES], **attrs})


@pytest.mark.parametrize("mode", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_output_shape_of_a_known_size(mode: str, k: int) -> None:
    net = Net(shape=("N", 4, *SIZES), opset=13)
    y = net.bn(of_shape(net, k=k, auto_pad=mode), 6)
    result = check(net.model(net.op("Relu", y)), {"ConvTranspose": 1, "Relu": 1})
    attributes = {attribute.name for attribute in result.model.graph.node[0].attribute}
    assert not attributes & {"auto_pad", "output_shape"}


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    ("k", "attrs"), [(2, {}), (3, {}), (5, {}), (3, {"dilations": [2, 1]}), (4, {"strides": [3, 1]})]
)
def test_same_padding_does_not_ask_for_the_size(mode: str, k: int, attrs: dict[str, Any]) -> None:
    net = Net(4, opset=13)
    y = net.bn(upsampled(net, "x", k, auto_pad=mode, **attrs), 6)
    check(net.model(net.op("Relu", y)), {"ConvTranspose": 1, "Relu": 1})


def test_sums_of_two_that_pad_unequally() -> None:
    net = Net(shape=("N", 4, *SIZES), opset=13)
    y = net.add(of_shape(net, k=4), upsampled(net, "x", 2))
    check(net.model(net.op("Relu", y)), {"ConvTranspose": 1, "Relu": 1})


@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        (("N", 4, "H", "W"), {"output_shape": [10, 12]}),  # of a size that is not known
        (("N", 4, *SIZES), {"output_shape": [12, 14], "k": 2}),  # more than there is
        (("N", 4, *SIZES), {"auto_pad": "SAME_UPPER", "output_padding": [1, 1]}),  # runtimes count otherwise
        (("N", 4, *SIZES), {"auto_pad": "SAME_UPPER", "k": 1}),  # more than there is
    ],
)
def test_pads_that_are_not_known(shape: tuple[int | str, ...], attrs: dict[str, Any]) -> None:
    net = Net(shape=shape, opset=13)
    report = fuse(
        net.model(net.op("Relu", net.bn(upsampled(net, "x", **attrs), 6))), options=Options(check=False)
    ).report
    assert not report.folds
    assert Reason.UNSUPPORTED in {refusal.reason for refusal in report.refusals}


@pytest.mark.parametrize("k", [3, 4])
def test_an_odd_position_has_no_certain_side_before_opset_11(k: int) -> None:
    net = Net(shape=("N", 4, *SIZES), opset=10)
    y = net.bn(of_shape(net, k=k), 6)
    model = net.model(net.op("Relu", y))
    if k == 4:
        check(model, {"ConvTranspose": 1, "Relu": 1})
    else:
        check(model, None, Reason.UNSUPPORTED)
