"""Subgraphs and function bodies are run alone: a fault is found also where no input of the model leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.outputs.baseline import measure_original
from onnx_repfuse.verifier.scopes import feeds
from onnx_repfuse.verifier.scopes.check import check_scopes
from onnx_repfuse.verifier.scopes.computed_scales import compute_scales
from onnx_repfuse.verifier.scopes.extract import Outside
from onnx_repfuse.verifier.scopes.feeds import feeds_to_try
from onnx_repfuse.verifier.scopes.forced import ForcedBranches
from onnx_repfuse.verifier.scopes.instances import instances, resolve
from onnx_repfuse.verifier.session import DoesNotRun, open_session
from tests.versions import since_parser

HEAD = '<ir_version: 9, opset_import: ["": 17, "own": 1]>\n'
# Each has a Mul by {FACTOR} that its inputs do not reach, or reach at one rank only, and the key of its scope.
SCOPES: dict[str, tuple[tuple[str | int, ...], str]] = {
    "branch": (
        (1, "then_branch"),
        """g (float[N,4,H,W] x) => (float[] y) <float[1] f = {FACTOR}, float[4,4,1,1] w = {SIXTEEN}> {
   never = Constant <value = bool {0}> ()
   y = If (never) <then_branch = then () => (float[] t) { m = Mul (x, f) t = Conv (m, w) },
                   else_branch = other () => (float[] e) { e = Relu (x) }>
}""",
    ),
    "branch in a branch": (
        (1, "then_branch", 0, "then_branch"),
        """g (float[N,4,H,W] x) => (float[] y) <float[1] f = {FACTOR}, float[4,4,1,1] w = {SIXTEEN}> {
   never = Constant <value = bool {0}> ()
   y = If (never) <then_branch = then () => (float[] t) {
           t = If (never) <then_branch = inner () => (float[] i) { m = Mul (x, f) i = Conv (m, w) },
                           else_branch = outer () => (float[] o) { o = Neg (x) }> },
       else_branch = other () => (float[] e) { e = Relu (x) }>
}""",
    ),
    "loop without a round": (
        (1, "body"),
        """g (float[N,4,H,W] x) => (float[] y) <float[1] f = {FACTOR}> {
   rounds = Constant <value = int64 {0}> ()
   y = Loop (rounds, "", x) <body = body (int64 i, bool c, float[a,b,h,w] v) => (bool co, float[] vo) {
        co = Identity (c) vo = Mul (v, f) }>
}""",
    ),
    "scan": (
        (1, "body"),
        """g (float[4,H] x) => (float[] y, float[] z) <float[1] f = {FACTOR}, float[1] start = {0}> {
   one = Constant <value = int64 {1}> ()
   y, z = Scan <num_scan_inputs = 1, body = body (float[a] s, float[b] v) => (float[] so, float[] vo) {
        so = Identity (s) vo = Mul (v, f) }> (start, x)
}""",
    ),
    "function with an attribute": (
        ("function", 0),
        """g (float[N,4,H,W] x) => (float[] y) {
   never = Constant <value = bool {0}> ()
   y = If (never) <then_branch = then () => (float[] t) { t = own.scaled <alpha = FACTOR> (x) },
                   else_branch = other () => (float[] e) { e = Relu (x) }>
}
<domain: "own", opset_import: ["": 17]>
scaled <alpha>(x) => (y) { c = Constant <value_float: float = @alpha> () m = Mul (x, c) y = Relu (m) }""",
    ),
    "branch of a function": (
        ("function", 0, 1, "then_branch"),
        """g (float[N,4,H,W] x) => (float[] y) { y = own.scaled <alpha = FACTOR> (x) }
