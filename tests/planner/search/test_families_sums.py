"""Long sums, and sums of which some terms merge and others do not."""

from __future__ import annotations

import pytest

from tests.build import Net, check

SHAPES = pytest.mark.parametrize("shape", [None, (2, 8, 6, 6)])


def point(net: Net, x: str = "x") -> str:
    return net.conv(x, 8, 8, 1)


def wide(net: Net, x: str = "x") -> str:
    """A depthwise Conv: with a 1x1, it would be dense."""
    return net.conv(x, 8, 8, 3, group=8)


@pytest.mark.parametrize("count", [40, 500])
def test_a_long_sum_is_one_convolution(count: int) -> None:
    net = Net(2)
    check(
        net.model(net.op("Sum", *(net.conv("x", 2, 2, 3) for _ in range(count)))), {"Conv": 1}, tolerance=2e-4
    )


def test_a_long_sum_of_tensors_and_convolutions_of_them() -> None:
    net = Net(2, shape=(2, 2, 5, 5))
    others = [net.op("Relu", "x"), net.op("Sigmoid", "x")]
    branches = [net.conv(x, 2, 2, 3) for _ in range(30) for x in others]
    ops = {"Relu": 1, "Sigmoid": 1, "Conv": 2, "Add": 1}
    check(net.model(net.op("Sum", *branches)), ops, tolerance=1e-4)


@SHAPES
def test_what_merges_is_merged_beside_what_does_not(shape: tuple[int, ...] | None) -> None:
    for order in ((point, point, wide), (point, wide, point), (wide, point, point, wide, point)):
        net = Net(8, shape=shape)
        check(net.model(net.op("Sum", *(make(net) for make in order))), {"Conv": 2, "Add": 1})
        net = Net(8, shape=shape)
        check(net.model(net.add(*(make(net) for make in order))), {"Conv": 2, "Add": 1})


def test_several_pairs_of_several_tensors() -> None:
    net = Net(8, shape=(2, 8, 6, 6))
    sources = ["x", net.op("Relu", "x"), net.op("Sigmoid", "x")]
    terms = [make(net, x) for make in (wide, point, wide, point) for x in sources]
    check(net.model(net.op("Sum", *terms)), {"Relu": 1, "Sigmoid": 1, "Conv": 6, "Add": 5})


def test_pairs_of_a_tensor_and_what_has_its_size() -> None:
    net = Net(8)
    relu = net.op("Relu", "x")
    pairs = net.op("Sum", point(net), point(net), point(net, relu), point(net, relu))
    check(net.model(pairs), {"Relu": 1, "Conv": 2, "Add": 1})
