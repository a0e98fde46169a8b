"""The environment of a run in its reports."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from onnx_repfuse import __version__
from onnx_repfuse.cli.main import main
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.environment import digest, environment

MODEL = Path(__file__).parents[2] / "models" / "acnet.train.onnx"


def test_only_options_that_were_chosen_are_told():
    assert environment(Options()).options == {}
    chosen = Options(
        skip=frozenset({"pool", "affine"}),
        check=False,
        input_shapes={"x": (1, 3)},
        input_data=(("x", Path("x.npy")),),
    )
    assert environment(chosen).options == {
        "skip": "affine, pool", "check": "no", "input_shapes": "x:1,3", "input_data": "x, x.npy"
    }  # fmt: skip


def test_a_digest_is_that_of_sha256sum(tmp_path):
    file = tmp_path / "large"
    file.write_bytes(b"abc" * 1_000_000)
    found = digest("input", file)
    assert found is not None
    assert (found.bytes, found.sha256) == (3_000_000, hashlib.sha256(b"abc" * 1_000_000).hexdigest())
    assert digest("input", tmp_path / "none") is None


def test_reports_tell_the_files_as_they_were_before_and_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODEL, "net.onnx")
    assert main(["net.onnx", "--in-place", "--json", "report.json", "-q"]) == 0
    told = json.loads(Path("report.json").read_text(encoding="utf-8"))["environment"]
    now = Path("net.onnx").read_bytes()
    assert [(file["role"], file["sha256"]) for file in told["files"]] == [
        ("input", hashlib.sha256(MODEL.read_bytes()).hexdigest()),
        ("output", hashlib.sha256(now).hexdigest()),
    ]
    assert {"python", "onnx"} <= told["versions"].keys()
    assert told["versions"]["onnx-repfuse"] == __version__  # also where it is run from its sources
    assert told["date"].endswith("+00:00")
