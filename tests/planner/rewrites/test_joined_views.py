"""Arithmetic whose operands are all moved in the same way comes first, and its result is moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal

LAST = [0, 2, 3, 1]


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def moved(net: Net, x: str, op: str, **attrs: Any) -> str:
    lists: dict[str, tuple[int, ...]] = {"Reshape": (0, 8, -1), "Squeeze": (1,), "Unsqueeze": (2,)}
    defaults: dict[str, dict[str, Any]] = {
        "DepthToSpace": {"blocksize": 2, "mode": "CRD"},
        "SpaceToDepth": {"blocksize": 2},
        "Transpose": {"perm": LAST},
        "Flatten": {"axis": 2},
    }
    inputs = [ints(net, *lists[op])] if op in lists else []
    return str(net.op(op, x, *inputs, **{**defaults.get(op, {}), **attrs}))


@pytest.mark.parametrize("op", ["DepthToSpace", "Reshape", "Transpose", "Flatten", "Unsqueeze"])
@pytest.mark.parametrize("arithmetic", ["Add", "Sub", "Sum", "Mean"])
def test_two_convolutions_behind_views_are_one(op: str, arithmetic: str) -> None:
    net = Net(shape=("N", 4, 6, 6))
    first, second = (moved(net, net.conv("x", 4, 8, kernel), op) for kernel in (3, 1))
    check(net.model(net.op("Relu", net.op(arithmetic, first, second))), {"Conv": 1, op: 1, "Relu": 1})


@pytest.mark.parametrize("arithmetic", ["Add", "Div", "Max", "Min", "Mul", "Sub"])
@pytest.mark.parametrize("op", ["DepthToSpace", "SpaceToDepth", "Transpose", "Reshape"])
def test_one_view_is_left(op: str, arithmetic: str) -> None:
    net = Net(shape=(2, 8, 4, 6))
    first, second = net.op("Relu", "x"), net.op("Exp", "x")
    y = net.op(arithmetic, moved(net, first, op), moved(net, second, op))
    check(net.model(net.op("Sigmoid", y)), {"Relu": 1, "Exp": 1, arithmetic: 1, op: 1, "Sigmoid": 1})


def test_three_operands_and_views_in_a_row() -> None:
    net = Net(shape=("N", 4, "H", "W"))
    parts = [
        net.op("Transpose", net.op("Transpose", net.op(op, "x"), perm=LAST), perm=LAST)
        for op in ("Relu", "Exp", "Tanh")
    ]
    y = net.op("Sin", net.op("Sum", *parts))
    result = check(net.model(y), {"Relu": 1, "Exp": 1, "Tanh": 1, "Sum": 1, "Transpose": 2, "Sin": 1})
    assert result.report.folds


def test_sums_of_pixel_shuffles_by_views() -> None:
    net = Net(shape=("N", 4, 5, 6))
    parts = []
    for kernel in (3, 1):
        y = net.op("Reshape", net.conv("x", 4, 8, kernel), ints(net, -1, 2, 2, 2, 5, 6))
        y = net.op("Transpose", y, perm=[0, 1, 4, 2, 5, 3])
        parts.append(net.op("Reshape", y, ints(net, -1, 2, 10, 12)))
    check(net.model(net.op("Relu", net.add(*parts))), {"Conv": 1, "DepthToSpace": 1, "Relu": 1})


def test_a_transpose_of_tensors_that_broadcast() -> None:
    net = Net(shape=("N", 4, "H", "W"))
    pooled = net.op("Sigmoid", net.op("GlobalAveragePool", "x"))
    y = net.op("Mul", moved(net, net.op("Relu", "x"), "Transpose"), moved(net, pooled, "Transpose"))
    ops = {"GlobalAveragePool": 1, "Sigmoid": 1, "Relu": 1, "Mul": 1, "Transpose": 1, "Tanh": 1}
    check(net.model(net.op("Tanh", y)), ops)


@pytest.mark.parametrize(
    "why", ["read", "output", "order", "mode", "one", "shapes", "constant", "kept", "skipped"]
)
def test_what_stays(why: str) -> None:
    net = Net(shape=(2, 8, 4, 4 if why == "order" else 6))
    op = "Reshape" if why == "shapes" else "DepthToSpace" if why == "mode" else "Transpose"
    first, second = net.op("Relu", "x"), net.op("Exp", "x")
    if why == "shapes":  # of as many elements
        second = net.op("Exp", net.op("Reshape", "x", ints(net, 2, 8, 6, 4)))
    other = {"order": {"perm": [0, 3, 2, 1]}, "mode": {"mode": "DCR"}}.get(why, {})
    left, right = moved(net, first, op), moved(net, second, op, **other)
    if why == "one":
        right = net.op("Exp", net.op("Reshape", "x", ints(net, 2, 4, 6, 8)))
    if why == "constant":
        right = net.random(2, 4, 6, 8)
    y = net.op("Max", left, right)
    more = {"read": (net.op("Tanh", left),), "output": (left,)}.get(why, ())
    model = net.model(net.op("Sigmoid", y), *more)
    options = {"kept": Options(keep=("transpose*",)), "skipped": Options(skip=frozenset({Kind.COMMUTE}))}
    result = fuse(model, options=options.get(why))
    assert counts(result.model).get(op) == counts(model)[op]
    assert equal(model, result.model) > 0
