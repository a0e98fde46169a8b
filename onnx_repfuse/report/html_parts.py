"""The tables and bars of the HTML page, as strings of escaped HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx_repfuse.report.formatting import clean, duration, figure, percent, quantity, size

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Bench, Outcome
    from onnx_repfuse.records.verdict import OutputVerdict, Precision, Verification

__all__ = ["bench_bars", "escape", "outputs_table", "precision_table", "sizes_table", "tiles"]

_COLOR = {"passed": "good", "failed": "bad"}


def escape(text: object) -> str:
    """Any name as harmless HTML text or attribute value.

    >>> escape("<script>")
    '&lt;script&gt;'
    """
    return html.escape(clean(str(text)), quote=True)


def tiles(outcome: Outcome) -> str:
    """The figures worth a glance."""
    report = outcome.report
    assert report is not None
    before, after = report.before, report.after
    cells = [
        ("nodes", f"{before.nodes} &rarr; {after.nodes}", percent(before.nodes, after.nodes)),
        ("folds", str(len(report.folds)), ""),
    ]
    if before.macs is not None and after.macs is not None:
        cells.append(("MACs", quantity(after.macs), percent(before.macs, after.macs)))
    if outcome.bench is not None:
        cells.append(("speed", f"{outcome.bench.ratio[0]:.2f}x", ""))
    if report.seconds:
        cells.append(("took", duration(sum(report.seconds.values())), ""))
    body = "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>" for name, value, note in cells
    )
    return f'<dl class="tiles">{body}</dl>'


def sizes_table(outcome: Outcome) -> str:
    """Operators, parameters, bytes and MACs before and after."""
    report = outcome.report
    assert report is not None
    before, after = report.before, report.after
    ops = sorted({*before.ops, *after.ops}, key=str.lower)
    same = [op for op in ops if before.ops.get(op, 0) == after.ops.get(op, 0)]
    counted = [(op, before.ops.get(op, 0), after.ops.get(op, 0)) for op in ops if op not in same]
    rows = [
        (op, str(a), str(b), percent(a, b))
        for op, a, b in [*counted, ("all nodes", before.nodes, after.nodes)]
    ]
    rows.append(("parameters", quantity(before.parameters), quantity(after.parameters),
                 percent(before.parameters, after.parameters)))  # fmt: skip
    if outcome.command != "plan":
        rows.append(("size", size(before.bytes), size(after.bytes), percent(before.bytes, after.bytes)))
    change = percent(before.macs, after.macs) if before.macs is not None and after.macs is not None else ""
    rows.append(("MACs", quantity(before.macs), quantity(after.macs), change))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{a}</td><td>{b}</td><td class="{_change(note)}">{note}</td></tr>'
        for name, a, b, note in rows
    )
    others = ", ".join(f"{escape(op)}&nbsp;{before.ops[op]}" for op in same)
    unchanged = f"<p><small>Unchanged: {others}</small></p>" if same else ""
    return (
        '<div class="scroll"><table class="sizes"><thead><tr><th></th><th>before</th><th>after</th><th>change</th></tr>'
        f"</thead><tbody>{body}</tbody></table></div>{unchanged}"
    )


def _change(note: str) -> str:
    return "good" if note.startswith("-") else "warn" if note else ""


def bench_bars(bench: Bench) -> str:
    """Two bars, and the ratio with its spread."""
    longest = max(bench.original[0], bench.fused[0])
    rows = "".join(
        f'<span>{name}</span><i class="{name}" style="width:{100 * values[0] / longest:.1f}%"></i>'
        f"<span>{values[0]:.3g} ms <small>({values[1]:.3g}&ndash;{values[2]:.3g})</small></span>"
        for name, values in (("original", bench.original), ("fused", bench.fused))
    )
    shapes = "; ".join(f"{name}:{','.join(map(str, shape))}" for name, shape in bench.shapes.items())
    return (
        f'<div class="bars">{rows}</div><p><strong>{bench.ratio[0]:.2f}x</strong> as fast '
        f"({bench.ratio[1]:.2f}&ndash;{bench.ratio[2]:.2f} between the quartiles of {bench.rounds} interleaved rounds, "
        f"{bench.threads} thread{'s' * (bench.threads != 1)}, {escape(shapes)})</p>"
    )


def outputs_table(verification: Verification, status: str) -> str:
    """One row per output, with a scale that shows error and noise against what was allowed."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in verification.notes)
    if not verification.outputs:
        return notes or f"<p>{escape(status)}</p>"
    rows = "".join(_output(verdict) for verdict in verification.outputs)
    heads = ("output", "verdict", "error, noise, allowed", "max |diff|", "noise", "&times; noise", "allowed",
             "relative", "cosine", "top-1")  # fmt: skip
    cells = "".join(f"<th{' class=left' if 1 <= i <= 2 else ''}>{head}</th>" for i, head in enumerate(heads))
    bad = [verdict for verdict in verification.outputs if str(verdict.status) != "passed" and verdict.message]
    words = "".join(f"<p>{escape(verdict.message)}</p>" for verdict in bad)
    folds = len(verification.folds)
    passed = sum(str(verdict.status) == "passed" for verdict in verification.folds)
    checked = f"<p>{passed} of {folds} folds passed their own check.</p>" if folds else ""
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
        "<p><small>The bar is the error, the tick the noise of the original itself, the dashed line what was allowed "
        f"(logarithmic).</small></p>{words}{checked}{notes}"
    )


