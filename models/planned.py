"""Write the table of docs/families.md: operators of the bundled exports before and after, as a dry run counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx_repfuse import plan

COLUMNS = {
    "Conv": ("Conv",),
    "BatchNormalization": ("BatchNormalization",),
    "Add, Sub": ("Add", "Sub"),
    "Gemm, MatMul": ("Gemm", "MatMul"),
}


def table(folder: Path) -> str:
    """The table as Markdown."""
    heads = ["model", *COLUMNS, "all nodes"]
    rows = [heads, ["---"] * len(heads), *(_row(path) for path in sorted(folder.glob("*.train.onnx")))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(path: Path) -> list[str]:
    report = plan(path)
    before, after = report.before, report.after
    cells = [_change(_sum(before.ops, ops), _sum(after.ops, ops)) for ops in COLUMNS.values()]
    return [path.name.split(".")[0], *cells, _change(before.nodes, after.nodes)]


def _sum(counts: Mapping[str, int], ops: tuple[str, ...]) -> int:
    return sum(counts.get(op, 0) for op in ops)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} → {after}"


if __name__ == "__main__":
    page = Path(__file__).parent.parent / "docs" / "families.md"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition("<!-- table -->\n")
    _, mark, tail = rest.partition("<!-- end of table -->")
    page.write_text(
        f"{head}<!-- table -->\n{table(page.parent.parent / 'models')}{mark}{tail}", encoding="utf-8"
    )
