"""The recipes are complete, and their hooks and the GitHub Action call the command line as it is. None is run here."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from onnx_repfuse.cli.main import main
from recipes import RECIPES

ROOT = Path(__file__).parent.parent
HOOKS = dict(
    re.findall(
        r"- id: (\S+)\n.*?\n  entry: ([^\n]+)", (ROOT / ".pre-commit-hooks.yaml").read_text(), re.DOTALL
    )
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model that has training branches, and one that has none."""
    for stem in ("acnet.train", "repvgg.deploy"):
        shutil.copy(ROOT / "models" / f"{stem}.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_script_and_is_documented(name):
    tree = ast.parse((ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    assert f"| `{name}` |" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_gate_fails_on_training_branches_alone(folder, capsys):
    program, *arguments = shlex.split(HOOKS["onnx-repfuse-gate"])
    assert program == "onnx-repfuse"
    before = sorted(folder.iterdir())
    assert main([*arguments, "acnet.train.onnx", "repvgg.deploy.onnx"]) == 4
    assert main([*arguments, "acnet.train.onnx"]) == 4  # pre-commit may give one
    assert main([*arguments, "repvgg.deploy.onnx"]) == 0
    assert sorted(folder.iterdir()) == before
    assert "acnet.train.onnx" in capsys.readouterr().out


ACTION = (ROOT / "action.yml").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"run: ?\|?\n?(.*?)(?=\n    - |\Z)", ACTION, re.DOTALL)


def test_nobodys_text_becomes_part_of_the_actions_scripts():
    assert len(SCRIPTS) == 2
    assert not any("${{" in script for script in SCRIPTS)


@pytest.mark.parametrize(
    ("mode", "models", "options", "code", "words"),
    [
        ("gate", "acnet.*.onnx", "", 0, "acnet.train.onnx --plan --fail-on-folds --out-dir fused --json r.json"),
        ("fuse", "**/*.onnx", "-O2", 0, "acnet.train.onnx repvgg.deploy.onnx --out-dir fused --json r.json -O2"),
        ("fuse", "a.onnx\n b.onnx", "--keep 'a b/*'", 0, "a.onnx b.onnx --out-dir fused --json r.json --keep 'a b/*'"),
        ("gate", "$(touch owned);", "$(touch owned)", 0,
         "'$(touch' 'owned);' --plan --fail-on-folds --out-dir fused --json r.json '$(touch' 'owned)'"),
        ("gate", "no*.onnx", "", 2, ""),
        ("fold", "*.onnx", "", 2, ""),
    ],
)  # fmt: skip
def test_the_actions_script_gives_the_command_what_was_asked(folder, mode, models, options, code, words):
    """As GitHub's runner runs it, with a command that prints its arguments."""
    command = folder / "bin" / "onnx-repfuse"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n", encoding="utf-8")
    command.chmod(0o755)
    (folder / "step.sh").write_text(textwrap.dedent(SCRIPTS[1]), encoding="utf-8")
    given = {"MODE": mode, "MODELS": models, "OPTIONS": options, "OUT_DIR": "fused", "REPORT": "r.json"}
    given["PATH"] = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "step.sh"]
    ran = subprocess.run(shell, cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.splitlines()) == (code, shlex.split(words))
    assert bool(ran.stderr) == bool(code)
    assert not (folder / "owned").exists()
