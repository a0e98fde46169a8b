"""Unknown or contradictory sizes: prices stay comparable, and planning ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

import onnx_repfuse
from onnx_repfuse import Options
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner.cover_scope import cover_scope
from onnx_repfuse.planner.pricing.sizes import UNKNOWN_POSITIONS
from tests.build import Net


def a_concat_behind_an_if(net: Net) -> str:
    return str(
        net.op(
            "Concat",
            net.conv("x", 4, 4, (3,)),
            net.conv(net.op("Neg", net.behind_an_if()), 4, 4, (3,)),
            axis=1,
        )
    )


def a_concat_of_a_fixed_and_a_free_length(net: Net) -> str:
    net.more_inputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4, 32])]
    return str(net.op("Concat", net.conv("y", 4, 4, (3,)), net.conv(net.op("Neg", "x"), 4, 4, (3,)), axis=1))


@pytest.mark.parametrize("make", [a_concat_behind_an_if, a_concat_of_a_fixed_and_a_free_length])
def test_unknown_or_contradictory_sizes_do_not_rewrite_nodes_for_ever(
    make: Callable[[Net], str],
) -> None:
    net = Net(4, shape=("N", 4, "L"))
    first = onnx_repfuse.fuse(net.model(make(net)), options=Options(check=False))
    assert len(first.report.folds) == 1
    assert not first.report.notes
    again = onnx_repfuse.plan(first.model)
    assert not again.folds


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum"])
def test_what_contradictory_sizes_would_move_there_and_back_stays(op: str) -> None:
    """The product tells the size of an axis that the input does not: in front of it, all is priced by another size."""
    net = Net(4, opset=17, shape=(1, 4, 8, "K"))
    y = net.op("Mul", "x", net.random(4, 1, 1))
    if op == "ReduceMean":
        y = net.op("ReduceMean", y, axes=[-2], keepdims=0)
    else:
        y = net.op("ReduceSum", y, net.const(np.array([-2])), keepdims=0)
    model = net.model(net.op("MatMul", y, net.random(4, 5)))
    result = onnx_repfuse.fuse(model, options=Options(check=False))
    assert not result.report.folds
    assert result.model == model


def test_a_known_size_is_used_where_others_are_unknown() -> None:
    net = Net(64, shape=(1, 64, 49))  # read along two axes
    conv = net.op("Relu", net.conv("x", 64, 64, (1,)))
    product = net.op("MatMul", net.op("MatMul", "x", net.random(49, 64)), net.random(64, 10))
    elsewhere = net.conv(net.op("Neg", net.behind_an_if()), 64, 64, (1,))
    with Document.from_model(net.model(conv, product, elsewhere)) as document:
        scope = read_scopes(document)[0]
        sizes = cover_scope(scope, Options()).sizes
    assert sizes.elements("x") == 64 * 49
    assert sizes.elements(product) == 64 * 10
    assert sizes.elements(elsewhere) == 64 * UNKNOWN_POSITIONS
