"""What a type checker sees of the installed package: `typed_user.py` passes mypy's strict mode."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import onnx_repfuse

USER = Path(__file__).parent / "typed_user.py"


def mypy(folder: Path, source: str) -> str:
    """What mypy says of a program in an empty folder, where no settings of ours and no source of ours is."""
    (folder / "user.py").write_text(source, encoding="utf-8")
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), "user.py"]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300).stdout


def test_a_type_checker_knows_every_public_function(tmp_path):
    assert mypy(tmp_path, USER.read_text(encoding="utf-8")).startswith("Success")


def test_type_checkers_and_the_interpreter_import_the_same_names():
    """The imports under TYPE_CHECKING and the table of `__getattr__` name the same modules."""
    tree = ast.parse(Path(onnx_repfuse.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name: (node.module or "").removeprefix("onnx_repfuse.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnx_repfuse.")
        for alias in node.names
    }
    table = {name: module for module, names in onnx_repfuse._MODULES.items() for name in names}
    assert imported == table
    assert sorted(table) == onnx_repfuse.__all__
