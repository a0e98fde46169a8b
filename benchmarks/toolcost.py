"""What the tools themselves cost: time and peak memory, as multiples of `onnx.load` + `onnx.save` of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.exports import Model, ensure
from benchmarks.machine import describe
from benchmarks.timing import ratios, spread
from benchmarks.tools import COMPARED, Cost, measured

BASE = "load+save"


def run(models: list[Model], folder: Path, work: Path, *, rounds: int = 5) -> dict[str, Any]:
    """One row per model: every tool in a process of its own, interleaved."""
    rows = []
    for model in models:
        source = ensure(model, folder, "train", "ts")
        costs: dict[str, list[Cost]] = {tool: [] for tool in COMPARED}
        for number in range(rounds):
            tools = list(COMPARED)
            for tool in (*tools[number % len(tools) :], *tools[: number % len(tools)]):
                if not any(cost.error for cost in costs[tool]):
                    costs[tool].append(measured(tool, source, work / "tool.out.onnx"))
        row = {"model": model.name, "megabytes": source.stat().st_size / 1e6, "tools": _summary(costs)}
        rows.append(row)
        for tool, runs in row["tools"].items():
            print(model.name, tool, runs, flush=True)
    return {"machine": describe(), "rows": rows}


def _summary(costs: dict[str, list[Cost]]) -> dict[str, dict[str, Any]]:
    good = {tool: runs for tool, runs in costs.items() if not any(cost.error for cost in runs)}
    result: dict[str, dict[str, Any]] = {
        tool: {"error": runs[-1].error} for tool, runs in costs.items() if tool not in good
    }
    seconds = {tool: [cost.seconds for cost in runs] for tool, runs in good.items()}
    peaks = {tool: [cost.peak for cost in runs] for tool, runs in good.items()}
    for tool in good:
        result[tool] = {
            "seconds": spread(seconds[tool]),
            "time": ratios(seconds, tool, BASE),
            "wall": spread([cost.wall for cost in good[tool]]),
            "peak": spread(peaks[tool]),
            "memory": ratios(peaks, tool, BASE),
            "imports": spread([cost.imports for cost in good[tool]]),
        }
    return result
