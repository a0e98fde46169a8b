"""The command line: exit codes by each cause, contradictions, names of files, what is printed where."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse.cli.arguments import GROUPS, declared
from onnx_repfuse.cli.main import main
from onnx_repfuse.errors import InputError, UsageError, VerificationError
from onnx_repfuse.records.outcome import Bench
from onnx_repfuse.records.report import Kind
from tests.build import Net

MODELS = Path(__file__).parents[2] / "models"
TRAIN = MODELS / "acnet.train.onnx"
SHAPE = (1, 3, 32, 32)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model that folds, in an otherwise empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(TRAIN.read_bytes())
    return tmp_path / "net.onnx"


def shell(*words, env=None, **settings):
    environment = {**os.environ, "PYTHONPATH": str(MODELS.parent), "NO_COLOR": "", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "onnx_repfuse", *map(str, words)],
        capture_output=True, text=True, env=environment, timeout=120, **settings,
    )  # fmt: skip


def shell_line(words):
    return subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m onnx_repfuse {words}"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(MODELS.parent)},
    )  # fmt: skip


def test_writes_beside_the_input_and_says_what_it_did(model, capsys):
    assert main([str(model)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "BatchNormalization" in out
    assert "PASSED" in out
    assert "noise" in out
    assert "Wrote" in out
    assert "net.fused.onnx" in out
    assert not {"BatchNormalization", "Add"} & {n.op_type for n in onnx.load("net.fused.onnx").graph.node}


def test_second_run_is_identical(model, capsys):
    assert main(["net.onnx", "-q"]) == 0
    assert main(["net.fused.onnx", "again.onnx"]) == 0
    assert "byte for byte" in capsys.readouterr().out
    assert Path("again.onnx").read_bytes() == Path("net.fused.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["net.onnx", "other.onnx"], "exists"),
        (["net.onnx", "a.onnx", "b.onnx"], "--out-dir"),
        (["net.onnx", "a.onnx", "-o", "b.onnx"], "twice"),
        (["net.onnx", "--in-place", "-o", "b.onnx"], "--in-place"),
        (["net.onnx", "b.onnx", "--in-place"], "--in-place"),
        (["net.onnx", "--in-place", "--out-dir", "d"], "--in-place"),
        (["net.onnx", "-o", "b.onnx", "--out-dir", "d"], "contradict"),
        (["net.onnx", "-o", "net.onnx"], "--in-place"),
        (["net.onnx", "-o", "./net.onnx"], "--in-place"),
        (["net.onnx", "-o", "link.onnx"], "--in-place"),
        (["net.onnx", "net.onnx", "--force"], "--in-place"),
        (["net.onnx", "--out-dir", "."], "--in-place"),
        (["net.onnx", "-o", "folder"], "folder"),
        (["net.onnx", "--out-dir", "other.onnx"], "is a file"),
        (["net.onnx", "folder/net.onnx", "--out-dir", "d"], "both"),
        (["net.onnx", "--plan", "--compare"], "--plan and --compare"),
        (["net.onnx", "--plan", "--bench"], "--bench"),
        (["net.onnx", "--compare"], "two models"),
        (["net.onnx", "other.onnx", "--compare", "-o", "x"], "-o"),
        (["net.onnx", "other.onnx", "--compare", "--skip", "pad"], "--skip"),
        (["net.onnx", "--explain", "n", "--json", "-"], "--json"),
        (["net.onnx", "--no-check", "--rtol", "1"], "--rtol"),
        (["net.onnx", "--no-check", "--precision-study"], "--precision-study"),
        (["net.onnx", "--rtol", "-1"], ">= 0"),
        (["net.onnx", "--atol", "nan"], ">= 0"),
        (["net.onnx", "--atol", "much"], "much"),
        (["net.onnx", "-q", "-v"], "-q"),
        (["net.onnx", "--jobs", "2"], "--out-dir"),
        (["net.onnx", "--out-dir", "d", "--jobs", "0"], "--jobs"),
        (["net.onnx", "--in-place", "--bench"], "--bench"),
        (["net.onnx", "--in-place", "--precision-study"], "--precision-study"),
        (["net.onnx", "--skip", "afine"], "did you mean 'affine'"),
        (["net.onnx", "--only", "nonsense"], "--list-kinds"),
        (["net.onnx", "--only", "affine,pad", "--skip", "pad"], "'pad'"),
        (["net.onnx", "--input-shape", "x"], "NAME:1,3,224,224"),
        (["net.onnx", "--input-shape", "x:1,-3"], "NAME:1,3,224,224"),
        (["net.onnx", "--input-shape", "x:1", "--input-shape", "x:2"], "twice"),
        (["net.onnx", "--input-data", "x:missing.npy"], "no such file or folder: 'x:missing.npy'"),
        (["net.onnx", "--fail-on-remaining", "batchnormalization"], "did you mean 'BatchNormalization'"),
        (["net.onnx", "--fail-on-remaining", "BatchNorm"], "did you mean"),
        (["net.onnx", "--json", "net.onnx"], "overwrite"),
        (["net.onnx", "--report", "net.fused.onnx"], "overwrite"),
        (["net.onnx", "--json", "x", "--report", "x"], "one file"),
        (["net.onnx", "--cost", "love"], "love"),
        (["net.onnx", "-o", "x.onnx", "--suffix", ".new"], "-o and --suffix"),
        (["net.onnx", "--in-place", "--suffix", ".new"], "--in-place"),
        (["net.onnx", "--suffix", "a/b"], "part of a file's name"),
        (["net.onnx", "--suffix", ""], "--suffix is empty"),
        (["net.onnx", "-o", "-", "--json", "-"], "not both"),
        (["-", "--json", "-"], "not both"),
        (["-", "--in-place"], "--in-place is for files"),
        (["-", "--out-dir", "d"], "--out-dir is for files"),
        (["-", "other.onnx", "--suffix", ".x"], "--suffix is for files"),
        (["-", "-", "--compare"], "brings one model"),
        (["net.onnx", "-o", "-", "--save-as-external-data"], "cannot carry external data"),
        (["net.onnx", "--fail-on-folds"], "is for --plan"),
        (["net.onnx", "--plan", "--fail-on-folds", "--no-check"], "--no-check runs no comparison"),
        (["net.onnx", "--provider", "cup"], "it has"),
        (["net.onnx", "--provider", "cup"], "did you mean CPUExecutionProvider"),
        (["net.onnx", "--provider", ""], "--provider is empty"),
        (["net.onnx", "--threads", "-1"], ">= 0"),
        (["net.onnx", "--threads", "many"], "many"),
        (["net.onnx", "--frobnicate"], "--frobnicate"),
        (["net.onnx", "--json", "net.fused.onnx.data"], "weights may need"),
        (["net.onnx", "--report", "net.fused.onnx.2.data"], "weights may need"),
        (["net.onnx", "-o", "x.onnx", "--json", "./x.onnx.1.data"], "weights may need"),
        (["net.onnx", "--report", "weights.bin"], "no report"),
        (["net.onnx", "--plan", "--json", "weights.bin"], "no report"),
        (["net.onnx", "-o", "stream"], "a stream"),
        (["net.onnx", "-o", ""], "-o is empty"),
        (["net.onnx", "--out-dir", ""], "--out-dir is empty"),
        (["net.onnx", "--json", ""], "--json is empty"),
        ([""], "the model is empty"),
        (["."], "not a model file"),
        (["net.onnx", "--only", ","], "no kind of fold"),
        (["net.onnx", "--input-shape", "x:99999999999999999999,3,1,1"], "is too large for a size"),
        ([], "no model"),
    ],
)
def test_wrong_usage_is_one_sentence_and_writes_nothing(model, capsys, words, what):
    Path("other.onnx").write_bytes(b"precious")
    Path("folder").mkdir()
    Path("link.onnx").symlink_to("net.onnx")
    Path("stream").symlink_to("/proc/self/fd/1")
    Path("weights.bin").write_bytes(np.ones(9, np.float32).tobytes())
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnx-repfuse: error: ")
    assert err.count("\n") == 1
    assert what in err
    assert sorted(Path().rglob("*")) == before
    assert model.read_bytes() == TRAIN.read_bytes()
    assert Path("other.onnx").read_bytes() == b"precious"


def test_force_and_dash_o_replace_an_older_output(model):
    Path("out.onnx").write_bytes(b"old")
    assert main(["net.onnx", "out.onnx", "-q"]) == 2
    assert main(["net.onnx", "out.onnx", "-q", "--force"]) == 0
    Path("out.onnx").write_bytes(b"old")
    assert main(["net.onnx", "-o", "out.onnx", "-q"]) == 0
    assert len(Path("out.onnx").read_bytes()) > 1000


def test_in_place(model, capsys):
    assert main(["net.onnx", "--in-place", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert len(onnx.load("net.onnx").graph.node) == 8
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("content", [None, b"", b"junk", b"\x08\x07"])
def test_unreadable_is_exit_1_in_one_line(model, capsys, content):
    if content is not None:
        Path("bad.onnx").write_bytes(content)
    assert main(["bad.onnx", "out.onnx"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not Path("out.onnx").exists()


def test_failed_verification_is_exit_3(model, capsys, monkeypatch):
    def refuse(*_, **__):
        raise VerificationError("verification failed, nothing was written: 'y' differs")

    monkeypatch.setattr("onnx_repfuse.api.fuse", refuse)
    assert main(["net.onnx", "--json", "r.json"]) == 3
    assert "'y' differs" in capsys.readouterr().err
    document = json.loads(Path("r.json").read_text())
    assert (document["exit_code"], document["output"]) == (3, None)
    assert "differs" in document["error"]


def test_internal_error_is_one_line_and_a_traceback_on_demand(model, capsys, monkeypatch):
    def stumble(*_, **__):
        raise KeyError("oops\nsecond line")

    monkeypatch.setattr("onnx_repfuse.api.fuse", stumble)
    assert main(["net.onnx"]) == 1
    err = capsys.readouterr().err
    assert "internal error, KeyError" in err
    assert err.count("\n") == 1
    assert main(["net.onnx", "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(model, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_repfuse.api.fuse", interrupt)
    assert main(["net.onnx"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_gate(model, capsys):
    assert main(["net.onnx", "-q", "--fail-on-remaining", "BatchNormalization,Add"]) == 0
    assert (
        main(["net.onnx", "-q", "--fail-on-remaining", "BatchNormalization", "--fail-on-remaining", "Relu"])
        == 4
    )
    assert "4 Relu" in capsys.readouterr().err
    assert Path("net.fused.onnx").exists()
    assert main(["net.onnx", "-q", "--fail-on-remaining", "MyOwnOp"]) == 0


def test_no_check_prints_not_verified(model, capsys):
    assert main(["net.onnx", "--no-check"]) == 0
    assert "Not verified" in capsys.readouterr().out


def test_plan_and_explain_write_nothing(model, capsys):
    assert main(["net.onnx", "out.onnx", "--plan"]) == 0
    out = capsys.readouterr().out
    assert "planned: 4" in out
    assert "nothing was written" in out
    assert main(["net.onnx", "--explain", "/0/square/bn/BatchNormalization"]) == 0
    out = capsys.readouterr().out
    assert "Fused" in out
    assert "<- this node" in out
    assert main(["net.onnx", "--explain", "/0/square/bn/BatchNormalisation"]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_compare(model, capsys):
    assert main(["net.onnx", "-q"]) == 0
    assert main(["--compare", "net.onnx", "net.fused.onnx"]) == 0
    assert "PASSED" in capsys.readouterr().out
    twin = onnx.load("net.onnx")
    weight = next(t for t in twin.graph.initializer if len(t.dims) == 4)
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1.1)).tobytes()
    onnx.save(twin, "twin.onnx")
    assert main(["net.onnx", "twin.onnx", "--compare", "--json", "c.json"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("net.onnx and twin.onnx: FAILED\n\n")
    assert "minimum tolerance" in out
    assert "differ" in err
    needed = json.loads(Path("c.json").read_text())["verification"]["outputs"][0]["minimum_tolerance"]
    assert main(["net.onnx", "twin.onnx", "--compare", "-q", "--atol", str(needed * 1.01)]) == 0


def test_models_that_cannot_be_compared_have_no_figures(model, capsys):
    other = onnx.load("net.onnx")
    other.graph.output[0].type.tensor_type.ClearField("shape")
    other.graph.node.add(op_type="Flatten", input=[other.graph.output[0].name], output=["flat"])
    other.graph.output[0].name = "flat"
    onnx.save(other, "flat.onnx")
    assert main(["--compare", "net.onnx", "flat.onnx", "--by-order"]) == 3
    told = capsys.readouterr().out
    assert "has shape" in told
    assert "--by-order" not in told
    assert not any(word in told for word in ("inf", "allowed 0", "0 of 0", "relative"))
    assert main(["--compare", "net.onnx", "flat.onnx"]) == 3
    told = capsys.readouterr().out
    assert "--by-order" in told
    assert not any(word in told for word in ("inf", "allowed 0", "0 of 0", "relative"))


def test_json_on_stdout_is_alone(model, capsys):
    assert main(["net.onnx", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 2
    assert document["exit_code"] == 0
    assert document["counts"]["after"]["ops"]["Conv"] == 4
    assert document["folds"][0]["absorbed"][0]["name"] == "/0/square/conv/Conv"
    assert document["verification"]["status"] == "passed"


def test_report_that_cannot_be_written_is_exit_1(model, capsys):
    assert main(["net.onnx", "--json", "nowhere/r.json"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not Path("net.fused.onnx").exists()


def test_a_missing_folder_is_reported_before_planning_begins(model, capsys, monkeypatch):
    monkeypatch.setattr("onnx_repfuse.api.fuse", lambda *_, **__: pytest.fail("it began"))
    assert main(["net.onnx", "-o", "no/where.onnx"]) == 1
    assert "create it first" in capsys.readouterr().err


def test_batch_goes_on_after_a_bad_file(model, capsys):
    Path("bad.onnx").write_bytes(b"junk")
    Path("two words \u00fc.onnx").write_bytes(TRAIN.read_bytes())
    code = main(
        ["net.onnx", "bad.onnx", "two words \u00fc.onnx", "--out-dir", "out/deep", "--json", "r.json"]
    )
    assert code == 1
    out, err = capsys.readouterr()
    assert "two words \u00fc.onnx" in out
    assert "bad.onnx" in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in Path("out/deep").iterdir()) == ["net.onnx", "two words \u00fc.onnx"]
    document = json.loads(Path("r.json").read_text())
    assert document["exit_code"] == 1
    assert [m["exit_code"] for m in document["models"]] == [0, 1, 0]


@pytest.mark.parametrize(("system", "code"), [("linux", 0), ("darwin", 2), ("win32", 2)])
def test_outputs_that_differ_in_case_only_are_one_on_some_systems(model, capsys, monkeypatch, system, code):
    Path("NET.onnx").write_bytes(TRAIN.read_bytes())
    monkeypatch.setattr("onnx_repfuse.cli.paths.sys.platform", system)
    assert main(["net.onnx", "NET.onnx", "--out-dir", "out", "-q", "--plan"]) == code
    assert ("would both be written" in capsys.readouterr().err) == (code == 2)


def test_several_models_are_planned_without_a_place_for_outputs(model, capsys):
    for name in ("a.onnx", "b.onnx"):
        Path(name).write_bytes(TRAIN.read_bytes())
    for names in (["a.onnx", "b.onnx"], ["net.onnx", "a.onnx", "b.onnx"], ["a.onnx", "a.onnx", "a.onnx"]):
        assert main([*names, "--plan", "--json", "-"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [part["model"] for part in document["models"]] == names
        assert {part["output"] for part in document["models"]} == {None}
    assert main(["a.onnx", "b.onnx", "net.onnx", "--plan", "--fail-on-folds", "-q"]) == 4
    capsys.readouterr()
    # of two, one that is not there, or may be replaced, is an output
    for words in (["a.onnx", "c.onnx", "--plan"], ["a.onnx", "b.onnx", "--plan", "--force"]):
        assert main([*words, "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["model"] == "a.onnx"
    assert sorted(path.name for path in Path().iterdir()) == ["a.onnx", "b.onnx", "net.onnx"]
    for words, why in (
        (["a.onnx", "b.onnx", "net.onnx", "--plan", "-o", "o.onnx"], "-o names one output, and 3 models"),
        (["-", "a.onnx", "b.onnx", "--plan"], "a list of models is for files, and - is standard input"),
        (["a.onnx", "b.onnx", "net.onnx"], "--out-dir or --suffix is needed"),
    ):
        assert main(words) == 2
        assert why in capsys.readouterr().err


def test_batch_in_processes(model):
    for name in ("a.onnx", "b.onnx"):
        Path(name).write_bytes(TRAIN.read_bytes())
    assert main(["a.onnx", "b.onnx", "--out-dir", "out", "--jobs", "2", "-q"]) == 0
    assert len(list(Path("out").iterdir())) == 2


def test_worker_processes_may_have_another_current_folder(model, tmp_path, monkeypatch, capsys):
    """joblib keeps its processes for the next call; their current folder is the one they were started in."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for file in ("a.onnx", "b.onnx"):
            Path(file).write_bytes(TRAIN.read_bytes())
        Path("bad.onnx").write_bytes(b"junk")
        words = ["a.onnx", "b.onnx", "bad.onnx", "--out-dir", "out", "--jobs", "2", "--json", "r.json"]
        assert main(words) == 1
        assert sorted(path.name for path in Path("out").iterdir()) == ["a.onnx", "b.onnx"]
        shown, err = capsys.readouterr()
        assert str(tmp_path) not in shown + err
        found = json.loads(Path("r.json").read_text())["models"]
        assert [one["model"] for one in found] == ["a.onnx", "b.onnx", "bad.onnx"]
        assert [one["output"] for one in found] == ["out/a.onnx", "out/b.onnx", None]


