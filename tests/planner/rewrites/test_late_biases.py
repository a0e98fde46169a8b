"""A bias beside a sum moves behind it, where something takes it; elsewhere everything stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, check, counts


def _residual(net: Net, bias: Callable[[Net, str], str] | None = None, swapped: bool = False) -> str:
    """`x + (x' @ w + b)`, of tensors (N, T, 4) made of x, as a transformer's second projection is added."""
    stream = net.op("Softsign", "x")
    product = net.op("MatMul", net.op("Relu", "x"), net.random(4, 4))
    biased = bias(net, product) if bias else net.op("Add", net.random(4), product)
    return str(net.op("Add", *((biased, stream) if swapped else (stream, biased))))


def _net() -> Net:
    return Net(4, shape=("N", 6, 4))


def _as_image(net: Net, tokens: str) -> str:
    """(N, 6, 4) -> (N, 4, 2, 3)"""
    image = net.op("Reshape", tokens, net.const(np.array([0, 2, 3, 4])))
    return str(net.op("Transpose", image, perm=[0, 3, 1, 2]))


BIASES: dict[str, Callable[[Net, str], str]] = {
    "added": lambda net, x: net.op("Add", x, net.random(4)),
    "added from the left": lambda net, x: net.op("Add", net.random(4), x),
    "subtracted": lambda net, x: net.op("Sub", x, net.random(4)),
    "one number": lambda net, x: net.op("Add", x, net.const(0.7)),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_convolution_behind_views_takes_the_bias_beside_a_sum(bias: str, swapped: bool) -> None:
    """The end of a stage of TinyViT."""
    net = _net()
    image = _as_image(net, _residual(net, BIASES[bias], swapped))
    model = net.model(net.op("Relu", net.conv(image, 4, 3, 1)))
    left = {"Softsign": 1, "Relu": 2, "MatMul": 1, "Add": 1, "Reshape": 1, "Transpose": 1, "Conv": 1}
    check(model, left)


BEHIND: dict[str, tuple[dict[str, int], Callable[[Net, str], str]]] = {
    "a product and its bias": (
        {"MatMul": 2, "Add": 2},
        lambda net, x: net.op("Add", net.op("MatMul", x, net.random(4, 3)), net.random(3)),
    ),
    "another bias": ({"MatMul": 1, "Add": 2}, lambda net, x: net.op("Add", x, net.random(4))),
    "an average": (
        {"MatMul": 1, "Add": 2, "ReduceMean": 1},
        lambda net, x: net.op("ReduceMean", x, axes=[1], keepdims=1),
    ),
}


@pytest.mark.parametrize("behind", BEHIND)
def test_what_else_takes_it(behind: str) -> None:
    net = _net()
    left, write = BEHIND[behind]
    model = net.model(net.op("Sigmoid", write(net, _residual(net))))
    check(model, {"Softsign": 1, "Relu": 1, "Sigmoid": 1, **left})


def test_the_biases_of_both_operands_move() -> None:
    net = _net()
    second = net.op("Add", net.op("MatMul", net.op("Sigmoid", "x"), net.random(4, 4)), net.random(4))
    first = net.op("Add", net.op("MatMul", net.op("Relu", "x"), net.random(4, 4)), net.random(4))
    model = net.model(net.conv(_as_image(net, net.op("Add", first, second)), 4, 16, 1))
    check(model, {"Sigmoid": 1, "Relu": 1, "MatMul": 2, "Add": 1, "Reshape": 1, "Transpose": 1, "Conv": 1})


STAYS: dict[str, Callable[[Net, str], Any]] = {
    "an activation is behind": lambda net, x: net.op("Relu", x),
    "the Conv reads padding": lambda net, x: net.conv(_as_image(net, x), 4, 3, 3),
    "others read the sum, too": lambda net, x: net.op(
        "Concat", net.op("Flatten", net.conv(_as_image(net, x), 4, 3, 1)), net.op("Flatten", net.op("Relu", x)), axis=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_where_nothing_takes_it_everything_stays(case: str) -> None:
    net = _net()
    check(net.model(STAYS[case](net, _residual(net))), None)


def test_it_stays_where_folds_of_its_kind_are_not_asked_for() -> None:
    net = _net()
    model = net.model(net.conv(_as_image(net, _residual(net)), 4, 3, 1))
    result = fuse(model, options=Options(skip=frozenset(("matmul",))))
    assert counts(result.model) == counts(model)
