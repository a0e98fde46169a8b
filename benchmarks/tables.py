"""What all pages of results share: Markdown tables, ratios, names of runtimes and exporters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tools import PEERS

EXPORTERS = {"ts": "legacy exporter", "dynamo": "dynamo exporter"}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(f" {c} " if c != "---" else c for c in line) + "|" for line in lines)


def ratio(value: Sequence[float] | None) -> str:
    """Median and half of the distance between the quartiles.

    >>> ratio((0.8871, 0.88, 0.89))
    '0.887 ± 0.005'
    """
    return "" if value is None else f"{value[0]:.3f} ± {(value[2] - value[1]) / 2:.3f}"


def setting(runtime: str, threads: int) -> str:
    """
    >>> setting("openvino", 2)
    'OpenVINO, 2 threads'
    """
    return f"{RUNTIMES[runtime]}, {threads} {'thread' if threads == 1 else 'threads'}"


def best_peer(row: dict[str, Any], ours: str = "ours") -> Sequence[float] | None:
    """Our time as a multiple of the fastest peer's, as (median, quartiles); None if all peers failed."""
    ratios = [row[f"{ours}/"][name] for name in PEERS if name in row[f"{ours}/"]]
    return max(ratios, key=lambda value: value[0], default=None)
