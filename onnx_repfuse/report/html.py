"""The report as one HTML page that needs nothing else: no server, no network, no other file.

Tables and lists are plain HTML; the pictures of the blocks come as compact JSON and are drawn when a fold is
opened. Every name passes through `escape`, and a content security policy allows our own script alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from onnx_repfuse.report.advice import advice, by_reason
from onnx_repfuse.report.block_layout import draw, produced
from onnx_repfuse.report.channel_ranges import ranges_of_fold
from onnx_repfuse.report.formatting import figure, plural, simplifier_sentences
from onnx_repfuse.report.html_comparison import comparison_parts
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
    from onnx_repfuse.records.report import Fold, NodeRef, Refusal, Report
    from onnx_repfuse.records.verdict import FoldVerdict, StageVerdict

__all__ = ["render"]


def render(outcomes: list[Outcome], version: str) -> str:
    """The page for one or several models."""
    pictures: list[dict[str, object]] = []
    sections = [_section(outcome, number, pictures) for number, outcome in enumerate(outcomes)]
    style, script = _asset("page.css"), _asset("page.js")
    # Only the script with this digest may run: a name that came through as HTML could still do nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    title = outcomes[0].model if len(outcomes) == 1 else plural(len(outcomes), "model")
    # "<" is escaped, so that no name can end the script element with "</script>".
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
    """The verdict, and what else decided the exit code."""
    remain = ' <span class="verdict warn">operators remain</span>' if outcome.exit_code == 4 else ""
    if outcome.exit_code == 1:
        return '<span class="verdict bad">error</span>'
    if outcome.command == "plan":
        return f'<span class="verdict dim">planned, nothing written</span>{remain}'
    # Exit code 3 without a verdict: no attempt got as far as a comparison.
    status = "failed" if outcome.exit_code == 3 and outcome.verification is None else outcome.status
    color = {"passed": "good", "identical": "good", "failed": "bad"}.get(status, "warn")
    return f'<span class="verdict {color}">{escape(status)}</span>{remain}'


def _section(outcome: Outcome, number: int, pictures: list[dict[str, object]]) -> str:
    """One model's part of the page; `pictures` grows by those of its folds."""
    report = outcome.report
    arrow = f" &rarr; {escape(outcome.output)}" if outcome.output else ""
    parts = [f'<section id="model-{number}"><h2>{escape(outcome.model)}{arrow}</h2><p>{_badge(outcome)}</p>']
    if outcome.error:
        parts.append(f'<p class="{"warn" if outcome.exit_code == 4 else "bad"}">{escape(outcome.error)}</p>')
    if report is not None:
        written = outcome.command != "plan"
        parts += [tiles(report, outcome.bench), "<h3>Size</h3>", sizes_table(report, written=written)]
        parts += [f"<p>{escape(text)}</p>" for text in simplifier_sentences(report, written=written)]
    if outcome.bench is not None:
        parts += ["<h3>Latency</h3>", bench_bars(outcome.bench)]
    if outcome.verification is not None:
        parts += ["<h3>Error against noise</h3>", outputs_table(outcome.verification, outcome.status)]
    if outcome.comparison is not None:
        parts += comparison_parts(outcome.comparison)
    if outcome.precision:
        parts += ["<h3>Precision against float64</h3>", precision_table(outcome.precision)]
    if report is not None:
        parts += _folds_and_refusals(report, number, pictures)
    return "\n".join([*parts, "</section>"])


def _folds_and_refusals(report: Report, number: int, pictures: list[dict[str, object]]) -> list[str]:
    verdicts = report.verification.folds if report.verification else ()
    by_output = {(verdict.scope, verdict.output): verdict for verdict in verdicts}
    folds = [_fold(fold, pictures, by_output.get((fold.scope, fold.output))) for fold in report.folds]
    refusals = [_refusal(refusal) for _, members in by_reason(report.refusals) for refusal in members]
    kinds = sorted({str(fold.kind) for fold in report.folds})
    reasons = sorted({str(refusal.reason) for refusal in report.refusals})
    return [
        "<h3>Folds</h3>",
        _list(f"folds-{number}", "folds", kinds, folds) or "<p>There was nothing to fold.</p>",
        *_other_changes(report),
        "<h3>Not fused, and why</h3>",
        *(f'<p class="warn">Advice: {escape(sentence)}</p>' for sentence in advice(report)),
        _list(f"refusals-{number}", "reasons", reasons, refusals) or "<p>Everything linear was fused.</p>",
        *(f"<p>{escape(note)}</p>" for note in report.notes),
    ]


