"""YOLO, exported by ultralytics' own exporter with our callback at its end, and read again by ultralytics."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from ultralytics import YOLO

from onnx_repfuse.integrations.ultralytics import on_export_end
from onnx_repfuse.records.report import Report
from recipes.outcome import came_out
from recipes.settle import settle

NAMES = ("yolov8n", "yolov10n")  # from their descriptions, with random weights
SIZE = 320
PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def export(name: str) -> tuple[Report, str, str]:
    """The report, the file as it was exported, and the fused one in its place."""
    reports = []

    def callback(exporter: Any) -> None:
        shutil.copy(f"{name}.onnx", f"{name}.exported.onnx")  # to compare with; you need only `on_export_end`
        reports.append(on_export_end(exporter))

    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    settle(model.model, torch.rand(2, 3, SIZE, SIZE))
    model.add_callback("on_export_end", callback)
    path = model.export(format="onnx", imgsz=SIZE, verbose=False)
    (report,) = reports
    assert report is not None
    return report, f"{name}.exported.onnx", path


def metadata(path: str) -> dict[str, str]:
    """Classes, stride and the like, which ultralytics reads from the file."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def boxes(path: str) -> Any:
    """What ultralytics finds in a picture: rows of x1, y1, x2, y2, score, class."""
    (found,) = YOLO(path, task="detect").predict(PICTURE, imgsz=SIZE, conf=1e-6, verbose=False)
    return found.boxes.data.numpy()


def agreeing(expected: Any, found: Any) -> int:
    """How many of the boxes are in both: within a hundredth of a pixel, in score and in class."""
    if not len(found):
        return 0
    return sum(bool((np.abs(found - row).max(axis=1) < 1e-2).any()) for row in expected)


def main() -> None:
    """Export, fuse and predict with each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in NAMES:
            report, exported, fused = export(name)
            assert report.verification
            assert metadata(exported) == metadata(fused)
            expected, found = boxes(exported), boxes(fused)
            same = agreeing(expected, found)
            # Many scores of a random network round to 1, and of equal ones the first 300 are kept.
            assert same >= 0.9 * len(expected) > 0
            nodes = f"{report.before.nodes} -> {report.after.nodes} nodes"
            row = f"{name}: {len(report.folds)} folds, {nodes}, {same} of {len(expected)} boxes the same"
            print(f"  {row}", flush=True)
            rows.append(row)
        os.chdir(Path(__file__).parent)
    came_out("ultralytics", ("ultralytics", "torch"), "; ".join(rows))


if __name__ == "__main__":
    main()
