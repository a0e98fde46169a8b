"""Write results into the pages: each part replaces the text between `<!-- measured: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plots
from benchmarks.board_pages import board_family, board_summary, board_text
from benchmarks.calibrate import by_group
from benchmarks.latency import DEPLOYED, OURS, TRAINED
from benchmarks.summary import latency_summary, tools_summary
from benchmarks.tables import EXPORTERS, RUNTIMES, best_peer, ratio, setting, table
from benchmarks.tools import PEERS

BENCHMARKS, COST_MODEL, LEADERBOARD = "benchmarks.md", "cost-model.md", "leaderboard.md"


def write_pages(results: dict[str, Any], docs: Path) -> None:
    """Write the parts that were measured; the others stay as they are."""
    if "latency" in results:
        _fill(docs / BENCHMARKS, "latency summary", latency_summary(results["latency"]))
        _fill(docs / BENCHMARKS, "latency", latency_text(results["latency"]))
        plots.latency(results["latency"], docs / "benchmarks-latency.png")
    if "authors" in results:
        _fill(docs / BENCHMARKS, "authors", authors_text(results["authors"]))
    if "tools" in results:
        _fill(docs / BENCHMARKS, "tools summary", tools_summary(results["tools"]))
        _fill(docs / BENCHMARKS, "tools", tools_text(results["tools"]))
        plots.tools(results["tools"], docs / "benchmarks-tools.png")
    if "growth" in results:
        _fill(docs / BENCHMARKS, "growth", growth_text(results["growth"]))
        plots.growth(results["growth"], docs / "benchmarks-growth.png")
    if "calibrate" in results:
        _fill(docs / COST_MODEL, "calibrate", calibrate_text(results["calibrate"]))
        plots.calibration(results["calibrate"], docs / "cost-model.png")
    if "leaderboard" in results:
        rows = results["leaderboard"]
        for page in (docs / LEADERBOARD, docs / "index.md", docs.parent / "README.md"):
            _fill(page, "leaderboard summary", board_summary(rows))
        _fill(docs.parent / "README.md", "leaderboard OCR", board_family(rows, "PP-OCR"))
        _fill(docs / LEADERBOARD, "leaderboard", board_text(rows))
        plots.leaderboard(rows, docs / "leaderboard.png")


def _fill(page: Path, name: str, text: str) -> None:
    before = page.read_text(encoding="utf-8")
    pattern = rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)"
    after, count = re.subn(pattern, lambda m: f"{m[1]}\n{text.strip()}\n\n{m[2]}", before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{page.name} has no place for '{name}'")
    page.write_text(after, encoding="utf-8")


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['date']}, {machine['processor']}; load average {machine['load']} at the end. {versions}."
    )


def latency_text(result: dict[str, Any]) -> str:
    """One table per runtime, number of threads and exporter."""
    parts = [_machine(result)]
    keys = dict.fromkeys((row["runtime"], row["threads"], row["exporter"]) for row in result["rows"])
    for key in keys:
        rows = [row for row in result["rows"] if (row["runtime"], row["threads"], row["exporter"]) == key]
        runtime, threads, exporter = key
        parts.append(f"### {setting(runtime, threads)}, {EXPORTERS[exporter]}")
        parts.append(_latency_table(rows))
        failed = {(row["model"], who): why for row in rows for who, why in row["failed"].items()}
        parts.extend(f"{model}, {who}: `{why}`" for (model, who), why in failed.items())
    return "\n\n".join(parts)


def _latency_table(rows: list[dict[str, Any]]) -> str:
    variants = (TRAINED, *PEERS, OURS, DEPLOYED)
    head = ["milliseconds", *variants, f"ours / {TRAINED}", "ours / best peer", f"ours / {DEPLOYED}"]
    lines = []
    for row in rows:
        times = [f"{row['ms'][name][0]:.2f}" if name in row["ms"] else "" for name in variants]
        against = row["ours/"]
        ratios = [ratio(against.get(TRAINED)), ratio(best_peer(row)), ratio(against.get(DEPLOYED))]
        lines.append([row["model"], *times, *ratios])
    return table(head, lines)


def authors_text(result: dict[str, Any]) -> str:
    """What was left to fold in the authors' exports, and what it gains."""
    lines = []
    for row in result["rows"]:
        gone = ", ".join(f"{-n:+d} {op}" for op, n in row["gone"].items())
        where = f"{EXPORTERS[row['exporter']]}, {RUNTIMES[row['runtime']]}"
        times = [f"{row['ms'][name][0]:.2f}" for name in ("author's", "ours")]
        lines.append([row["model"], where, gone, *times, ratio(row["ratio"])])
    head = ["", "export, runtime", "nodes", "author's, ms", "ours, ms", "ours / author's"]
    return "\n\n".join([_machine(result), table(head, lines)])


