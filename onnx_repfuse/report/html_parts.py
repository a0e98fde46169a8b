"""The tables and bars of the HTML page, as strings of escaped HTML."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import (
    as_zero_sentence,
    clean,
    compared_alone,
    duration,
    figure,
    percent,
    plural,
    quantity,
    ran_on,
    totals,
)

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Bench
    from onnx_repfuse.records.report import Report
    from onnx_repfuse.records.verdict import FoldVerdict, OutputVerdict, Precision, Verification

__all__ = ["bench_bars", "escape", "outputs_table", "precision_table", "sizes_table", "table", "tiles"]

_COLOR = {"passed": "good", "failed": "bad"}


def escape(text: object) -> str:
    """Any name as harmless HTML text or attribute value.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    return html.escape(clean(str(text)), quote=True)


def tiles(report: Report, bench: Bench | None) -> str:
    """The main figures, above everything else."""
    before, after = report.before, report.after
    cells = [
        ("nodes", f"{before.nodes} &rarr; {after.nodes}", percent(before.nodes, after.nodes)),
        ("folds", str(len(report.folds)), ""),
    ]
    if before.macs is not None and after.macs is not None:
        cells.append(("MACs", quantity(after.macs), percent(before.macs, after.macs)))
    if bench is not None:
        cells.append(("speed", f"{bench.ratio[0]:.2f}x", bench.word))
    if report.seconds:
        cells.append(("took", duration(sum(report.seconds.values())), ""))
    body = "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in cells
    )
    return f'<dl class="tiles">{body}</dl>'


def sizes_table(report: Report, *, written: bool) -> str:
    """Operators, parameters, bytes and MACs before and after; no bytes if no file was `written`."""
    before, after = report.before, report.after
    rows = []
    unchanged = []
    for op in sorted({*before.ops, *after.ops}, key=str.lower):
        counts = before.ops.get(op, 0), after.ops.get(op, 0)
        if counts[0] == counts[1]:
            unchanged.append(f"{escape(op)}&nbsp;{counts[0]}")
        else:
            rows.append((escape(op), *map(str, counts), percent(*counts)))
    rows.append(("All nodes", str(before.nodes), str(after.nodes), percent(before.nodes, after.nodes)))
    rows += totals(before, after, written=written)
    body = (
        f'<tr><th scope="row">{name}</th><td>{then}</td><td>{now}</td><td class="{_color(change)}">{change}</td></tr>'
        for name, then, now, change in rows
    )
    others = f"<p><small>Unchanged: {', '.join(unchanged)}</small></p>" if unchanged else ""
    return table(_heads("", "before", "after", "change"), body, ' class="sizes"') + others


def _color(change: str) -> str:
    return "good" if change.startswith("-") else "warn" if change else ""


def bench_bars(bench: Bench) -> str:
    """Two bars, and the ratio with its spread."""
    # both bars in percent of the longer one
    longest = max(bench.original[0], bench.fused[0])
    rows = "".join(
        f'<span>{name}</span><i class="{name}" style="width:{100 * values[0] / longest:.1f}%"></i>'
        f"<span>{duration(values[0] / 1000)} "
        f"<small>({duration(values[1] / 1000)}&ndash;{duration(values[2] / 1000)})</small></span>"
        for name, values in (("original", bench.original), ("fused", bench.fused))
    )
    as_zero = f"<p>{escape(as_zero_sentence(bench))}</p>" if bench.as_zero else ""
    shapes = "; ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in bench.shapes.items())
    how = escape(ran_on(bench.provider, bench.threads))
    return (
        f'<div class="bars">{rows}</div><p><strong>{bench.word.capitalize()}</strong>: {bench.ratio[0]:.2f}x as fast '
        f"({bench.ratio[1]:.2f}&ndash;{bench.ratio[2]:.2f} between the quartiles of {bench.rounds} interleaved rounds, "
        f"{plural(bench.warm_up, 'run')} to warm up, {how}, {escape(shapes)})</p>{as_zero}"
    )


