"""Latency of a network as trained, of each tool's output, and of its author's deployed export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.exports import Model, ensure
from benchmarks.machine import describe
from benchmarks.race import against, race
from benchmarks.runtimes import RUNTIMES, feeds
from benchmarks.timing import spread
from benchmarks.tools import PEERS, measured

OURS, TRAINED, DEPLOYED = "ours", "as trained", "author's"


def run(
    models: list[Model],
    folder: Path,
    work: Path,
    *,
    exporters: tuple[str, ...] = ("ts", "dynamo"),
    threads: tuple[int, ...] = (1, 2),
    seconds: float = 12.0,
    peers: tuple[str, ...] = PEERS,
    runtimes: tuple[str, ...] = tuple(RUNTIMES),
) -> dict[str, Any]:
    """One row per model, exporter, runtime and number of threads."""
    rows = []
    for model in models:
        for exporter in exporters if model.family != "ocr" else ("ts",):
            files, errors = variants(model, folder, work, exporter, peers)
            for name in runtimes:
                for count in threads:
                    row = _row(files, model, name, count, seconds, errors)
                    rows.append({"model": model.name, "exporter": exporter, **row})
                    _say(rows[-1])
    return {"machine": describe(), "rows": rows}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a row."""
    return tuple(row.get(name) for name in ("model", "exporter", "runtime", "threads"))


def variants(
    model: Model, folder: Path, work: Path, exporter: str, peers: tuple[str, ...]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The files to compare, by name; and the tools that failed, with the reason."""
    trained = ensure(model, folder, "train", exporter)
    files, errors = {TRAINED: trained}, {}
    for tool in (*peers, OURS):
        target = work / f"{model.name}.{exporter}.{tool}.onnx"
        cost = measured(tool, trained, target)
        if cost.error:
            errors[tool] = cost.error
        else:
            files[tool] = target
    if model.family != "ocr":
        files[DEPLOYED] = ensure(model, folder, "deploy", exporter)
    return files, errors


def _row(
    files: dict[str, Path], model: Model, runtime: str, threads: int, seconds: float, errors: dict[str, str]
) -> dict[str, Any]:
    """Milliseconds of each file, and our time as a multiple of its time."""
    inputs = feeds(files[TRAINED], model.shape)
    clock = time.process_time if threads == 1 else time.perf_counter
    samples, failed = race(files, inputs, runtime, threads, seconds, clock)
    return {
        "runtime": runtime,
        "threads": threads,
        "rounds": len(next(iter(samples.values()))),
        "ms": {name: spread([1000 * value for value in values]) for name, values in samples.items()},
        "ours/": against(samples, OURS),
        "failed": {**errors, **failed},
    }


def _say(row: dict[str, Any]) -> None:
    parts = " ".join(f"{name} {value.median:.3f}" for name, value in row["ours/"].items() if name != OURS)
    head = f"{row['model']} {row['exporter']} {row['runtime']} x{row['threads']} {row['rounds']} rounds"
    print(
        f"{head}: ours {row['ms'].get(OURS, [0])[0]:.2f} ms; ours / {parts} {row['failed'] or ''}", flush=True
    )
