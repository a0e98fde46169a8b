"""Olive runs our pass in a workflow, before its own quantization, by its own command: `olive run`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnx

from recipes.outcome import came_out

ROOT = Path(__file__).parent.parent
WORKFLOW = Path(__file__).parent / "olive_workflow.json"


def olive(folder: Path, workflow: dict[str, object]) -> Counter[str]:
    """The operators of what a workflow writes."""
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    with (folder / "package.json").open("w") as file:
        subprocess.run([sys.executable, "-m", "onnx_repfuse.integrations.olive"], stdout=file, check=True)
    command = ["olive", "run", "--config", "workflow.json", "--package-config", "package.json"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"})
    (path,) = (folder / "out").rglob("*.onnx")
    shutil.rmtree(folder / "cache")
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def main() -> None:
    """The workflow beside this file, then fusion alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = shutil.copy(ROOT / "models" / "repvgg.train.onnx", folder / "model.onnx")
        before = Counter(node.op_type for node in onnx.load(model).graph.node)
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        quantized = olive(folder, workflow)
        print(before, quantized, sep="\n", flush=True)
        assert quantized["ConvInteger"] + quantized["Conv"] == 7
        assert quantized["BatchNormalization"] == 0
        shutil.rmtree(folder / "out")
        del workflow["passes"]["quantize"]
        fused = olive(folder, workflow)
        assert fused["Conv"] == 7
        assert fused["BatchNormalization"] == 0
    came_out(
        "olive",
        ("olive-ai", "onnxruntime", "torch"),
        f"`olive run` with the passes OnnxRepfuse and OnnxDynamicQuantization: {before['Conv']} Conv and "
        f"{before['BatchNormalization']} BatchNormalization became {quantized['ConvInteger']} ConvInteger; without the "
        f"quantization, {fused['Conv']} Conv",
    )


if __name__ == "__main__":
    main()