def test_the_exit_code_of_several_models_is_the_worst():
    from onnx_repfuse.records.outcome import worst

    assert worst([0, 4, 1, 3, 0]) == 3
    assert worst([0, 4, 1]) == 1
    assert worst([0, 4]) == 4
    assert worst([0]) == 0


def test_options_reach_the_library(model, monkeypatch):
    seen = []

    def record(source, output, options, **_):
        seen.append((source, output, options))
        raise InputError("enough")

    monkeypatch.setattr("onnx_repfuse.api.fuse", record)
    np.save("x.npy", np.zeros((1, 3, 32, 32), np.float32))
    words = ["--skip", "pad,pool", "--skip", "concat", "--keep", "/head/*,/stem*", "--rtol", "0.1", "--cost", "macs",
             "--input-shape", "a:b:1,3,8,8", "--input-data", "in:0:x.npy", "--freeze-initializers",
             "--save-as-external-data"]  # fmt: skip
    assert main(["net.onnx", *words]) == 1
    source, output, options = seen[0]
    assert (source, output) == ("net.onnx", "net.fused.onnx")
    assert options.skip == {Kind.PAD, Kind.POOL, Kind.CONCAT}
    assert options.keep == ("/head/*", "/stem*")
    assert (options.rtol, options.atol, options.cost, options.external) == (0.1, None, "macs", True)
    assert options.input_shapes == {"a:b": (1, 3, 8, 8)}
    assert options.input_data == (("in:0", Path("x.npy")),)
    assert options.freeze_initializers


