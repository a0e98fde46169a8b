"""The report as one HTML page that needs nothing else: no server, no network, no other file.

Tables and lists are plain HTML; the pictures of the blocks come as compact JSON and are drawn when a fold is
opened. Every name passes through `escape`, and a content security policy allows our own script alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING

from onnx_repfuse.report.advice import advice, by_reason
from onnx_repfuse.report.block_layout import draw
from onnx_repfuse.report.formatting import figure, plural
from onnx_repfuse.report.html_parts import (
    bench_bars,
    escape,
    outputs_table,
    precision_table,
    sizes_table,
    tiles,
)

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Outcome
    from onnx_repfuse.records.report import Fold, Refusal
    from onnx_repfuse.records.verdict import FoldVerdict

__all__ = ["render"]


def render(outcomes: list[Outcome], version: str) -> str:
    """The page for one or several models."""
    pictures: list[dict[str, object]] = []
    sections = [_section(outcome, number, pictures) for number, outcome in enumerate(outcomes)]
    style, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    title = outcomes[0].model if len(outcomes) == 1 else plural(len(outcomes), "model")
    data = json.dumps(pictures, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="onnx-repfuse {escape(version)}">
<link rel="icon" href="data:,">
<title>onnx-repfuse: {escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>onnx-repfuse</h1><p class="dim">report of version {escape(version)}</p></header>
<main>
{_contents(outcomes) if len(outcomes) > 1 else ""}
{"".join(sections)}
</main>
<script type="application/json" id="pictures">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return files("onnx_repfuse.report").joinpath(name).read_text(encoding="utf-8")


def _contents(outcomes: list[Outcome]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#model-{number}">{escape(outcome.model)}</a></th>'
        f"<td>{len(outcome.report.folds) if outcome.report else ''}</td>"
        f'<td class="left">{_badge(outcome)}</td></tr>'
        for number, outcome in enumerate(outcomes)
    )
    return (
        '<div class="scroll"><table><thead><tr><th>model</th><th>folds</th><th class="left">result</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _badge(outcome: Outcome) -> str:
    if outcome.exit_code == 4:
        return '<span class="verdict warn">operators remain</span>'
    if outcome.exit_code:
        return '<span class="verdict bad">failed</span>'
    if outcome.command == "plan":
        return '<span class="verdict dim">planned, nothing written</span>'
    color = {"passed": "good", "identical": "good", "failed": "bad"}.get(outcome.status, "warn")
    return f'<span class="verdict {color}">{escape(outcome.status)}</span>'


def _section(outcome: Outcome, number: int, pictures: list[dict[str, object]]) -> str:
    report = outcome.report
    arrow = f" &rarr; {escape(outcome.output)}" if outcome.output else ""
    parts = [f'<section id="model-{number}"><h2>{escape(outcome.model)}{arrow}</h2><p>{_badge(outcome)}</p>']
    if outcome.error:
        parts.append(f'<p class="{"warn" if outcome.exit_code == 4 else "bad"}">{escape(outcome.error)}</p>')
    if report is not None:
        parts += [tiles(outcome), "<h3>Size</h3>", sizes_table(outcome)]
    if outcome.bench is not None:
        parts += ["<h3>Latency</h3>", bench_bars(outcome.bench)]
    if outcome.verification is not None:
        parts += ["<h3>Error against noise</h3>", outputs_table(outcome.verification, outcome.status)]
    if outcome.precision:
        parts += ["<h3>Precision against float64</h3>", precision_table(outcome.precision)]
    if report is not None:
        checks = {check.output: check for check in report.verification.folds} if report.verification else {}
        parts += ["<h3>Folds</h3>", _folds(report.folds, number, pictures, checks)]
        parts += ["<h3>Not fused, and why</h3>"]
        parts += [f'<p class="warn">Advice: {escape(sentence)}</p>' for sentence in advice(report)]
        parts += [_refusals(report.refusals, number)]
        parts += [f"<p>{escape(note)}</p>" for note in report.notes]
    return "\n".join([*parts, "</section>"])


def _filter(target: str, what: str, kinds: list[str]) -> str:
    choices = "".join(f'<option value="{escape(kind)}">{escape(kind)}</option>' for kind in kinds)
    return (
        f'<div class="filter" data-list="{target}" hidden>'
        f'<input type="search" placeholder="filter {what}" aria-label="filter {what}">'
        f'<select aria-label="kind of {what}"><option value="">all kinds</option>{choices}</select>'
        '<output class="dim" aria-live="polite"></output></div>'
    )


def _folds(
    folds: tuple[Fold, ...], number: int, pictures: list[dict[str, object]], checks: dict[str, FoldVerdict]
) -> str:
    if not folds:
        return "<p>There was nothing to fold.</p>"
    target = f"folds-{number}"
    items = "".join(_fold(fold, pictures, checks.get(fold.output)) for fold in folds)
    kinds = sorted({str(fold.kind) for fold in folds})
    return f'{_filter(target, "folds", kinds)}<ul class="list" id="{target}">{items}</ul>'


def _fold(fold: Fold, pictures: list[dict[str, object]], check: FoldVerdict | None) -> str:
    figures = []
    made = {name for node in fold.absorbed for name in node.outputs if name not in node.inputs}
    read = [name for node in fold.absorbed for name in node.inputs if name not in made]
    sources = fold.sources or tuple(dict.fromkeys(read))
    for title, nodes in (("before", fold.absorbed), ("after", fold.created)):
        picture = draw(nodes, sources, fold.output)
        if picture is None:
            figures.append(
                f"<figure><figcaption>{title}: {len(nodes)} nodes, too many to draw</figcaption></figure>"
            )
            continue
        label = escape(f"{title}: {', '.join(node.op for node in nodes) or 'nothing'}")
        figures.append(
            f'<figure data-picture="{len(pictures)}" data-label="{label}"><figcaption>{title}</figcaption>'
            '<div class="scroll"></div></figure>'
        )
        pictures.append(picture.compact())
    went = ", ".join(f"{escape(node.op)} <code>{escape(node.name)}</code>" for node in fold.absorbed)
    macs = f", MACs {fold.macs_before:,} &rarr; {fold.macs_after:,}" if fold.macs_before else ""
    where = f" <small>in {escape(fold.scope)}</small>" if fold.scope else ""
    checked = (
        f"<br>Checked by itself: {escape(check.status)}, error {figure(check.error)}, allowed {figure(check.tolerance)}"
        if check is not None
        else ""
    )
    return (
        f'<li data-kind="{escape(fold.kind)}"><details class="fold"><summary>'
        f'<span class="tag">{escape(fold.kind)}</span>'
        f"<code>{escape(fold.output)}</code>{where} "
        f'<span class="dim">{len(fold.absorbed)} &rarr; {plural(len(fold.created), "node")}</span></summary>'
        f'<div class="pictures">{"".join(figures)}</div>'
        f"<p><small>Gone: {went}{macs}{checked}</small></p></details></li>"
    )


def _refusals(refusals: tuple[Refusal, ...], number: int) -> str:
    if not refusals:
        return "<p>Everything linear was fused.</p>"
    target = f"refusals-{number}"
    items = "".join(
        f'<li data-kind="{escape(refusal.reason)}"><span class="tag">{escape(refusal.reason)}</span>'
        f"{escape(refusal.message)}{f' <small>in {escape(refusal.scope)}</small>' if refusal.scope else ''}</li>"
        for _, members in by_reason(refusals)
        for refusal in members
    )
    kinds = sorted({str(refusal.reason) for refusal in refusals})
    return f'{_filter(target, "reasons", kinds)}<ul class="list" id="{target}">{items}</ul>'
