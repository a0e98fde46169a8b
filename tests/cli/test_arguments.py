"""The table of options: complete, and in agreement with the library."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest

from onnx_repfuse import Options, UsageError
from onnx_repfuse.cli.arguments import USELESS, CliArguments, declared, to_options
from onnx_repfuse.cli.contradictions import check

LIBRARY_PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def test_every_choice_of_the_library_is_one_option_with_the_same_default():
    names = [option.library for _, option in declared() if option.library]
    assert sorted(names) == sorted(entry.name for entry in fields(Options))
    assert to_options(CliArguments(("net.onnx",))) == Options()


def test_every_key_of_the_json_report_that_an_option_fills_exists():
    schema = json.loads(
        files("onnx_repfuse.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    )
    keys = {option.report for _, option in declared() if option.report}
    assert keys == {"bench", "gates", "left", "precision", "simplified", "verification"}
    assert keys <= schema["$defs"]["run"]["properties"].keys()


def test_the_library_page_names_every_choice():
    (row,) = [
        line
        for line in LIBRARY_PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `Options`")
    ]
    assert all(f"`{entry.name}`" in row for entry in fields(Options))


@pytest.mark.parametrize(
    ("name", "run"), [(entry.name, run) for entry, option in declared() for run in option.useless]
)
def test_an_option_that_a_run_has_no_use_for_is_refused(name, run):
    asked = {"fuse": {}, "compare": {"compare": True}, "explain": {"explain": "n"}, "plan": {"plan": True},
             "list_nodes": {"list_nodes": True},
             "fail_on_folds": {"plan": True, "fail_on_folds": True},
             "in_place": {"in_place": True}, "no_check": {"check": False}}[run]  # fmt: skip
    values = {"check": False, "jobs": 1, "threads": 2, "rtol": 0.1, "atol": 0.1, "output": "o", "out_dir": "d",
              "json_file": "j", "report_file": "r"}  # fmt: skip
    words = {"skip", "only", "keep", "fail_on_remaining"}
    value = ("pad",) if name in words else values.get(name, True)
    with pytest.raises(UsageError) as caught:
        check(
            CliArguments(("a.onnx", "b.onnx") if run == "compare" else ("a.onnx",), **{name: value}, **asked)
        )
    before, after = USELESS[run].split("{}")
    assert str(caught.value).startswith(before)
    assert str(caught.value).endswith(after)
