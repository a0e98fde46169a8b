"""A sum or mean over the axis along which tensors were stacked is that of these tensors."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.quiet_runtime import ort
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts


def stacked(net: Net, parts: list[str], axis: int) -> str:
    if net.opset < 13:
        parts = [net.op("Unsqueeze", part, axes=[axis]) for part in parts]
    else:
        parts = [net.op("Unsqueeze", part, net.const(np.array([axis]))) for part in parts]
    return str(net.op("Concat", *parts, axis=axis))


def reduced(net: Net, op: str, y: str, *axes: int, keeps: bool = False) -> str:
    if net.opset < (13 if op == "ReduceSum" else 18):
        return str(net.op(op, y, axes=list(axes), keepdims=int(keeps)))
    return str(net.op(op, y, net.const(np.array(axes)), keepdims=int(keeps)))


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_of_convolutions(op: str, opset: int, axis: int) -> None:
    net = Net(4, opset=opset)
    parts = [net.conv("x", 4, 4, k) for k in (3, 1, 3)]
    check(net.model(reduced(net, op, stacked(net, parts, axis), axis)), {"Conv": 1})


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize("keeps", [True, False])
def test_of_activations(op: str, keeps: bool) -> None:
    net = Net(shape=("N", "L", 8))
    parts = [net.op(activation, "x") for activation in ("Relu", "Tanh", "Sigmoid")]
    ops = {"Relu": 1, "Tanh": 1, "Sigmoid": 1, op.removeprefix("Reduce"): 1}
    check(
        net.model(reduced(net, op, stacked(net, parts, 1), 1, keeps=keeps)),
        ops | ({"Unsqueeze": 1} if keeps else {}),  # the views of the parts are one of their sum
    )


def test_parts_that_have_the_axis_by_themselves() -> None:
    net = Net(shape=("N", 1, "L"))
    y = net.op("Concat", net.op("Relu", "x"), net.op("Tanh", "x"), axis=1)
    check(net.model(reduced(net, "ReduceSum", y, 1, keeps=True)), {"Relu": 1, "Tanh": 1, "Sum": 1})
    other = Net(shape=("N", 1, "L"))
    y = other.op("Concat", other.op("Relu", "x"), other.op("Tanh", "x"), axis=1)
    check(other.model(reduced(other, "ReduceSum", y, 1)), None)


def test_one_tensor_many_times() -> None:
    net = Net(shape=("N", "L"))
    y = net.op("Relu", "x")
    result = fuse(net.model(reduced(net, "ReduceSum", stacked(net, [y, y], 0), 0)))
    assert "Concat" not in counts(result.model)


@pytest.mark.parametrize(
    "other", ["another axis", "two axes", "everything", "two positions", "sizes not known", "max"]
)
def test_other_sums_stay(other: str) -> None:
    net = Net(shape=("N", "L", 8))
    a, b = net.op("Relu", "x"), net.op("Tanh", "x")
    if other == "two positions":
        y = reduced(net, "ReduceSum", net.op("Concat", a, b, axis=1), 1)
    elif other == "sizes not known":  # of which one may be 0, which a Concat leaves out
        a, b = (net.op("ReduceMax", y, axes=[1]) for y in (a, b))
        y = reduced(net, "ReduceSum", stacked(net, [a, b], 0), 0)
    elif other == "everything":
        y = net.op("ReduceSum", stacked(net, [a, b], 1))
    elif other == "max":
        y = reduced(net, "ReduceMax", stacked(net, [a, b], 1), 1)
    else:
        y = reduced(net, "ReduceSum", stacked(net, [a, b], 1), *((2,) if other == "another axis" else (1, 3)))
    check(net.model(y), None)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
def test_sums_stay_before_what_tells_zeros_apart(op: str) -> None:
    """A reduction of -0 and -0 is 0, their Sum -0."""
    net = Net(shape=("N", 5))
    y = reduced(net, op, stacked(net, [net.op("Ceil", "x"), net.op("Neg", "x")], 0), 0)
    check(net.model(net.op("Reciprocal", y)), None)


def test_runtimes_have_no_mean_of_doubles() -> None:
    for op, is_written in (("ReduceSum", True), ("ReduceMean", False)):
        net = Net(shape=("N", 5), dtype=np.float64)
        model = net.model(reduced(net, op, stacked(net, [net.op("Relu", "x"), net.op("Neg", "x")], 0), 0))
        result = fuse(model, options=Options(check=False))
        assert bool(result.report.folds) == is_written
        session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
        x = np.array([[1.0, -2.0, 0.0, 3.0, -4.0]])
        expected = np.maximum(x, 0) - x
        np.testing.assert_array_equal(
            session.run(None, {"x": x})[0], expected if is_written else expected / 2
        )


def test_what_others_read_or_users_keep_stays() -> None:
    net = Net(shape=("N", 5, 8))
    both = stacked(net, [net.op("Relu", "x"), net.op("Tanh", "x")], 1)
    check(net.model(reduced(net, "ReduceSum", both, 1), net.op("Exp", both)), None)
    kept = Net(shape=("N", 5, 8))
    model = kept.model(
        reduced(kept, "ReduceSum", stacked(kept, [kept.op("Relu", "x"), kept.op("Tanh", "x")], 1), 1)
    )
    assert not fuse(model, options=Options(keep=("concat*",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.BRANCHES}))).report.folds
