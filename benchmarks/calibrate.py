"""Fit the prices `ORT_CPU` of `planner/pricing/cost.py` to measured latencies, and write them into that file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fit import errors, nonnegative
from benchmarks.machine import describe
from benchmarks.measure_units import measure
from benchmarks.units import FEATURES, convolutions, operators_between

COST = Path(__file__).parent.parent / "onnx_repfuse" / "planner" / "pricing" / "cost.py"
PICO = 1e12


def run(*, seconds: float = 0.25, passes: int = 3) -> dict[str, Any]:
    """Measure, fit, and compare with the package's present prices.

    Args:
        seconds: time spent on one case in one pass.
    """
    from onnx_repfuse.planner.pricing.cost import ORT_CPU

    rows = measure([*convolutions(), *operators_between()], seconds, passes)
    features = np.array([[row["bill"].get(name, 0) for name in FEATURES] for row in rows], dtype=np.float64)
    times = np.array([row["time"] * PICO for row in rows])
    prices = {name: max(1, round(p)) for name, p in zip(FEATURES, nonnegative(features, times), strict=True)}
    fitted = errors(features, times, np.array([prices[name] for name in FEATURES], dtype=np.float64))
    package = errors(
        features, times, np.array([getattr(ORT_CPU, name) for name in FEATURES], dtype=np.float64)
    )
    for row, new, old in zip(rows, fitted, package, strict=True):
        row["fitted"], row["package"] = float(new), float(old)
    print(" ".join(f"{name}={price}" for name, price in prices.items()))
    return {"machine": describe(), "prices": prices, "rows": rows}


def write_constants(result: dict[str, Any]) -> None:
    """Replace `ORT_CPU` and the comment above it."""
    machine = result["machine"]
    runtime = f"onnxruntime {machine['versions']['onnxruntime']}"
    lines = [
        f"# Measured {machine['date']} with {runtime} on {machine['processor']}.",
        "ORT_CPU = CostModel(",
        '    "ort-cpu",',
        *(f"    {name}={price:_}," for name, price in result["prices"].items()),
        ")",
    ]
    text = COST.read_text(encoding="utf-8")
    new, count = re.subn(r"# Measured .*?\n\)", lambda _: "\n".join(lines), text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{COST.name} has lost its markers")
    COST.write_text(new, encoding="utf-8")


def by_group(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows by their case's group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["group"], []).append(row)
    return groups
