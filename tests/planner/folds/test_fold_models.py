"""The two sides of a fold as models."""

from __future__ import annotations

from onnx import helper

from onnx_repfuse.planner.folds import fold_models


def test_what_many_paths_lead_to_is_followed_once() -> None:
    links = 40  # a million million paths
    nodes = [helper.make_node("Add", [f"t{k}", f"t{k}"], [f"t{k + 1}"]) for k in range(links)]
    assert fold_models._read_by(nodes, [f"t{links}", "other"]) == {"t0", "other"}
