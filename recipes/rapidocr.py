"""RapidOCR with fused models reads the same text.

rapidocr 3 compares the models in its wheel with known checksums and downloads those that differ, so the fused ones
stand elsewhere and are named: `RapidOCR(params={"Det.model_path": ...})`. Its predecessor rapidocr-onnxruntime takes
what is there: `onnx-repfuse -O2 --in-place` on its models would do. With arguments, those images are read.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import rapidocr
import rapidocr_onnxruntime
from PIL import Image, ImageDraw, ImageFont

import onnx_repfuse
from recipes.outcome import came_out

ROUNDS = 5
LINES = ("Fused models read the same text", "Invoice 2024-117, total 1,299.50", "https://example.org/a?b=c#d")
Read = Callable[[Any], list[str]]


def fuse(path: Path, output: Path) -> str:
    """Fuse one model at -O2; what it gained."""
    report = onnx_repfuse.fuse(path, output, onnx_repfuse.Options(level=2)).report
    assert report.verification
    return f"{path.stem}: {report.before.nodes} -> {report.after.nodes} nodes, {report.verification.status}"


def reader(models: dict[str, Path]) -> Read:
    """rapidocr, with these models."""
    engine = rapidocr.RapidOCR(
        params={"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
        | {f"{task}.model_path": str(path) for task, path in models.items()}
    )
    return lambda image: list(engine(image).txts or ())


def old_reader(models: dict[str, Path]) -> Read:
    """rapidocr-onnxruntime, with these models."""
    engine = rapidocr_onnxruntime.RapidOCR(
        intra_op_num_threads=1, **{f"{task.lower()}_model_path": str(path) for task, path in models.items()}
    )
    return lambda image: [line[1] for line in engine(image)[0] or ()]


def drawn() -> Any:
    """A picture of some lines of text."""
    image = Image.new("RGB", (760, 60 + 70 * len(LINES)), "white")
    for number, line in enumerate(LINES):
        ImageDraw.Draw(image).text((30, 40 + 70 * number), line, "black", ImageFont.load_default(size=32))
    return np.array(image)[..., ::-1]  # as OpenCV has it


def measure(before: Read, after: Read, image: Any) -> float:
    """The time of `after` divided by that of `before`, in turns: the median of the rounds' ratios."""
    ratios = []
    for _ in range(ROUNDS):
        seconds = []
        for read in (before, after):
            start = time.perf_counter()
            read(image)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def compare(
    name: str, make: Callable[[dict[str, Path]], Read], models: dict[str, Path], images: dict[str, Any]
) -> None:
    """Read the images with the models of a wheel and with the fused ones."""
    before = make(models)
    with tempfile.TemporaryDirectory() as folder:
        fused = {task: Path(folder) / path.name for task, path in models.items()}
        for task, path in models.items():
            print(f"  {fuse(path, fused[task])}", flush=True)
        after = make(fused)
        lines = 0
        for label, image in images.items():
            expected = before(image)
            found = after(image)
            print(
                f"  {label}: {len(expected)} lines, {'the same text' if found == expected else 'OTHER TEXT'}"
            )
            assert found == expected, (expected, found)
            lines += len(expected)
        ratio = measure(before, after, next(iter(images.values())))
    where = "one image" if len(images) == 1 else f"{len(images)} images"
    sentence = f"{len(models)} models fused with `-O2` read the same {lines} lines in {where}"
    came_out("rapidocr", (name, "onnxruntime"), f"{sentence}, in {ratio:.2f} of the time")


def main(paths: list[str]) -> None:
    """Compare both packages on the images given, or on one that is drawn."""
    images: dict[str, Any] = {Path(path).name: path for path in paths} or {"drawn": drawn()}
    print(f"ONNX Runtime {ort.__version__}")
    folder = Path(rapidocr.__file__).parent / "models"
    tasks = {"Det": "*_det_*.onnx", "Cls": "*_cls_*.onnx", "Rec": "*_rec_*.onnx"}
    compare("rapidocr", reader, {task: next(folder.glob(glob)) for task, glob in tasks.items()}, images)
    folder = Path(rapidocr_onnxruntime.__file__).parent / "models"
    models = {task: next(folder.glob(glob)) for task, glob in tasks.items()}
    compare("rapidocr-onnxruntime", old_reader, models, images)


if __name__ == "__main__":
    main(sys.argv[1:])
