"""The whole graph before and after, side by side: a cell per node, and the cells of a fold as a link to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.report.formatting import plural
from onnx_repfuse.report.html_parts import escape
from onnx_repfuse.report.map_layout import Layout, columns, lay_out, width_of_bands

if TYPE_CHECKING:
    from onnx_repfuse.records.graph_map import GraphMap
    from onnx_repfuse.records.report import Report

__all__ = ["fold_id", "graph_maps", "reason_id"]

_PITCH, _CELL = 10, 8  # of cells, in units of the picture
_MAX_SCALE = 1.7  # of a small graph, in pixels per unit


def fold_id(model: int, fold: int) -> str:
    """The anchor of a fold in the list."""
    return f"fold-{model}-{fold}"


def reason_id(model: int, reason: Reason) -> str:
    """The anchor of the refusals with one reason."""
    return f"refusal-{model}-{reason}"


def graph_maps(report: Report, model: int) -> str:
    """Both maps with a legend; "" if the report has none."""
    if report.maps is None or not report.maps.before:
        return ""
    before, after = report.maps.before, report.maps.after
    places = columns(before)
    width = width_of_bands(places)
    refused = _refused(report)
    used = next((other.title for other in reversed(report.simplified) if other.used), "")
    title = f"Before, as {escape(used)} left it" if used else "Before"
    panes = _pane(title, before, lay_out(places, width), report, model, refused) + _pane(
        "After", after, lay_out(columns(after), width), report, model, refused
    )
    return f'<div class="maps">{panes}</div>{_legend(before, after, refused)}'


def _refused(report: Report) -> dict[tuple[str, str], Reason]:
    """(scope, node) -> why it was not folded; without patterns that runtimes fuse as they are."""
    return {
        (refusal.scope, name): refusal.reason
        for refusal in report.refusals
        if refusal.reason is not Reason.FUSED_PATTERN
        for name in refusal.nodes
    }


def _pane(
    title: str,
    nodes: GraphMap,
    layout: Layout,
    report: Report,
    model: int,
    refused: dict[tuple[str, str], Reason],
) -> str:
    """One map. Nodes that look alike share a path, which keeps the page small."""
    folds: dict[int, dict[int, str]] = {}  # number -> place -> its part of the cell
    reasons: dict[Reason, list[int]] = {}
    removed: list[int] = []
    others: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        if node.folds:
            for part, number in enumerate(node.folds):
                square = _part(layout.cells[place], part, len(node.folds))
                folds.setdefault(number, {})[place] = square
        elif node.is_changed:
            removed.append(place)
        elif (node.scope, node.name) in refused:
            reasons.setdefault(refused[node.scope, node.name], []).append(place)
        else:
            others.setdefault(node.op, []).append(place)

    def cells(places: Iterable[int]) -> str:
        return _path(layout.cells[place] for place in places)

    parts = [_shape("same", cells(places), _counted(op, places)) for op, places in sorted(others.items())]
    if removed:
        parts.append(_shape("changed", cells(removed), f"{_ops(nodes, removed)}: changed otherwise, no fold"))
    for reason, places in reasons.items():
        shape = _shape("kept", cells(places), f"{_ops(nodes, places)}: not folded, {reason}")
        parts.append(_link(reason_id(model, reason), shape))
    for number, strips in sorted(folds.items()):
        fold = report.folds[number]
        words = f"{fold.output}: {_ops(nodes, list(strips))}{_shared(nodes, strips, number, report)}"
        shape = _shape(f"fold{number % 2}", "".join(strips.values()), words)
        parts.append(_link(fold_id(model, number), shape))
    wide, high = layout.width * _PITCH, max(1, layout.height) * _PITCH
    label = escape(
        f"map of the graph {title.lower()}: {plural(len(nodes), 'node')}, {plural(len(folds), 'fold')}"
    )
    return (
        f'<figure class="map"><figcaption>{title} <span class="dim">{plural(len(nodes), "node")}</span></figcaption>'
        f'<svg viewBox="0 0 {wide} {high}" style="max-width:{_MAX_SCALE * wide:.0f}px" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _path(cells: Iterable[tuple[int, int]]) -> str:
    """Squares, as one path."""
    return "".join(f"M{x * _PITCH + 1} {y * _PITCH + 1}h{_CELL}v{_CELL}h-{_CELL}z" for x, y in cells)


def _part(cell: tuple[int, int], part: int, parts: int) -> str:
    """One of several strips of a square, as a path: each fold that shares a node has one."""
    x, y = cell
    top, high = y * _PITCH + 1 + part * _CELL / parts, _CELL / parts
    return f"M{x * _PITCH + 1} {top:g}h{_CELL}v{high:g}h-{_CELL}z"


def _shared(nodes: GraphMap, places: Iterable[int], number: int, report: Report) -> str:
    """With which other folds a fold shares nodes, as the end of a sentence."""
    others = Counter(other for place in places for other in nodes[place].folds if other != number)
    return "".join(
        f"; {plural(count, 'node')} shared with {report.folds[other].output}"
        for other, count in others.items()
    )


def _shape(style: str, path: str, title: str) -> str:
    return f'<path class="{style}" d="{path}"><title>{escape(title)}</title></path>'


def _link(target: str, shape: str) -> str:
    # The lists below have the same links for the keyboard: hundreds of stops more would help nobody.
    return f'<a href="#{target}" tabindex="-1">{shape}</a>'


def _ops(nodes: GraphMap, places: Sequence[int]) -> str:
    counts = Counter(nodes[place].op for place in places)
    return ", ".join(f"{count} {op}" if count > 1 else op for op, count in counts.items())


def _counted(op: str, places: Sequence[int]) -> str:
    return f"{plural(len(places), op)}, as before" if len(places) == 1 else f"{len(places)} {op}, as before"


def _legend(before: GraphMap, after: GraphMap, refused: dict[tuple[str, str], Reason]) -> str:
    """What the colors mean that are there."""
    nodes = (*before, *after)
    free = [node for node in nodes if not node.folds and not node.is_changed]
    entries = [
        ("fold0", "folded", any(node.folds for node in nodes)),
        ("changed", "changed otherwise", any(node.is_changed for node in nodes)),
        ("kept", "linear, not folded", any((node.scope, node.name) in refused for node in free)),
        ("same", "as it was", bool(free)),
    ]
    keys = "".join(f'<span class="cell {style}">{text}</span>' for style, text, there in entries if there)
    click = "; a click on a fold opens it" if any(node.folds for node in nodes) else ""
    scopes = len({node.scope for node in nodes}) > 1
    more = '<span class="dim">subgraphs and functions follow the main graph</span>' if scopes else ""
    return (
        f'<p class="legend">{keys}<span class="dim">inputs left, outputs right; lines continue below'
        f"{click}</span>{more}</p>"
    )
