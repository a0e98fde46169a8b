"""Write the table of models/README.md from the files themselves. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import onnx

FORMS = ("train", "deploy", "train_dynamo", "deploy_dynamo")
COLUMNS = ("Conv", "BN", "Add", "Gemm", "Mul", "nodes")
_BEGIN, _END = "<!-- table -->", "<!-- end of table -->"


def counts(model: onnx.ModelProto) -> dict[str, int]:
    """Node counts of the main graph. Add includes Sub and Sum, Gemm includes MatMul; Constant nodes are not counted."""
    ops = Counter(node.op_type for node in model.graph.node)
    return {
        "Conv": ops["Conv"],
        "BN": ops["BatchNormalization"],
        "Add": ops["Add"] + ops["Sub"] + ops["Sum"],
        "Gemm": ops["Gemm"] + ops["MatMul"],
        "Mul": ops["Mul"],
        "nodes": len(model.graph.node) - ops["Constant"],
    }


def file_of(folder: Path, name: str, form: str) -> Path:
    return folder / f"{name}.{form}.onnx"


def table(folder: Path) -> str:
    """One row per network, one column per form: node counts and file size."""
    names = sorted({path.name.split(".")[0] for path in folder.glob("*.onnx")})
    rows = [["network", *(f"`{form}`" for form in FORMS)], ["---"] * (1 + len(FORMS))]
    rows += [[name, *(_cell(file_of(folder, name, form)) for form in FORMS)] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(path: Path) -> str:
    if not path.exists():
        return ""
    figures = " / ".join(str(figure) for figure in counts(onnx.load(path)).values())
    return f"{figures}, {path.stat().st_size / 1000:.0f} kB"


def update_readme(folder: Path) -> None:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"(?<={_BEGIN}\n).*(?=\n{_END})", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: table(folder), text), encoding="utf-8")
