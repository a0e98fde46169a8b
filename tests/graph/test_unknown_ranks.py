"""What may have any rank proves nothing of the tensors it is combined with; and axes that an attribute moves."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_repfuse import Options, Reason, fuse
from tests.build import run
from tests.parts import agree, batch_norm, graph, info, model, node, norm, random


def _of_unknown_rank(op: str) -> onnx.ModelProto:
    """`op` of a Conv's output and a tensor of four or five axes, with an affine pair behind."""
    choose = node(
        "If",
        "c",
        "b",
        then_branch=graph([node("Identity", "b5", "t")], [info("t", None)]),
        else_branch=graph([node("Identity", "b4", "e")], [info("e", None)]),
    )
    nodes = [
        choose,
        node("Conv", "x w", "a"),
        node(op, "a b", "s"),
        node("Mul", "s k", "u"),
        batch_norm("u", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), "k": random(4, 1, 1), **norm(4)}
    inputs = [info("x", ["n", 3, "h", "w_"]), info("c", [], TensorProto.BOOL)]
    inputs += [info("b4", [1, 4, 4, 4]), info("b5", [1, 4, 4, 4, 4])]
    return model(graph(nodes, [info("y", None)], weights, inputs))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean", "PRelu"])
def test_an_operand_of_unknown_rank_may_add_an_axis(op: str) -> None:
    feed = {"x": random(1, 3, 4, 4), "b4": random(1, 4, 4, 4), "b5": random(1, 4, 4, 4, 4)}
    made = _of_unknown_rank(op)
    agree(made, *({**feed, "c": np.array(taken)} for taken in (True, False)))
    refused = fuse(made, options=Options(check=False)).report.refusals
    assert op in ("Max", "Min", "PRelu", "Mul") or Reason.SHAPE in {refusal.reason for refusal in refused}


@pytest.mark.parametrize("shape", [[2, 4, 4, 4, 4], [5, 4, 1, 1, 1]])
def test_a_slope_may_have_more_axes_than_what_it_bends(shape: list[int]) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("PRelu", "a slope", "p"),
        node("Mul", "p k", "u"),
        batch_norm("u", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), "slope": random(*shape), "k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 3, "h", "w_"])]))
    agree(made, {"x": random(1, 3, 4, 4)}, folds=None)


def test_a_slope_per_channel_passes_the_channels_on() -> None:
    nodes = [node("PRelu", "x slope", "p"), node("Mul", "p k", "u"), batch_norm("u", "y")]
    weights = {"slope": random(4, 1, 1), "k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 4, "h", "w_"])]))
    agree(made, {"x": random(1, 4, 4, 4)}, folds=1)


def _agree_unchecked(made: onnx.ModelProto, x: np.ndarray) -> int:
    """The number of folds; what they compute of `x` is what the original does."""
    result = fuse(made, options=Options(check=False))
    assert result.model is not None
    got, want = run(result.model, {"x": x})[0], run(made, {"x": x})[0]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    return len(result.report.folds)


# Not () with (): a MatMul reads no scalar.
@pytest.mark.parametrize(
    ("constant", "shape"),
    [pair for pair in product([(8,), (1,), ()], [(3, 8), (8,), (1,), (3, 1), ()]) if any(pair)],
)
def test_a_factor_of_a_tensor_of_unknown_rank(constant: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """A single channel, or no axis at all, is broadcast by a vector, and a MatMul reads what came of it."""
    width = np.broadcast_shapes(constant, shape)
    nodes = [node("Relu", "x", "a"), node("Mul", "a o", "m"), node("MatMul", "m w", "y")]
    weights = {"o": random(*constant), "w": random(width[-1], 4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", None)]))
    _agree_unchecked(made, random(*shape))


def test_a_factor_behind_a_product_of_unknown_rank_folds() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Mul", "m o", "n"), node("MatMul", "n v", "y")]
    weights = {"w": random(4, 16), "o": random(16), "v": random(16, 4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", None)]))
    for shape in ((3, 4), (4,), (2, 3, 4)):
        assert _agree_unchecked(made, random(*shape)) == 1


def test_a_transposed_operand_has_no_channels_on_the_last_axis() -> None:
    nodes = [node("Sum", "x x x", "s"), node("Gemm", "s w c", "y", transA=1)]
    weights = {"w": random(5, 7), "c": random(7)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [5, "b"])]))
    agree(made, {"x": random(5, 5)}, {"x": random(5, 3)}, {"x": random(5, 16)})
