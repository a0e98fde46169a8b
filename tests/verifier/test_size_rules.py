"""Folds of several sources, whose sizes follow from each other by the windows of their nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase, Window
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import EQUAL, SizeRule, holds_in_file, rules_of_file
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


def of_three_maps(*, is_known: bool, wrong: float = 0.0) -> FoldCase:
    """Maps of a half and a fourth of an image, resized to its half and added up; the image is read for its size."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=2, end=4),
        helper.make_node("Add", ["s", "one"], ["t"]),
        helper.make_node("Div", ["t", "two"], ["half"]),
        helper.make_node("Shape", ["q"], ["first"], start=0, end=2),
        helper.make_node("Concat", ["first", "half"], ["sizes"], axis=0),
        helper.make_node("Resize", ["q", "", "", "sizes"], ["r"], mode="nearest"),
    ]
    mul, add = helper.make_node("Mul", ["p", "k"], ["m"]), helper.make_node("Add", ["m", "r"], ["y"])
    resized = helper.make_node("Resize", ["p", "", "", "sizes"], ["v"], mode="nearest")
    again = helper.make_node("Mul", ["v", "k"], ["m"])
    constants = {"k": np.float32(3), "one": np.int64([1, 1]), "two": np.int64([2, 2])}
    inputs = [info(name, ["n", 4, "h", "w"]) for name in "xpq"]
    before = build([*nodes, resized, again, add], inputs, [info("y", None)], constants)
    after = build([*nodes, mul, add], inputs, [info("y", None)], {**constants, "k": np.float32(3 + wrong)})
    strides = {"x": (1, -1), "p": (2, -1), "q": (4, -1)}
    behind = {
        name: (None, None, *(Window("x", axis, *slides) for axis in (2, 3)))
        for name, slides in strides.items()
    }
    return FoldCase(before, after, behind=behind if is_known else {})


def test_sizes_follow_the_file_where_it_tells() -> None:
    """A Resize to the size that there is goes; at other sizes the replacement would have another shape."""
    assert rules_of_file(of_three_maps(is_known=True)) == (
        EQUAL,
        (SizeRule(1, 1, 2),) * 2,
        (SizeRule(1, 3, 4),) * 2,
    )
    assert probe(of_three_maps(is_known=True)).status is Status.PASSED
    assert probe(of_three_maps(is_known=True, wrong=1e-3)).status is Status.FAILED
    assert probe(of_three_maps(is_known=False)).status is Status.FAILED


def test_sizes_of_several_tensors_are_no_rules() -> None:
    case = of_three_maps(is_known=True)
    others = {"p": (None, None, Window("z", 2, 2, -1), Window("z", 3, 2, -1))}
    assert rules_of_file(replace(case, behind={**case.behind, **others})) is None
    assert rules_of_file(replace(case, behind={**case.behind, "q": (None,) * 4})) is None
