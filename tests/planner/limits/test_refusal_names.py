"""Refusals call nodes as the file does, also those that folds made."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_repfuse import plan

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
