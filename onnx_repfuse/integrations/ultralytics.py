"""Fusion as a callback of ultralytics' exporter: what `model.export(format="onnx")` writes is fused where it stands.

    from ultralytics import YOLO
    from onnx_repfuse.integrations.ultralytics import on_export_end

    model = YOLO("yolov8n.yaml")
    model.add_callback("on_export_end", on_export_end)
    model.export(format="onnx")

This module imports nothing of ultralytics.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx_repfuse.api import fuse
from onnx_repfuse.options import Options
from onnx_repfuse.records.report import Report

__all__ = ["on_export_end"]


def on_export_end(exporter: Any, options: Options | None = None) -> Report | None:
    """Fuse the ONNX file that an exporter has written, prove it, and put it in the file's place.

    Metadata, such as the names of classes, stay. For other options, give `functools.partial(on_export_end,
    options=Options(level=2))` to `add_callback`.

    Args:
        exporter: ultralytics' `Exporter`, which it hands to callbacks.
        options: see `Options`.

    Returns:
        The report; None if the export was to another format, and there is no ONNX file.

    Raises:
        InputError, OutputError, VerificationError: as `fuse` does; then the file is the one that was exported.
    """
    path = Path(exporter.file).with_suffix(".onnx")
    if str(exporter.args.format).lower() != "onnx" or not path.exists():
        return None
    with tempfile.TemporaryDirectory(prefix=".repfuse-", dir=path.parent) as folder:
        fused = Path(folder) / path.name
        report = fuse(path, fused, replace(options or Options(), external=False)).report
        os.replace(fused, path)
    return report
