"""A model that is written differently is folded alike."""

from __future__ import annotations

from collections import Counter

import onnx.parser
import pytest

from onnx_repfuse import fuse
from tests.build import Net, equal
from tests.random_properties import UNCHECKED
from tests.random_variants import VARIANTS, ops, outlined, same_plan


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_repvgg_block_is_folded_alike(variant: str) -> None:
    net = Net(4)
    total = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1), net.bn("x", 4))
    model = net.model(net.op("Relu", total))
    fused = fuse(model, options=UNCHECKED).model
    for seed in range(3):
        assert equal(model, VARIANTS[variant](model, seed)) > 0
        same_plan(model, fused, variant, UNCHECKED, seed)


def test_operators_of_a_function_count_for_each_call() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "own": 1]>
g (float[N] x) => (float[] y) { a = own.f (x) b = own.f (a) c = Identity (b) y = Neg (c) }
<domain: "own", opset_import: ["": 17]> f (x) => (y) { y = Relu (x) }"""
    assert ops(onnx.parser.parse_model(text)) == Counter({"Relu": 2, "Neg": 1})


def test_a_function_with_attribute_references_is_folded_to_the_same_values() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    model = net.model(net.op("Relu", net.conv_bn("x", 4, 4, 3, pad=1)))
    for seed in range(4):
        other = outlined(model, seed)
        assert equal(model, fuse(other, options=UNCHECKED).model) > 0
    assert any(outlined(model, seed).graph.node[0].attribute for seed in range(4))


@pytest.mark.parametrize("place", ["x", "between", "output"])
def test_nodes_that_are_equal_once_an_identity_is_gone(place: str) -> None:
    """`Sin(x) + Sin(x)` is a Mul where the channels are known, which the MatMul tells."""
    net = Net(shape=("N", "H", "W", 4))
    plain = net.model(*_doubled(net, ""))
    other = Net(shape=("N", "H", "W", 4))
    same_plan(plain, fuse(plain).model, "renamed", UNCHECKED)
    identities = other.model(*_doubled(other, place))
    assert ops(fuse(identities).model) == ops(fuse(plain).model) == Counter({"Sin": 1, "Mul": 1, "MatMul": 1})


def _doubled(net: Net, place: str) -> tuple[str, ...]:
    one = net.op("Sin", net.op("Identity", "x") if place == "x" else "x")
    two = net.op("Identity", net.op("Sin", "x")) if place == "between" else net.op("Sin", "x")
    total = str(net.op("Add", one, two))
    if place == "output":
        total = str(net.op("Identity", total))
    return total, str(net.op("MatMul", one, net.random(4, 4)))
