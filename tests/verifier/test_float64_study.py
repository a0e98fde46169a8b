"""The precision study: both models against float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.verdict import Precision
from onnx_repfuse.verifier.outputs.float64_study import evaluate, study
from tests.verifier.small_models import build, info


def product(*weights: np.ndarray) -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(1, len(weights))), "m"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(len(weights))]
    nodes += [helper.make_node("Erf", ["m"], ["e"]), helper.make_node("Add", ["e", "m"], ["y"])]
    constants = {f"w{i}": weight for i, weight in enumerate(weights)}
    return build(nodes, [info("x", (2, 16))], [info("y", None)], constants)


def test_the_truth_is_float64_through_known_and_unknown_operators() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    value = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    found = evaluate(product(weight), {"x": value})["y"]
    exact = value.astype(np.float64) @ weight.astype(np.float64)
    from math import erf

    np.testing.assert_allclose(found, exact + np.vectorize(erf)(exact), rtol=1e-12)
    assert found.dtype == np.float64


def test_one_rounding_is_closer_to_the_truth_than_many() -> None:
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=(16, 16)) / 4).astype(np.float32) for _ in range(6)]
    exact = weights[0].astype(np.float64)
    for weight in weights[1:]:
        exact = exact @ weight.astype(np.float64)
    (found,) = study(product(*weights), product(exact.astype(np.float32)))
    assert 0 < found.factor < 1
    assert found.worst_fused < found.worst_original < 1e-5
    (same,) = study(product(*weights), product(*weights))
    assert same.factor == 1
    (worse,) = study(product(*weights), product((exact * 1.001).astype(np.float32)))
    assert worse.factor > 100


def test_two_exact_models_have_the_factor_one() -> None:
    assert Precision("y", 0, 0, 0, 0).factor == 1
    assert Precision("y", 0, 1, 0, 1).factor == float("inf")


def test_what_cannot_be_evaluated_is_an_input_error() -> None:
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["a"])], "b", [], [info("a", None)])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    model = build(nodes, [info("x", (2, 16))], [info("y", None)], {"c": np.array(True)})
    with pytest.raises(InputError, match="If cannot be evaluated in float64"):
        study(model, model)
