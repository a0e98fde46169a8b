"""The leaderboard: what is measured again, what counts as a loss, and its pages. Nothing is timed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import leaderboard, race
from benchmarks.board_pages import board_family, board_summary, board_text
from benchmarks.equality import Expected
from benchmarks.leaderboard import COLUMNS, GROUPS, Entry
from benchmarks.runtimes import feeds
from benchmarks.tools import Cost


def _model(path: Path, factor: float = 2.0) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    scalar = helper.make_tensor_value_info("s", TensorProto.INT64, [])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [], [factor])
    nodes = [
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "f"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value, scalar], [made], [weight])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A board of one file, whose tools and races are counted instead of run."""
    calls: dict[str, Any] = {"tools": [], "races": [], "version": "1", "error": ""}
    source = _model(tmp_path / "model.onnx")

    def tool(name: str, before: Path, target: Path, **_: object) -> Cost:
        calls["tools"].append(name)
        if name == "onnxsim":
            return Cost(0, 0, 0, 0, "it failed")
        target.write_bytes(before.read_bytes() + name.encode() * name.startswith("ours"))
        return Cost(1, 1, 1, 1)

    def raced(job: race.Job, *, timeout: float) -> dict[str, Any]:
        calls["races"].append(job)
        if calls["error"]:
            raise KeyboardInterrupt
        return {"ms": {}, "failed": {}, "again": {}}

    monkeypatch.setattr(leaderboard, "measured", tool)
    monkeypatch.setattr(leaderboard, "raced", raced)
    monkeypatch.setattr(leaderboard, "commit", lambda: calls["version"])
    monkeypatch.setattr(leaderboard, "versions", lambda: dict.fromkeys((*COLUMNS, "onnxruntime"), "1"))
    monkeypatch.setattr(leaderboard, "describe", dict)
    entry = Entry("net", GROUPS[0], (2, 3), lambda work: source, {"s": 7.0})
    monkeypatch.setattr(leaderboard, "entries", lambda: [entry])
    calls["run"] = lambda: list(
        leaderboard.run(tmp_path / "work", tmp_path / "results.jsonl", settings=(("onnxruntime", 1),))
    )
    calls["results"] = tmp_path / "results.jsonl"
    return calls


def test_a_second_run_measures_nothing(board: dict[str, Any]) -> None:
    assert len(board["run"]()) == len(COLUMNS)
    assert len(board["races"]) == 1
    assert board["run"]() == []


def test_a_stopped_run_goes_on_where_it_was(board: dict[str, Any]) -> None:
    board["error"] = "stopped"
    with pytest.raises(KeyboardInterrupt):
        board["run"]()
    with board["results"].open("a") as file:
        file.write('{"raced": "ne')  # a line that was cut short
    board["error"] = ""
    assert ["raced" in record for record in board["run"]()] == [True]


def test_a_new_commit_makes_ours_anew_and_races_only_what_changed(board: dict[str, Any]) -> None:
    board["run"]()
    board["tools"].clear()
    board["version"] = "2"
    board["run"]()
    assert board["tools"] == ["ours", "ours -O2", "ours"]
    assert len(board["races"]) == 1  # the bytes are the same


def test_what_another_rule_found_unequal_is_raced_again(board: dict[str, Any]) -> None:
    board["run"]()
    records = board["results"].read_text().splitlines()
    row = json.loads(records[-1])
    for failed, again in (({"onnxslim": "it crashed"}, 1), ({"onnxslim": "output 0 differs by 0.5"}, 2)):
        old = {key: value for key, value in row.items() if key != "equal"} | {"failed": failed}
        board["results"].write_text("\n".join([*records[:-1], json.dumps(old)]) + "\n")
        board["run"]()
        assert len(board["races"]) == again


def test_files_of_the_same_bytes_run_once(board: dict[str, Any]) -> None:
    (row,) = [record for record in board["run"]() if "raced" in record]
    (job,) = board["races"]
    assert job["same"] == {
        "onnxslim": "input",
        "onnxoptimizer": "input",
        "onnxscript": "input",
        "ours after onnxslim": "ours",
    }
    assert list(job["files"]) == ["input", "ours", "ours -O2"]
    assert row["failed"] == {"onnxsim": "it failed"}


def test_inputs_take_shapes_and_values_that_are_given(tmp_path: Path) -> None:
    x, s = feeds(_model(tmp_path / "model.onnx"), (2, 3), {"s": 7.0})
    assert (x.shape, s.shape, s.dtype, int(s)) == ((2, 3), (), np.int64, 7)