def outputs_table(verification: Verification, status: str) -> str:
    """One row per output, with a scale that shows error and noise against what was allowed."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in verification.notes)
    if not verification.outputs:
        return notes or f"<p>{escape(status)}</p>"
    left = " class=left"
    heads = ("<th>output</th>", f"<th{left}>verdict</th>", f"<th{left}>error, noise, allowed</th>",
             *_heads("max |diff|", "noise", "&times; noise", "allowed", "relative", "cosine", "top-1"))  # fmt: skip
    messages = [verdict.message for verdict in verification.outputs if str(verdict.status) != "passed"]
    words = "".join(f"<p>{escape(message)}</p>" for message in messages if message)
    checked = _fold_counts("fold", verification.folds) + _fold_counts("other change", verification.changes)
    return (
        f"{table(heads, map(_output, verification.outputs))}"
        "<p><small>The bar is the error, the tick the noise of the original itself, the dashed line what was allowed "
        f"(logarithmic).</small></p>{words}{checked}{notes}"
    )


def _fold_counts(noun: str, verdicts: Sequence[FoldVerdict]) -> str:
    """How many were proved, each by itself."""
    if not verdicts:
        return ""
    statuses = Counter(str(verdict.status) for verdict in verdicts)
    proved = statuses.pop("passed", 0)
    words = "".join(f", {count} {escape(status)}" for status, count in sorted(statuses.items()))
    return f"<p>{compared_alone(len(verdicts), noun)}: {proved} proved{words}.</p>"


def precision_table(studies: Sequence[Precision]) -> str:
    """How far both models are from float64, per output."""
    rows = (
        f'<tr><th scope="row"><code>{escape(study.output)}</code></th><td>{figure(study.original)}</td>'
        f"<td>{figure(study.fused)}</td><td>{study.factor:.2g}</td>"
        f"<td>{figure(study.worst_original)} &rarr; {figure(study.worst_fused)}</td></tr>"
        for study in studies
    )
    return (
        table(_heads("output", "original, rms", "fused, rms", "factor", "worst"), rows)
        + "<p><small>Distance from the original in float64; below a factor of 1 the result is nearer.</small></p>"
    )


def _heads(*names: str) -> list[str]:
    return [f"<th>{name}</th>" for name in names]


def table(heads: Iterable[str], rows: Iterable[str], style: str = "") -> str:
    """A table that scrolls sideways where the window is narrow."""
    return (
        f'<div class="scroll"><table{style}><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _output(verdict: OutputVerdict) -> str:
    status = str(verdict.status)
    top1 = "" if verdict.top1 is None else f"{100 * verdict.top1:.1f}%"
    cosine = "" if verdict.cosine is None else f"{verdict.cosine:.9f}"
    numbers = (figure(verdict.max_abs), figure(max(verdict.noise)), figure(verdict.over_noise),
               figure(verdict.tolerance), figure(verdict.max_rel), cosine, top1)  # fmt: skip
    against = f"<br>{escape(verdict.against)}" if verdict.against else ""
    return (
        f'<tr><th scope="row"><code>{escape(verdict.name)}</code>{against}</th>'
        f'<td class="left"><span class="{_COLOR.get(status, "warn")}">{escape(status)}</span></td>'
        f"<td>{_scale(verdict)}</td>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"
    )


def _scale(verdict: OutputVerdict) -> str:
    """A logarithmic scale over four decades, from a thousandth of the tolerance to ten times it."""
    allowed = verdict.tolerance
    if not (math.isfinite(allowed) and allowed > 0):
        return ""
    noise = max(verdict.noise)
    # false for NaN, which is bad, too
    color = "--accent" if verdict.max_abs <= allowed else "--bad"
    label = escape(f"error {figure(verdict.max_abs)}, noise {figure(noise)}, allowed {figure(allowed)}")
    error_x, noise_x, limit_x = (_place(value / allowed) for value in (verdict.max_abs, noise, allowed))
    return (
        f'<svg class="scale" viewBox="0 0 178 26" role="img" aria-label="{label}"><title>{label}</title>'
        f'<line x1="2" x2="176" y1="13" y2="13" style="stroke:var(--line)"/>'
        f'<line x1="2" x2="{error_x:.0f}" y1="13" y2="13" style="stroke:var({color});stroke-width:7"/>'
        f'<line x1="{noise_x:.0f}" x2="{noise_x:.0f}" y1="5" y2="21" style="stroke:var(--fg);stroke-width:2"/>'
        f'<line x1="{limit_x:.0f}" x2="{limit_x:.0f}" y1="1" y2="25" style="stroke:var(--bad);stroke-width:2;'
        'stroke-dasharray:3 2"/></svg>'
    )


def _place(ratio: float) -> float:
    """The x of a value given as a multiple of the tolerance; NaN is drawn at the right end.

    >>> _place(1e-3), _place(1.0), _place(10.0), _place(math.nan)
    (2.0, 132.5, 176.0, 176.0)
    """
    if math.isnan(ratio):
        return 176.0
    decades = math.log10(min(max(ratio, 1e-3), 10.0)) + 3
    return 2 + 174 * decades / 4