def test_skip_and_keep(model, capsys):
    assert main(["net.onnx", "--skip", "branches", "-q"]) == 0
    assert sum(n.op_type == "Add" for n in onnx.load("net.fused.onnx").graph.node) == 8
    assert main(["net.onnx", "--keep", "/0/*", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert all(not node["name"].startswith("/0/") for fold in document["folds"] for node in fold["absorbed"])


def test_data_from_files(model):
    np.save("x.npy", np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32))
    assert main(["net.onnx", "--input-data", "input:x.npy", "-q"]) == 0
    assert main(["net.onnx", "--input-data", "x.npy", "-q"]) == 0
    assert main(["net.onnx", "--input-data", "nope:x.npy", "-q"]) == 1
    np.savez("x.npz", input=np.load("x.npy"))
    assert main(["net.onnx", "--input-data", "x.npz", "-q"]) == 0


def test_input_data_takes_a_name_only_before_the_file_of_one_input(model, capsys):
    np.savez("x.npz", input=np.ones(SHAPE, np.float32))
    for named in ("nope:x.npz", "input:."):
        assert main(["net.onnx", "--input-data", named, "-q"]) == 2
        assert "a name goes with" in capsys.readouterr().err


def test_precision_study(model, capsys):
    assert main(["net.onnx", "--precision-study", "--json", "r.json"]) == 0
    assert "float64" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["precision"][0]["factor"] < 2


def test_a_closed_stream_is_no_error(model):
    for redirect in (">&-", "2>&-", ">&- 2>&- <&-"):
        done = shell_line(f"net.onnx {redirect}")
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
        assert Path("net.fused.onnx").exists()
    gone = shell_line("net.onnx --fail-on-remaining Relu --json - 2>/dev/null | true; exit ${PIPESTATUS[0]}")
    assert gone.returncode == 4


WRITTEN = "'net.fused.onnx' is written, but not the report: cannot write to"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("net.onnx >/dev/full", 0, f"{WRITTEN} standard output: No space left"),
        ("net.onnx --json - >/dev/full", 0, f"{WRITTEN} standard output: No space left"),
        ("net.onnx --json /dev/full", 0, f"{WRITTEN} '/dev/full': No space left"),
        ("net.onnx --report /dev/full -q", 0, f"{WRITTEN} '/dev/full': No space left"),
        ("net.onnx --fail-on-remaining Relu --json /dev/full", 4, f"{WRITTEN} '/dev/full': No space left"),
        (
            "net.onnx bad.onnx --out-dir out --json /dev/full",
            1,
            "'out/net.onnx' is written, but not the report",
        ),
        ("net.onnx a.onnx --out-dir out --json /dev/full", 0, "2 models are written, but not the report"),
        ("bad.onnx --json /dev/full", 1, "error: cannot write to '/dev/full': No space left"),
        ("net.onnx --plan >/dev/full", 1, "error: cannot write to standard output: No space left"),
        ("net.onnx --plan --json /dev/full", 1, "error: cannot write to '/dev/full': No space left"),
        (
            "net.onnx a.onnx --compare --json /dev/full",
            1,
            "error: cannot write to '/dev/full': No space left",
        ),
        ("net.onnx --explain /0/square/conv/Conv >/dev/full", 1, "error: cannot write to standard output"),
    ],
)
def test_a_report_on_a_full_disk_does_not_hide_that_the_model_was_written(model, words, code, message):
    Path("a.onnx").write_bytes(TRAIN.read_bytes())
    Path("bad.onnx").write_bytes(b"junk")
    done = shell_line(words)
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    written = "is written" in message or "are written" in message
    assert (Path("net.fused.onnx").exists() or Path("out/net.onnx").exists()) == written


