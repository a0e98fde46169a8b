"""The JSON report: valid whatever the figures, stable, and documented key by key."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from onnx_repfuse.cli.main import main
from onnx_repfuse.pipeline import benchmark
from onnx_repfuse.records.outcome import Outcome
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.report.json_report import SCHEMA, dumps
from tests.outcomes import compared, outcome

SCHEMA_FILE = files("onnx_repfuse.report").joinpath("report.schema.json")
SCHEMA_TEXT = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
MODELS = Path(__file__).parents[2] / "models"
DOCS = MODELS.parent / "docs" / "json-schema.md"
# their keys are names of the model's or of the run's
FREE = {"ops", "shapes", "seconds", "top_k", "versions", "options"}


def paths(value, prefix=""):
    """Dotted paths of all keys; "[]" steps into a list."""
    found = set()
    if isinstance(value, dict):
        for key, item in value.items():
            path = f"{prefix}.{key}" if prefix else key
            found.add(path)
            if key not in FREE:
                found |= paths(item, path)
    elif isinstance(value, list):
        for item in value:
            found |= paths(item, f"{prefix}[]")
    return found


def report(*outcomes, exit_code=0):
    """The document of one outcome, or of several models; it satisfies the schema that is shipped."""
    document = json.loads(dumps(list(outcomes), "1.2.3", many=len(outcomes) > 1, exit_code=exit_code))
    jsonschema.Draft202012Validator(SCHEMA_TEXT).validate(document)
    return document


def test_every_key_is_described_and_nothing_else():
    """The table is made from the schema: see tests/doc_tables.py."""
    document, batch = report(outcome()), report(outcome(), outcome())
    described = set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert paths(document) | paths(report(compared())) | {"models"} == described
    assert set(batch) == {"schema", "tool", "version", "exit_code", "models"}
    assert paths(batch["models"][0]) == paths(document) - {"schema", "tool", "version"}


def test_the_schema_is_valid_and_lists_every_kind_and_reason():
    jsonschema.Draft202012Validator.check_schema(SCHEMA_TEXT)
    kinds = SCHEMA_TEXT["$defs"]["kind"]["examples"]
    reasons = SCHEMA_TEXT["$defs"]["run"]["properties"]["refusals"]["items"]["properties"]["reason"][
        "examples"
    ]
    assert kinds == [str(kind) for kind in Kind]
    assert reasons == [str(reason) for reason in Reason]
    assert SCHEMA_TEXT["$defs"]["head"]["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize("part", ["folds", "counts", "exit_code", "tool"])
def test_the_schema_refuses_a_report_without_a_key(part):
    document = report(outcome())
    del document[part]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA_TEXT).validate(document)


@pytest.mark.parametrize("words", [["--plan"], ["--no-check"], ["--bench"], ["--precision-study"],
                                   ["--fail-on-remaining", "Relu"], ["--compare"], ["missing"], ["many"]])  # fmt: skip
def test_reports_of_real_runs_satisfy_the_schema(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "_MAX_ROUNDS", 8)
    model = str(MODELS / "acnet.train.onnx")
    command = {
        "--compare": [model, model, "--compare"],
        "missing": ["missing.onnx"],
        "many": [model, "missing.onnx", "--out-dir", "out"],
    }.get(words[0], [model, "-o", "out.onnx", *words])
    main([*command, "--json", "report.json", "-q"])
    document = json.loads(Path("report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA_TEXT).validate(document)


def test_nan_and_infinity_are_strings():
    for error in (float("inf"), float("-inf"), float("nan")):
        text = dumps([outcome(error=error, status=Status.FAILED)], "1", many=False, exit_code=3)
        json.loads(text, parse_constant=lambda name: 1 / 0)
        document = report(outcome(error=error, status=Status.FAILED))
        assert document["verification"]["outputs"][0]["max_abs"] == str(error)


def test_any_name_is_valid_json():
    name = 'caf\u00e9 \ud800 \x00 \U0001f600 " \\ </script>'
    text = dumps([replace(outcome(), model=name)], "1", many=False, exit_code=0)
    assert text.isascii()
    assert json.loads(text)["model"] == name


def test_an_error_has_all_keys_too():
    failed = Outcome("fuse", "net.onnx", exit_code=1, error="cannot be read")
    document = report(failed)
    assert document.keys() == report(outcome()).keys()
    assert document["output"] is None
    assert document["verification"] is None
    assert document["counts"] is None
    assert document["folds"] == []


def test_plan_has_no_size_of_an_output_file():
    planned = replace(outcome(), command="plan", output="")
    assert report(planned)["counts"]["after"]["bytes"] is None
