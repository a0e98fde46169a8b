"""Folds whose sizes the file fixes: a few samples that see every channel, as each takes all positions there are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import candidate_rules
from onnx_repfuse.verifier.folds.stimuli import stimuli
from tests.verifier.small_models import build, info

RNG = np.random.default_rng(0)
MAPS = {"a": (1, 64, 64, 64), "b": (1, 64, 16, 16)}


def head(wrong: tuple[int, int] | None) -> FoldCase:
    """A 1x1 Conv of two maps, of which one is resized, against one Conv for each; one weight of a may be wrong."""
    weight = (RNG.standard_normal((64, 128, 1, 1)) * 0.1).astype(np.float32)
    sizes = np.array([1, 64, 64, 64], np.int64)
    inputs = [info(name, shape) for name, shape in MAPS.items()]
    outputs = [info("y", None)]
    resize = {"mode": "linear"}
    before = build(
        [
            helper.make_node("Resize", ["b", "", "", "s"], ["u"], **resize),
            helper.make_node("Concat", ["a", "u"], ["c"], axis=1),
            helper.make_node("Conv", ["c", "w"], ["y"]),
        ],
        inputs,
        outputs,
        {"w": weight, "s": sizes},
    )
    first = weight[:, :64].copy()
    if wrong is not None:
        first[wrong] *= 1.01
    after = build(
        [
            helper.make_node("Conv", ["a", "v"], ["p"]),
            helper.make_node("Conv", ["b", "w"], ["q"]),
            helper.make_node("Resize", ["q", "", "", "s"], ["u"], **resize),
            helper.make_node("Add", ["p", "u"], ["y"]),
        ],
        inputs,
        outputs,
        {"v": first, "w": weight[:, 64:].copy(), "s": sizes},
    )
    return FoldCase(before, after)


def test_there_are_few_of_them() -> None:
    case = head(None)
    feeds = list(stimuli(case, next(candidate_rules(case))))
    assert len(feeds) <= 4
    for name in MAPS:
        live = {
            int(channel)
            for one in feeds
            if one.kind == "impulse"
            for channel in np.nonzero(one.feed[name])[1]
        }
        assert live == set(range(64))


@pytest.mark.parametrize("wrong", [None, (0, 0), (63, 63), (5, 37)])
def test_a_wrong_weight_is_seen(wrong: tuple[int, int] | None) -> None:
    verdict = probe(head(wrong))
    assert verdict.status is (Status.PASSED if wrong is None else Status.FAILED), verdict.message
