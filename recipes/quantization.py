"""ONNX Runtime's own quantizer after us: `quant_pre_process`, then `quantize_static` per tensor and per channel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnx_repfuse
from recipes.outcome import came_out

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("repvgg", "mobileone", "repvit")
Feed = dict[str, np.ndarray[Any, Any]]


def feeds(seed: int) -> Iterator[Feed]:
    """Random images; yours would be real ones."""
    rng = np.random.default_rng(seed)
    for _ in range(8):
        yield {"input": rng.standard_normal((1, 3, 32, 32), np.float32)}


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """What the quantizer measures ranges with."""

    def __init__(self) -> None:
        self.feeds = feeds(0)

    def get_next(self) -> Feed | None:
        """The next feed, or None."""
        return next(self.feeds, None)


def error(model: Path, original: Path) -> float:
    """The largest difference from the float original, relative to its largest output."""
    sessions = [
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (original, model)
    ]
    runs = [[session.run(None, feed)[0] for feed in feeds(1)] for session in sessions]
    expected, found = map(np.array, runs)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def quantizers(path: Path) -> int:
    """How many tensors are quantized."""
    return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def main() -> None:
    """Quantize each model as it is and fused, in both ways."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem in NAMES:
            original = MODELS / f"{stem}.train.onnx"
            fused, ready = folder / f"{stem}.fused.onnx", folder / f"{stem}.ready.onnx"
            report = onnx_repfuse.fuse(original, fused).report
            ratios = [node.range_ratio for fold in report.folds for node in fold.created if node.range_ratio]
            quant_pre_process(fused, ready)  # after us: it folds what ONNX Runtime folds, and infers shapes
            unfused = folder / f"{stem}.unfused.onnx"
            quant_pre_process(original, unfused)
            errors, counts = {}, []
            for source in (unfused, ready):
                for per_channel in (False, True):
                    target = folder / "int8.onnx"
                    quantize_static(source, target, Samples(), per_channel=per_channel)
                    errors[source is ready, per_channel] = error(target, original)
                counts.append(quantizers(target))
            assert counts[1] < counts[0]
            row = f"{stem}: {counts[0]} -> {counts[1]} quantizers, widest channel x{max(ratios):.2f}, error per tensor "
            row += f"{errors[False, False]:.3f} -> {errors[True, False]:.3f}, per channel "
            row += f"{errors[False, True]:.3f} -> {errors[True, True]:.3f}"
            rows.append(row)
            print(row, flush=True)
    came_out("quantization", ("onnxruntime", "onnx"), "unfused -> fused; " + "; ".join(rows))


if __name__ == "__main__":
    main()
