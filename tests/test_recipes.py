"""The recipes are complete, and their hooks and the GitHub Action call the command line as it is. None is run here."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
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


def test_nobodys_text_becomes_part_of_the_actions_scripts():
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    scripts = re.findall(r"run: ?\|?\n?(.*?)(?=\n    - |\Z)", text, re.DOTALL)
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)
