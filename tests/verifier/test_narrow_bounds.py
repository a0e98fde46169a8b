"""What passes with a narrower bound than that of both sides passes; all else is judged with both."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds import in_place
from onnx_repfuse.verifier.folds.error_bound import Side
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.structures import Structures
from onnx_repfuse.verifier.session import open_session
from tests.verifier.small_models import build, info


def cancelling(seed: int, wrong: float = 0.0) -> FoldCase:
    """A product and two shifts that cancel, against a product: the nodes before round far more than the one after."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((8, 8, 1, 1)).astype(np.float32)
    shift = rng.uniform(500, 1000, (8, 1, 1)).astype(np.float32)
    inputs, outputs = [info("x", ["n", 8, "h", "w"])], [info("y", None)]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["p"]),
        helper.make_node("Add", ["p", "s"], ["q"]),
        helper.make_node("Sub", ["q", "s"], ["y"]),
    ]
    before = build(nodes, inputs, outputs, {"k": weight, "s": shift})
    joined = weight.copy()
    joined[3, 5] += wrong
    after = build([helper.make_node("Conv", ["x", "k"], ["y"])], inputs, outputs, {"k": joined})
    return FoldCase(before, after)


@pytest.mark.parametrize(("wrong", "status"), [(0.0, Status.PASSED), (0.01, Status.FAILED)])
def test_what_the_bound_of_the_replacement_does_not_allow_is_judged_by_both(
    wrong: float, status: Status
) -> None:
    structures = Structures()
    assert probe(cancelling(0), structures=structures).status is Status.PASSED
    assert probe(cancelling(1, wrong), structures=structures).status is status
    case = cancelling(2, wrong)
    x = np.random.default_rng(3).standard_normal((1, 8, 6, 5)).astype(np.float32)
    with open_session(case.before) as session:
        y = session.run({"x": x})["y"]
    assert check_in_place(case, {"x": x, "y": y}).status is status


def test_values_alone_are_those_with_magnitudes() -> None:
    case = cancelling(0)
    x = np.random.default_rng(3).standard_normal((1, 8, 6, 5)).astype(np.float32)
    side = Side(case, case.before)
    whole, values = side.evaluate({"x": x}), side.evaluate({"x": x}, needs_magnitudes=False)
    assert (whole.value == values.value).all()
    assert whole.terms.tolist() == values.terms.tolist()
    assert not values.magnitude.any()
    assert values.part((slice(0, 1), slice(2, 4), slice(0, 6), slice(0, 5))).value.shape == (1, 2, 6, 5)


def test_equal_values_in_place_take_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_tolerance", None)  # is not called
    nodes = {
        "before": [helper.make_node("Slice", ["x", "b", "e", "a"], ["y"])],
        "after": [helper.make_node("Identity", ["x"], ["y"])],
    }
    constants = {"b": np.array([0], np.int64), "e": np.array([9], np.int64), "a": np.array([2], np.int64)}
    inputs, outputs = [info("x", ["n", 8, "h", "w"])], [info("y", None)]
    case = FoldCase(
        build(nodes["before"], inputs, outputs, constants), build(nodes["after"], inputs, outputs, {})
    )
    x = np.random.default_rng(3).standard_normal((1, 8, 6, 5)).astype(np.float32)
    assert check_in_place(case, {"x": x, "y": x}).status is Status.PASSED
    with pytest.raises(TypeError):
        check_in_place(case, {"x": x, "y": x + 1e-6})


def test_equal_sides_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(source: str) -> onnx.ModelProto:
        inputs = [info(name, ["n", 4]) for name in "xz"]
        return build([helper.make_node("Identity", [source], ["y"])], inputs, [info("y", None)])

    equal, wrong = FoldCase(identity("x"), identity("x")), FoldCase(identity("x"), identity("z"))
    assert probe(wrong).status is Status.FAILED
    monkeypatch.setattr(Structures, "open", None)  # is not called
    assert probe(equal).status is Status.PASSED
    with pytest.raises(TypeError):
        probe(wrong)


def test_sides_of_other_weights_are_run() -> None:
    def product(weight: float) -> onnx.ModelProto:
        constants = {"w": np.full(4, weight, np.float32)}
        nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
        return build(nodes, [info("x", ["n", 4])], [info("y", None)], constants)

    assert probe(FoldCase(product(2.0), product(2.5))).status is Status.FAILED
    assert probe(FoldCase(product(2.0), product(2.0))).status is Status.PASSED
