"""Refusals call nodes as the file does, also those that folds made."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_repfuse import Options, plan
from tests.build import Net

MODELS = Path(__file__).parents[3] / "models"


@pytest.mark.parametrize("name", ["fastvit", "pplcnetv3", "yolov10"])
def test_no_name_in_a_refusal_is_invented(name):
    path = MODELS / f"{name}.train.onnx"
    report = plan(path)
    names = {node.name for node in onnx.load(path).graph.node}
    assert report.refusals
    assert any("(now a Conv)" in refusal.message for refusal in report.refusals)
    for refusal in report.refusals:
        assert names.issuperset(refusal.nodes)
        assert "_fused" not in refusal.message
        assert "the fused" not in refusal.message


def test_what_avoid_wrote_has_no_name_of_its_own():
    """A LayerNormalization and a Gelu that became many nodes, which are part of a pattern, and a factor behind them."""
    net = Net(4, shape=("N", 6, 4), opset=20)
    normalized = net.op("LayerNormalization", "x", net.random(4), net.random(4), axis=-1, name="norm")
    gelu = net.op("Gelu", normalized, name="gelu")
    model = net.model(net.op("Mul", gelu, net.op("Sigmoid", gelu), name="mul"))
    report = plan(model, Options(avoid=("LayerNormalization", "Gelu")))
    assert {"LayerNormalization", "Gelu"}.isdisjoint(report.after.ops)
    for refusal in report.refusals:
        assert {"norm", "gelu", "mul"}.issuperset(refusal.nodes), refusal
        assert "_" not in refusal.message, refusal
