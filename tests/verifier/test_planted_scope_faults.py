"""Faults in branches, bodies and functions: the fold's own proof, the run of the scope and `verify` each see them."""

from __future__ import annotations

import onnx
import pytest

from onnx_repfuse import Options, compare, fuse, verify
from onnx_repfuse.pipeline import run
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status
from tests.planted_scope_faults import FAULTS, PLACES, model_of, seen_by, spoil
from tests.verifier.test_planted_faults import plant, without_probes
from tests.versions import since_parser

FAULT_OF = {place: list(FAULTS)[number % len(FAULTS)] for number, place in enumerate(PLACES)}


@pytest.mark.parametrize("place", PLACES)
def test_each_judge_sees_a_fault_where_inputs_may_not_lead(place: str) -> None:
    """The long form is `python -m tests.planted_scope_faults`."""
    assert all(seen_by(place, FAULT_OF[place]))


@pytest.mark.parametrize("place", list(PLACES)[1::4])
def test_no_judge_fails_what_is_right(place: str) -> None:
    assert not any(seen_by(place, None))


@pytest.mark.parametrize("is_probed", [True, False])
@pytest.mark.parametrize("place", list(PLACES)[1::5])
def test_a_checked_run_undoes_a_fold_that_is_computed_wrong(
    place: str, is_probed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing but the run of the scope judges it."""
    model = model_of(place, 0)
    assert fuse(model).report.folds
    plant("swapped channels", monkeypatch)
    if not is_probed:
        monkeypatch.setattr(run, "prove_folds", without_probes)
    report = fuse(model).report
    assert not report.folds
    assert Reason.VERIFICATION in {refusal.reason for refusal in report.refusals}


def test_a_branch_that_differs_is_named_with_its_figures() -> None:
    model = model_of("branch in a branch, not taken", 0)
    wrong = spoil(fuse(model, options=Options(check=False)).model, "one bias", 0)
    for found in (verify(model, wrong), compare(model, wrong).verification):
        assert found.status is Status.FAILED
        (inner,) = found.outputs[1:]  # the branch around it is equal: its own If does not enter this one
        assert inner.name == "then_branch of 't' in then_branch of 'y'"
        assert inner.message.startswith(f"{inner.name}, run alone on tensors of the main graph: ")
        assert 0 < inner.tolerance < inner.max_abs < 1
        assert found.outputs[0].status is Status.PASSED


def test_a_tolerance_of_the_user_holds_for_branches_too() -> None:
    model = model_of("branch that is not taken", 0)
    wrong = spoil(fuse(model, options=Options(check=False)).model, "one bias", 0)
    assert not verify(model, wrong)
    assert verify(model, wrong, atol=1.0)


@pytest.mark.parametrize(
    ("rounds", "runs"),
    [("9223372036854775807", False), ("3", True), pytest.param("", False, marks=since_parser)],
)
def test_a_branch_that_may_never_end_is_not_run(rounds: str, runs: bool) -> None:
    """Exporters write `while` with the largest integer: its condition is another one in a branch that is not taken."""
    number = f"many = Constant<value_int: int = {rounds}>()" if rounds else ""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[N] x) => (float[N] y) <float zero = {{0}}> {{
            top = ReduceMax<keepdims = 0>(x)
            size = Abs(top)
            go = GreaterOrEqual(size, zero)
            y = If (go) <then_branch = then () => (float[N] t) {{ t = Relu(x) }},
                else_branch = other () => (float[N] e) {{
                    {number}
                    yes = Constant<value: tensor = bool {{1}}>()
                    e = Loop ({"many" if rounds else '""'}, yes, x) <
                        body = body (int64 i, bool c, float[N] v) => (bool co, float[N] vo) {{
                            co = Identity(c) vo = Neg(v) }}> }}>
        }}""")
    other = onnx.ModelProto.FromString(model.SerializeToString())
    for attribute in other.graph.node[-1].attribute:
        attribute.g.node[-1].name = "another name"  # equal graphs are not run
    found = verify(model, other)
    assert any("may never end" in note for note in found.notes) is not runs
    assert found.status is Status.PASSED


def test_a_branch_that_whoever_knows_the_sizes_wrote_for_them_is_no_fault() -> None:
    """It is never entered at the sizes of a run, at which it makes another shape."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float[2,12] x) => (float[A,B] y) <float zero = {0}, int64[2] shape = {SHAPE}> {
            top = ReduceMax<keepdims = 0>(x)
            size = Abs(top)
            never = Less(size, zero)
            y = If (never) <then_branch = then () => (float[A,B] t) { t = Reshape(x, shape) },
                else_branch = other () => (float[A,B] e) { e = Relu(x) }>
        }"""
    first, second = (onnx.parser.parse_model(text.replace("SHAPE", shape)) for shape in ("4, -1", "4, 6"))
    assert verify(first, second).status is Status.PASSED
    third = onnx.parser.parse_model(text.replace("SHAPE", "6, -1"))
    found = verify(first, third)
    assert found.status is Status.PASSED
    assert any("then_branch of 'y'" in note for note in found.notes)
