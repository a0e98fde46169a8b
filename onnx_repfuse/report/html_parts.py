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
    size,
    totals,
)

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Bench
    from onnx_repfuse.records.report import Report
    from onnx_repfuse.records.verdict import FoldVerdict, OutputVerdict, Precision, Verification

__all__ = [
    "bar",
    "bench_bars",
    "escape",
    "filtered_list",
    "outputs_table",
    "precision_table",
    "shortened",
    "sizes_table",
    "table",
    "tiles",
    "where",
]

_COLOR = {"passed": "good", "failed": "bad"}
_EXAMPLES = 3  # of what is grouped, that are shown at once
_OPERATORS = 6  # whose counts changed most, that are shown at once


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
        (
            "nodes",
            " &rarr; ".join(dict.fromkeys([str(before.nodes), str(after.nodes)])),
            percent(before.nodes, after.nodes),
        ),
        ("folds", str(len(report.folds)), ""),
    ]
    if before.macs is not None and after.macs is not None:
        cells.append(("MACs", quantity(after.macs), percent(before.macs, after.macs)))
    if before.bytes and after.bytes:
        cells.append(("size", size(after.bytes), percent(before.bytes, after.bytes)))
    if bench is not None:
        cells.append(("speed", f"{bench.ratio[0]:.2f}x", bench.word))
    if report.seconds:
        cells.append(("took", duration(sum(report.seconds.values())), ""))
    body = "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in cells
    )
    return f'<dl class="tiles">{body}</dl>'


def sizes_table(report: Report, *, written: bool) -> str:
    """Operators, parameters, bytes and MACs before and after, with bars; no bytes if no file was `written`."""
    before, after = report.before, report.after
    rows = [_size("All nodes", str(before.nodes), str(after.nodes), (before.nodes, after.nodes))]
    counted = {"Parameters": (before.parameters, after.parameters), "Size": (before.bytes, after.bytes)}
    for name, then, now, _ in totals(before, after, written=written):
        rows.append(_size(name, then, now, counted.get(name, (before.macs, after.macs))))
    counts = {op: (before.ops.get(op, 0), after.ops.get(op, 0)) for op in {*before.ops, *after.ops}}
    changed = sorted((op for op in counts if counts[op][0] != counts[op][1]),
                     key=lambda op: (-abs(counts[op][0] - counts[op][1]), op))  # fmt: skip
    of_ops = [_size(escape(op), str(counts[op][0]), str(counts[op][1]), counts[op]) for op in changed]
    rows += of_ops[:_OPERATORS]
    heads = _heads("", "before", "after", "change", "")
    parts = [table(heads, rows, ' class="sizes"')]
    if of_ops[_OPERATORS:]:
        others = table(heads, of_ops[_OPERATORS:], ' class="sizes"')
        title = f"{plural(len(of_ops) - _OPERATORS, 'other operator')} changed"
        parts.append(f'<details class="more"><summary>{title}</summary>{others}</details>')
    unchanged = [f"{escape(op)}&nbsp;{counts[op][0]}" for op in sorted(counts) if op not in changed]
    if unchanged:
        parts.append(f"<p><small>Unchanged: {', '.join(unchanged)}</small></p>")
    return "".join(parts)


def _size(name: str, then: str, now: str, counts: tuple[int | None, int | None]) -> str:
    """A row of the table of sizes: the bar is what is left, its track what there was."""
    change = percent(*counts)
    color = "good" if change.startswith("-") else "warn" if change else ""
    # both None, or both known
    drawn = "" if counts[0] is None or counts[1] is None else bar(counts[1], max(counts[0], counts[1]))
    return (
        f'<tr><th scope="row">{name}</th><td>{then}</td><td>{now}</td><td class="{color}">{change}</td>'
        f'<td class="drawn">{drawn}</td></tr>'
    )


def bar(amount: int, most: int) -> str:
    """A bar on a track that is as wide as there is room; it says nothing that no number beside it says."""
    share = 100 * min(max(amount, 0), most) / most if most > 0 else 0
    return f'<span class="bar" aria-hidden="true"><i style="width:{share:.1f}%"></i></span>'


def bench_bars(bench: Bench) -> str:
    """Two bars, and the ratio with its spread."""
    # both bars in percent of the longer one
    longest = max(bench.original[0], bench.fused[0])
    rows = "".join(
        f"<span>{name}</span>"
        f'<span class="ms">{duration(values[0] / 1000)} '
        f"<small>({duration(values[1] / 1000)}&ndash;{duration(values[2] / 1000)})</small></span>"
        f'<span class="bar {name}"><i style="width:{100 * values[0] / longest:.1f}%"></i></span>'
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


def filtered_list(target: str, what: str, kinds: Sequence[str], items: Sequence[str]) -> str:
    """A list under a filter by text and by kind; empty if it has no items."""
    if not items:
        return ""
    choices = "".join(f'<option value="{escape(kind)}">{escape(kind)}</option>' for kind in kinds)
    return (
        f'<div class="filter" data-list="{target}" hidden>'
        f'<input type="search" placeholder="filter {what}" aria-label="filter {what}">'
        f'<select aria-label="kind of {what}"><option value="">all kinds</option>{choices}</select>'
        '<output class="dim" aria-live="polite"></output></div>'
        f'<ul class="list" id="{target}">{"".join(items)}</ul>'
    )


def shortened(items: Sequence[str]) -> str:
    """A list of which the first few items are shown at once, the others when asked for."""
    shown, rest = items[:_EXAMPLES], items[_EXAMPLES:]
    more = ""
    if rest:
        more = f'<details class="more"><summary>{len(rest)} more</summary><ul>{"".join(rest)}</ul></details>'
    return f"<ul>{''.join(shown)}</ul>{more}"


def where(scope: str) -> str:
    """The scope, in small letters; "" for the main graph."""
    return f" <small>in {escape(scope)}</small>" if scope else ""


def outputs_table(verification: Verification, status: str) -> str:
    """One row per output, with a scale that shows error and noise against what was allowed."""
    notes = "".join(f"<p>{escape(note[:1].upper() + note[1:])}.</p>" for note in verification.notes)
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
