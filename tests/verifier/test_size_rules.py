"""Folds of several sources, whose sizes follow from each other by the windows of their nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import EQUAL, SizeRule, holds_in_file
from tests.verifier.small_models import build, info


def strided_beside_pooled(order: str, convs: list[dict[str, Any]], wrong: float = 0.0) -> FoldCase:
    """Convs of x in a row, times 3, plus a tensor of the size they lead to; after: the 3 is in the last weight."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) for i in range(len(convs))}
    names = ["x", *(f"c{i}" for i in range(len(convs)))]

    def nodes(ends: list[Any]) -> list[Any]:
        rows = enumerate(convs)
        return [
            helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], **attrs) for i, attrs in rows
        ] + ends

    last = names[-1]
    scaled = helper.make_node("Mul", [last, "k"], ["m"])
    before = nodes([scaled, helper.make_node("Concat", ["m", "q"], ["y"], axis=1)])
    after = nodes([helper.make_node("Concat", [last, "q"], ["y"], axis=1)])
    inputs = [info(name, ["n", 4, "h", "w"]) for name in order]
    folded = {**weights, f"w{len(convs) - 1}": weights[f"w{len(convs) - 1}"] * np.float32(3)}
    folded[f"w{len(convs) - 1}"][0, 0, 0, 0] += np.float32(wrong)
    outputs = [info("y", None)]
    return FoldCase(
        build(before, inputs, outputs, {**weights, "k": np.float32(3)}), build(after, inputs, outputs, folded)
    )


CONVS = {
    "stride 3": [{"strides": [3, 3]}],
    "stride 4, padded": [{"strides": [4, 4], "pads": [1, 1, 1, 1]}],
    "stride 5": [{"strides": [5, 5]}],
    "another stride on each axis": [{"strides": [2, 3], "pads": [1, 1, 1, 1]}],
    "uneven pads": [{"strides": [3, 3], "pads": [0, 0, 2, 2]}],
    "same": [{"strides": [3, 3], "auto_pad": "SAME_UPPER"}],
    "dilated": [{"strides": [1, 1], "dilations": [3, 3]}],
    "two in a row": [{"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"strides": [3, 3]}],
}


@pytest.mark.parametrize("order", ["xq", "qx"])
@pytest.mark.parametrize("convs", CONVS.values(), ids=CONVS)
def test_the_sizes_follow_the_windows(order: str, convs: list[dict[str, Any]]) -> None:
    verdict = probe(strided_beside_pooled(order, convs))
    assert verdict.status is Status.PASSED, verdict.message
    assert probe(strided_beside_pooled(order, convs, wrong=0.01)).status is Status.FAILED


def test_rules_compose_exactly() -> None:
    for size in range(1, 60):
        first, second = SizeRule(1, -1, 3), SizeRule(1, 2, 2)
        assert second.after(first)(size) == second(first(size))
        first, second = SizeRule(3, 1), SizeRule(4, -2)
        assert second.after(first)(size) == second(first(size))


def test_a_fold_that_no_rule_fits_has_failed_still() -> None:
    case = strided_beside_pooled("xq", CONVS["stride 3"])
    for model in (case.before, case.after):
        weight = numpy_helper.from_array(np.ones((4, 5, 3, 3), np.float32), "w0")
        model.graph.initializer[0].CopyFrom(weight)
    verdict = probe(case)
    assert verdict.status is Status.FAILED
    assert "nothing could be compared" in verdict.message


@pytest.mark.parametrize(
    ("of_x", "of_q", "rule", "holds"),
    [
        ((1, 4, 16, 16), (1, 4, 8, 8), SizeRule(1, 0, 2), True),
        ((1, 4, 16, 16), (1, 4, 8, 8), SizeRule(), False),
        ((1, 4, 16, 16), (1, 4, 8, 9), SizeRule(1, 0, 2), False),
        ((1, 4, 16, None), (1, 4, 8, 9), SizeRule(1, 0, 2), True),
        ((None, 4, None, None), (1, 4, 8, 8), SizeRule(), True),
        ((1, 4, 16, 16), None, SizeRule(), True),
    ],
)
def test_only_rules_that_hold_of_what_the_file_proves_are_tried(
    of_x: tuple[int, ...], of_q: tuple[int, ...] | None, rule: SizeRule, holds: bool
) -> None:
    case = strided_beside_pooled("xq", CONVS["stride 3"])
    proved = {"x": of_x} if of_q is None else {"x": of_x, "q": of_q}
    assert holds_in_file(replace(case, proved=proved), (EQUAL, (rule,))) is holds