def test_a_closed_pipe_is_no_error(model):
    assert shell_line("net.onnx 2>/dev/null | true; exit ${PIPESTATUS[0]}").returncode == 0


def test_a_report_is_written_through_a_link(model, capsys):
    Path("there.json").write_text("{}")
    Path("here.json").symlink_to("there.json")
    assert main(["net.onnx", "--json", "here.json", "-q"]) == 0
    assert Path("here.json").is_symlink()
    assert json.loads(Path("there.json").read_text())["exit_code"] == 0


def test_a_report_does_not_replace_a_binary_file_written_during_the_run(model, capsys, monkeypatch):
    monkeypatch.setattr("onnx_repfuse.cli.paths.check_reports", lambda given, pairs: None)
    Path("weights.bin").write_bytes(bytes(9))
    assert main(["net.onnx", "--json", "weights.bin", "-q"]) == 0
    assert "is written, but not the report: cannot write to 'weights.bin'" in capsys.readouterr().err
    assert Path("weights.bin").read_bytes() == bytes(9)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("content", [None, b"no model"])
def test_compare_with_what_cannot_be_read_is_exit_1(model, capsys, place, content):
    if content is not None:
        Path("other.onnx").write_bytes(content)
    names = ["net.onnx", "net.onnx"]
    names[place] = "other.onnx"
    assert main(["--compare", *names]) == 1
    err = capsys.readouterr().err
    assert "other.onnx" in err
    assert "differ" not in err