<domain: "own", opset_import: ["": 17]>
scaled <alpha>(x) => (y) {
   never = Constant <value = bool {0}> ()
   y = If (never) <then_branch = then () => (float[] t) {
            c = Constant <value_float: float = @alpha> () t = Mul (x, c) },
        else_branch = other () => (float[] e) { e = Relu (x) }>
}""",
    ),
    "branch that reads what constants make": (
        (2, "then_branch"),
        """g (float[N,4,H,W] x) => (float[] y) <float[1] f = {FACTOR}> {
   never = Constant <value = bool {0}> ()
   g = Mul (f, f)
   y = If (never) <then_branch = then () => (float[] t) { t = Mul (x, g) },
                   else_branch = other () => (float[] e) { e = Relu (x) }>
}""",
    ),
}


def _file(place: Path, text: str, factor: str = "") -> Path:
    sixteen = ", ".join(f"{value:.3f}" for value in np.random.default_rng(0).standard_normal(16))
    onnx.save(
        onnx.parser.parse_model(HEAD + text.replace("FACTOR", factor).replace("SIXTEEN", sixteen)), place
    )
    return place


def _verdict(tmp_path: Path, name: str, factor: str) -> Any:
    key, text = SCOPES[name]
    before = _file(tmp_path / "before.onnx", text, "2.0")
    after = _file(tmp_path / "after.onnx", text, factor)
    (verdict,) = check_scopes(measure_original(before), after, [key])
    return verdict


NAMES = [pytest.param(name, marks=since_parser if name == "loop without a round" else ()) for name in SCOPES]


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_where_no_input_leads_is_found(tmp_path: Path, name: str) -> None:
    verdict = _verdict(tmp_path, name, "2.01")
    assert verdict.status is Status.FAILED
    assert "differs by" in verdict.message


@pytest.mark.parametrize("name", NAMES)
def test_an_equal_scope_passes(tmp_path: Path, name: str) -> None:
    verdict = _verdict(tmp_path, name, "2.0")
    assert verdict.status is Status.PASSED
    assert verdict.inputs >= 4


RANKS = """g (float[N,4,H,W] x) => (float[] y) <float[4,1,1] m = {3, 5, 7, 9}, float[1,4,1,1] n = {3, 5, 7, 9},
                                             int64[1] one = {1}> {
   rounds = Constant <value = int64 {1}> ()
   y = Loop (rounds, "", x) <body = body (int64 i, bool c, float[a,b,h,w] v) => (bool co, float[] vo) {
        co = Identity (c) w = Mul (v, WEIGHT) vo = Unsqueeze (w, one) }>
}"""


@since_parser
def test_a_loop_body_runs_on_its_own_results(tmp_path: Path) -> None:
    """(4, 1, 1) and (1, 4, 1, 1) are the same at rank 4, in the first round, and not at rank 5."""
    before = _file(tmp_path / "before.onnx", RANKS.replace("WEIGHT", "m"))
    after = _file(
        tmp_path / "after.onnx", RANKS.replace("WEIGHT", "n").replace("[1,4,1,1] n", "[1,1,4,1,1] n")
    )
    (verdict,) = check_scopes(measure_original(before), after, [(1, "body")])
    assert verdict.status is Status.FAILED


PROVED = """g (float[N,4,H,W] x) => (float[] y) <float[4,1,1] m = {3, 5, 7, 9}, float[1,4,1,1] w = {1, 2, 3, 4}> {
   rounds = Constant <value = int64 {1}> ()
   y = Loop (rounds, "", x) <body = body (int64 i, bool c, float[] v) => (bool co, float[] vo) {
        co = Identity (c) BODY vo = Add (v, z) }>
}"""


@since_parser
def test_a_loop_body_is_not_tried_on_shapes_that_never_come(tmp_path: Path) -> None:
    """On one channel, only the first of the two runs: the product has four."""
    before = _file(tmp_path / "before.onnx", PROVED.replace("BODY", "u = Mul (v, m) z = Conv (u, w)"))
    folded = PROVED.replace("BODY", "z = Conv (v, w)").replace("{1, 2, 3, 4}", "{3, 10, 21, 36}")
    after = _file(tmp_path / "after.onnx", folded)
    (verdict,) = check_scopes(measure_original(before), after, [(1, "body")])
    assert verdict.status is Status.PASSED


BRANCH_WIDENS = """g (float[N,4,H,W] x) => (float[] y)
<float[1] four = {1}, float[1,1,1,1,1] five = {1}, float[4,1,1] m = {3, 5, 7, 9}, float[1,4,1,1] n = {3, 5, 7, 9}> {
   never = Constant <value = bool {0}> ()
   b = If (never) <then_branch = then () => (float[] t) { t = Identity (five) },
                   else_branch = other () => (float[] e) { e = Identity (four) }>
   s = Add (x, b)
   y = Mul (s, WEIGHT)
}"""


def test_the_main_graph_is_run_behind_branches_that_no_input_enters(tmp_path: Path) -> None:
    one, other = (
        _file(tmp_path / f"{w}.onnx", BRANCH_WIDENS.replace("WEIGHT", w).replace("[1,4,1,1] n", shape))
        for w, shape in (("m", "[1,4,1,1] n"), ("n", "[1,1,4,1,1] n"))
    )
    branches = ForcedBranches(measure_original(one), onnx.load(one))
    assert branches.difference(one) == ""
    assert "every If set to" in branches.difference(other)


def test_a_function_is_found_once_for_each_call() -> None:
    text = """g (float[N] x) => (float[] y) { a = own.outer (x) b = own.inner (a) y = Add (a, b) }
