"""The hooks of `.pre-commit-hooks.yaml`, run by pre-commit itself in a repository made for it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import onnx_repfuse
from recipes.outcome import came_out

ROOT = Path(__file__).parent.parent


def git(folder: Path, *arguments: str) -> None:
    """Run git there."""
    identity = ["-c", "user.name=recipe", "-c", "user.email=recipe@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def hook(folder: Path, source: Path, name: str) -> tuple[int, str]:
    """Exit code and output of a hook over all files, as `pre-commit try-repo` runs it."""
    command = ["pre-commit", "try-repo", str(source), name, "--all-files", "--verbose"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr, flush=True)
    return ran.returncode, ran.stdout


def main() -> None:
    """The gate fails on a file with branches; the fixer fuses it; then both pass."""
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name) / "source", Path(name) / "work"
        # What pre-commit would clone: the files of this checkout, committed.
        kept = ["onnx_repfuse", "pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"]
        source.mkdir()
        for item in kept:
            (shutil.copytree if (ROOT / item).is_dir() else shutil.copy)(ROOT / item, source / item)
        folder.mkdir()
        for stem in ("repvgg.train", "repvgg.deploy", "acnet.train"):
            shutil.copy(ROOT / "models" / f"{stem}.onnx", folder)
        for place in (source, folder):
            git(place, "init")
            git(place, "add", ".")
            git(place, "commit", "-m", "files")
        code, told = hook(folder, source, "onnx-repfuse-gate")
        assert code == 1
        assert "exit code: 4" in told
        code, _ = hook(folder, source, "onnx-repfuse-fuse")
        assert code == 1  # it changed files, as fixers do
        git(folder, "add", ".")
        for fixed in ("onnx-repfuse-gate", "onnx-repfuse-fuse"):
            code, _ = hook(folder, source, fixed)
            assert code == 0
        assert not onnx_repfuse.plan(folder / "acnet.train.onnx").folds
    came_out(
        "precommit",
        ("pre_commit",),
        "`onnx-repfuse-gate` fails (exit code 4) on training branches, `onnx-repfuse-fuse` fuses them; both pass then",
    )


if __name__ == "__main__":
    main()
