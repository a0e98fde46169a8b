"""A body's inputs have the shapes that hold in every iteration, not those that it declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.parts import Weights, agree, batch_norm, graph, info, model, node, norm, random

DIMS = ["a", "b", "h", "w_"]
AFFINE = [batch_norm("v", "u"), node("Mul", "u k", "s")]


def _loop(
    body: list[onnx.NodeProto], weights: Weights, declared: Any = DIMS, x: Any = None
) -> onnx.ModelProto:
    """A Loop of `trips` that carries `v` and hands on `vo`."""
    inputs = [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("v", declared)]
    outputs = [info("co", [], TensorProto.BOOL), info("vo", None)]
    inner = graph([*body, node("Identity", "c", "co")], outputs, {}, inputs)
    nodes = [node("Loop", "trips  x", "y", body=inner)]
    weights = {"k": random(4, 1, 1), **norm(4), **weights}
    given = [info("x", x or ["n", 4, "h", "w_"]), info("trips", [], TensorProto.INT64)]
    return model(graph(nodes, [info("y", None)], weights, given))


def _feeds(*shape: int) -> list[dict[str, Any]]:
    return [{"x": random(*shape), "trips": np.array(count)} for count in (0, 1, 2, 3)]


@pytest.mark.parametrize("declared", [DIMS, None, [1, 4, 4, 4]])
def test_a_carried_tensor_that_keeps_its_shape_has_it(declared: Any) -> None:
    made = _loop([*AFFINE, node("Identity", "s", "vo")], {}, declared=declared)
    agree(made, *_feeds(1, 4, 4, 4), folds=1 if declared in (DIMS, None) else None)


def test_a_carried_tensor_that_gets_another_rank_proves_nothing() -> None:
    body = [*AFFINE, node("Unsqueeze", "s one", "s5"), node("Expand", "s5 five", "vo")]
    made = _loop(body, {"one": [1], "five": [1, 4, 1, 1, 1]})
    agree(made, *({"x": random(1, 4, 4, 4), "trips": np.array(count)} for count in (1, 2)))


def test_a_carried_tensor_that_grows_has_the_rank_alone() -> None:
    """Two sums of two convolutions would be one, if the size were that of the first iteration."""
    body = [
        node("Conv", "v w1", "a", strides=[3, 3]),
        node("Conv", "v w2", "b", strides=[3, 3]),
        node("Add", "a b", "s"),
        node("ReduceMax", "s", "most"),
        node("Add", "v most", "m"),
        node("Concat", "m m", "vo", axis=3),
    ]
    made = _loop(body, {"w1": random(4, 4, 1, 1), "w2": random(4, 4, 1, 2)}, x=[1, 4, 4, 2])
    agree(made, *({"x": random(1, 4, 4, 2), "trips": np.array(count)} for count in (1, 2)), folds=None)


def test_what_one_carried_tensor_hands_to_another_is_widened_too() -> None:
    """`v` has four axes in the first iteration, and then those of `r`."""
    inputs = [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL)]
    inputs += [info("v", DIMS), info("r", None)]
    outputs = [info("co", [], TensorProto.BOOL), info("vo", None), info("ro", None)]
    body = [*AFFINE, node("ReduceMax", "s", "most"), node("Add", "r most", "vo"), node("Identity", "r", "ro")]
    inner = graph([*body, node("Identity", "c", "co")], outputs, {}, inputs)
    nodes = [node("Loop", "trips  x q", "y z", body=inner)]
    given = [info("x", [1, 4, 4, 4]), info("q", [2, 4, 4, 4, 4]), info("trips", [], TensorProto.INT64)]
    weights = {"k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None), info("z", None)], weights, given))
    feed = {"x": random(1, 4, 4, 4), "q": random(2, 4, 4, 4, 4)}
    agree(made, *({**feed, "trips": np.array(count)} for count in (1, 2)))


def test_the_slices_of_a_scan_have_the_other_axes_of_what_is_scanned() -> None:
    inputs, outputs = [info("v", None)], [info("s", None)]
    nodes = [node("Scan", "x", "y", num_scan_inputs=1, body=graph(AFFINE, outputs, {}, inputs))]
    weights = {"k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["t", "n", 4, "h", "w_"])]))
    agree(made, {"x": random(3, 2, 4, 4, 4)}, folds=1)
