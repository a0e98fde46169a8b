"""What `Report` and `Result` show, print and save."""

from __future__ import annotations

import hashlib
import json
import pickle
from importlib.resources import files
from pathlib import Path

import jsonschema
import onnx
import pytest

import onnx_repfuse
from onnx_repfuse import Options, OutputError, Report, VerificationError, fuse, plan
from onnx_repfuse.report.notebook import fragment
from tests.outcomes import EVIL, outcome

MODELS = Path(__file__).parents[2] / "models"
ACNET = MODELS / "acnet.train.onnx"
SCHEMA = json.loads(files("onnx_repfuse.report").joinpath("report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def result():
    return fuse(onnx.load(ACNET))


def test_reprs_are_one_short_line(result, tmp_path):
    assert repr(result.report) == "<Report: 4 folds, 36 -> 8 nodes, passed>"
    assert repr(result) == "<Result 'in memory' of <Report: 4 folds, 36 -> 8 nodes, passed>>"
    assert repr(plan(ACNET)) == f"<Report {str(ACNET)!r}: 4 folds, 36 -> 8 nodes, planned>"
    written = fuse(MODELS / "acnet.deploy.onnx", tmp_path / "o.onnx")
    assert repr(written).startswith(f"<Result {str(tmp_path / 'o.onnx')!r} of <Report ")
    assert "0 folds" in repr(written)


def test_summaries_say_where_the_model_is(result, tmp_path):
    assert "In memory (" in result.summary().splitlines()[-1]
    assert "PASSED" in result.summary()
    assert "Folds: 4" in result.report.summary()
    assert len(result.summary(verbose=True)) > len(result.summary())
    assert plan(ACNET).summary().splitlines()[-1] == "Planned only: nothing was written."
    assert f"Wrote {tmp_path / 'o.onnx'}" in fuse(ACNET, tmp_path / "o.onnx").summary().replace("\n", " ")


def test_notebooks_show_a_fragment(result):
    page = result._repr_html_()
    assert page == result.report._repr_html_()
    assert page.startswith("<div>")
    assert "model in memory" in page
    assert ">passed</strong>" in page
    assert "Folds: 4 (branches 4)" in page
    assert "BatchNormalization" in page
    assert "<script" not in page
    assert ">planned</strong>" in plan(ACNET)._repr_html_()


def test_no_name_is_taken_for_html():
    page = fragment(outcome())
    assert EVIL not in page
    assert "<script" not in page
    assert "<img" not in page


def test_reports_are_saved(result, tmp_path):
    result.save_json(tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(saved, SCHEMA)
    assert (saved["command"], saved["output"], saved["exit_code"]) == ("fuse", None, 0)
    assert saved["version"] == onnx_repfuse.__version__
    assert len(saved["folds"]) == 4
    result.save_html(tmp_path / "r.html")
    assert "model in memory" in (tmp_path / "r.html").read_text(encoding="utf-8")
    planned = plan(ACNET)
    planned.save_json(tmp_path / "p.json")
    saved = json.loads((tmp_path / "p.json").read_text())
    jsonschema.validate(saved, SCHEMA)
    assert (saved["command"], saved["model"]) == ("plan", str(ACNET))


def saved_files(report, place):
    """Role -> SHA-256 of the files that a saved report tells."""
    report.save_json(place)
    saved = json.loads(place.read_text())
    jsonschema.validate(saved, SCHEMA)
    assert saved["environment"]["versions"]["onnx"] == onnx.__version__
    return {file["role"]: file["sha256"] for file in saved["environment"]["files"]}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_saved_reports_tell_the_environment_of_the_run(result, tmp_path):
    """As those of the command line do; the page, too."""
    place, output = tmp_path / "r.json", tmp_path / "o.onnx"
    written = fuse(ACNET, output, Options(skip=frozenset({"pool"})))
    assert saved_files(written, place) == {"input": sha256(ACNET), "output": sha256(output)}
    assert json.loads(place.read_text())["environment"]["options"] == {"skip": "pool"}
    written.save_html(tmp_path / "r.html")
    assert sha256(output) in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert saved_files(plan(ACNET), place) == {"input": sha256(ACNET)}
    assert saved_files(result, place) == {}


def test_a_file_that_changed_since_has_no_digest(tmp_path):
    place, model, output = tmp_path / "r.json", tmp_path / "m.onnx", tmp_path / "o.onnx"
    model.write_bytes(ACNET.read_bytes())
    report = fuse(model, output).report
    model.write_bytes(b"another")
    output.unlink()
    assert saved_files(report, place) == {}


def test_the_digest_of_an_input_that_was_replaced_is_that_of_before(tmp_path):
    model = tmp_path / "m.onnx"
    model.write_bytes(ACNET.read_bytes())
    report = fuse(model, model, in_place=True).report
    assert saved_files(report, tmp_path / "r.json") == {"input": sha256(ACNET), "output": sha256(model)}


def test_a_report_replaces_no_model(result, tmp_path):
    (tmp_path / "net.onnx").write_bytes(ACNET.read_bytes())
    for save in (result.save_html, result.report.save_json):
        with pytest.raises(OutputError, match="no report"):
            save(tmp_path / "net.onnx")
        with pytest.raises(OutputError, match="cannot write"):
            save(tmp_path / "missing" / "r.txt")
    assert (tmp_path / "net.onnx").read_bytes() == ACNET.read_bytes()


def test_the_report_of_a_failure_shows_itself(monkeypatch):
    failed = onnx_repfuse.Verification()
    monkeypatch.setattr(
        "onnx_repfuse.verifier.outputs.compare.compare_with_baseline", lambda *_, **__: failed
    )
    with pytest.raises(VerificationError) as caught:
        fuse(ACNET)
    report = caught.value.report
    assert isinstance(report, Report)
    assert repr(report).endswith("failed>")
    assert "FAILED: nothing was written" in report.summary()


def test_reports_are_pickled(result):
    again = pickle.loads(pickle.dumps(result.report))
    assert again == result.report
    assert isinstance(again, Report)
