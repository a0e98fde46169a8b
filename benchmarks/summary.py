"""The summary in front of the long tables: one number for each network and setting, and their geometric means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.latency import DEPLOYED, TRAINED
from benchmarks.race import NOTABLE
from benchmarks.tables import EXPORTERS, best_peer, setting, table


def latency_summary(result: dict[str, Any]) -> str:
    """Two tables: means by runtime, threads and exporter; and ours / as trained by network (legacy exporter)."""
    by_network = "By network, legacy exporter:"
    return "\n\n".join([_by_setting(result["rows"]), by_network, _by_network(result["rows"])])


def _by_network(rows: list[dict[str, Any]]) -> str:
    settings = dict.fromkeys((row["runtime"], row["threads"]) for row in rows)
    columns: dict[tuple[str, int], dict[str, float]] = {key: {} for key in settings}
    for row in rows:
        if row["exporter"] == "ts" and TRAINED in row["ours/"]:
            columns[row["runtime"], row["threads"]][row["model"]] = row["ours/"][TRAINED][0]
    models = dict.fromkeys(row["model"] for row in rows)
    lines = [[model, *(_factor(column.get(model)) for column in columns.values())] for model in models]
    lines.append(["**geometric mean**", *(f"**{mean(column.values())}**" for column in columns.values())])
    return table([f"ours / {TRAINED}", *(setting(*key) for key in settings)], lines)


def _by_setting(rows: list[dict[str, Any]]) -> str:
    lines = []
    for runtime, threads, exporter in dict.fromkeys(
        (r["runtime"], r["threads"], r["exporter"]) for r in rows
    ):
        group = [
            r for r in rows if (r["runtime"], r["threads"], r["exporter"]) == (runtime, threads, exporter)
        ]
        trained = [row["ours/"][TRAINED][0] for row in group if TRAINED in row["ours/"]]
        peers = [peer[0] for row in group if (peer := best_peer(row)) is not None]
        authors = [row["ours/"][DEPLOYED][0] for row in group if DEPLOYED in row["ours/"]]
        lines.append(
            [
                f"{setting(runtime, threads)}, {EXPORTERS[exporter]}",
                mean(trained),
                mean(peers),
                mean(authors),
                f"{sum(value < 1 - NOTABLE for value in trained)} of {len(trained)}",
                f"{sum(value > 1 + NOTABLE for value in trained)} of {len(trained)}",
                f"{sum(value > 1 + NOTABLE for value in peers)} of {len(peers)}",
            ]
        )
    percent = f"{100 * NOTABLE:.0f} %"
    head = [
        "geometric means",
        f"ours / {TRAINED}",
        "ours / best peer",
        f"ours / {DEPLOYED}",
        f"over {percent} faster than {TRAINED}",
        f"over {percent} slower than {TRAINED}",
        f"over {percent} slower than best peer",
    ]
    return table(head, lines)


def tools_summary(result: dict[str, Any]) -> str:
    """Geometric means over the files: processor time and peak memory as multiples of load+save."""
    lines = []
    for tool in dict.fromkeys(tool for row in result["rows"] for tool in row["tools"]):
        costs = [row["tools"][tool] for row in result["rows"] if tool in row["tools"]]
        costs = [cost for cost in costs if "error" not in cost]
        lines.append(
            [
                tool,
                mean(cost["time"][0] for cost in costs),
                mean(cost["memory"][0] for cost in costs),
                f"{len(costs)} of {len(result['rows'])}",
            ]
        )
    return table(["geometric means", "processor time / load+save", "peak memory / load+save", "files"], lines)


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def mean(values: Iterable[float]) -> str:
    """The geometric mean, as ratios want.

    >>> mean([0.5, 2.0]), mean([])
    ('1.00', '')
    """
    values = list(values)
    return _factor(float(np.exp(np.mean(np.log(values)))) if values else None)
