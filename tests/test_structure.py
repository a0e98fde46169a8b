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
# What each room may import besides itself. There is no exception: a new arrow is a decision, made here.
VALUES = {"records", "errors"}
BELOW_LIFT = VALUES | {"algebra", "modelfile", "graph"}
MAY_IMPORT = {
    "records": {"errors"},
    "errors": {"records"},
    "options": VALUES,
    "algebra": VALUES,
    "modelfile": VALUES,
    "quiet_runtime": {"errors"},
    "graph": VALUES | {"algebra", "modelfile", "quiet_runtime"},
    "lift": BELOW_LIFT,
    "planner": BELOW_LIFT | {"lift", "options"},
    "verifier": VALUES | {"quiet_runtime"},
    "report": VALUES,
    "pipeline": BELOW_LIFT | {"lift", "planner", "verifier", "options"},
    "api": VALUES | {"report", "modelfile", "verifier", "pipeline", "options"},
    "serve": VALUES,
    "cli": BELOW_LIFT | {"lift", "planner", "verifier", "pipeline", "report", "options", "api", "serve"},
    "integrations": VALUES | {"api", "options"},
    # under TYPE_CHECKING only: see test_import_is_lazy
    "__init__": VALUES | {"algebra", "api", "options", "verifier"},
    "__main__": {"cli"},
}
# The floors of the planner, the lowest first: each imports from those before it only.
PLANNER = [
    "__init__",
    "weights",
    "forms",
    "pricing",
    "search",
    "limits",
    "folds",
    "rewrites",
    "flush",
    "cover_scope",
    "plan_scope",
    "predict",
]


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
    room = _module(path).split(".")[0]
    imported = {name.split(".")[0] for name in _own(path)}
    assert imported - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", sorted((PACKAGE / "planner").rglob("*.py")), ids=_module)
def test_the_planner_imports_downwards(path: Path) -> None:
    floor = PLANNER.index(_module(path).split(".")[1])
    imported = {name.split(".")[1] for name in _own(path) if name.startswith("planner.")}
    assert imported <= set(PLANNER[: floor + 1])


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


@pytest.mark.parametrize("module", ["planner.search.cover", "verifier.inputs", "pipeline.run"])
def test_modules_are_imported_by_their_full_name(module: str) -> None:
    code = f"import onnx_repfuse.{module} as m; from onnx_repfuse import plan, verify; plan.__code__, verify.__code__"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("room", ["", "planner"])
def test_tests_mirror_the_rooms(room: str) -> None:
    assert _folders(Path(__file__).parent / room) <= _folders(PACKAGE / room)


def _folders(path: Path) -> set[str]:
    return {inner.name for inner in path.iterdir() if inner.is_dir() and inner.name != "__pycache__"}


def test_import_is_lazy() -> None:
    code = (
        "import sys, onnx_repfuse, onnx_repfuse.cli.main\n"
        "print(*{'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'starlette', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
