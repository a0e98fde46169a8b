"""Factors and shifts per element behind Reshapes and Transposes go into the convolution or product before these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts


def reshaped(net: Net, y: str, *sizes: int) -> str:
    return str(net.op("Reshape", y, net.const(np.array(sizes))))


def heads(net: Net, product: str, perm: list[int] | None = None) -> str:
    """A Linear of 12 columns as (N, L, 3, 4), its axes in another order."""
    if product == "Gemm":
        net.shape = ("N", 8)
        y = reshaped(net, net.op("Gemm", "x", net.random(8, 12), net.random(12)), -1, 3, 4)
    else:
        y = net.op("MatMul", "x", net.random(8, 12))
        y = reshaped(net, net.op("Add", y, net.random(12)) if product == "Linear" else y, 0, -1, 3, 4)
    return y if perm is None else str(net.op("Transpose", y, perm=perm))


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(4,), (3, 1), (3, 4), (1, 3, 4)])
@pytest.mark.parametrize("product", ["Gemm", "Linear"])
def test_behind_the_split_into_heads(product: str, shape: tuple[int, ...], op: str) -> None:
    net = Net(shape=("N", "L", 8))
    y = net.op(op, heads(net, product), net.const(net.rng.uniform(0.5, 2, shape)))
    check(
        net.model(y),
        {"Gemm": 1, "Reshape": 1} if product == "Gemm" else {"MatMul": 1, "Add": 1, "Reshape": 1},
    )


@pytest.mark.parametrize(
    ("perm", "shape"),
    [
        ([0, 2, 1, 3], (3, 1, 4)),
        ([0, 2, 1, 3], (3, 1, 1)),
        ([0, 2, 3, 1], (3, 4, 1)),
        ([2, 0, 1, 3], (3, 1, 1, 4)),
    ],
)
def test_behind_a_transpose_of_heads(perm: list[int], shape: tuple[int, ...]) -> None:
    net = Net(shape=("N", "L", 8))
    y = net.op("Mul", heads(net, "MatMul", perm), net.const(net.rng.uniform(0.5, 2, shape)))
    check(net.model(net.op("Div", y, net.const(2.0))), {"MatMul": 1, "Reshape": 1, "Transpose": 1})


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("behind", ["bn", "mul", "sub"])
def test_behind_a_pixel_shuffle_of_one_and_three_axes(rank: int, behind: str) -> None:
    sizes = (3, 4, 5)[:rank]
    net = Net(shape=("N", 2, *sizes))
    y = net.conv("x", 2, 3 * 2**rank, (3,) * rank)
    y = reshaped(net, y, -1, 3, *(2,) * rank, *sizes)
    order = [axis for place in range(rank) for axis in (2 + rank + place, 2 + place)]
    y = reshaped(net, net.op("Transpose", y, perm=[0, 1, *order]), -1, 3, *(2 * size for size in sizes))
    y = net.bn(y, 3) if behind == "bn" else net.op(behind.title(), y, net.channel(3, rank))
    check(net.model(y), {"Conv": 1, "Reshape": 2, "Transpose": 1})


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 4), (2, 2, 1, 1)])
def test_a_value_for_each_row_stays(shape: tuple[int, ...]) -> None:
    net = Net(shape=(2, 2, 8))
    y = net.op("Mul", heads(net, "MatMul"), net.const(net.rng.uniform(0.5, 2, shape)))
    assert counts(fuse(net.model(y)).model)["Mul"] == 1


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 12582912.0), (np.float16, 1536.0)])
def test_a_rounding_that_is_wanted_stays(dtype: Any, large: float) -> None:
    net = Net(shape=("N", "L", 8), dtype=dtype)
    vector = net.const(np.full((3, 4), large))
    model = net.model(net.op("Sub", net.op("Add", heads(net, "MatMul"), vector), vector))
    result = fuse(model, options=Options(check=False))
    assert {"Add", "Sub"} <= counts(result.model).keys()


def test_other_consumers_kept_nodes_and_unwanted_kinds() -> None:
    net = Net(shape=("N", "L", 8))
    y = heads(net, "MatMul")
    check(net.model(net.op("Mul", y, net.random(4)), net.op("Relu", y)), None)
    kept = Net(shape=("N", "L", 8))
    model = kept.model(kept.op("Mul", heads(kept, "MatMul"), kept.random(4)))
    assert not fuse(model, options=Options(keep=("reshape*",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.COMMUTE}))).report.folds


def test_values_that_are_not_finite_stay() -> None:
    net = Net(shape=("N", "L", 8))
    y = net.op("Div", heads(net, "MatMul"), net.const([1.0, 0.0, 2.0, 3.0]))
    assert not fuse(net.model(y), options=Options(check=False)).report.folds


def test_a_shape_that_is_asked_for_between() -> None:
    net = Net(shape=("N", "L", 8))
    y = heads(net, "MatMul")
    rows = net.op("Cast", net.op("Shape", y), to=1)
    model = net.model(net.op("Mul", y, net.random(4)), rows)
    result = check(model, {"MatMul": 1, "Reshape": 1, "Shape": 1, "Cast": 1})
    assert len(result.report.folds) == 1


@pytest.mark.parametrize(
    ("shape", "flat"),
    [
        (("N", 4, "H", "W"), False),
        (("N", 4, 3, 5), False),
        (("N", 4, 3, 5), True),
        ((1, 4, 3, 5), True),
    ],
)
@pytest.mark.parametrize("op", ["Mul", "Add", "Div"])
def test_behind_the_boxes_of_a_detection_head(shape: tuple[int | str, ...], op: str, flat: bool) -> None:
    """SSD: channels are anchors times coordinates, of which each has a factor, the same for all positions."""
    net = Net(shape=shape)
    y = net.op("Transpose", net.conv("x", 4, 12, 3), perm=[0, 2, 3, 1])
    y = net.op("Flatten", y) if flat else y
    first = shape[0] if isinstance(shape[0], int) else -1
    y = reshaped(net, y, *((first, 45, 4) if flat else (0, -1, 4)))
    y = net.op(op, y, net.const([0.1, 0.2, 0.3, 0.4]))
    left = {"Conv": 1, "Transpose": 1, "Reshape": 1} | ({"Flatten": 1} if flat else {})
    check(net.model(y), left)


def test_a_factor_for_each_position_of_a_detection_head_stays() -> None:
    net = Net(shape=(1, 4, 3, 5))
    y = reshaped(net, net.op("Transpose", net.conv("x", 4, 12, 3), perm=[0, 2, 3, 1]), 1, -1, 4)
    y = net.op("Mul", y, net.const(net.rng.uniform(0.5, 2, (45, 4))))
    assert counts(fuse(net.model(y)).model)["Mul"] == 1