def tools_text(result: dict[str, Any]) -> str:
    """Time and peak memory of every tool, one table per model."""
    parts = [_machine(result)]
    for row in result["rows"]:
        lines = []
        for tool, cost in row["tools"].items():
            if "error" in cost:
                lines.append([tool, f"failed: `{cost['error']}`", *[""] * 5])
                continue
            lines.append(
                [
                    tool,
                    f"{cost['seconds'][0]:.2f} s",
                    ratio(cost["time"]),
                    f"{cost['wall'][0]:.2f} s",
                    f"{cost['peak'][0]:.0f} MiB",
                    ratio(cost["memory"]),
                    f"{cost['imports'][0]:.2f} s",
                ]
            )
        parts.append(f"### {row['model']}, {row['megabytes']:.1f} MB")
        parts.append(
            table(
                ["", "processor time", "/ load+save", "on the wall", "peak memory", "/ load+save", "imports"],
                lines,
            )
        )
    return "\n\n".join(parts)


def growth_text(result: dict[str, Any]) -> str:
    """Planning time by nodes, time and memory of the whole run by weights."""
    shapes = dict.fromkeys(row["shape"] for row in result["nodes"])
    lines = []
    for shape in shapes:
        rows = [row for row in result["nodes"] if row["shape"] == shape]
        for row in rows:
            seconds = row["seconds"]
            lines.append(
                [shape, str(row["nodes"]), f"{seconds[0]:.3f} s", f"{1e6 * seconds[0] / row['nodes']:.0f} µs"]
            )
    sizes = []
    for row in result["weights"]:
        base, ours = row["load+save"], row["ours, unchecked"]
        if base["error"] or ours["error"]:
            sizes.append([f"{row['megabytes']:.0f} MB", base["error"], ours["error"], "", "", "", ""])
            continue
        sizes.append(
            [
                f"{row['megabytes']:.0f} MB",
                f"{base['seconds'][0]:.2f} s",
                f"{ours['seconds'][0]:.2f} s",
                f"{ours['seconds'][0] / base['seconds'][0]:.2f}",
                f"{base['peak'][0]:.0f} MiB",
                f"{ours['peak'][0]:.0f} MiB",
                f"{ours['peak'][0] / base['peak'][0]:.2f}",
            ]
        )
    head = ["file", "load+save", "ours, unchecked", "ratio", "peak of load+save", "peak of ours", "ratio"]
    return "\n\n".join(
        [
            _machine(result),
            "### Planning, by nodes",
            table(["graph", "nodes", "plan", "a node"], lines),
            "### The whole run, by weights",
            table(head, sizes),
        ]
    )


def calibrate_text(result: dict[str, Any]) -> str:
    """The fitted prices, and how well they predict."""
    prices = table(["price", "picoseconds"], [[f"`{n}`", f"{p:,}"] for n, p in result["prices"].items()])
    lines = []
    for group, rows in by_group(result).items():
        low, median, high = np.quantile([row["fitted"] for row in rows], [0.1, 0.5, 0.9])
        micro = 1e6 * float(np.median([row["time"] for row in rows]))
        spread = f"{low:.2f} – {high:.2f}"
        lines.append([group, str(len(rows)), f"{micro:.0f} µs", f"{median:.2f}", spread])
    head = ["unit", "cases", "median time", "predicted / measured", "10 % – 90 %"]
    off = np.exp(np.median([abs(np.log(row["fitted"])) for row in result["rows"]]))
    total = f"Over all {len(result['rows'])} cases the median error is a factor of {off:.2f}."
    return "\n\n".join([_machine(result), prices, table(head, lines), total])
