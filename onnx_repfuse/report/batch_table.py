"""The report of several models as text: one line for each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_repfuse.report.formatting import clean, percent, plural, size
from onnx_repfuse.report.lines import print_line

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Outcome

__all__ = ["summarize"]


def summarize(console: Console, outcomes: Iterable[Outcome]) -> None:
    """Print one line per model, and one for all."""
    outcomes = list(outcomes)
    timed = any(outcome.bench for outcome in outcomes)
    table = Table(box=None, pad_edge=False, header_style="bold")
    # Names are wrapped, not cut, on a narrow terminal; figures only on a very narrow one.
    table.add_column("model", overflow="fold", ratio=1)
    for heading in ("operators", "size", "MACs", "folds", *(["speed"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=console.width >= 60)
    table.add_column("result", overflow="fold", max_width=max(12, console.width // 2))
    for outcome in outcomes:
        cells = _summary(outcome)
        if timed:
            cells.append(f"{outcome.bench.ratio[0]:.2f}x {outcome.bench.word}" if outcome.bench else "")
        color = {0: "green", 4: "yellow"}.get(outcome.exit_code, "bold red")
        table.add_row(Text(clean(outcome.model)), *cells, Text(_result(outcome), style=color))
    console.print(table)
    print_line(console, _total(outcomes))


def _total(outcomes: list[Outcome]) -> str:
    failed = sum(outcome.exit_code not in (0, 4) for outcome in outcomes)
    gated = sum(outcome.exit_code == 4 for outcome in outcomes)
    gates = f", {gated} fell short of a gate" if gated else ""
    folders = sorted({clean(os.path.dirname(outcome.output)) for outcome in outcomes if outcome.output})
    written = f"; {plural(len(outcomes) - failed, 'file')} written to {', '.join(folders)}" if folders else ""
    return f"{plural(len(outcomes), 'model')}, {failed or 'none'} failed{gates}{written}"


def _summary(outcome: Outcome) -> list[str]:
    """Operators, size, MACs and folds of one line of the table."""
    report = outcome.report
    if report is None:
        return ["", "", "", ""]
    before, after = report.before, report.after
    known = before.macs is not None and after.macs is not None
    change = percent(before.macs, after.macs) or "same"
    sizes = f"{size(before.bytes)} -> {size(after.bytes)}" if outcome.output else size(before.bytes)
    operators = f"{before.nodes} -> {after.nodes}"
    return [operators, sizes, change if known else "unknown", str(len(report.folds))]


def _result(outcome: Outcome) -> str:
    """The last cell of the table, in a few words."""
    if outcome.error:
        return clean(outcome.error)
    if outcome.exit_code == 4:
        return "remaining: " + ", ".join(f"{g.remaining} {clean(g.op)}" for g in outcome.gates if g.remaining)
    return "planned" if outcome.command == "plan" else outcome.status