def test_an_unequal_file_is_not_raced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "confirmed", lambda *_: 1.5)
    files = {"input": _model(tmp_path / "a.onnx"), "peer": _model(tmp_path / "b.onnx", 3.0)}
    files |= {"onnxslim": _model(tmp_path / "d.onnx"), "ours": _model(tmp_path / "c.onnx", 2.0001)}
    job = {
        "files": {name: str(path) for name, path in files.items()},
        "same": {"twin": "ours", "shade": "peer"},
        "runtime": "onnxruntime",
        "threads": 1,
        "shape": [2, 3],
        "given": {"s": 7.0},
        "seconds": 0,
        "ours": ["ours"],
        "rivals": ["input", "onnxslim"],
    }
    result = json.loads(json.dumps(race.run(job)))
    assert set(result["ms"]) == {"input", "onnxslim", "ours", "twin"}
    assert set(result["failed"]) == {"peer", "shade"}
    assert "differs" in result["failed"]["peer"]


def test_outputs_may_differ_as_the_inputs_own_do(tmp_path: Path) -> None:
    """A threshold: of 1,000 pixels, eight are at it, and move with one unit in the last place of the image."""
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "one"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "g", [x], [y], [one])
    path = tmp_path / "steep.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)
    image = np.random.default_rng(1).uniform(-0.5, 0.5, 1000).astype(np.float32)
    image[:8] = 1
    expected = Expected(path, [image], "onnxruntime", 1)
    same = (image >= 1).astype(np.float32)
    few, many, wrong = same.copy(), same.copy(), same.copy()
    few[:4] = 0
    many[:200] = 1
    wrong[8] = 50
    assert not expected.unequal([same])
    assert not expected.unequal([few])
    assert not expected.unequal([same * np.float32(1.0005)])
    assert "output 0 differs by 1 of" in expected.unequal([many])
    assert "output 0 differs by 50 of" in expected.unequal([wrong])
    assert "differs by nan" in expected.unequal([same * np.float32(np.nan)])
    assert "shapes" in expected.unequal([same[1:]])


def test_an_output_that_is_all_noise_shows_none_but_large_differences(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["x", "one"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    path = tmp_path / "zero.onnx"
    graph = helper.make_graph(nodes, "g", [x], [y], [one])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path)
    expected = Expected(path, [np.ones(1000, np.float32)], "onnxruntime", 1)
    assert not expected.unequal([np.full(1000, 2e-7, np.float32)])
    assert "differs" in expected.unequal([np.full(1000, 1e-5, np.float32)])


def _row(name: str, factor: float, again: float = 0.0, threads: int = 1) -> dict[str, Any]:
    times = {"input": [2.0] * 3, "onnxslim": [2.0] * 3, "ours": [2 * factor] * 3, "ours -O2": [factor] * 3}
    return {
        "raced": name,
        "group": GROUPS[0],
        "runtime": "onnxruntime",
        "threads": threads,
        "commit": "abc",
        "machine": {"date": "today", "processor": "p", "load": 9.0, "versions": {"numpy": "2"}},
        "ms": times,
        "ours/": {"input": [factor] * 3, "onnxslim": [factor] * 3},
        "ours -O2/": {"input": [factor / 2] * 3, "onnxslim": [factor / 2] * 3},
        "failed": {"onnxsim": "a|b"},
        "again": {"ours -O2": {"onnxslim": again}} if again else {},
    }


def test_the_pages_show_every_row() -> None:
    rows = [
        _row("PP-OCR cls", 0.8) | {"commit": "abc, unchecked"},
        _row("net", 2.2, 1.08),
        _row("lucky", 2.2, 1.01),
    ]
    rows.append({**_row("dead", 1.0), "error": "exit code -11"})
    assert (
        f"| ONNX Runtime, 1 thread | 3 of {len(leaderboard.entries())} | 1.57 | 0.79 | 1.57 | 0.79 | 1 | 1 | 1 | 1 |"
        in board_summary(rows)
    )
    assert "| PP-OCR cls * | 2.0 | 0.80 | 0.40 | 0.40 |" in board_family(rows, "PP-OCR")
    assert "net" not in board_family(rows, "PP-OCR")
    text = board_text(rows)
    assert "### Shipped in packages" in text
    assert "| PP-OCR cls * | 2.00 |  | 1.00 |  |  | 0.80 | 0.40 |  | 0.80 | 0.40 |" in text
    assert "Our commit: abc." in text
    assert "Not run: OpenVINO, 1 thread; ONNX Runtime, 2 threads; OpenVINO, 2 threads." in text
    assert "### Not run\n\nPP-OCRv3 rec, English" in text
    assert "| net | ours -O2 | onnxslim | 1.100 | 1.080 |" in text
    assert "| lucky | ours -O2" not in text  # it did not show again
    assert "| dead | all | `exit code -11` |" in text
    assert "| net | onnxsim | `a/b` |" in text
