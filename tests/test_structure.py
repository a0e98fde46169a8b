"""The shape of the package: one-way imports, a lazy and sorted public surface, files of one idea."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_repfuse

PACKAGE = Path(onnx_repfuse.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
VALUES = {"errors", "reasons", "options", "__init__"}
RECORDS = {"report.record", "report.outcome", "verify.verdict"}
EXCEPTIONS = {("graph.emit", "plan.lowering")}  # emit writes what lowering wrote down: its Step and Written
MAY = {
    "algebra": {"algebra"},
    "graph": {"algebra", "graph"},
    "plan": {"algebra", "graph", "plan"},
    "verify": {"verify"},
    "report": {"report"},
}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules a file imports, inside functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:
                full = PACKAGE.parent.joinpath(*module.split("."), alias.name)
                yield (
                    f"{module}.{alias.name}" if full.with_suffix(".py").exists() or full.is_dir() else module
                )


def _own(path: Path) -> set[str]:
    head = "onnx_repfuse."
    return {name.removeprefix(head) for name in _imports(path) if name.startswith(head)}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_go_one_way(path: Path) -> None:
    part = _module(path).split(".")[0]
    own = {name for name in _own(path) if name not in RECORDS and name.split(".")[0] not in VALUES}
    if part in MAY:
        wrong = {name for name in own if name.split(".")[0] not in MAY[part]}
        wrong -= {name for name in wrong if (_module(path), name) in EXCEPTIONS}
    elif part == "pipeline":
        wrong = own & {"api", "cli", "runs", "single"}
    elif part == "api":
        wrong = own & {"cli", "runs", "single"}
    else:
        wrong = own & {"cli"} if part != "__main__" else set()
    assert not wrong


@pytest.mark.parametrize("path", [f for f in FILES if _module(f).startswith("algebra")], ids=_module)
def test_algebra_imports_numpy_only(path: Path) -> None:
    foreign = {name.split(".")[0] for name in _imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "onnx_repfuse"}


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_files_hold_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names() -> None:
    assert onnx_repfuse.__all__ == sorted(onnx_repfuse.__all__)
    for name in onnx_repfuse.__all__:
        assert getattr(onnx_repfuse, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = onnx_repfuse.nonsense


@pytest.mark.parametrize("first", ["onnx_repfuse", "onnx_repfuse.plan.cover", "onnx_repfuse.pipeline"])
def test_plan_is_the_function_whatever_was_imported_first(first: str) -> None:
    code = f"import {first}, onnx_repfuse as r; from onnx_repfuse import plan; assert r.plan is plan; plan.__code__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_is_lazy() -> None:
    code = (
        "import sys, onnx_repfuse, onnx_repfuse.cli\n"
        "print(*{'onnx', 'onnxruntime', 'onnx_graphsurgeon'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