def precision_table(found: Sequence[Precision]) -> str:
    """How far both models are from float64, per output."""
    heads = "".join(
        f"<th>{head}</th>" for head in ("output", "original, rms", "fused, rms", "factor", "worst")
    )
    rows = "".join(
        f'<tr><th scope="row"><code>{escape(one.output)}</code></th><td>{figure(one.original)}</td>'
        f"<td>{figure(one.fused)}</td><td>{one.factor:.2g}</td>"
        f"<td>{figure(one.worst_original)} &rarr; {figure(one.worst_fused)}</td></tr>"
        for one in found
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        "<p><small>Distance from the original in float64; below a factor of 1 the result is nearer.</small></p>"
    )


def _output(verdict: OutputVerdict) -> str:
    state = str(verdict.status)
    top = "" if verdict.top1 is None else f"{100 * verdict.top1:.1f}%"
    cosine = "" if verdict.cosine is None else f"{verdict.cosine:.9f}"
    numbers = (figure(verdict.max_abs), figure(max(verdict.noise)), figure(verdict.over_noise),
               figure(verdict.tolerance), figure(verdict.max_rel), cosine, top)  # fmt: skip
    return (
        f'<tr><th scope="row"><code>{escape(verdict.name)}</code></th>'
        f'<td class="left"><span class="{_COLOR.get(state, "warn")}">{escape(state)}</span></td>'
        f"<td>{_scale(verdict)}</td>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"
    )


def _scale(verdict: OutputVerdict) -> str:
    """A logarithmic scale from a thousandth of the tolerance to ten times it."""
    allowed = verdict.tolerance
    if not (math.isfinite(allowed) and allowed > 0):
        return ""

    def at(value: float) -> float:
        if math.isnan(value) or value > 10 * allowed:
            return 176.0
        return 2.0 if value <= allowed / 1000 else 2 + 174 * (math.log10(value / allowed) + 3) / 4

    error, noise, limit = at(verdict.max_abs), at(max(verdict.noise)), at(allowed)
    color = "--bad" if verdict.max_abs > allowed or math.isnan(verdict.max_abs) else "--accent"
    label = escape(
        f"error {figure(verdict.max_abs)}, noise {figure(max(verdict.noise))}, allowed {figure(allowed)}"
    )
    return (
        f'<svg class="scale" viewBox="0 0 178 26" role="img" aria-label="{label}"><title>{label}</title>'
        f'<line x1="2" x2="176" y1="13" y2="13" style="stroke:var(--line)"/>'
        f'<line x1="2" x2="{error:.0f}" y1="13" y2="13" style="stroke:var({color});stroke-width:7"/>'
        f'<line x1="{noise:.0f}" x2="{noise:.0f}" y1="5" y2="21" style="stroke:var(--fg);stroke-width:2"/>'
        f'<line x1="{limit:.0f}" x2="{limit:.0f}" y1="1" y2="25" style="stroke:var(--bad);stroke-width:2;'
        'stroke-dasharray:3 2"/></svg>'
    )