def test_a_folder_that_cannot_be_made_is_exit_1(model, capsys):
    assert main(["net.onnx", "--out-dir", "net.onnx/sub"]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_any_joblib_backend(model):
    from joblib import parallel_config

    Path("other.onnx").write_bytes(TRAIN.read_bytes())
    with parallel_config("threading", n_jobs=2):
        assert main(["net.onnx", "other.onnx", "--out-dir", "out", "-q"]) == 0
    assert len(list(Path("out").iterdir())) == 2


def test_progress_on_a_terminal_only(model):
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "onnx_repfuse", "net.onnx"], stdout=subprocess.PIPE, stderr=slave,
        env={**os.environ, "PYTHONPATH": str(MODELS.parent), "TERM": "xterm", "COLUMNS": "100"},
    ) as process:  # fmt: skip
        out, _ = process.communicate(timeout=60)
    shown = os.read(master, 100_000).decode(errors="ignore")  # may end inside a character
    os.close(slave)
    os.close(master)
    assert process.returncode == 0
    assert any(stage in shown for stage in ("planning", "proving", "reading"))
    assert b"\x1b" not in out


def test_bench_says_what_denormals_as_zeros_would_gain(tmp_path, capsys, monkeypatch):
    """Subnormal activations: no weight is one, so nothing can be flushed."""
    from onnx_repfuse.pipeline import benchmark

    quick = partial(benchmark.measure_as_zero, seconds=0.2)
    monkeypatch.setattr(benchmark, "measure_as_zero", quick)
    monkeypatch.setattr(benchmark, "_MAX_ROUNDS", 8)
    net = Net(16, shape=(1, 16, 24, 24))
    weight = np.random.default_rng(0).uniform(0.5, 1.5, (16, 16, 3, 3))
    y = net.op(
        "Conv", net.op("Mul", "x", net.const(1e-39 * 2**20)), net.const(weight * 2.0**-20), pads=[1] * 4
    )
    onnx.save(net.model(net.op("Relu", y)), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(["m.onnx", "--bench", "--no-check", "--keep", "*", "--json", "r.json"]) == 0
    gain = json.loads(Path("r.json").read_text())["bench"]["as_zero"]
    assert gain["median"] > 2
    assert "it computes with subnormal numbers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        ((1.50, 1.20, 1.90), "faster"),
        ((1.50, 0.99, 1.90), "equal"),  # a quarter of the rounds or more says otherwise
        ((1.01, 1.005, 1.02), "equal"),  # nobody would notice
        ((1.00, 1.00, 1.00), "equal"),
        ((0.99, 0.98, 0.995), "equal"),
        ((0.80, 0.70, 1.01), "equal"),
        ((0.80, 0.70, 0.99), "slower"),
    ],
)
def test_the_word_of_a_bench_is_honest(ratio, word):
    assert Bench((1, 1, 1), (1, 1, 1), ratio, 9, 1, {}).word == word


