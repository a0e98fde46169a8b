"""Networks of transformers with random weights, exported by optimum, fused, and run by optimum's ONNX Runtime class.

Nothing is loaded from a hub: each network is made from its configuration and saved in a folder, from which
`optimum-cli export onnx` exports it.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSemanticSegmentation
from transformers import (
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    LevitImageProcessor,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

import onnx_repfuse
from recipes.outcome import came_out
from recipes.settle import settle

CLASSES, MAPS = "image-classification", "semantic-segmentation"
RUNNERS = {CLASSES: ORTModelForImageClassification, MAPS: ORTModelForSemanticSegmentation}
NETWORKS: dict[str, tuple[str, Any, Any, Any]] = {
    "levit": (CLASSES, LevitForImageClassificationWithTeacher, LevitConfig(), LevitImageProcessor),
    "mobilenet_v2": (
        CLASSES,
        MobileNetV2ForImageClassification,
        MobileNetV2Config(),
        MobileNetV2ImageProcessor,
    ),
    "segformer": (MAPS, SegformerForSemanticSegmentation, SegformerConfig(), SegformerImageProcessor),
}
PICTURES = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def made(name: str, folder: Path) -> None:
    """Save a network with random weights and statistics."""
    _, network, config, processor = NETWORKS[name]
    torch.manual_seed(0)
    model = network(config)
    settle(model, PICTURES)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)


def main() -> None:
    """Export, fuse in the exported folder, and run."""
    rows = []
    for name, (task, *_) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as place:
            source, exported, fused = (Path(place) / part for part in ("source", "exported", "fused"))
            made(name, source)
            command = ["optimum-cli", "export", "onnx", "--model", str(source), "--task", task, str(exported)]
            subprocess.run(command, check=True, capture_output=True)
            fused.mkdir()
            for entry in exported.iterdir():
                if entry.suffix == ".json":
                    (fused / entry.name).write_bytes(entry.read_bytes())
            report = onnx_repfuse.fuse(exported / "model.onnx", fused / "model.onnx").report
            assert report.verification is not None
            verdict = report.verification.status
            networks = [RUNNERS[task].from_pretrained(folder) for folder in (exported, fused)]
            first, second = (network(pixel_values=PICTURES).logits for network in networks)
            moved = networks[0](pixel_values=torch.nextafter(PICTURES, torch.tensor(9.0))).logits
            difference, noise = (
                float((first - other).abs().max() / first.abs().max()) for other in (second, moved)
            )
            # random networks may be chaotic: then rounding alone shows
            assert difference <= max(4 * noise, 1e-5)
            before, after = report.before, report.after
            macs = f", MACs {after.macs / before.macs - 1:+.0%}" if before.macs and after.macs else ""
            nodes = f"{before.nodes} -> {after.nodes} nodes{macs}"
            row = f"{name}: {len(report.folds)} folds, {nodes}, {verdict}, logits differ by {difference:.0e} "
            row += f"({noise:.0e} when inputs move by one ulp)"
            print(f"  {row}", flush=True)
            rows.append(row)
    came_out("optimum", ("optimum-onnx", "transformers", "torch"), "; ".join(rows))


if __name__ == "__main__":
    main()
