"""The folds on the page, grouped where they are alike, each with pictures of its block before and after.

The pictures come as compact JSON and are drawn when a fold is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx_repfuse.report.block_layout import Pictures, draw, produced
from onnx_repfuse.report.channel_ranges import ranges_of_fold
from onnx_repfuse.report.fold_groups import FoldGroup, group_folds
from onnx_repfuse.report.formatting import figure, plural, quantity
from onnx_repfuse.report.html_map import fold_id
from onnx_repfuse.report.html_parts import bar, escape, filtered_list, where

if TYPE_CHECKING:
    from onnx_repfuse.records.report import Fold, NodeRef, Report
    from onnx_repfuse.records.verdict import FoldVerdict, StageVerdict

__all__ = ["folds_list"]


@dataclass
class _Folds:
    """What the folds of one model are drawn with."""

    model: int
    pictures: Pictures
    verdicts: dict[tuple[str, str], FoldVerdict] = field(default_factory=dict)
    most: int = 0  # that one group saves, in multiply-adds or, if none are saved, in nodes


def folds_list(report: Report, model: int, pictures: Pictures) -> str:
    """The groups under a filter; "" if there are no folds. `pictures` grows by those of the folds."""
    groups = group_folds(report.folds)
    folds = _Folds(model, pictures)
    if report.verification is not None:
        folds.verdicts = {(verdict.scope, verdict.output): verdict for verdict in report.verification.folds}
    saves_macs = any(group.macs > 0 for group in groups)
    folds.most = max((group.macs if saves_macs else group.nodes for group in groups), default=0)
    kinds = sorted({str(fold.kind) for fold in report.folds})
    items = [_group(group, folds, saves_macs) for group in groups]
    return filtered_list(f"folds-{model}", "folds", kinds, items)


def _group(group: FoldGroup, folds: _Folds, saves_macs: bool) -> str:
    """A fold, or a number of them that can be opened."""
    kind = escape(group.members[0][1].kind)
    count = len(group.members)
    times = f'<b class="times">{count} &times;</b> ' if count > 1 else ""
    amount = group.macs if saves_macs else group.nodes
    drawn = bar(amount, folds.most) if amount > 0 else "<span></span>"
    head = (
        f'<span class="what">{times}{escape(group.title).replace("-&gt;", "&rarr;")}</span>'
        f'<span class="tag">{kind}</span><span class="saved">{drawn}'
        f"<span>{_saved(group.macs, group.nodes) or 'same size'}</span></span>"
    )
    if count == 1:
        number, fold = group.members[0]
        opened = _opened(fold, folds)
        return (
            f'<li class="card" data-kind="{kind}"><details class="fold" id="{fold_id(folds.model, number)}">'
            f'<summary class="row">{head}</summary><p><code>{escape(fold.output)}</code>{where(fold.scope)}</p>'
            f"{opened}</details></li>"
        )
    members = [_member(number, fold, folds) for number, fold in group.members]
    rest = "".join(members[1:])
    more = (
        f'<details class="more"><summary>{count - 1} more</summary><ul class="members">{rest}</ul></details>'
    )
    return (
        f'<li class="card" data-kind="{kind}"><details class="group"><summary class="row">{head}</summary>'
        f'<ul class="members">{members[0]}</ul>{more}</details></li>'
    )


def _member(number: int, fold: Fold, folds: _Folds) -> str:
    """One of several folds that are alike."""
    label = next((node.label for node in fold.created if node.label), "")
    return (
        f'<li><details class="fold" id="{fold_id(folds.model, number)}"><summary><span class="member">'
        f'<span><code>{escape(fold.output)}</code>{where(fold.scope)}</span><span class="dim">{escape(label)}</span>'
        f'<span class="dim">{_saved(fold.macs_before - fold.macs_after, 0)}</span></span></summary>'
        f"{_opened(fold, folds)}</details></li>"
    )


def _saved(macs: int, nodes: int) -> str:
    """What is saved, in words; "" if nothing is."""
    parts = []
    if macs:
        parts.append(f"{'&minus;' if macs > 0 else '+'}{quantity(abs(macs))} MACs")
    if nodes:
        parts.append(f"{'&minus;' if nodes > 0 else '+'}{plural(abs(nodes), 'node')}")
    return ", ".join(parts)


def _opened(fold: Fold, folds: _Folds) -> str:
    sources = fold.sources or _read_from_outside(fold.absorbed)
    figures = _figure("before", fold.absorbed, sources, fold.output, folds.pictures)
    figures += _figure("after", fold.created, sources, fold.output, folds.pictures)
    replaced = ", ".join(f"{escape(node.op)} <code>{escape(node.name)}</code>" for node in fold.absorbed)
    macs = ""
    if fold.macs_before:
        macs = f"; MACs {quantity(fold.macs_before)} &rarr; {quantity(fold.macs_after)}"
    ranges = ranges_of_fold(fold)
    macs += f"; {escape(ranges).replace('-&gt;', '&rarr;')}" if ranges else ""
    checked = ""
    verdict = folds.verdicts.get((fold.scope, fold.output))
    if verdict is not None:
        checked = f"<br>Compared by itself: {escape(verdict.status)}"
        checked += "".join(map(_stage, verdict.stages))
    return f'<div class="pictures">{figures}</div><p><small>Replaced: {replaced}{macs}{checked}</small></p>'


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
    pictures: Pictures,
) -> str:
    """The place of a picture, which joins `pictures`; the page's script draws it there when its fold is opened."""
    picture = draw(nodes, sources, output)
    if picture is None:
        return f"<figure><figcaption>{title}: {plural(len(nodes), 'node')}, too many to draw</figcaption></figure>"
    return (
        f'<figure data-picture="{pictures.add(picture)}"><figcaption>{title}</figcaption>'
        '<div class="scroll"></div></figure>'
    )
