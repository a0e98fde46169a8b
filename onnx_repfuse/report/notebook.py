"""The report in a notebook's cell: a fragment of HTML that takes the notebook's own looks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import figure, plural
from onnx_repfuse.report.html_parts import escape, sizes_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx_repfuse.records.outcome import Outcome

__all__ = ["fragment"]

# Readable on white and on black.
_COLORS = {"passed": "#2e8b57", "identical": "#2e8b57", "failed": "#d03b3b"}
_OTHER = "#b8860b"


def fragment(outcome: Outcome) -> str:
    """One model's report: verdict, sizes, and how many folds and refusals of which kind. No script, no style sheet."""
    report = outcome.report
    assert report is not None
    status = "planned" if outcome.command == "plan" else outcome.status
    badge = f'<strong style="color:{_COLORS.get(status, _OTHER)}">{escape(status)}</strong>'
    parts = [
        f"<p><strong>{escape(outcome.model or 'model in memory')}</strong>: {badge}</p>",
        sizes_table(report, written=outcome.command != "plan"),
        _counted("Folds", (str(fold.kind) for fold in report.folds)),
        _counted("Other changes", (str(change.kind) for change in report.changes)),
        _counted("Not fused", (str(refusal.reason) for refusal in report.refusals)),
    ]
    if outcome.verification is not None:
        parts += [
            f"<p>{escape(verdict.name)}: {escape(verdict.status)}, max |diff| {figure(verdict.max_abs)}, "
            f"allowed {figure(verdict.tolerance)}</p>"
            for verdict in outcome.verification.outputs[:_MAX_OUTPUTS]
        ]
        more = len(outcome.verification.outputs) - _MAX_OUTPUTS
        parts += [f"<p>and {plural(more, 'more output')}</p>"] if more > 0 else []
    return f"<div>{''.join(parts)}</div>"


_MAX_OUTPUTS = 4


def _counted(title: str, words: Iterable[str]) -> str:
    """How many, and of what; "" if there are none."""
    counts = Counter(words)
    listed = ", ".join(f"{escape(word)} {count}" for word, count in counts.most_common())
    return f"<p>{title}: {sum(counts.values())} ({listed})</p>" if counts else ""
