"""A model that is written differently is folded alike."""

from __future__ import annotations

from collections import Counter

import onnx.parser
import pytest

from tests.build import Net, equal
from tests.random_graphs import UNCHECKED
from tests.random_variants import VARIANTS, ops, same_plan


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_repvgg_block_is_folded_alike(variant: str) -> None:
    net = Net(4)
    total = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1), net.bn("x", 4))
    model = net.model(net.op("Relu", total))
    for seed in range(3):
        assert equal(model, VARIANTS[variant](model, seed)) > 0
        same_plan(model, variant, UNCHECKED, seed)


def test_operators_of_a_function_count_for_each_call() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "own": 1]>
g (float[N] x) => (float[] y) { a = own.f (x) b = own.f (a) c = Identity (b) y = Neg (c) }
<domain: "own", opset_import: ["": 17]> f (x) => (y) { y = Relu (x) }"""
    assert ops(onnx.parser.parse_model(text)) == Counter({"Relu": 2, "Neg": 1})
