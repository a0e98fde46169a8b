"""The report as one HTML page that needs nothing else: no server, no network, no other file.

Tables and lists are plain HTML; the pictures of the blocks come as compact JSON and are drawn when a fold is
opened. Every name passes through `escape`, and a content security policy allows our own script alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from onnx_repfuse.report.advice import advice, brief, by_reason, why_nothing
from onnx_repfuse.report.block_layout import Pictures
from onnx_repfuse.report.formatting import model_title, plural, simplifier_sentences
from onnx_repfuse.report.html_comparison import comparison_parts
from onnx_repfuse.report.html_folds import folds_list
from onnx_repfuse.report.html_head import badge, environment_table, verdict_banner
from onnx_repfuse.report.html_map import graph_maps, reason_id
from onnx_repfuse.report.html_parts import (
    bench_bars,
    escape,
    filtered_list,
    outputs_table,
    precision_table,
    shortened,
    sizes_table,
    tiles,
    where,
)

if TYPE_CHECKING:
    from onnx_repfuse.records.outcome import Outcome
    from onnx_repfuse.records.reasons import Reason
    from onnx_repfuse.records.report import Refusal, Report

__all__ = ["render"]


def render(outcomes: list[Outcome], version: str) -> str:
    """The page for one or several models."""
    pictures = Pictures()
    sections = [_section(outcome, number, pictures) for number, outcome in enumerate(outcomes)]
    style, script = _asset("page.css"), _asset("page.js")
    # Only the script with this digest may run: a name that came through as HTML could still do nothing.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    title = outcomes[0].model if len(outcomes) == 1 else plural(len(outcomes), "model")
    # "<" is escaped, so that no name can end the script element with "</script>".
    data = pictures.data().replace("<", "\\u003c")
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
        f'<td class="left">{badge(outcome)}</td></tr>'
        for number, outcome in enumerate(outcomes)
    )
    return (
        '<div class="scroll"><table><thead><tr><th>model</th><th>folds</th><th class="left">result</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _section(outcome: Outcome, number: int, pictures: Pictures) -> str:
    """One model's part of the page; `pictures` grows by those of its folds."""
    report = outcome.report
    joint = "and" if outcome.comparison is not None else "&rarr;"
    second = f" {joint} {escape(outcome.output)}" if outcome.output else ""
    title = escape(model_title(outcome.model))
    parts = [f'<section id="model-{number}"><h2>{title}{second}</h2>', verdict_banner(outcome)]
    if report is not None:
        parts += [tiles(report, outcome.bench), *_titled("The whole graph", graph_maps(report, number))]
        written = outcome.command != "plan"
        sizes = sizes_table(report, written=written)
        sizes += "".join(f"<p>{escape(text)}</p>" for text in simplifier_sentences(report, written=written))
        parts += _titled("Size", sizes)
    if outcome.bench is not None:
        parts += _titled("Latency", bench_bars(outcome.bench))
    if report is not None:
        parts += _folds_and_refusals(report, number, pictures)
    if outcome.verification is not None:
        parts += _titled("Error against noise", outputs_table(outcome.verification, outcome.status))
    if outcome.comparison is not None:
        parts += comparison_parts(outcome.comparison)
    if outcome.precision:
        parts += _titled("Precision against float64", precision_table(outcome.precision))
    parts += _titled("Environment", environment_table(outcome))
    return "\n".join([*parts, "</section>"])


def _titled(title: str, part: str) -> list[str]:
    """A part below its title; nothing if it is empty."""
    return [f"<h3>{title}</h3>", part] if part else []


def _folds_and_refusals(report: Report, number: int, pictures: Pictures) -> list[str]:
    return [
        "<h3>Folds</h3>",
        folds_list(report, number, pictures) or f"<p>None: {escape(why_nothing(report))}.</p>",
        *_other_changes(report),
        "<h3>Not fused, and why</h3>",
        *(f'<p class="warn">Advice: {escape(sentence)}</p>' for sentence in advice(report)),
        _refusals_list(report, number) or "<p>Nothing was refused.</p>",
        *(f"<p>{escape(note)}</p>" for note in report.notes),
    ]


def _other_changes(report: Report) -> list[str]:
    """What is no fold, and the tensors that are gone; nothing where there are none."""
    parts = []
    if report.changes:
        by_kind: dict[str, list[str]] = {}
        for change in report.changes:
            item = f"<li>{escape(change.claim)}{where(change.scope)}</li>"
            by_kind.setdefault(str(change.kind), []).append(item)
        cards = (
            f'<li class="card"><p class="row"><span class="what"><b class="times">{len(items)} &times;</b> '
            f"{escape(kind)}</span></p>{shortened(items)}</li>"
            for kind, items in by_kind.items()
        )
        parts += ["<h3>Other changes</h3>", f'<ul class="list">{"".join(cards)}</ul>']
    if report.vanished:
        count = plural(sum(len(gone.tensors) for gone in report.vanished), "tensor")
        names = "".join(
            f"<p><small>{', '.join(map(escape, gone.tensors))}{where(gone.scope)}</small></p>"
            for gone in report.vanished
        )
        parts.append(
            f"<details><summary>{count} of the original that the result no longer has</summary>{names}</details>"
        )
    return parts


def _refusals_list(report: Report, model: int) -> str:
    """A card for each reason, under a filter; "" if nothing was refused."""
    groups = by_reason(report.refusals)
    cards = [_card(reason, members, model) for reason, members in groups]
    return filtered_list(f"refusals-{model}", "reasons", [str(reason) for reason, _ in groups], cards)


def _card(reason: Reason, members: Sequence[Refusal], model: int) -> str:
    items = [f"<li>{escape(brief(refusal))}{where(refusal.scope)}</li>" for refusal in members]
    return (
        f'<li class="card" data-kind="{escape(reason)}" id="{reason_id(model, reason)}"><p class="row">'
        f'<span class="what"><b class="times">{len(members)} &times;</b> {escape(reason.prose)}</span>'
        f'<span class="tag">{escape(reason)}</span></p>{shortened(items)}</li>'
    )
