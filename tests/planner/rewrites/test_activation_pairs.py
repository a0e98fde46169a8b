"""Activations behind each other that limit values: one goes, or both are one Clip, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, counts, run

LIMITS: dict[str, tuple[str, tuple[float | None, float | None]]] = {
    "Relu": ("Relu", (None, None)),
    "relu6": ("Clip", (0.0, 6.0)),
    "from 0": ("Clip", (0.0, None)),
    "to 6": ("Clip", (None, 6.0)),
    "open": ("Clip", (None, None)),
    "within": ("Clip", (1.0, 2.0)),
    "around": ("Clip", (-1.0, 7.0)),
    "below": ("Clip", (-5.0, -1.0)),
    "infinite": ("Clip", (-np.inf, np.inf)),  # unlike an open end, which is the largest number
    "to infinity": ("Clip", (-1.0, np.inf)),
    "wrong": ("Clip", (3.0, 1.0)),
}
VALUES = np.array(
    [np.nan, np.inf, -np.inf, -0.0, 0.0, 0.5, -0.5, 1.5, 2.5, 6.5, -3.0, 1e-7, 7, 5, 3, -8], np.float32
)


def limited(net: Net, y: str, name: str) -> str:
    op, (low, high) = LIMITS[name]
    if op == "Relu":
        return str(net.op(op, y))
    if net.opset < 11:
        given = {key: end for key, end in (("min", low), ("max", high)) if end is not None}
        return str(net.op(op, y, **given))
    return str(net.op(op, y, *("" if end is None else net.const(end) for end in (low, high))))


def same_bits(before: onnx.ModelProto, after: onnx.ModelProto, values: np.ndarray) -> bool:
    pairs = zip(run(before, {"x": values}), run(after, {"x": values}), strict=True)
    bits = f"u{values.itemsize}"
    return all(
        ((one.view(bits) == other.view(bits)) | (np.isnan(one) & np.isnan(other))).all()
        for one, other in pairs
    )


def outcome(*names: str) -> np.ndarray:
    """What activations in a row make of the values."""
    net, y = Net(shape=("N",)), "x"
    for name in names:
        y = limited(net, y, name)
    return np.asarray(run(net.model(y), {"x": VALUES})[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(LIMITS, repeat=2)))
def test_two_in_a_row(first: str, second: str, opset: int, dtype: Any) -> None:
    if opset == 10 and (dtype is np.float16 or "wrong" in (first, second)):
        return  # ONNX Runtime has no such Clip
    net = Net(shape=("N",), opset=opset, dtype=dtype)
    model = net.model(limited(net, limited(net, "x", first), second))
    result = fuse(model)
    stays = "wrong" in (first, second) or {first, second} in (
        {"below", one} for one in ("Relu", "relu6", "from 0", "within")
    )
    assert len(result.model.graph.node) == (2 if stays else 1)
    assert same_bits(model, result.model, VALUES.astype(dtype))
    again = fuse(result.model).model
    assert len(again.graph.node) == len(result.model.graph.node)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("is_behind", [False, True])
def test_limits_that_take_all_to_the_largest_number(
    is_behind: bool, sign: int, opset: int, dtype: Any
) -> None:
    """The largest number is no open end where it is the lower one."""
    if opset < 11 and dtype is np.float64:  # a Clip of floats alone
        return
    net, largest = Net(shape=("N",), opset=opset, dtype=dtype), float(np.finfo(dtype).max)

    def to_largest(y: str) -> str:
        if opset < 11:
            return str(net.op("Clip", y, **{"min" if sign > 0 else "max": sign * largest}))
        end = net.const(sign * largest)
        return str(net.op("Clip", y, end) if sign > 0 else net.op("Clip", y, "", end))

    y = to_largest("x") if not is_behind else limited(net, "x", "open")
    y = to_largest(y) if is_behind else limited(net, y, "open")
    model = net.model(y)
    fused = fuse(model, options=Options(check=False)).model
    assert counts(fused)["Clip"] == 1
    assert same_bits(model, fused, VALUES.astype(dtype))
    assert fuse(model).report.refusals == ()


@pytest.mark.parametrize(
    ("before", "op"),
    [
        ("Abs", "Relu"),
        ("Exp", "Relu"),
        ("HardSigmoid", "Relu"),
        ("Sqrt", "Relu"),
        ("Abs", "Abs"),
        ("Exp", "Abs"),
        ("Floor", "Ceil"),
        ("Ceil", "Ceil"),
        ("Round", "Floor"),
    ],
)
def test_values_that_an_activation_leaves_as_they_are(before: str, op: str) -> None:
    net = Net(shape=("N",))
    model = net.model(net.op(op, net.op(before, "x")))
    result = fuse(model)
    assert counts(result.model) == {before: 1}
    assert same_bits(model, result.model, VALUES)


@pytest.mark.parametrize(
    ("before", "op"),
    [
        ("Relu", "Abs"),
        ("Sigmoid", "Relu"),
        ("Tanh", "Relu"),
        ("Relu", "Floor"),
        ("Neg", "Relu"),
        ("LeakyRelu", "LeakyRelu"),
        ("Elu", "Elu"),
    ],
)
def test_other_activations_stay(before: str, op: str) -> None:
    """Abs makes 0 of the -0 that a Relu leaves; Sigmoid may go below 0 by rounding."""
    net = Net(shape=("N",))
    model = net.model(net.op(op, net.op(before, "x")))
    assert fuse(model).model.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(("first", "second"), list(itertools.product(LIMITS, repeat=2)))
@pytest.mark.parametrize("is_output", [False, True])
def test_the_second_goes_where_others_read_the_first(first: str, second: str, is_output: bool) -> None:
    net = Net(shape=("N",))
    between = limited(net, "x", first)
    last = limited(net, between, second)
    model = net.model(last if is_output else net.op("Tanh", last), net.op("Exp", between))
    result = fuse(model)
    one, two = outcome(first), outcome(first, second)
    is_gone = (
        not is_output
        and "wrong" not in (first, second)
        and ((one == two) | (np.isnan(one) & np.isnan(two))).all()
    )
    assert len(result.model.graph.node) == len(model.graph.node) - is_gone
    assert same_bits(model, result.model, VALUES)
    assert not fuse(result.model).report.folds


@pytest.mark.parametrize("behind", ["Reciprocal", "Exp"])
def test_a_max_behind_a_relu_that_others_read(behind: str) -> None:
    """Max(-0, 0) may be 0, of which Reciprocal makes another infinity."""
    net = Net(shape=("N",))
    first = net.op("Relu", "x")
    model = net.model(net.op("Tanh", first), net.op(behind, net.op("Max", first, net.const(np.float32(0)))))
    assert ("Max" in counts(fuse(model).model)) == (behind == "Reciprocal")


def test_rows_of_them_and_where_equal_nodes_stay() -> None:
    net = Net(shape=("N",))
    first = limited(net, "x", "relu6")
    second = net.op("Relu", first)
    third = net.op("Relu", second)
    model = net.model(
        net.op("Tanh", first), net.op("Exp", second), net.op("Neg", third), net.op("Cos", third)
    )
    options = Options(skip=frozenset({Kind.EQUAL}))
    assert fuse(model, options=options).model.SerializeToString() == model.SerializeToString()
    result = fuse(model)
    assert counts(result.model) == {"Clip": 1, "Tanh": 1, "Exp": 1, "Neg": 1, "Cos": 1}
    assert {change.kind for change in result.report.changes} == {Kind.EQUAL}
    assert same_bits(model, result.model, VALUES)


def test_behind_an_activation_that_a_fold_wrote() -> None:
    net = Net(shape=("N",))
    first = limited(net, limited(net, "x", "Relu"), "to 6")
    second = net.op("Relu", first)
    model = net.model(net.op("Tanh", first), net.op("Exp", second), net.op("Neg", second))
    result = fuse(model)
    assert counts(result.model) == {"Clip": 1, "Tanh": 1, "Exp": 1, "Neg": 1}
    assert same_bits(model, result.model, VALUES)
    assert not result.report.refusals


EXTREMES = [
    ("Max 0", "Min 6", {"Clip": 1}),
    ("Min 6", "Max 0", {"Clip": 1}),
    ("Relu", "Min 6", {"Clip": 1}),
    ("relu6", "Max 0", {"Clip": 1}),
    ("Relu", "Max 0", {"Relu": 1}),
    ("Relu", "Max -1", {"Relu": 1}),
    ("Min 6", "Min 5", {"Clip": 1}),
    ("Max 0", "Min -1", {"Max": 1, "Min": 1}),  # of ranges apart
    ("Sigmoid", "Max 0", {"Sigmoid": 1, "Max": 1}),
]


def extreme(net: Net, y: str, name: str) -> str:
    op, _, end = name.partition(" ")
    return (
        net.op(op, y, net.const(float(end)))
        if end
        else limited(net, y, op)
        if op in LIMITS
        else net.op(op, y)
    )


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize(("first", "second", "left"), EXTREMES)
def test_minima_and_maxima_with_a_number(first: str, second: str, left: dict[str, int], opset: int) -> None:
    """TensorFlow's converter writes ReLU6 so; -0, of which Max may make 0, is the one value that differs."""
    net = Net(shape=("N",), opset=opset)
    model = net.model(extreme(net, extreme(net, "x", first), second))
    result = fuse(model)
    assert counts(result.model) == left
    assert same_bits(model, result.model, VALUES[(VALUES != 0) | ~np.signbit(VALUES)])


