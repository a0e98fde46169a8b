"""The sizes of a model before and after, as a table for a terminal or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from onnx_repfuse.report.formatting import clean, percent, totals

if TYPE_CHECKING:
    from onnx_repfuse.records.report import Counts

__all__ = ["sizes_table"]

# Operators that folding changes; the table of sizes begins with them, and never hides them.
_FOLDED_OPS = (
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sum",
)
_MAX_UNCHANGED_OPS = 8  # shown without -v


def sizes_table(before: Counts, after: Counts, every: bool, written: bool) -> Table:
    """Operators, parameters, bytes and MACs before and after."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("before", "after", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    ops = sorted({*before.ops, *after.ops}, key=lambda op: (_rank(op), op))
    hidden = [] if every else _unchanged_ops(before, after)
    for op in ops:
        if op not in hidden:
            _add_row(table, clean(op), before.ops.get(op, 0), after.ops.get(op, 0))
    if hidden:
        # their counts are the same before and after
        count = sum(before.ops[op] for op in hidden)
        _add_row(table, f"{len(hidden)} other kinds", count, count)
    _add_row(table, "All nodes", before.nodes, after.nodes)
    for row in totals(before, after, written=written):
        table.add_row(*row)
    return table


def _unchanged_ops(before: Counts, after: Counts) -> list[str]:
    """The operators to sum up in one row; none if there are only a few."""
    unchanged = [op for op, count in before.ops.items() if after.ops.get(op, 0) == count]
    if len(unchanged) <= _MAX_UNCHANGED_OPS:
        return []
    return [op for op in unchanged if op not in _FOLDED_OPS]


def _add_row(table: Table, name: str, before: int, after: int) -> None:
    style = "green" if after < before else "yellow" if after > before else ""
    table.add_row(Text(name), str(before), Text(str(after), style=style), percent(before, after))


def _rank(op: str) -> int:
    return _FOLDED_OPS.index(op) if op in _FOLDED_OPS else len(_FOLDED_OPS)
