"""What is left to fold in the author's own re-parameterized export, and what it gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.exports import Model, ensure
from benchmarks.machine import describe
from benchmarks.runtimes import RUNTIMES, feeds
from benchmarks.timing import interleaved, ratios, spread


def run(model: Model, folder: Path, work: Path, exporters: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """One row per exporter and runtime, on one thread; none where nothing is left to fold. Every result is verified."""
    from onnx_repfuse import fuse

    rows = []
    for exporter in exporters if model.family != "ocr" else ():
        source = ensure(model, folder, "deploy", exporter)
        target = work / f"{model.name}.{exporter}.author.onnx"
        report = fuse(source, target).report
        before, after = report.before.ops, report.after.ops
        gone = {
            op: before.get(op, 0) - after.get(op, 0)
            for op in sorted({*before, *after} - {"Constant"})
            if before.get(op, 0) != after.get(op, 0)
        }
        inputs = feeds(source, model.shape)
        for runtime, opened in RUNTIMES.items() if report.folds or report.changes else ():
            files = {"author's": source, "ours": target}
            functions = {name: opened(path, inputs, 1) for name, path in files.items()}
            samples = interleaved(functions, seconds=seconds, fewest=15)
            row = {"model": model.name, "exporter": exporter, "runtime": runtime, "threads": 1, "gone": gone}
            row["ms"] = {name: spread([1000 * value for value in values]) for name, values in samples.items()}
            row["ratio"] = ratios(samples, "ours", "author's")
            print(row["model"], exporter, runtime, gone, row["ratio"], flush=True)
            rows.append(row)
    return {"machine": describe(), "rows": rows}