def _other_changes(report: Report) -> list[str]:
    """What is no fold, and the tensors that are gone; nothing where there are none."""
    parts = []
    if report.changes:
        items = (
            f'<li><span class="tag">{escape(change.kind)}</span>{escape(change.claim)}{_where(change.scope)}</li>'
            for change in report.changes
        )
        parts += ["<h3>Other changes</h3>", f'<ul class="list">{"".join(items)}</ul>']
    if report.vanished:
        count = plural(sum(len(gone.tensors) for gone in report.vanished), "tensor")
        names = "".join(
            f"<p><small>{', '.join(map(escape, gone.tensors))}{_where(gone.scope)}</small></p>"
            for gone in report.vanished
        )
        parts.append(
            f"<details><summary>{count} of the original that the result no longer has</summary>{names}</details>"
        )
    return parts


def _list(target: str, what: str, kinds: list[str], items: list[str]) -> str:
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


def _fold(fold: Fold, pictures: list[dict[str, object]], verdict: FoldVerdict | None) -> str:
    sources = fold.sources or _read_from_outside(fold.absorbed)
    figures = _figure("before", fold.absorbed, sources, fold.output, pictures)
    figures += _figure("after", fold.created, sources, fold.output, pictures)
    replaced = ", ".join(f"{escape(node.op)} <code>{escape(node.name)}</code>" for node in fold.absorbed)
    macs = f"; MACs {fold.macs_before:,} &rarr; {fold.macs_after:,}" if fold.macs_before else ""
    ranges = ranges_of_fold(fold)
    macs += f"; {escape(ranges)}" if ranges else ""
    checked = ""
    if verdict is not None:
        checked = f"<br>Compared by itself: {escape(verdict.status)}"
        checked += "".join(map(_stage, verdict.stages))
    return (
        f'<li data-kind="{escape(fold.kind)}"><details class="fold"><summary>'
        f'<span class="tag">{escape(fold.kind)}</span>'
        f"<code>{escape(fold.output)}</code>{_where(fold.scope)} "
        f'<span class="dim">{len(fold.absorbed)} &rarr; {plural(len(fold.created), "node")}</span></summary>'
        f'<div class="pictures">{figures}</div>'
        f"<p><small>Replaced: {replaced}{macs}{checked}</small></p></details></li>"
    )


def _stage(stage: StageVerdict) -> str:
    errors = f"error {figure(stage.error)}, allowed {figure(stage.tolerance)}"
    return f"; {escape(stage.stage)} {escape(stage.status)}, {errors}"


def _read_from_outside(nodes: Sequence[NodeRef]) -> list[str]:
    """The inputs of a block, for a fold whose new nodes read none."""
    inside = produced(nodes)
    return list(dict.fromkeys(name for node in nodes for name in node.inputs if name not in inside))


def _figure(
    title: str,
    nodes: Sequence[NodeRef],
    sources: Sequence[str],
    output: str,
    pictures: list[dict[str, object]],
) -> str:
    """The place of a picture, which joins `pictures`; the page's script draws it there when its fold is opened."""
    picture = draw(nodes, sources, output)
    if picture is None:
        return f"<figure><figcaption>{title}: {len(nodes)} nodes, too many to draw</figcaption></figure>"
    label = escape(f"{title}: {', '.join(node.op for node in nodes) or 'nothing'}")
    pictures.append(picture.compact())
    return (
        f'<figure data-picture="{len(pictures) - 1}" data-label="{label}"><figcaption>{title}</figcaption>'
        '<div class="scroll"></div></figure>'
    )


def _refusal(refusal: Refusal) -> str:
    reason = escape(refusal.reason)
    text = f"{escape(refusal.message)}{_where(refusal.scope)}"
    return f'<li data-kind="{reason}"><span class="tag">{reason}</span>{text}</li>'


def _where(scope: str) -> str:
    return f" <small>in {escape(scope)}</small>" if scope else ""
