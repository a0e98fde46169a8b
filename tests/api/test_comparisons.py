"""What `verify` and `compare` return: short words, pages and files of it."""

from __future__ import annotations

import json
import pickle

import jsonschema
import onnx
import pytest

import onnx_repfuse
from onnx_repfuse import Comparison, Verification, compare, fuse, verify
from tests.api.test_reports import ACNET, SCHEMA

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    block (float[N,1,H,W] x) => (float[N,1,H,W] y)
    <float[1,1,1,1] w = {2}, float[1,1,1,1] s = {SCALE}> { c = Conv(x, w)  m = Mul(x, s)  y = Add(c, m) }"""


def parsed(scale: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT.replace("SCALE", scale))


@pytest.fixture
def files(tmp_path):
    names = [str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]
    for name, scale in zip(names, ("0.5", "0.6"), strict=True):
        onnx.save(parsed(scale), name)
    return names


def test_reprs_are_one_short_line(files):
    alike, apart = parsed("0.5"), parsed("0.6")
    assert repr(verify(alike, alike)) == "<Verification: passed, 1 output>"
    assert repr(verify(alike, apart)) == "<Verification: failed, 1 output, 1 of them not passed>"
    assert repr(compare(alike, apart)) == "<Comparison: failed, 1 output, 1 of them not passed>"
    of_files = compare(*files, layers=True)
    words = "failed, 1 output, 1 of them not passed, they part at 'm' (Mul)"
    assert repr(of_files) == f"<Comparison {files[0]!r} and {files[1]!r}: {words}>"
    assert (
        repr(verify(files[0], alike))
        == f"<Verification {files[0]!r} and a model in memory: passed, 1 output>"
    )
    assert repr(fuse(ACNET).report.verification).endswith(": passed, 1 output, 4 folds>")


def test_notebooks_show_a_fragment(files):
    page = compare(*files, layers=True)._repr_html_()
    assert page.startswith("<div>")
    assert ">failed</strong>" in page
    assert files[1] in page
    assert "The first that diverges" in page
    assert "model in memory and model in memory" in verify(parsed("1"), parsed("1"))._repr_html_()


@pytest.mark.parametrize("call", [verify, compare])
def test_they_are_saved_as_the_command_line_saves_them(call, files, tmp_path):
    found = call(*files, atol=1e-9)
    found.save_json(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(saved, SCHEMA)
    assert (saved["command"], saved["model"], saved["output"]) == ("compare", *files)
    assert (saved["exit_code"], saved["error"]) == (3, "the two models differ")
    assert saved["verification"]["status"] == "failed"
    assert [file["role"] for file in saved["environment"]["files"]] == ["first", "second"]
    assert saved["environment"]["options"] == {"atol": "1e-09"}
    assert bool(saved["comparison"]["outputs"]) == (call is compare)
    found.save_html(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Environment" in page
    assert "SHA-256" in page
    assert "FAILED" in found.summary()


def test_models_in_memory_have_no_digests(tmp_path):
    found = compare(parsed("1"), parsed("1"))
    found.save_json(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(saved, SCHEMA)
    assert (saved["exit_code"], saved["environment"]["files"]) == (0, [])


def test_they_are_of_the_public_types_and_pickle(files):
    found = compare(*files)
    assert isinstance(found, Comparison)
    assert isinstance(found.verification, Verification)
    assert isinstance(verify(*files), Verification)
    assert isinstance(fuse(ACNET).report.verification, Verification)
    assert pickle.loads(pickle.dumps(found)) == found
    assert issubclass(onnx_repfuse.VerificationError, onnx_repfuse.RepfuseError)
