"""Polygraphy compares a fused model with the original: `polygraphy run`, with inputs and outputs that it saved."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import onnx_repfuse
from recipes.outcome import came_out

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("repvgg", "mobileone", "fastvit", "repvit", "acnet")


def polygraphy(*arguments: str) -> str:
    """What a command of it prints; raises where it fails, as it does where outputs differ."""
    ran = subprocess.run(["polygraphy", *arguments], check=True, capture_output=True, text=True)
    return ran.stdout


def main() -> None:
    """Fuse, and let Polygraphy compare."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem in NAMES:
            original, fused = MODELS / f"{stem}.train.onnx", folder / f"{stem}.onnx"
            onnx_repfuse.fuse(original, fused)
            saved = [str(folder / "inputs.json"), str(folder / "outputs.json")]
            shape = ["--onnxrt", "--input-shapes", "input:[2,3,64,64]"]
            polygraphy("run", str(original), *shape, "--save-inputs", saved[0], "--save-outputs", saved[1])
            loaded = ["--load-inputs", saved[0], "--load-outputs", saved[1], "--rtol", "0", "--atol", "1e-4"]
            told = polygraphy("run", str(fused), *shape, *loaded)
            needed = max(map(float, re.findall(r"elemwise error \| \[abs=([-+.e\d]+)\]", told)))
            worst = max(worst, needed)
            print(f"  {stem}: PASSED, absolute tolerance needed {needed:.2g}", flush=True)
            assert "Pass Rate: 100.00%" in told
    came_out(
        "polygraphy",
        ("polygraphy", "onnxruntime"),
        f"`polygraphy run` passes {len(NAMES)} fused models against their originals; the largest absolute tolerance "
        f"needed was {worst:.1e}",
    )


if __name__ == "__main__":
    main()
