"""Seconds of every unit, from chains of two lengths, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.timing import interleaved, spread
from benchmarks.units import Case

SHORT, LONG = 2, 8


def measure(cases: Iterable[Case], seconds: float, passes: int) -> list[dict[str, Any]]:
    """One row per case: the features of one unit and its time.

    The time is the smallest of the medians of several passes, far apart, because other load can only add time."""
    rows: list[dict[str, Any]] = []
    chosen = list(cases)
    for number in range(passes):
        for index, case in enumerate(chosen):
            time, bill = _time(case, seconds)
            if number == 0:
                rows.append({"group": case.group, "name": case.name, "bill": bill, "seconds": []})
            rows[index]["seconds"].append(time)
        print(f"pass {number + 1} of {passes}: {len(chosen)} cases", flush=True)
    for row in rows:
        row["time"] = min(row["seconds"])
    return [row for row in rows if row["time"] > 0]


def _time(case: Case, seconds: float) -> tuple[float, dict[str, float]]:
    shape = (1, case.channels, *[case.size] * case.rank) if case.rank else (case.size, case.channels)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    functions: dict[str, Callable[[], object]] = {}
    bill: dict[str, float] = {}
    for length in (SHORT, LONG):
        model, bill = case.model(length)
        functions[str(length)] = _session(model.SerializeToString(), x)
    samples = interleaved(functions, seconds=seconds, fewest=5)
    differences = [b - a for a, b in zip(samples[str(SHORT)], samples[str(LONG)], strict=True)]
    return spread(differences).median / (LONG - SHORT), bill


def _session(model: bytes, x: np.ndarray[Any, Any]) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})
