"""Operators that move elements as a Transpose, Gather or Slice does fold as these do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal


def ints(net: Net, *values: int) -> str:
    return str(net.const(np.array(values, np.int64)))


@pytest.mark.parametrize(
    ("equation", "shape", "kept"),
    [
        ("nhwc->nchw", ("N", "H", "W", 4), 1),
        ("...hwc -> ...chw", ("N", "H", "W", 4), 1),
        ("ahbc->achb", ("N", "W", 4, "H"), 1),
        ("dabc", ("N", 4, 5, 6), 1),
        ("nchw->nhcw", ("N", 4, 4, 4), 1),
    ],
)
def test_an_einsum_that_orders_axes_otherwise(equation: str, shape: tuple[int | str, ...], kept: int) -> None:
    net = Net(shape=shape)
    model = net.model(net.op("Relu", net.op("Einsum", "x", equation=equation)))
    result = fuse(model)
    assert counts(result.model) == {"Transpose": kept, "Relu": 1}
    assert equal(model, result.model, 6) > 0
    assert not fuse(result.model).report.folds


def test_einsums_that_undo_each_other_around_a_norm() -> None:
    net = Net(4)
    y = net.op("Einsum", net.conv("x", 4, 4, 3), equation="nchw->nhwc")
    y = net.op("Einsum", net.op("Mul", y, net.random(4)), equation="abcd->adbc")
    check(net.model(y), {"Conv": 1})


@pytest.mark.parametrize("equation", ["nchw->nch", "nccw->ncw", "nchw->nchw"])
def test_other_einsums_of_one_operand_are_no_transposes(equation: str) -> None:
    net = Net(shape=(1, 4, 4, 5))
    result = fuse(net.model(net.op("Relu", net.op("Einsum", "x", equation=equation))))
    assert "Transpose" not in counts(result.model)


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("order", [(2, 1, 0), (0, 2, 1), (-1, 0, 1)])
def test_gather_elements_of_channels(order: tuple[int, ...], axis: int) -> None:
    net = Net(shape=(1, 3, 5, 6))
    index = np.broadcast_to(np.array(order).reshape(1, 3, 1, 1), (1, 3, 5, 6)).copy()
    check(
        net.model(net.conv(net.op("GatherElements", "x", net.const(index), axis=axis), 3, 4, 3)), {"Conv": 1}
    )


@pytest.mark.parametrize("change", ["one differs", "a part", "unknown size"])
def test_other_gather_elements_stay(change: str) -> None:
    net = Net(shape=(1, 3, 5, 6) if change != "unknown size" else (1, 3, "H", 6))
    index = np.broadcast_to(np.array([2, 1, 0]).reshape(1, 3, 1, 1), (1, 3, 5, 6)).copy()
    if change == "one differs":
        index[0, 0, 2, 2] = 0
    elif change == "a part":
        index = index[:, :, :4]
    model = net.model(net.conv(net.op("GatherElements", "x", net.const(index), axis=1), 3, 4, 3))
    assert not fuse(model).report.folds


@pytest.mark.parametrize("length", [1, 2, 3])
def test_reversed_channels(length: int) -> None:
    net = Net(shape=(2, 3, 5, 6))
    y = net.op("ReverseSequence", "x", ints(net, length, length), batch_axis=0, time_axis=1)
    check(net.model(net.conv(y, 3, 4, 3)), {"Conv": 1})


def test_reversed_rows_are_one_gather() -> None:
    net = Net(shape=(3, 5, 6))
    model = net.model(
        net.op("Relu", net.op("ReverseSequence", "x", ints(net, *[5] * 3), batch_axis=0, time_axis=1))
    )
    result = fuse(model)
    assert counts(result.model) == {"Gather": 1, "Relu": 1}
    assert equal(model, result.model) > 0


def test_sequences_of_other_lengths_stay() -> None:
    net = Net(shape=(2, 3, 5, 6))
    y = net.op("ReverseSequence", "x", ints(net, 2, 3), batch_axis=0, time_axis=1)
    assert not fuse(net.model(net.conv(y, 3, 4, 3))).report.folds
    unknown = Net(shape=(2, "C", 5, 6))
    y = unknown.op("ReverseSequence", "x", ints(unknown, 3, 3), batch_axis=0, time_axis=1)
    assert not fuse(unknown.model(unknown.op("Relu", y))).report.folds


@pytest.mark.parametrize("size", [7, 8])
def test_focus_by_gathers(size: int) -> None:
    net = Net(shape=("N", 3, 8, size))
    count = size // 2
    even = [list(range(0, 2 * count, 2)), list(range(1, 2 * count, 2))]
    rows = [ints(net, 0, 2, 4, 6), ints(net, 1, 3, 5, 7)]
    columns = [ints(net, *index) for index in even]
    parts = [
        net.op("Gather", net.op("Gather", "x", a, axis=2), b, axis=3)
        for a, b in itertools.product(rows, columns)
    ]
    model = net.model(net.conv(net.op("Concat", *parts, axis=1), 12, 8, 3))
    result = fuse(model)
    assert "Gather" not in counts(result.model)
    assert (counts(result.model) == {"Conv": 1}) == (size == 8)
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("index", [(0, 1, 2), (0, 2, 5), (4, 2, 0), (-1, 1, 3), (1,)])
def test_other_gathers_of_space_stay(index: tuple[int, ...]) -> None:
    net = Net(shape=("N", 3, 8, 8))
    model = net.model(net.op("Relu", net.op("Gather", net.conv("x", 3, 3, 3), ints(net, *index), axis=2)))
    assert not fuse(model).report.folds


def test_kept_nodes_and_unwanted_kinds() -> None:
    net = Net(shape=(2, 3, 5, 6))
    y = net.op("ReverseSequence", "x", ints(net, 3, 3), batch_axis=0, time_axis=1)
    model = net.model(net.conv(y, 3, 4, 3))
    assert not fuse(model, options=Options(keep=("reverse*",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.INDEX}))).report.folds


@pytest.mark.parametrize("equation", ["->", "...->..."])
def test_an_einsum_of_a_scalar_orders_no_axes(equation: str) -> None:
    net = Net(shape=())
    model = net.model(net.op("Relu", net.op("Einsum", "x", equation=equation)))
    result = fuse(model, options=Options(check=False))  # ONNX Runtime does not run the first of them
    assert "Transpose" not in counts(result.model)
