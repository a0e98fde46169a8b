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


def _repeated(net: Net, value: np.ndarray, shape: tuple[int, ...]) -> str:
    return str(net.const(np.broadcast_to(value, shape).copy()))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (4, 5, 6), (4, 5, 1), (1, 4, 1, 6)])
def test_constants_that_repeat_their_values_along_space(op: str, shape: tuple[int, ...]) -> None:
    net = Net(shape=("N", 4, 5, 6))
    value = net.rng.uniform(0.5, 2, (4, 1, 1))
    check(net.model(net.op(op, net.conv("x", 4, 4, 3), _repeated(net, value, shape))), {"Conv": 1})


@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6), (7, 1, 6)])
def test_constants_that_repeat_their_values_along_rows(shape: tuple[int, ...]) -> None:
    net = Net(shape=(7, 7, 4))
    y = net.op("MatMul", "x", net.random(4, 6))
    check(net.model(net.op("Mul", y, _repeated(net, net.rng.uniform(0.5, 2, 6), shape))), {"MatMul": 1})


def test_of_one_value_everywhere_is_a_scalar() -> None:
    net = Net(shape=(1, 4, 5, 5))
    scores = net.op("MatMul", net.op("MatMul", "x", net.random(5, 5)), net.op("Relu", "x"))
    check(
        net.model(net.op("Mul", scores, _repeated(net, np.float32(0.5), (1, 4, 5, 5)))),
        {"MatMul": 2, "Relu": 1},
    )


@pytest.mark.parametrize("size", ["H", 1])
def test_a_constant_that_may_widen_the_tensor_stays(size: int | str) -> None:
    net = Net(shape=("N", 4, size, 6))
    value = net.rng.uniform(0.5, 2, (4, 1, 1))
    y = net.op("Mul", net.op("Relu", "x"), _repeated(net, value, (4, 5, 1)))
    assert not fuse(net.model(y)).report.folds
    wider = Net(shape=(5, 6))
    y = wider.op("Mul", wider.op("Relu", "x"), _repeated(wider, np.float32(2), (4, 5, 6)))
    result = fuse(wider.model(y))  # its last axes may go, its first one not
    assert all(tensor.dims[0] == 4 for tensor in result.model.graph.initializer)
    assert equal(wider.model(y), result.model) > 0


@pytest.mark.parametrize("values", [(0.0, -0.0), (1.0, 2.0)])
def test_values_that_differ_stay(values: tuple[float, float]) -> None:
    net = Net(shape=(1, 4, 2, 3))
    y = net.op("Mul", net.op("Relu", "x"), _repeated(net, np.array([values] * 3).T, (1, 4, 2, 3)))
    result = fuse(net.model(net.op("Reciprocal", y)))
    assert [tuple(tensor.dims) for tensor in result.model.graph.initializer] == [(1, 1, 2, 1)]


def test_a_constant_of_one_axis_stays() -> None:
    net = Net(shape=("N", 4, 6))
    assert not fuse(
        net.model(net.op("Mul", net.op("Relu", "x"), _repeated(net, np.float32(2), (6,))))
    ).report.folds
