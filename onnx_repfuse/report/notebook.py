"""The report in a notebook's cell: a fragment of HTML that takes the notebook's own looks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnx_repfuse.report.comparison_text import layer_lines
from onnx_repfuse.report.formatting import figure, plural
from onnx_repfuse.report.html_parts import escape, sizes_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_repfuse.records.outcome import Outcome
    from onnx_repfuse.records.report import Report
    from onnx_repfuse.records.verdict import Verification

__all__ = ["fragment"]

# Readable on white and on black.
_COLORS = {"passed": "#2e8b57", "identical": "#2e8b57", "failed": "#d03b3b"}
_OTHER = "#b8860b"


def fragment(outcome: Outcome) -> str:
    """What a report says in a few lines: verdict, sizes, how many folds and refusals of which kind, outputs.

    It has no script and no style sheet.
    """
    status = "planned" if outcome.command == "plan" else outcome.status
    badge = f'<strong style="color:{_COLORS.get(status, _OTHER)}">{escape(status)}</strong>'
    parts = [f"<p><strong>{escape(_named(outcome))}</strong>: {badge}</p>"]
    if outcome.report is not None:
        parts += _of_report(outcome.report, written=outcome.command != "plan")
    if outcome.verification is not None:
        parts += _of_outputs(outcome.verification)
    comparison = outcome.comparison
    if comparison is not None and comparison.layers is not None:
        parts += [f"<p>{escape(line)}</p>" for line in layer_lines(comparison.layers, bool(comparison), 0)]
    return f"<div>{''.join(parts)}</div>"


def _named(outcome: Outcome) -> str:
    names = [outcome.model or "model in memory"]
    names += [outcome.output or "model in memory"] if outcome.comparison is not None else []
    return " and ".join(names)


def _of_report(report: Report, written: bool) -> list[str]:
    return [
        sizes_table(report, written=written),
        _counted("Folds", (str(fold.kind) for fold in report.folds)),
        _counted("Other changes", (str(change.kind) for change in report.changes)),
        _counted("Not fused", (str(refusal.reason) for refusal in report.refusals)),
    ]


def _of_outputs(verification: Verification) -> list[str]:
    parts = [
        f"<p>{escape(verdict.name)}: {escape(verdict.status)}, max |diff| {figure(verdict.max_abs)}, "
        f"allowed {figure(verdict.tolerance)}</p>"
        for verdict in verification.outputs[:_MAX_OUTPUTS]
    ]
    more = len(verification.outputs) - _MAX_OUTPUTS
    return parts + ([f"<p>and {plural(more, 'more output')}</p>"] if more > 0 else [])


_MAX_OUTPUTS = 4


def _counted(title: str, words: Iterable[str]) -> str:
    """How many, and of what; "" if there are none."""
    counts = Counter(words)
    listed = ", ".join(f"{escape(word)} {count}" for word, count in counts.most_common())
    return f"<p>{title}: {sum(counts.values())} ({listed})</p>" if counts else ""
