"""Arithmetic with constants of any shape, in tensors of any rank: one Mul and one Add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal, run


def net_of(*shape: int | str, **fields: Any) -> Net:
    net = Net(**fields)
    net.shape = shape
    return net


def grid(net: Net, *shape: int) -> str:
    return net.const(net.rng.uniform(-3, 3, shape))


def test_decoding_of_boxes() -> None:
    """YOLOv5: ((2*x - 0.5) + grid) * stride and (2*x)**2 * anchors, of (batch, anchors, height, width, 2)."""
    net = net_of("N", 3, 4, 5, 2)
    x = net.op("Sigmoid", "x")
    y = net.op("Sub", net.op("Mul", x, net.const(2.0)), net.const(0.5))
    y = net.op("Mul", net.op("Add", y, grid(net, 1, 3, 4, 5, 2)), net.const(8.0))
    check(net.model(y), {"Sigmoid": 1, "Mul": 1, "Add": 1})


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_sum_with_several_constants(place: int) -> None:
    net = net_of("N", 3, 4, 5, 2)
    operands = [grid(net, 1, 3, 4, 5, 2), net.const(1.0)]
    operands.insert(place, net.op("Neg", net.op("Sigmoid", "x")))
    y = net.op("Div", net.op("Sum", *operands), grid(net, 3, 1, 1, 1))
    check(net.model(y), {"Sigmoid": 1, "Mul": 1, "Add": 1})


def test_a_sum_of_large_constants_rounds() -> None:
    net = net_of("N", 3, 4, 5, 2)
    y = net.op("Sum", net.op("Relu", "x"), net.const(12582912.0), net.const(-12582912.0))
    check(net.model(net.op("Mul", y, net.const(2.0))), None, Reason.PRECISION)
    net = net_of("N", 3, 4, 5, 2)  # of two tensors, it is no arithmetic with constants
    y = net.op("Sum", net.op("Relu", "x"), net.op("Abs", "x"), net.const(2.0))
    check(net.model(net.op("Mul", y, grid(net, 3, 4, 5, 2))), None)


@pytest.mark.parametrize("shape", [(), (4,), ("N", 4), ("N", 4, 5), ("N", 4, 3, 5), ("N", 2, 4, 3, 5)])
@pytest.mark.parametrize(
    "ops", ["Mul Mul", "Add Sub", "Mul Add Div", "Neg Mul Neg", "Sub Neg Mul Add", "Sum Mul Sum"]
)
def test_scalars_at_every_rank(shape: tuple[int | str, ...], ops: str) -> None:
    net = net_of(*shape)
    y = net.op("Relu", "x")
    for number, op in enumerate(ops.split()):
        y = net.op(op, y) if op == "Neg" else net.op(op, y, net.const(1.5 + number))
    model = net.model(net.op("Relu", y))
    result = fuse(model)
    left = {op: count for op, count in counts(result.model).items() if op != "Relu"}
    adds = any(op in ops for op in ("Add", "Sub", "Sum"))
    multiplies = any(op in ops for op in ("Mul", "Div"))
    assert sum(left.values()) == adds + multiplies, left
    assert equal(model, result.model) > 0
    again = fuse(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_the_constant_on_either_side(op: str, first: bool) -> None:
    net = net_of("N", 3, 4, 5)
    y, constant = net.op("Relu", "x"), grid(net, 3, 4, 5)
    y = net.op("Add", net.op(op, *((constant, y) if first else (y, constant))), grid(net, 4, 5))
    y = net.op("Sub", net.const(1.0), y)
    model = net.model(net.op("Relu", y))
    result = fuse(model)
    assert equal(model, result.model) > 0
    divides = op == "Div" and first  # a constant divided by a tensor is not linear
    saved = 0 if divides else 2 if op == "Sub" and first else 1  # 1 - (c - x) has the factor 1
    assert len(result.model.graph.node) == len(model.graph.node) - saved


def test_constants_that_vary_along_different_axes() -> None:
    net = net_of("N", 3, 4, 5)
    y = net.op("Mul", net.op("Add", net.op("Relu", "x"), grid(net, 3, 4, 1)), grid(net, 1, 5))
    check(net.model(net.op("Add", y, grid(net, 3, 1, 1))), {"Relu": 1, "Mul": 1, "Add": 1})


def test_a_constant_that_would_grow_stays_apart() -> None:
    """(64, 1) and (1, 64) are 128 numbers, their product 4096."""
    net = net_of("N", 64, 64)
    y = net.op("Mul", net.op("Mul", net.op("Relu", "x"), grid(net, 64, 1)), grid(net, 1, 64))
    check(net.model(net.op("Relu", y)), None)


def test_a_position_embedding_between_factors_behind_a_product() -> None:
    net = net_of("N", 5, 4)
    y = net.op("Mul", net.op("MatMul", "x", net.random(4, 6)), net.const(0.7))
    y = net.op("Mul", net.op("Add", y, grid(net, 5, 6)), net.const(1.3))
    check(net.model(net.op("Relu", y)), {"MatMul": 1, "Add": 1, "Relu": 1})


def test_rounding_is_no_sum() -> None:
    """x + 1.5 * 2**23 - 1.5 * 2**23 rounds x to an integer."""
    net = net_of("N", 3, 4, 5, 2)
    y = net.op("Sub", net.op("Add", net.op("Relu", "x"), net.const(12582912.0)), net.const(12582912.0))
    check(net.model(y), None, Reason.PRECISION)


@pytest.mark.parametrize("op", ["Relu", "Conv", "Sum", "both"])
@pytest.mark.parametrize(
    ("dtype", "large"), [(np.float32, 12582912.0), (np.float32, 6144.0), (np.float16, 1536.0)]
)
@pytest.mark.parametrize("ops", ["Add Sub", "Sub Add"])
def test_rounding_of_channels_is_no_sum(op: str, dtype: Any, large: float, ops: str) -> None:
    """It goes into no weight in front of it, either, not even half of it: a Conv with such a bias rounds elsewhere."""
    net = Net(4, dtype=dtype)
    y = net.op("Relu", "x") if op == "Relu" else net.conv("x", 4, 4, 3)
    y = net.add(y, net.conv(net.op("Relu", "x"), 4, 4, 3)) if op == "Sum" else y
    if op == "both":
        other = net.op(ops.split()[0], net.conv("x", 4, 4, 1), net.const(large))
        y = net.op("Sub", net.op(ops.split()[0], y, net.const(large)), other)
    for name in ops.split() if op != "both" else ():
        y = net.op(name, y, net.const(large))
    check(net.model(net.op("Relu", y)), None, Reason.PRECISION)


@pytest.mark.parametrize("op", ["Relu", "Conv"])
@pytest.mark.parametrize("ops", ["both", "Sum Sub", "Add Sum", "Sum Sum"])
def test_a_sum_that_rounds_stays(op: str, ops: str) -> None:
    """A Sum with several constants adds them one after the other."""
    net = Net(4)
    y = net.op("Relu", "x") if op == "Relu" else net.conv("x", 4, 4, 3)
    large = np.full((4, 1, 1), 12582912.0)
    if ops == "both":
        y = net.op("Sum", y, net.const(large), net.const(-large))
    else:
        first, second = ops.split()
        y = net.op(first, y, net.const(large))
        y = net.op(second, y, net.const(large if second == "Sub" else -large))
    model = net.model(net.op("Relu", y))
    check(model, None, Reason.PRECISION)
    assert counts(fuse(model, options=Options(check=False)).model) == counts(model)


@pytest.mark.parametrize("op", ["Relu", "Conv"])
@pytest.mark.parametrize("between", ["Add", "Sum", "Mul", "Relu"])
def test_rounding_of_channels_with_more_in_between_is_no_sum(op: str, between: str) -> None:
    """A zero point may be added before the large constant goes."""
    net = Net(4)
    y = net.op("Relu", "x") if op == "Relu" else net.conv("x", 4, 4, 3)
    y = net.op("Add", y, net.const(np.full((4, 1, 1), 12582912.0)))
    constants = {"Add": (3.0,), "Sum": (3.0, 4.0), "Mul": (8.0,)}.get(between, ())
    y = net.op(between, y, *(net.const(np.full((4, 1, 1), value)) for value in constants))
    large = 12582912.0 * (8.0 if between == "Mul" else 1.0)
    model = net.model(net.op("Sub", y, net.const(np.full((4, 1, 1), large))))
    image = net.rng.standard_normal((1, 4, 3, 3)).astype(np.float32)
    before, after = (
        run(one, {"x": image}) for one in (model, fuse(model, options=Options(check=False)).model)
    )
    np.testing.assert_array_equal(after[0], before[0])


MOVES: dict[str, Callable[[Net, str], str]] = {
    "Reshape": lambda net, x: net.op("Reshape", x, net.const(np.array([0, 4, -1]), np.int64)),
    "Transpose": lambda net, x: net.op("Transpose", x, perm=[0, 1, 3, 2]),
    "Slice": lambda net, x: net.op("Slice", x, *(net.const(np.array([n]), np.int64) for n in (0, 2, 2))),
    "Gather": lambda net, x: net.op("Gather", x, net.const(np.array([3, 2, 1, 0]), np.int64), axis=1),
    "Split": lambda net, x: str(
        net.op("Split", x, net.const(np.array([1, 3]), np.int64), axis=1, outputs=2)[1]
    ),
    "Concat": lambda net, x: net.op("Concat", "x", x, axis=1),
    "Neg": lambda net, x: net.op("Neg", net.op("Neg", x)),
    "MaxPool": lambda net, x: net.op("MaxPool", x, kernel_shape=[2, 2]),
    "AveragePool": lambda net, x: net.op("AveragePool", x, kernel_shape=[2, 2]),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("is_per_channel", [True, False])
def test_rounding_around_what_moves_values_is_no_sum(move: str, is_per_channel: bool) -> None:
    net = Net(4)
    large = net.const(np.full((4, 1, 1), 12582912.0) if is_per_channel else 12582912.0)
    y = MOVES[move](net, net.op("Add", net.op("Relu", "x"), large))
    model = net.model(net.op("Relu", net.op("Sub", y, net.const(12582912.0))))
    result = fuse(model, options=Options(check=False))
    absorbed = {node.op for fold in result.report.folds for node in fold.absorbed}
    assert absorbed.isdisjoint(("Add", "Sub")), "nor is one moved beside the other"


def test_what_comes_and_goes_in_ordinary_numbers_is_a_sum() -> None:
    net = Net(4)
    y = net.op("Sub", net.op("Add", net.conv("x", 4, 4, 3), net.const(128.0)), net.const(127.0))
    check(net.model(net.op("Relu", y)), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("ops", ["Mul Add", "Add Mul", "Mul Sub Neg"])
def test_a_chain_that_makes_zero_of_minus_zero_stays_where_that_shows(ops: str) -> None:
    net = net_of("N", 5)
    y = net.op("Relu", "x")
    for op in ops.split():
        y = net.op(op, y, *([] if op == "Neg" else [net.const(-0.0 if op == "Sub" else 2.0 * (op == "Mul"))]))
    check(net.model(net.op("Reciprocal", y)), None)


@pytest.mark.parametrize(
    ("large", "small", "reason"), [(1e30, 1e-30, Reason.OVERFLOW), (1e-30, 1e30, Reason.UNDERFLOW)]
)
def test_clipping_by_overflow_is_no_product(large: float, small: float, reason: Reason) -> None:
    net = net_of("N", 3, 4, 5, 2)
    y = net.op("Mul", net.op("Mul", net.op("Relu", "x"), net.const(large)), net.const(small))
    check(net.model(y), None, reason)


def test_half_precision_has_less_room() -> None:
    for large, merges in ((4.0, True), (100.0, False)):
        net = net_of("N", 3, 4, 5, 2, dtype=np.float16)
        y = net.op("Div", net.op("Mul", net.op("Relu", "x"), net.const(large)), net.const(large * 1.5))
        result = fuse(net.model(net.op("Relu", y)))
        assert (len(result.model.graph.node) == 3) == merges


def test_what_is_needed_elsewhere_stays() -> None:
    net = net_of("N", 3, 4, 5, 2)
    inner = net.op("Mul", net.op("Relu", "x"), net.const(2.0))
    check(net.model(net.op("Mul", inner, net.const(3.0)), net.op("Sigmoid", inner)), None)


def test_a_chain_that_undoes_itself() -> None:
    net = net_of("N", 3, 4, 5, 2)
    y = net.op("Div", net.op("Mul", net.op("Relu", "x"), net.const(3.0)), net.const(3.0))
    check(net.model(net.op("Sigmoid", y)), {"Relu": 1, "Sigmoid": 1})


def test_a_shape_that_is_asked_for_in_between() -> None:
    net = net_of("N", 3, "H", 5, 2)
    inner = net.op("Mul", net.op("Relu", "x"), net.const(2.0))
    zeros = net.op("ConstantOfShape", net.op("Shape", inner))
    y = net.op("Max", net.op("Mul", inner, net.const(3.0)), zeros)
    check(net.model(y), {"Relu": 1, "Mul": 1, "Shape": 1, "ConstantOfShape": 1, "Max": 1})
