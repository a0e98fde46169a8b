"""Nodes that nothing needs: no plan depends on them, and they stay where what they read is still there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from tests.build import Net, counts, equal
from tests.random_properties import UNCHECKED, a_second_run_changes_nothing
from tests.random_variants import VARIANTS, ops, same_plan

Idle = Callable[[Net, str], object]
IDLE: dict[str, Idle] = {
    "none": lambda net, x: None,
    "a consumer": lambda net, x: net.op("Relu", x),
    "two in a row": lambda net, x: net.op("Neg", net.op("Relu", x)),
    "behind an Identity": lambda net, x: net.op("Relu", net.op("Identity", x)),
    "one with a constant": lambda net, x: net.op("Mul", x, net.const(np.float32(3))),
    "a shape": lambda net, x: net.op("Shape", x),
}


def _block(idle: str, where: str) -> onnx.ModelProto:
    """A Conv, its BatchNormalization and an activation; nobody needs what else reads one of their tensors."""
    net = Net(4)
    first = net.conv("x", 4, 4, 3)
    second = net.bn(first, 4)
    last = str(net.op("Relu", second))
    IDLE[idle](net, {"x": "x", "inner": first, "outer": second}[where])
    return net.model(last)


@pytest.mark.parametrize("where", ["x", "inner", "outer"])
@pytest.mark.parametrize("idle", IDLE)
def test_an_idle_consumer_does_not_keep_a_tensor(idle: str, where: str) -> None:
    made = _block(idle, where)
    result = fuse(made).model
    onnx.checker.check_model(result, full_check=True)
    assert equal(made, result) > 0
    a_second_run_changes_nothing(result, Options())
    alone = Counter(counts(_block(idle, where))) - Counter({"Conv": 1, "BatchNormalization": 1, "Relu": 1})
    there = Counter({"Conv": 1, "Relu": 1}) + (Counter() if where == "inner" else alone)
    assert Counter(counts(result)) == there
    for variant in VARIANTS:
        same_plan(made, result, variant, UNCHECKED)


def test_an_idle_consumer_says_nothing_of_channels() -> None:
    """`x + x` is a Mul where the channels are known, and an idle MatMul would tell them."""
    net = Net(shape=("N", "A", "B", "C"))
    total = str(net.op("Add", "x", "x"))
    needed = net.model(total)
    net.op("MatMul", "x", net.random(3, 4))
    assert ops(fuse(net.model(total)).model) - Counter({"MatMul": 1}) == ops(fuse(needed).model)


def test_a_constant_that_idle_and_folded_nodes_share_stays() -> None:
    net = Net(4)
    factor = net.const(np.float32(3))
    net.op("Mul", "x", factor)
    made = net.model(net.op("Relu", net.op("Mul", net.conv("x", 4, 4, 3), factor)))
    fused = fuse(made).model
    assert counts(fused) == {"Conv": 1, "Relu": 1, "Mul": 1}
    for variant in VARIANTS:
        same_plan(made, fused, variant, UNCHECKED)


def test_an_idle_node_reads_what_stands_for_its_input() -> None:
    """Of two equal nodes one goes, and so does an Identity."""
    net = Net(4)
    one, other = net.op("Sin", "x"), net.op("Sin", "x")
    net.op("Neg", other)
    net.op("Abs", net.op("Identity", one))
    made = net.model(net.op("Add", one, net.op("Cos", other)))
    result = fuse(made).model
    onnx.checker.check_model(result, full_check=True)
    assert counts(result) == {"Sin": 1, "Cos": 1, "Add": 1, "Neg": 1, "Abs": 1, "Identity": 1}


def test_a_kept_node_is_not_idle() -> None:
    net = Net(4)
    first = net.conv("x", 4, 4, 3)
    net.op("Neg", first, name="mine")
    result = fuse(net.model(net.bn(first, 4)), options=Options(keep=("mine",))).model
    assert counts(result) == {"Conv": 1, "BatchNormalization": 1, "Neg": 1}


def test_a_file_whose_idle_nodes_are_all_that_could_fold_stays_as_it_is() -> None:
    net = Net(4)
    net.bn(net.conv("x", 4, 4, 3), 4)
    made = net.model(net.op("Sin", "x"))
    assert fuse(made).model.SerializeToString() == made.SerializeToString()