def test_bench(model, capsys, monkeypatch):
    from onnx_repfuse.pipeline import benchmark

    monkeypatch.setattr(benchmark, "_MAX_ROUNDS", 8)
    assert main(["net.onnx", "--bench", "--threads", "2", "--provider", "cpu", "--json", "r.json"]) == 0
    out = capsys.readouterr().out
    assert "as fast" in out
    assert "Compared in ONNX Runtime (2 threads) on" in out
    report = json.loads(Path("r.json").read_text())
    found = report["bench"]
    assert f"Latency: {found['word'].upper()}. " in out
    assert f"{found['warm_up']} runs to warm up, 8 interleaved rounds, 2 threads" in out
    assert found["warm_up"] >= 3
    for part in (found, report["verification"]):
        assert (part["provider"], part["threads"]) == ("CPUExecutionProvider", 2)
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    assert found["rounds"] == 8


@pytest.mark.parametrize("error", [InputError("it is gone"), OSError(28, "No space left"), MemoryError()])
def test_a_measurement_that_fails_does_not_hide_that_the_model_was_written(model, capsys, monkeypatch, error):
    def fail(*given):
        raise error

    monkeypatch.setattr("onnx_repfuse.cli.task._bench", fail)
    assert main(["net.onnx", "--bench"]) == 0
    out, err = capsys.readouterr()
    assert "written, but not measured further" in out
    assert err == ""
    assert Path("net.fused.onnx").exists()


