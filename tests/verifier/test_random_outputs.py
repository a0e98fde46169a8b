"""Models that draw random numbers: what depends on them is not observed, and the rest is judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import fuse
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from onnx_repfuse.verifier.outputs.random_outputs import random_tensors
from tests.verifier.small_models import build, info


def dropout(ratio: float | None, training: bool | None, named: bool = False) -> onnx.ModelProto:
    """x -> Dropout -> Relu -> y, and x -> Neg -> z; None leaves an input out, `named` makes them graph inputs."""
    inputs = ["x", "ratio" if ratio is not None else "", "training" if training is not None else ""]
    nodes = [
        helper.make_node("Dropout", inputs, ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
        helper.make_node("Neg", ["x"], ["z"]),
    ]
    constants: dict[str, Any] = {} if ratio is None else {"ratio": np.float32(ratio)}
    if training is not None:
        constants["training"] = np.array(training)
    graph_inputs = [info("x", [8, 64])]
    if named:
        constants, graph_inputs = (
            {},
            [*graph_inputs, info("ratio", []), info("training", [], TensorProto.BOOL)],
        )
    return build(nodes, graph_inputs, [info("y", None), info("z", None)], constants)


@pytest.mark.parametrize(
    ("model", "is_random"),
    [
        (dropout(0.5, True), True),
        (dropout(None, True), True),
        (dropout(0.5, None, named=False), False),
        (dropout(0.5, False), False),
        (dropout(0.0, True), False),
        (dropout(0.5, True, named=True), True),
    ],
)
def test_a_dropout_in_training_mode_is_random(model: onnx.ModelProto, is_random: bool) -> None:
    assert random_tensors(model) == ({"d", "y"} if is_random else set())


def test_outputs_that_depend_on_random_numbers_are_not_observed_in_every_run() -> None:
    model = dropout(0.1, True)
    for _ in range(5):
        verification = verify_outputs(model, model)
        assert {verdict.name: verdict.status for verdict in verification.outputs} == {
            "y": Status.NOT_OBSERVED,
            "z": Status.PASSED,
        }
        assert "random numbers" in verification.outputs[0].message


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"])
def test_the_other_random_operators(op: str) -> None:
    like = op.endswith("Like")
    more = {} if like else {"shape": [4]}

    def model(**seed: Any) -> onnx.ModelProto:
        nodes = [
            helper.make_node(op, ["x"] if like else [], ["r"], **more, **seed),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ]
        return build(nodes, [info("x", [4])], [info("y", None)], {})

    assert random_tensors(model()) == {"r", "y"}
    assert random_tensors(model(seed=1.0)) == set()
    assert verify_outputs(model(), model()).status is Status.NOT_OBSERVED


def test_random_numbers_in_subgraphs_and_functions() -> None:
    draw = helper.make_node("RandomNormal", [], ["r"], shape=[4])
    branch = helper.make_graph([draw], "b", [], [info("r", [4])])
    opset = helper.make_opsetid("", 17)
    inner = helper.make_function("own", "inner", [], ["r"], [draw], [opset])
    call = helper.make_node("inner", [], ["r"], domain="own")
    outer = helper.make_function("own", "outer", [], ["r"], [call], [opset, helper.make_opsetid("own", 1)])
    model = build(
        [
            helper.make_node("If", ["flag"], ["a"], then_branch=branch, else_branch=branch),
            helper.make_node("outer", [], ["b"], domain="own"),
            helper.make_node("Relu", ["x"], ["c"]),
        ],
        [info("x", [4]), info("flag", [], TensorProto.BOOL)],
        [info(name, [4]) for name in "abc"],
        {},
    )
    model.functions.extend([outer, inner])  # the called one stands behind
    assert random_tensors(model) == {"a", "b"}


def test_a_model_with_a_random_output_is_folded_and_written() -> None:
    """Its folds are proved one by one; the other outputs are compared."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "k"], ["m"]),
        helper.make_node("Dropout", ["m", "ratio", "training"], ["d"]),
    ]
    constants = {
        "w": np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32),
        "k": np.float32(3),
        "ratio": np.float32(0.5),
        "training": np.array(True),
    }
    model = build(nodes, [info("x", [1, 3, 8, 8])], [info("d", None), info("m", None)], constants)
    result = fuse(model)
    verification = result.report.verification
    assert verification is not None
    assert [fold.status for fold in verification.folds] == [Status.PASSED]
    assert [verdict.status for verdict in verification.outputs] == [Status.NOT_OBSERVED, Status.PASSED]
