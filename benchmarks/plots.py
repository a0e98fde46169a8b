"""Results as plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.board_pages import usable
from benchmarks.latency import DEPLOYED, OURS, TRAINED
from benchmarks.leaderboard import FASTEST
from benchmarks.tables import best_peer, setting
from benchmarks.tools import PEERS

_COLOURS = {
    "onnxsim": "#c9b79c",
    "onnxslim": "#b39b8e",
    "onnxoptimizer": "#a3a8ad",
    "onnxscript": "#8f9aa8",
    OURS: "#1f77b4",
    "ours, unchecked": "#7fb3d9",
    DEPLOYED: "#444444",
}


def _axes(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def latency(result: dict[str, Any], path: Path) -> None:
    """Time relative to the export as trained, one thread, legacy exporter: a panel for each runtime."""
    runtimes = list(dict.fromkeys(row["runtime"] for row in result["rows"]))
    threads = min(row["threads"] for row in result["rows"])
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    figure, axes = _axes(len(runtimes), 6.5 * len(runtimes), 0.55 * len(names) + 1.5)
    variants = (*PEERS, OURS, DEPLOYED)
    for axis, runtime in zip(axes, runtimes, strict=True):
        chosen = {}
        for row in result["rows"]:
            if row["runtime"] == runtime and row["threads"] == threads:
                chosen.setdefault(row["model"], row)
        for index, variant in enumerate(variants):
            places, values = [], []
            for place, name in enumerate(names):
                times = chosen.get(name, {"ms": {}})["ms"]
                if variant in times and TRAINED in times:
                    places.append(place + (index - len(variants) / 2 + 0.5) * 0.13)
                    values.append(times[variant][0] / times[TRAINED][0])
            axis.barh(places, values, 0.12, label=variant, color=_COLOURS[variant])
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{runtime}, {threads} thread")
        axis.set_xlabel("time / time as trained")
    axes[0].legend(loc="lower left", fontsize=8)
    _save(figure, path)


def leaderboard(rows: list[dict[str, Any]], path: Path) -> None:
    """Our time as a multiple of the best peer's: a dot for each file, a panel for each setting."""
    settings = list(dict.fromkeys((row["runtime"], row["threads"]) for row in rows))
    figure, axes = _axes(len(settings), 5.5 * len(settings), 9)
    for axis, key in zip(axes, settings, strict=True):
        here = [r for r in usable(rows) if (r["runtime"], r["threads"]) == key and best_peer(r) is not None]
        here.sort(key=lambda row: best_peer(row, FASTEST)[0])
        for ours, colour in ((OURS, "#7fb3d9"), (FASTEST, "#1f77b4")):
            values = [best_peer(row, ours)[0] for row in here]
            axis.plot(values, range(len(here)), "o", markersize=4, label=ours, color=colour)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        ticks = [0.2, 0.3, 0.5, 0.7, 1, 1.2]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_yticks(range(len(here)), [row["raced"] for row in here], fontsize=6)
        axis.set_title(setting(*key))
        axis.set_xlabel("time / time of the best peer's file")
        axis.legend(fontsize=8)
    _save(figure, path)


def tools(result: dict[str, Any], path: Path) -> None:
    """Time and peak memory as multiples of load+save, on logarithmic axes."""
    names = [row["model"] for row in result["rows"]]
    figure, axes = _axes(2, 11, 0.6 * len(names) + 1.5)
    variants = (*PEERS, OURS, "ours, unchecked")
    for axis, key, title in zip(axes, ("time", "memory"), ("time", "peak memory"), strict=True):
        for index, variant in enumerate(variants):
            places, values = [], []
            for place, row in enumerate(result["rows"]):
                if key in row["tools"].get(variant, {}):
                    places.append(place + (index - len(variants) / 2 + 0.5) * 0.13)
                    values.append(row["tools"][variant][key][0])
            axis.barh(places, values, 0.12, label=variant, color=_COLOURS[variant])
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(f"{title} / onnx.load + onnx.save")
    axes[1].legend(fontsize=8)
    _save(figure, path)


def growth(result: dict[str, Any], path: Path) -> None:
    """Planning time by nodes; time and memory by weights."""
    figure, axes = _axes(3, 14, 4)
    for shape in dict.fromkeys(row["shape"] for row in result["nodes"]):
        rows = [row for row in result["nodes"] if row["shape"] == shape]
        axes[0].loglog([r["nodes"] for r in rows], [r["seconds"][0] for r in rows], marker="o", label=shape)
    axes[0].set_xlabel("nodes")
    axes[0].set_ylabel("seconds to plan")
    rows = [
        row for row in result["weights"] if not row["load+save"]["error"] + row["ours, unchecked"]["error"]
    ]
    for axis, key, unit in zip(axes[1:], ("seconds", "peak"), ("seconds", "MiB at the peak"), strict=True):
        for tool, colour in (("load+save", "#444444"), ("ours, unchecked", _COLOURS[OURS])):
            values = [row[tool][key][0] for row in rows]
            axis.loglog([r["megabytes"] for r in rows], values, marker="o", label=tool, color=colour)
        axis.set_xlabel("MB of weights")
        axis.set_ylabel(unit)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def calibration(result: dict[str, Any], path: Path) -> None:
    """Predicted / measured time, by measured time."""
    figure, (axis,) = _axes(1, 8, 4.5)
    groups = list(dict.fromkeys(row["group"] for row in result["rows"]))
    for index, group in enumerate(groups):
        rows = [row for row in result["rows"] if row["group"] == group]
        marker = "osD^vPX"[index // 10 * 3 + index % 3]
        values = [row["fitted"] for row in rows]
        axis.plot([1e6 * r["time"] for r in rows], values, marker, markersize=4, label=group, alpha=0.8)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_yticks([0.5, 0.7, 1, 1.5, 2], ["0.5", "0.7", "1", "1.5", "2"])
    axis.minorticks_off()
    axis.set_xlabel("measured, µs")
    axis.set_ylabel("predicted / measured")
    axis.legend(fontsize=7, ncols=2, bbox_to_anchor=(1.01, 1), loc="upper left")
    _save(figure, path)
