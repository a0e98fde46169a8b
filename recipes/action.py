"""The GitHub Action in `action.yml`: its steps, run by bash as GitHub's runner would with the same inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from recipes.outcome import came_out

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
INSTALLED: list[str] = []  # scripts that ran; the first installs, once for all


def run(folder: Path, **given: str) -> int:
    """The exit code of the first step that fails, or 0."""
    inputs = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()}
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    assert inputs.keys() == ACTION["inputs"].keys()
    for step in ACTION["runs"]["steps"]:
        if "uses" in step:  # sets up a Python; the recipe's own stands for it
            continue
        if "pip install" in step["run"] and INSTALLED:
            continue
        assert "${{" not in step["run"]  # nobody's text becomes part of a script
        variables = {name: _filled(value, inputs) for name, value in step["env"].items()}
        with tempfile.TemporaryDirectory() as name:
            script = Path(name) / "step.sh"
            script.write_text(step["run"], encoding="utf-8")
            command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
            ran = subprocess.run(
                command, cwd=folder, env={**os.environ, "CI": "true", **variables}, check=False
            )
        if ran.returncode:
            return ran.returncode
        INSTALLED.append(step["run"])
    (report,) = (_filled(output["value"], inputs) for output in ACTION["outputs"].values())
    assert (folder / report).stat().st_size
    return 0


def _filled(text: str, inputs: dict[str, str]) -> str:
    known = {"github.action_path": str(ROOT), **{f"inputs.{name}": value for name, value in inputs.items()}}
    return re.sub(r"\$\{\{ (\S+) \}\}", lambda found: known[found[1]], text)


def main() -> None:
    """Gate and fuse, with awkward names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets").mkdir()
        for stem in ("repvgg.train", "acnet.train"):
            shutil.copy(ROOT / "models" / f"{stem}.onnx", folder / "nets")
        assert run(folder, models="nets/*.onnx") == 4
        assert not (folder / "fused").exists()
        assert run(folder, models="nets/*.onnx", mode="fuse", options="-O2 --keep '/no such node*'") == 2
        assert run(folder, models="nets/**/*.onnx", mode="fuse", options="-O2 --quiet") == 0
        assert run(folder, models="fused/*.onnx", report="gate.json") == 0
        told = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
        assert told["exit_code"] == 0
        assert run(folder, models="none/*.onnx") == 2
        assert run(folder, models="$(touch owned) nets/*.onnx") == 1  # two words, and no such files
        assert not (folder / "owned").exists()
    came_out(
        "action",
        ("onnxruntime",),
        "its steps, run by bash: `gate` ends with exit code 4 on files with branches, `fuse` writes fused ones, which "
        "then pass `gate`",
    )


if __name__ == "__main__":
    main()
