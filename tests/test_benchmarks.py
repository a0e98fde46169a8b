"""The arithmetic and the pages of the benchmarks. Nothing is timed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import calibrate
from benchmarks.fit import errors, nonnegative
from benchmarks.growth import channels_of
from benchmarks.pages import latency_text
from benchmarks.race import OPENINGS, turned
from benchmarks.summary import latency_summary, tools_summary
from benchmarks.synthetic import SHAPES, write
from benchmarks.timing import interleaved, ratios
from benchmarks.units import FEATURES, convolutions, operators_between
from onnx_repfuse.planner.pricing.cost import ORT_CPU
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.verifier.session import open_session


def test_prices_are_recovered_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(1, 1000, (40, 4))
    prices = np.array([3.0, 0.0, 20.0, 0.5])
    times = features @ prices
    assert nonnegative(features, times) == pytest.approx(prices, abs=1e-9)
    assert errors(features, times, prices) == pytest.approx(np.ones(40))
    assert (nonnegative(features, times * rng.uniform(0.5, 2, 40)) >= 0).all()


def test_every_price_of_the_model_is_measured() -> None:
    assert {*FEATURES} == {*vars(ORT_CPU)} - {"name"}
    billed = {name for case in (*convolutions(), *operators_between()) for name in case.model(1)[1]}
    assert billed == set(FEATURES)


@pytest.mark.parametrize(
    "group", dict.fromkeys(case.group for case in (*convolutions(), *operators_between()))
)
def test_units_keep_their_shape(group: str) -> None:
    case = next(case for case in (*convolutions(), *operators_between()) if case.group == group)
    model, bill = case.model(2)
    onnx.checker.check_model(model, full_check=True)
    assert bill == case.model(1)[1]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    assert given.shape == made.shape


def test_constants_are_written_where_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "cost.py"
    copy.write_text(calibrate.COST.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(calibrate, "COST", copy)
    prices = {name: index + 1 for index, name in enumerate(FEATURES)}
    machine = {"date": "2026-01-01", "processor": "a processor", "versions": {"onnxruntime": "9.9"}}
    calibrate.write_constants({"machine": machine, "prices": prices})
    text = copy.read_text(encoding="utf-8")
    assert "# Measured 2026-01-01 with onnxruntime 9.9 on a processor." in text
    names: dict[str, object] = {"__name__": "onnx_repfuse.planner.pricing.cost"}
    exec(compile(text, str(copy), "exec"), names)
    assert {name: getattr(names["ORT_CPU"], name) for name in FEATURES} == prices
    assert text.count("MACS = CostModel(") == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_synthetic_graphs_have_the_size_asked_for(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(shape, 100, 8, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert 90 <= len(model.graph.node) <= 110


def test_weights_have_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write("blocks", 80, channels_of(4), path)
    assert path.stat().st_size == pytest.approx(4e6, rel=0.1)


def test_functions_are_interleaved() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = interleaved(functions, seconds=0, fewest=3)
    assert [len(values) for values in samples.values()] == [3, 3]
    assert ratios({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 2.0]}, "a", "b").median == 2.0


def test_a_latency_row() -> None:
    times = {"as trained": [2.0, 1.9, 2.1], "onnxslim": [1.5, 1.5, 1.5], "ours": [1.0, 1.0, 1.0]}
    against = {"as trained": [0.5, 0.48, 0.52], "onnxslim": [0.667, 0.66, 0.67], "ours": [1, 1, 1]}
    row = {"model": "net", "exporter": "ts", "runtime": "onnxruntime", "threads": 1, "rounds": 9, "ms": times}
    machine = {"date": "today", "processor": "p", "versions": {}, "load": 0}
    text = latency_text(
        {"machine": machine, "rows": [{**row, "ours/": against, "failed": {"onnxsim": "no"}}]}
    )
    assert "### ONNX Runtime, 1 thread, legacy exporter" in text
    assert "| net | 2.00 |  | 1.50 |  |  | 1.00 |  | 0.500 ± 0.020 | 0.667 ± 0.005 |  |" in text
    assert "net, onnxsim: `no`" in text


def test_the_summary_shows_geometric_means_of_the_rows() -> None:
    def row(model: str, exporter: str, factor: float) -> dict[str, object]:
        against = {"as trained": [factor] * 3, "onnxslim": [2 * factor] * 3, "onnxsim": [factor] * 3}
        return {"model": model, "exporter": exporter, "runtime": "openvino", "threads": 2, "ours/": against}

    text = latency_summary({"rows": [row("a", "ts", 0.25), row("b", "ts", 1.0), row("a", "dynamo", 0.5)]})
    assert "| ours / as trained | OpenVINO, 2 threads |\n|---|---|\n| a | 0.25 |\n| b | 1.00 |" in text
    assert "| **geometric mean** | **0.50** |" in text
    assert "| OpenVINO, 2 threads, legacy exporter | 0.50 | 1.00 |  | 1 of 2 | 0 of 2 | 1 of 2 |" in text
    assert "| OpenVINO, 2 threads, dynamo exporter | 0.50 | 1.00 |  | 1 of 1 | 0 of 1 | 0 of 1 |" in text


def test_the_summary_leaves_out_a_tool_that_failed() -> None:
    costs = [{"ours": {"time": [factor], "memory": [1.0]}, "onnxsim": {"error": "no"}} for factor in (0.5, 2)]
    text = tools_summary({"rows": [{"tools": cost} for cost in costs]})
    assert "| ours | 1.00 | 1.00 | 2 of 2 |" in text
    assert "| onnxsim |  |  | 0 of 2 |" in text


def test_interleaved_sessions_do_not_wait_by_spinning(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write("blocks", 8, 4, path)
    with open_session(path, Runtime(threads=2).optimized()) as runner:
        options = runner.engine.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_each_opening_begins_with_another_file() -> None:
    names = ["as trained", "onnxsim", "ours", "author's"]
    orders = [turned(names, opening) for opening in range(OPENINGS)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({order[0] for order in orders}) == OPENINGS