@pytest.mark.parametrize("trap", ["Reciprocal behind", "half", "per channel", "not constant", "adds an axis"])
def test_minima_and_maxima_that_stay(trap: str) -> None:
    net = Net(shape=("N", 4), dtype=np.float16 if trap == "half" else np.float32)
    ends = {"per channel": net.random(4), "adds an axis": net.const(np.zeros((1, 1, 1))), "not constant": "x"}
    y = net.op("Min", net.op("Max", "x", ends.get(trap, net.const(0.0))), net.const(6.0))
    model = net.model(net.op("Reciprocal", y) if trap.startswith("Reciprocal") else y)
    assert fuse(model).model.SerializeToString() == model.SerializeToString()


def test_many_in_a_row() -> None:
    net = Net(shape=("N",))
    y = "x"
    for name in ("around", "Relu", "to 6", "Relu", "relu6", "open"):
        y = limited(net, y, name)
    model = net.model(y)
    result = fuse(model)
    assert counts(result.model) == {"Clip": 1}
    assert same_bits(model, result.model, VALUES)


@pytest.mark.parametrize("end", [np.nan, -0.0])
def test_ends_that_are_no_plain_numbers_stay(end: float) -> None:
    net = Net(shape=("N",))
    model = net.model(net.op("Relu", net.op("Clip", "x", net.const(np.float32(end)))))
    assert not fuse(model).report.folds
    varying = Net(shape=("N",))
    low = varying.default(np.float32(1))
    model = varying.model(varying.op("Relu", varying.op("Clip", "x", low)))
    assert not fuse(model).report.folds


def test_what_is_kept_stays() -> None:
    net = Net(shape=("N",))
    model = net.model(limited(net, limited(net, "x", "around"), "relu6"))
    assert not fuse(model, options=Options(keep=("clip*",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.ACTIVATION}))).report.folds
