"""The JSON report: valid whatever the figures, stable, and documented key by key."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from onnx_repfuse.records.outcome import Outcome
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.report.json_report import SCHEMA, dumps
from tests.outcomes import outcome

DOCS = Path(__file__).parents[2] / "docs" / "json-schema.md"
FREE = {"ops", "shapes", "seconds"}  # their keys are names of the model's or of the run's


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


def test_every_key_is_documented_and_nothing_else():
    document = json.loads(dumps([outcome()], "1.2.3", many=False, exit_code=0))
    batch = json.loads(dumps([outcome()], "1.2.3", many=True, exit_code=0))
    described = set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert paths(document) | {"models"} == described
    assert set(batch) == {"schema", "tool", "version", "exit_code", "models"}
    assert paths(batch["models"][0]) == paths(document) - {"schema", "tool", "version"}
    assert f"schema {SCHEMA}" in DOCS.read_text(encoding="utf-8")


def test_no_number_that_json_lacks():
    for error in (float("inf"), float("-inf"), float("nan")):
        text = dumps([outcome(error=error, status=Status.FAILED)], "1", many=False, exit_code=3)
        document = json.loads(text, parse_constant=lambda name: 1 / 0)
        assert document["verification"]["outputs"][0]["max_abs"] == str(error)


def test_any_name_survives():
    name = 'caf\u00e9 \ud800 \x00 \U0001f600 " \\ </script>'
    text = dumps([replace(outcome(), model=name)], "1", many=False, exit_code=0)
    assert text.isascii()
    assert json.loads(text)["model"] == name


def test_an_error_has_all_keys_too():
    failed = Outcome("fuse", "net.onnx", exit_code=1, error="cannot be read")
    document = json.loads(dumps([failed], "1", many=False, exit_code=1))
    assert document.keys() == json.loads(dumps([outcome()], "1", many=False, exit_code=0)).keys()
    assert document["output"] is None
    assert document["verification"] is None
    assert document["counts"] is None
    assert document["folds"] == []


def test_plan_has_no_size_of_a_file_that_is_not_there():
    planned = replace(outcome(), command="plan", output="")
    document = json.loads(dumps([planned], "1", many=False, exit_code=0))
    assert document["counts"]["after"]["bytes"] is None
