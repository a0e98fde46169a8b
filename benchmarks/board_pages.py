"""The leaderboard as text: a summary for the first pages, a table of all files, the losses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.leaderboard import AFTER, COLUMNS, FASTEST, GROUPS, INPUT, OURS, SETTINGS, entries
from benchmarks.race import NOTABLE
from benchmarks.summary import mean
from benchmarks.tables import best_peer, setting, table

Row = dict[str, Any]


def title(row: Row) -> str:
    """The file's name; a star says that ours was not proved."""
    return row["raced"] + (" *" if "unchecked" in row["commit"] else "")


def usable(rows: Sequence[Row]) -> list[Row]:
    """The races that took place, with a result of ours in them."""
    return [row for row in rows if "error" not in row and OURS in row["ms"] and FASTEST in row["ms"]]


def board_summary(rows: Sequence[Row]) -> str:
    """One line per runtime and number of threads."""
    lines = []
    for key, group in _by_setting(usable(rows)).items():
        peers = {ours: _against_peers(group, ours) for ours in (OURS, FASTEST)}
        against = peers[FASTEST]
        lines.append(
            [
                setting(*key),
                f"{len(group)} of {len(entries())}",
                *(mean(row[f"{ours}/"][INPUT][0] for row in group) for ours in (OURS, FASTEST)),
                *(mean(peers[ours]) for ours in (OURS, FASTEST)),
                str(sum(value < 1 - NOTABLE for value in against)),
                str(sum(any(loss[1] == FASTEST for loss in losses(row)) for row in group)),
                str(sum(value <= 0.9 for value in against)),
                str(sum(value <= 0.5 for value in against)),
            ]
        )
    head = ["geometric means", "files", "ours / input", "-O2 / input", "ours / best peer", "-O2 / best peer"]
    return table([*head, "-O2 wins", "-O2 losses", "at most 0.90", "at most 0.50"], lines)


def board_family(rows: Sequence[Row], word: str) -> str:
    """The files whose names hold a word, in the first setting: times as multiples of the input's."""
    first = next(iter(_by_setting(rows).values()), [])
    lines = [
        [
            title(row),
            f"{row['ms'][INPUT][0]:.1f}",
            *_factors(row, (OURS, FASTEST)),
            _factor(best_peer(row, FASTEST)),
        ]
        for row in usable(first)
        if word in row["raced"]
    ]
    return table(["file (package)", "input, ms", "ours / input", "-O2 / input", "-O2 / best peer"], lines)


def board_text(rows: Sequence[Row]) -> str:
    """Everything: where it was measured, a table per setting and group, losses, and what failed."""
    parts = [_conditions(rows)]
    groups = _by_setting(rows)
    if absent := [setting(*key) for key in SETTINGS if key not in groups]:
        parts.append(f"Not run: {'; '.join(absent)}.")
    for key, group in groups.items():
        parts.append(f"## {setting(*key)}")
        parts.extend(_tables(group))
        parts.append("### Losses")
        parts.append(_losses(group) or "None.")
        if failures := _failures(group):
            parts += ["### Failed or unequal", failures]
        raced = {row["raced"] for row in group}
        if absent := [entry.name for entry in entries() if entry.name not in raced]:
            parts += ["### Not run", f"{', '.join(absent)}."]
    return "\n\n".join(parts)


def losses(row: Row) -> list[tuple[str, str, str, float, float]]:
    """(file, ours, rival, ratio, ratio in the openings that followed) where we are slower in both."""
    return [
        (row["raced"], ours, rival, row[f"{ours}/"][rival][0], value)
        for ours, rivals in row.get("again", {}).items()
        for rival, value in rivals.items()
        if value > 1 + NOTABLE
    ]


def _by_setting(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    result: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        result.setdefault((row["runtime"], row["threads"]), []).append(row)
    return result


def _against_peers(rows: Sequence[Row], ours: str) -> list[float]:
    return [value[0] for row in rows if (value := best_peer(row, ours)) is not None]


def _conditions(rows: Sequence[Row]) -> str:
    machines = [row["machine"] for row in rows]
    loads = sorted(machine["load"] for machine in machines)
    versions = {name: version for machine in machines for name, version in machine["versions"].items()}
    dates = sorted({machine["date"] for machine in machines})
    commits = ", ".join(sorted({row["commit"].split(",")[0] for row in rows}))
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machines[-1]['processor']}; load average "
        f"{loads[0]} to {loads[-1]} at the start of a run; processor time. Our commit: {commits}. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _tables(rows: Sequence[Row]) -> list[str]:
    parts = []
    for name in GROUPS:
        group = [row for row in usable(rows) if row["group"] == name]
        if group:
            head = ["time / input", "input, ms", *COLUMNS[1:], "ours / best peer", "-O2 / best peer"]
            lines = [
                [
                    title(row),
                    f"{row['ms'][INPUT][0]:.2f}",
                    *_factors(row, COLUMNS[1:]),
                    *(_factor(best_peer(row, ours)) for ours in (OURS, FASTEST)),
                ]
                for row in group
            ]
            parts += [f"### {name.capitalize()}", table(head, lines)]
    return parts


def _factors(row: Row, columns: Sequence[str]) -> list[str]:
    """Each column's time as a multiple of the input's."""
    whole = row["ms"][INPUT][0]
    own = {ours: row[f"{ours}/"][INPUT][0] for ours in (OURS, FASTEST)}
    times = {name: value[0] / whole for name, value in row["ms"].items()}
    return [f"{own.get(name, times[name]):.2f}" if name in times else "" for name in columns]


def _factor(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f}"


def _losses(rows: Sequence[Row]) -> str:
    lines = [
        [name, ours, rival, f"{once:.3f}", f"{again:.3f}"]
        for row in rows
        for name, ours, rival, once, again in losses(row)
    ]
    return table(["file", "", "slower than", "ratio", "in 14 more openings"], lines) if lines else ""


def _failures(rows: Sequence[Row]) -> str:
    lines = [[row["raced"], "all", f"`{row['error']}`"] for row in rows if "error" in row]
    for row in rows:
        found = dict(row["failed"])
        if found.get(AFTER) == "onnxslim failed":
            del found[AFTER]
        lines += [[row["raced"], who, f"`{_shown(why)}`"] for who, why in found.items()]
    return table(["file", "tool", "why"], lines) if lines else ""


def _shown(why: str) -> str:
    """A message as a cell of a table, without the folders of this machine."""
    return re.sub(r"(?<![\w.])/\S*/", "", why).replace("|", "/")