def test_help_version_kinds(capsys):
    assert main(["--help"]) == 0
    assert "Exit codes" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("onnx-repfuse 0.")
    assert main(["--list-kinds"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(kind) for kind in Kind]


def test_help_has_every_option_in_its_group(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    begins = [out.index(f"\n{title}:\n") for title in GROUPS.values()]
    assert begins == sorted(begins)
    for (group, title), end in zip(GROUPS.items(), [*begins[1:], len(out)], strict=True):
        section = out[out.index(f"\n{title}:\n") : end]
        for _, option in declared():
            assert (f"\n  {option.flags[0].split('/')[0]}" in section) == (option.table == group)


@pytest.mark.parametrize(
    ("words", "last", "found"),
    [
        ("onnx-repfuse --fail-on-rem", 1, ["plain,--fail-on-remaining"]),
        ("onnx-repfuse net.onnx --skip af", 3, ["plain,affine"]),
        ("onnx-repfuse net.onnx --only affine,pa", 3, ["plain,affine,pad"]),
        ("onnx-repfuse net.onnx --avoid batchno", 3, ["plain,BatchNormalization"]),
        ("onnx-repfuse net.onnx -O ", 3, ["plain,1", "plain,2"]),
        ("onnx-repfuse ne", 1, ["file,ne"]),
        ("onnx-repfuse net.onnx --out-dir d", 3, ["dir,d"]),
    ],
)
def test_a_shell_completes_options_kinds_operators_and_files(monkeypatch, capsys, words, last, found):
    monkeypatch.setenv("_ONNX_REPFUSE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(last))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == found


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_line_of_the_documentation_gives_a_shell_its_completion(monkeypatch, capsys, name):
    page = (MODELS.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f"_ONNX_REPFUSE_COMPLETE={name}_source onnx-repfuse" in page
    monkeypatch.setenv("_ONNX_REPFUSE_COMPLETE", f"{name}_source")
    with pytest.raises(SystemExit):
        main([])
    assert f"_ONNX_REPFUSE_COMPLETE={name}_complete" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from onnx_repfuse.cli.main import main; main(['--help']); "
        "heavy = ('onnx', 'numpy', 'onnxruntime', 'onnx_graphsurgeon', 'joblib', 'rich'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=MODELS.parent)
    assert found.stdout.endswith("[]\n")


def test_pipe_is_plain_narrow_and_may_close(model):
    found = shell("net.onnx", env={"PYTHONIOENCODING": "ascii", "NO_COLOR": "1"})
    assert found.returncode == 0
    assert "\x1b" not in found.stdout
    narrow = shell("net.onnx", "again.onnx", env={"COLUMNS": "40", "NO_COLOR": "1"})
    assert [len(line) for line in narrow.stdout.splitlines()[:-1]] == [
        len(line) for line in found.stdout.splitlines()[:-1]
    ]
    assert max(map(len, found.stdout.splitlines())) <= 120
    assert found.stdout.isascii()
    forced = shell("net.onnx", env={"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "\x1b[3" not in forced.stdout
    command = f"'{sys.executable}' -m onnx_repfuse net.onnx --json - | head -1; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", command], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(MODELS.parent)})  # fmt: skip
    assert piped.stdout.splitlines() == ["{", "0"]
    assert piped.stderr == ""


def test_names_cannot_write_to_the_terminal(model, capsys):
    Path("evil\x1b[31m.onnx").write_bytes(b"junk")
    assert main(["evil\x1b[31m.onnx"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_usage_error_of_the_library_is_exit_2(model, capsys, monkeypatch):
    def refuse(*_, **__):
        raise UsageError("these options contradict each other")

    monkeypatch.setattr("onnx_repfuse.api.fuse", refuse)
    assert main(["net.onnx"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_suffix_names_the_output_and_makes_every_file_a_model(model):
    Path("two.onnx").write_bytes(model.read_bytes())
    assert main(["net.onnx", "--suffix", ".new", "-q"]) == 0
    assert main(["net.onnx", "two.onnx", "--suffix", "_x", "-q"]) == 0
    assert main(["net.onnx", "--suffix", ".y", "--out-dir", "d", "-q"]) == 0
    found = sorted(str(path) for path in Path().rglob("*.onnx"))
    assert found == ["d/net.y.onnx", "net.new.onnx", "net.onnx", "net_x.onnx", "two.onnx", "two_x.onnx"]


def test_the_table_of_a_batch_shows_operators_and_sizes_before_and_after(model, capsys):
    assert main(["net.onnx", "--out-dir", "d"]) == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "operators", "size", "MACs", "folds", "result"]
    assert "36 -> 8" in row
    assert re.search(r"61\.4 kB -> \d+\.\d kB", row)


def test_fail_on_folds_proves_and_writes_nothing(model, capsys):
    assert main(["net.onnx", "-o", "fused.onnx", "-q"]) == 0
    before = sorted(Path().iterdir())
    assert main(["net.onnx", "--plan", "--fail-on-folds", "--json", "-"]) == 4
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["left"], found["exit_code"], found["output"]) == (4, 4, None)
    assert found["verification"]["status"] == "passed"
    assert "4 folds are left to make" in err
    assert main(["fused.onnx", "--plan", "--fail-on-folds"]) == 0
    assert "nothing is left to fold" in capsys.readouterr().out
    assert sorted(Path().iterdir()) == before


def test_fail_on_folds_counts_other_changes_and_nothing_that_fails_its_proof(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = Net(2)
    onnx.save(net.model(net.op("Tanh", net.op("Identity", net.op("Relu", "x")))), "same.onnx")
    assert main(["same.onnx", "--plan", "--fail-on-folds"]) == 4
    assert "1 other change is left to make" in capsys.readouterr().err
    assert main(["same.onnx", "--plan", "--fail-on-folds", "--skip", "no-op"]) == 0


def test_without_fail_on_folds_the_report_has_no_count(model, capsys):
    assert main(["net.onnx", "--plan", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] is None


def piped(*words, given=b""):
    return subprocess.run(
        [sys.executable, "-m", "onnx_repfuse", *words], input=given, capture_output=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(MODELS.parent)},
    )  # fmt: skip


def test_a_model_goes_through_a_pipe(model):
    assert main(["net.onnx", "-o", "fused.onnx", "-q"]) == 0
    data = Path("fused.onnx").read_bytes()
    for words, given in (
        (["-"], model.read_bytes()),
        (["net.onnx", "-o", "-"], b""),
        (["net.onnx", "-"], b""),
    ):
        found = piped(*words, given=given)
        assert found.returncode == 0
        assert found.stdout == data
        assert b"Wrote to standard output" in found.stderr
    found = piped("-", "-o", "out.onnx", given=model.read_bytes())
    assert Path("out.onnx").read_bytes() == data
    assert b"Wrote out.onnx" in found.stdout
    assert found.stderr == b""
    assert sorted(path.name for path in Path().iterdir()) == ["fused.onnx", "net.onnx", "out.onnx"]
    planned = piped("-", "--plan", "--json", "-", given=model.read_bytes())
    assert json.loads(planned.stdout)["model"] == "-"
    assert piped("-", "--plan", given=model.read_bytes()).stdout.startswith(b"standard input\n")
    explained = piped("-", "--explain", onnx.load(model).graph.node[0].name, given=model.read_bytes())
    assert b"Forms considered" in explained.stdout
    assert piped("net.onnx", "-", "--compare", given=data).returncode == 0


def test_what_a_pipe_cannot_bring_or_take_is_one_sentence(model):
    found = piped("-")
    assert (found.returncode, found.stdout) == (1, b"")
    assert b"standard input is empty" in found.stderr
    found = piped("-", given=b"junk")
    assert (found.returncode, found.stdout) == (1, b"")
    assert found.stderr.count(b"\n") == 1
    onnx.save(
        onnx.load(model), "external.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    found = piped("-", "--plan", given=Path("external.onnx").read_bytes())
    assert found.returncode == 1
    assert b"does not come with a model from memory or standard input" in found.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_result_that_standard_output_does_not_take_is_exit_1(model):
    found = shell_line("net.onnx -o - > /dev/full")
    assert found.returncode == 1
    assert "cannot write to standard output" in found.stderr


def test_errors_come_after_the_report(model):
    found = shell_line("net.onnx --fail-on-remaining Relu 2>&1")
    assert found.returncode == 4
    lines = found.stdout.splitlines()
    assert lines[-1].startswith("onnx-repfuse: error: ")
    assert lines[-2].startswith("Wrote ")


@pytest.mark.skipif(shutil.which("script") is None, reason="no terminal to be had")
def test_on_a_terminal_no_model_is_written_and_none_is_awaited(model):
    for words, meant in (
        ("net.onnx -o -", "not written to a terminal"),
        ("- -o x.onnx", "no model is piped"),
    ):
        line = f"'{sys.executable}' -m onnx_repfuse {words}"
        found = subprocess.run(["script", "-qec", line, "/dev/null"], capture_output=True, text=True, timeout=60,
                               env={**os.environ, "PYTHONPATH": str(MODELS.parent)})  # fmt: skip
        assert found.returncode == 2
        assert meant in " ".join(found.stdout.split())
