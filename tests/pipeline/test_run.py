"""One run from file to file: folds that fail are undone, and whatever happens the output is whole or not there."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse import Kind, Options, fuse
from onnx_repfuse.errors import InputError, OutputError, VerificationError
from onnx_repfuse.modelfile import work_folder
from onnx_repfuse.pipeline import compare_models, originals, plan_model, prove_folds, run
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import FoldVerdict, StageVerdict, Status, Verification
from onnx_repfuse.verifier import session
from onnx_repfuse.verifier.folds import isolated
from tests.build import Net, equal
from tests.build import run as ort_run


def chain(blocks=3, dtype=np.float32, shape=None):
    """`blocks` times Conv + BatchNormalization + Relu: one fold each."""
    net = Net(4, dtype=dtype, shape=shape)
    x = "x"
    for _ in range(blocks):
        x = net.op("Relu", net.conv_bn(x, 4, 4, 3))
    return net.model(x)


@pytest.fixture
def path(tmp_path):
    onnx.save(chain(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def plant(monkeypatch, *roots, change=lambda w: w * 1.5):
    """Falsify the weights of the folds of these roots."""
    real = plan_model.plan_scope

    def plan_scope(scope, *rest):
        result = real(scope, *rest)
        for name, const in list(scope.created.items()):
            if len(const.shape) > 1 and any(name.startswith(f"{root}_fused") for root in roots):
                wrong = replace(const, read=lambda const=const: change(const.read()).astype(np.float32))
                scope.created[name] = scope.constants[name] = wrong
        return result

    monkeypatch.setattr(plan_model, "plan_scope", plan_scope)


def skip_checks(monkeypatch, stage):
    """Let every fold pass its probes, or all that is done with a fold alone."""
    passed = StageVerdict("isolated", Status.PASSED, 0.0, 0.0, "onnxruntime")
    if stage == "probes":
        monkeypatch.setattr(isolated, "probe", lambda case, **_: passed)
    else:
        monkeypatch.setattr(
            run,
            "prove_folds",
            lambda plan, *_: ([], [FoldVerdict(fold.name, "", (passed,)) for _, fold in plan.folds]),
        )


def roots(model):
    return [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"]


def stages(verdict):
    return [(stage.stage, stage.status) for stage in verdict.stages]


def undone(report):
    return [r for r in report.refusals if r.reason is Reason.VERIFICATION]


def test_every_fold_is_probed_and_judged_in_place(path, tmp_path):
    report = fuse(path, tmp_path / "o.onnx").report
    found = [(fold.output, stages(fold)) for fold in report.verification.folds]
    proved = [("isolated", Status.PASSED), ("in-place", Status.PASSED)]
    assert found == [(root, proved) for root in roots(onnx.load(path))]


def test_the_original_runs_three_times_at_the_largest_size_and_the_result_twice(tmp_path, monkeypatch):
    model = chain(shape=(1, 4, 33, 35))
    onnx.save(model, tmp_path / "m.onnx")
    runs = []
    real = session.Session.run

    def counted(self, feed, names=None):
        runs.append(np.shape(feed.get("x"))[-2:] == (33, 35))
        return real(self, feed, names)

    monkeypatch.setattr(session.Session, "run", counted)
    report = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx").report
    assert report.verification.runs == (3, 2)
    assert sum(runs) == 3 + 2  # folds run in sessions of their own names


def test_the_noise_of_the_weights_is_measured_where_an_output_fails_without_it(tmp_path):
    """Inputs that are integers cannot move by an ulp: alone, their noise of zero allows 8 ulps of the largest."""
    net = Net(256, shape=(1, 256, 5, 5), seed=3)
    x = net.op("Cast", "x", to=onnx.TensorProto.FLOAT)
    for _ in range(6):
        x = net.op("Relu", net.conv_bn(x, 256, 256, 3))
    model = net.model(x)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    onnx.save(model, tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx").report
    (verdict,) = report.verification.outputs
    assert verdict.status is Status.PASSED
    assert verdict.noise[0] == 0 < verdict.noise[1]
    assert report.verification.runs == (4, 2)


@pytest.mark.parametrize("stage", ["probes and taps", "taps"])
def test_a_fold_that_fails_alone_is_undone(path, tmp_path, monkeypatch, stage):
    model = onnx.load(path)
    bad = roots(model)[1]
    plant(monkeypatch, bad, change=lambda w: w + 1e-3 * (np.arange(w.size).reshape(w.shape) == 5))
    if stage == "taps":
        skip_checks(monkeypatch, "probes")
    result = fuse(path, tmp_path / "o.onnx")
    (refusal,) = undone(result.report)
    assert f"'{bad}'" in refusal.message
    assert "allowed" in refusal.message  # with its figures
    assert bad in refusal.nodes
    assert [fold.output for fold in result.report.folds] == [r for r in roots(model) if r != bad]
    assert result.report.verification
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("bad", [{0}, {1}, {2, 4}, {0, 1, 4}])
def test_the_folds_to_blame_are_found_when_only_the_whole_model_fails(tmp_path, monkeypatch, bad):
    model = chain(5)
    onnx.save(model, tmp_path / "m.onnx")
    names = [roots(model)[index] for index in bad]
    plant(monkeypatch, *names)
    skip_checks(monkeypatch, "folds")
    measured = []
    real = originals.measuring
    monkeypatch.setattr(originals, "measuring", lambda *given: measured.append(1) or real(*given))
    result = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    assert {r.nodes[-1] for r in undone(result.report)} == set(names)
    assert all("passed alone" in r.message for r in undone(result.report))
    assert len(result.report.folds) == 5 - len(bad)
    assert measured == [1]
    assert equal(model, result.model) > 0


def test_what_takes_the_place_of_a_banned_fold_is_banned_too(tmp_path, monkeypatch):
    net = Net(4)
    total = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))
    model = net.model(net.op("Relu", total))
    plan = plan_model.make_plan(compare_models.Document.from_model(model), Options())
    assert plan.keys == [((), total)]
    assert compare_models._plan_with_only([], plan, Options(), set()).edits() == {}


def test_when_no_fold_is_to_blame_nothing_is_written(path, tmp_path, monkeypatch):
    (tmp_path / "o.onnx").write_bytes(b"old")
    real = compare_models.compare

    def compare(baseline, result, options, *rest):
        found = real(baseline, result, options, *rest)
        if result == baseline.original:
            return found
        bad = replace(found.outputs[0], status=Status.FAILED, message="'y' is off")
        return replace(found, outputs=(bad,))

    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.setattr(compare_models, "compare", compare)
    with pytest.raises(VerificationError, match="'y' is off") as caught:
        fuse(path, tmp_path / "o.onnx")
    assert len(caught.value.report.folds) == 3
    assert (tmp_path / "o.onnx").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "o.onnx"]


def test_a_model_that_disagrees_with_itself_blames_no_fold(path, tmp_path, monkeypatch):
    real = compare_models.compare

    def compare(*given):
        return replace(real(*given), outputs=(), folds=())

    monkeypatch.setattr(run, "compare", lambda *given: Verification())
    monkeypatch.setattr(compare_models, "compare", compare)
    with pytest.raises(VerificationError, match="nothing was written"):
        fuse(path, tmp_path / "o.onnx")
    assert files(tmp_path) == ["m.onnx"]


def test_folds_in_subgraphs_are_probed_and_not_judged_in_place(tmp_path):
    net, inner = Net(4), Net(4, seed=1)
    inner.count = 100  # names of their own
    branches = []
    for _ in range(2):
        y = inner.conv_bn("x", 4, 4, 3)
        result = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None)
        branches.append(helper.make_graph(inner.nodes, "b", [], [result], inner.tensors))
        inner.nodes, inner.tensors = [], []
    condition = net.op("Greater", net.op("ReduceSum", "x", keepdims=0), net.const(np.float32(0)))
    y = net.op("If", condition, then_branch=branches[0], else_branch=branches[1])
    model = net.model(net.conv_bn(y, 4, 4, 1))
    verification = fuse(model).report.verification
    found = Counter(stage for verdict in verification.folds for stage in stages(verdict))
    assert found == {
        ("isolated", Status.PASSED): 3,
        ("in-place", Status.PASSED): 1,
        ("in-place", Status.NOT_OBSERVED): 2,
    }
    assert {verdict.status for verdict in verification.folds} == {Status.PASSED}
    assert len({(verdict.scope, verdict.output) for verdict in verification.folds}) == 3


def test_a_fold_whose_nodes_are_all_gone_is_judged_too():
    net = Net(4)
    y = net.op("Mul", net.op("Relu", "x"), net.const(np.ones((4, 1, 1))))
    report = fuse(net.model(net.op("Sigmoid", y))).report
    assert report.folds == report.verification.folds == ()
    assert [(change.kind, change.nodes) for change in report.changes] == [(Kind.NO_OP, (y,))]
    (verdict,) = report.verification.changes
    assert (verdict.output, verdict.status, len(verdict.stages)) == (y, Status.PASSED, 2)
    assert [gone.tensors for gone in report.vanished] == [(y,)]


def test_a_model_that_does_not_run_is_refused_before_its_folds_are_judged(tmp_path):
    net = Net(4)
    y = net.op("Reshape", net.conv_bn("x", 4, 4, 3), net.const(np.array([7, 13, 17])))
    with pytest.raises(InputError, match="run"):
        fuse(net.model(y))
    assert fuse(net.model(y), options=Options(check=False)).report.folds


# the output: the old one, or the whole new one


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def external(tmp_path):
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    net = Net(32)
    model = net.model(net.conv_bn(net.op("Relu", net.conv_bn("x", 32, 32, 3)), 32, 32, 3))
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    return path


@pytest.mark.parametrize("check", [True, False])
def test_external_data_comes_out_once(tmp_path, check):
    path = external(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):  # a second run gives the same files
        fuse(path, out / "o.onnx", Options(check=check))
        assert files(out) == ["o.onnx", "o.onnx.data"]
        assert equal(onnx.load(path), onnx.load(out / "o.onnx"), tolerance=1e-4) > 0


def test_a_data_file_in_use_is_not_overwritten(tmp_path):
    path = external(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "o.onnx.data").write_bytes(b"somebody else's")
    fuse(path, out / "o.onnx")
    assert files(out) == ["o.onnx", "o.onnx.1.data", "o.onnx.data"]
    assert (out / "o.onnx.data").read_bytes() == b"somebody else's"
    assert equal(onnx.load(path), onnx.load(out / "o.onnx"), tolerance=1e-4) > 0


def test_the_weights_are_computed_once_for_the_file(tmp_path, monkeypatch):
    path = external(tmp_path)
    real, sizes = run.save, []
    monkeypatch.setattr(run, "save", lambda *given, **named: sizes.append(1) or real(*given, **named))
    fuse(path, tmp_path / "o.onnx")
    assert sizes == [1]


def test_the_data_file_of_an_output_that_became_inline_goes(path, tmp_path):
    wide = external(tmp_path)
    fuse(wide, tmp_path / "o.onnx")
    assert "o.onnx.data" in files(tmp_path)
    fuse(path, tmp_path / "o.onnx")
    assert files(tmp_path) == ["in", "m.onnx", "o.onnx"]


def test_in_place_keeps_permissions(path):
    path.chmod(0o640)
    fuse(path, path, in_place=True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert files(path.parent) == ["m.onnx"]


@pytest.mark.parametrize("limit", [0, 500, 1500, 2500])
def test_a_full_disk_leaves_the_old_output(path, tmp_path, limit):
    (tmp_path / "o.onnx").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*File too large"):
            fuse(path, tmp_path / "o.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == ["m.onnx", "o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == b"old"


SCRIPT = """
import os, signal, sys
from onnx_repfuse import fuse
def at(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
fuse(sys.argv[1], sys.argv[2], progress=at)
"""


@pytest.mark.parametrize("stage", ["probing", "writing", "proving"])
def test_a_kill_leaves_the_old_output_and_the_next_run_cleans_up(path, tmp_path, stage, monkeypatch):
    target = tmp_path / "o.onnx"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path), str(target), stage], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(files(tmp_path)) == 3  # the folder of the dead run
    monkeypatch.setattr(work_folder, "UNLOCKED_SECONDS", -1.0)
    fuse(path, target)
    assert files(tmp_path) == ["m.onnx", "o.onnx"]


@pytest.mark.parametrize("out_of_line", [None, True])
def test_runs_at_once_leave_one_whole_output(tmp_path, out_of_line):
    models = []
    for seed in range(3):
        net = Net(32, seed=seed)
        models.append(net.model(net.conv_bn("x", 32, 32, 3)))
    options = Options(external=out_of_line)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: fuse(models[k % 3], tmp_path / "o.onnx", options), range(9)))
    found = onnx.load(tmp_path / "o.onnx")
    x = {"x": np.ones((1, 32, 5, 5), np.float32)}
    (result,) = ort_run(found, x)
    assert sum(np.allclose(ort_run(model, x)[0], result, atol=1e-4) for model in models) == 1
    assert len(files(tmp_path)) == (1 if out_of_line is None else 2)


def test_nothing_to_fold_is_the_input_byte_for_byte(tmp_path):
    net = Net(4)
    onnx.save(net.model(net.op("Relu", "x")), tmp_path / "m.onnx")
    report = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx").report
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert isinstance(report.verification, Verification)
    assert not report.verification.outputs


def test_proving_counts_its_folds(path):
    seen = []
    fuse(path, progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert [one for one in seen if one[0] == "probing"] == [("probing", n, 3) for n in range(3)]
    assert prove_folds.NOT_READABLE == [""]


def test_a_scope_that_differs_alone_loses_its_folds(tmp_path, monkeypatch):
    from onnx_repfuse.verifier.scopes import check

    def always_failed(baseline, result, keys, skeleton):
        return [check.ScopeVerdict(tuple(key), Status.FAILED, "it differs") for key in keys]

    monkeypatch.setattr(check, "check_scopes", always_failed)
    outer, inner = Net(4), Net(4, seed=1)
    inner.count = 100
    y = inner.conv_bn("x", 4, 4, 3)
    values = [onnx.helper.make_empty_tensor_value_info(y)]
    body = onnx.helper.make_graph(inner.nodes, "body", [], values, inner.tensors)
    behind = outer.op("If", outer.default(np.array(True)), then_branch=body, else_branch=body)
    model = outer.model(outer.op("Relu", behind), outer.conv_bn("x", 4, 4, 3))
    report = fuse(model).report
    assert [fold.scope for fold in report.folds] == [""]
    undone = [r for r in report.refusals if r.reason is Reason.VERIFICATION]
    assert len(undone) == 2  # one for each branch
    assert "run alone: it differs" in undone[0].message
