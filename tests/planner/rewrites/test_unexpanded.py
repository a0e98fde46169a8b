"""What is expanded to the shape of the tensor beside it is read as it was before."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal


def _expanded(net: Net, like: str, shape: tuple[int, ...]) -> str:
    return str(net.op("Expand", net.const(net.rng.uniform(0.5, 2.0, shape)), net.op("Shape", like)))


def _filled(net: Net, like: str, value: float | None) -> str:
    given = {} if value is None else {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [value])}
    return str(net.op("ConstantOfShape", net.op("Shape", like), **given))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("is_first", [False, True])
def test_values_per_channel_go_into_the_convolution(op: str, shape: tuple[int, ...], is_first: bool) -> None:
    if op == "Div" and is_first:
        return  # not linear
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    z = _expanded(net, y, shape)
    check(net.model(net.op("Relu", net.op(op, *((z, y) if is_first else (y, z))))), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("value", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_tensors_of_one_value(op: str, value: float | None) -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    model = net.model(net.op("Relu", net.op(op, y, _filled(net, y, value))))
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1, "Relu": 1}
    assert equal(model, result.model) > 0


def test_without_a_convolution() -> None:
    """Any constant, also one that widens the tensor; the shape may be that of another tensor, if it is the same."""
    for shape, like in (((1, 1, 3), "x"), ((3,), "x"), ((4, 1), "y")):
        net = Net(shape=("N", 4, 1))
        y = net.op("Tanh", "x")
        z = _expanded(net, "x" if like == "x" else y, shape)
        model = net.model(net.op("Exp", net.op("Add", y, z)))
        result = fuse(model)
        assert counts(result.model) == {"Tanh": 1, "Add": 1, "Exp": 1}
        assert equal(model, result.model) > 0


def test_other_shapes_stay() -> None:
    net = Net(shape=("N", 4, "L"), opset=17)
    y = net.op("ReduceMax", "x", axes=[2])
    _stays(net, net.op("Mul", y, _expanded(net, "x", (1,))))
    net = Net(shape=("N", 4, "L"), opset=17)
    part = net.op("Shape", "x", start=1)
    _stays(net, net.op("Mul", "x", net.op("Expand", net.const(np.ones((3, 1, 1))), part)))
    net = Net(shape=("N", 4, "L"), opset=17)
    expanded = _expanded(net, "x", (4, 1))
    _stays(net, net.op("Max", "x", expanded))


def _stays(net: Net, out: str) -> None:
    model = net.model(net.op("Relu", out))
    assert fuse(model).model.SerializeToString() == model.SerializeToString()


def test_who_else_reads_it_keeps_it() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    z = _expanded(net, y, (4, 1, 1))
    model = net.model(net.op("Relu", net.op("Mul", y, z)), net.op("Exp", z))
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1, "Relu": 1, "Shape": 1, "Expand": 1, "Exp": 1}
    assert equal(model, result.model) > 0


def test_it_may_be_left_out() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    model = net.model(net.op("Mul", y, _expanded(net, y, (4, 1, 1))))
    for options in (
        Options(skip=frozenset((Kind.AFFINE,))),
        Options(keep=("expand*",)),
        Options(keep=("mul*",)),
    ):
        assert counts(fuse(model, options=options).model)["Expand"] == 1
