"""What README.md shows works as it stands: its commands, its snippets, its links."""

from __future__ import annotations

import glob
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    part.strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    for part in line.split("&&")
    if re.match(r"(\.venv/bin/)?onnx-repfuse ", part.strip())
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that looks like the repository's root and may be written to."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_shows_commands_and_both_ci_blocks() -> None:
    assert len(COMMANDS) >= 5
    assert README.count("<!-- ci: main -->\n```sh\n") == README.count("<!-- ci: tests -->\n```sh\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, folder: Path) -> None:
    arguments = shlex.split(command, comments=True)[1:]
    arguments = [path for word in arguments for path in (sorted(glob.glob(word)) or [word])]
    run = [sys.executable, "-m", "onnx_repfuse", *arguments]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    if "-o" in arguments:
        assert (folder / arguments[arguments.index("-o") + 1]).stat().st_size > 0


@pytest.mark.parametrize("snippet", [block for language, block in BLOCKS if language == "python"])
def test_snippet(snippet: str, folder: Path) -> None:
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
