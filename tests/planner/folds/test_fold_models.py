"""The two sides of a fold as models."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from onnx_repfuse import fuse
from onnx_repfuse.planner.folds import fold_models


def test_what_many_paths_lead_to_is_followed_once() -> None:
    links = 40  # a million million paths
    nodes = [helper.make_node("Add", [f"t{k}", f"t{k}"], [f"t{k + 1}"]) for k in range(links)]
    assert fold_models._read_by(nodes, [f"t{links}", "other"]) == {"t0", "other"}


@pytest.mark.parametrize(
    "moves",
    [
        "u = Pad (t, none)",
        "v = Transpose <perm = [0, 3, 1, 2]> (t) u = Transpose <perm = [0, 2, 3, 1]> (v)",
    ],
)
@pytest.mark.parametrize("opset", [10, 17])
def test_who_reads_a_tensor_of_unknown_rank_says_what_rank_it_has(opset: int, moves: str) -> None:
    if opset < 11:
        moves = moves.replace("Pad (t, none)", "Pad <pads = [0, 0, 0, 0, 0, 0, 0, 0]> (t)")
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 2, 3, 4] x) => (float[K] y)
        <int64 two = {{2}}, int64[8] none = {{0, 0, 0, 0, 0, 0, 0, 0}}, int64[1] all = {{-1}}> {{
            t = Loop (two, , x) <body = turn (int64 i, bool c, float[N, 2, 3, 4] s)
                => (bool c2, float[N, 2, 3, 4] s2) {{
                c2 = Identity (c)
                s2 = Sin (s)
            }}>
            {moves}
            y = Reshape (u, all)
        }}""")
    result = fuse(model)
    assert result.report.refusals == ()
    assert [node.op_type for node in result.model.graph.node] == ["Loop", "Reshape"]


def test_what_a_fold_reads_of_another_that_shares_a_new_node_is_an_input_of_both_sides() -> None:
    """Both products read one new Transpose, and the second fold reads what the first computes, too."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[N, 1, H, W] x) => (float[N, H, W, W] y, float[N, H, W, 4] m)
        <float[1, 4] w = {-0.9, -1.8, -1.7, -1.1}, float[1, 4] v = {1.1, 0.5, 0.3, 0.1}, float q = {0.25}> {
            r = Relu (x)
            s = Add (r, r)
            t = Transpose <perm = [0, 2, 3, 1]> (s)
            m = MatMul (t, w)
            k = MatMul (t, v)
            u = Transpose <perm = [0, 1, 3, 2]> (k)
            p = MatMul (m, u)
            y = Div (p, q)
        }""")
    result = fuse(model)
    assert result.report.refusals == ()
    assert [node.op_type for node in result.model.graph.node] == [
        "Relu", "Transpose", "MatMul", "MatMul", "Transpose", "MatMul"
    ]  # fmt: skip