<domain: "own", opset_import: ["": 17]> inner (x) => (y) { y = Relu (x) }
<domain: "own", opset_import: ["": 17, "own": 1]> outer (x) => (y) { z = own.inner (x) y = Neg (z) }"""
    model = onnx.parser.parse_model(HEAD + text)
    assert [[step.output for step in way] for way in instances(model, ("function", 0))] == [["a", "z"], ["b"]]


def test_a_scope_that_nothing_calls_is_not_observed(tmp_path: Path) -> None:
    key, text = SCOPES["function with an attribute"]
    place = _file(tmp_path / "m.onnx", text.replace("own.scaled <alpha = FACTOR>", "Neg"), "2.0")
    (verdict,) = check_scopes(measure_original(place), place, [key])
    assert verdict.status is Status.NOT_OBSERVED


def test_without_anything_from_outside_there_is_one_feed() -> None:
    assert list(feeds_to_try([], [], [])) == [{}] * 3


def test_calls_that_omit_their_first_output_are_told_apart() -> None:
    """Any number of nodes may omit an output: "" is the name of none of them."""
    model = onnx.parser.parse_model(
        HEAD
        + """g (float[N,4] x) => (float[] y, float[] z) {
   a, y = own.two <alpha = 2.0> (x)
   b, z = own.two <alpha = 3.0> (x)
}
<domain: "own", opset_import: ["": 17]>
two <alpha>(x) => (n, m) { c = Constant <value_float: float = @alpha> () n = Neg (x) m = Mul (x, c) }"""
    )
    for node in model.graph.node:
        node.output[0] = ""
    ways = instances(model, ("function", 0))
    assert [way[0].output for way in ways] == ["y", "z"]
    factors = [resolve(model, way)[-1].graph.node[0].attribute[0].f for way in ways]
    assert factors == [2.0, 3.0]


def test_no_vectors_are_guessed_for_a_conv_where_they_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime before 1.27; what the model itself has is tried all the same."""
    item = Outside("x", "", onnx.TypeProto(), is_free=True)

    def ranks(ends: bool, has_conv: bool) -> set[int]:
        monkeypatch.setattr(feeds, "_CONV_ENDS_THE_PROCESS", ends)
        return {feed["x"].ndim for feed in feeds_to_try([item], [], [], has_conv=has_conv)}

    assert ranks(True, True) == {2, 3, 4, 5}
    assert ranks(True, False) == ranks(False, True) == {1, 2, 3, 4, 5}


DEADLY = {
    "a function that is called with any rank": """g (float[N,4,H,W] x) => (float[] y) { y = own.F (x) }
<domain: "own", opset_import: ["": 17]> F (a) => (b) {
   s = Constant <value = float[4] {1, 1, 2, 2}> ()
   k = Constant <value = float {3}> ()
   v = Resize <mode = "linear"> (a, "", s) r = Relu (v) t = Mul (r, k) u = Add (t, k) b = Mul (u, k) }""",
    "behind a branch of a higher rank": """
g (float[N,4,H] x) => (float[] y) <float[3] s = {1, 1, 2}, float[1,1,2] two = {1, 1, 1}, float k = {3},
                                   float[1,1,1,1] four = {3}, float big = {1e30}> {
   top = ReduceMax <keepdims = 0> (x)
   never = Greater (top, big)
   a = If (never) <then_branch = then () => (float[] t) { t = Mul (x, four) },
                   else_branch = other () => (float[] e) { e = Relu (x) }>
   v = Resize <mode = "linear"> (a, "", s) r = Relu (v) t1 = Mul (r, k) u = Add (t1, k) y = Mul (u, k) }""",
}


@pytest.mark.parametrize("resize", ['Resize <mode = "linear"> (a, "", s)'])
@pytest.mark.parametrize("case", DEADLY)
def test_a_resize_with_too_few_scales_does_not_end_the_process(
    case: str, resize: str, tmp_path: Path
) -> None:
    """As it does in ONNX Runtime 1.32, in float32, where data has more axes than there are constant scales."""
    model = onnx.load(_file(tmp_path / "model.onnx", DEADLY[case]))
    result = fuse(model)
    assert [fold.output for fold in result.report.folds]
    assert result.report.verification.status is not Status.FAILED


@pytest.mark.parametrize(
    ("opset", "op", "inputs"), [(10, "Resize", 2), (9, "Upsample", 2), (11, "Resize", 3)]
)
def test_scales_are_computed_in_front_of_a_resize(opset: int, op: str, inputs: int) -> None:
    node = onnx.helper.make_node(op, ["x", "roi", "s"] if inputs == 3 else ["x", "s"], ["y"])
    scales = onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "s")
    roi = onnx.numpy_helper.from_array(np.zeros(0, np.float32), "roi")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, None) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [scales, roi])
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = compute_scales(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert [one.op_type for one in model.graph.node] == ["Identity", op]
    with open_session(model) as session:
        value = np.ones((2, 2), np.float32)
        assert session.run({"x": value})["y"].shape == (2, 4)
        with pytest.raises(DoesNotRun):
            session.run({"x": value[None]})
