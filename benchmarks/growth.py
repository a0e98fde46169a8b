"""How the tool's time grows with nodes and with weights: planning, and the whole unverified run."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.synthetic import SHAPES, write
from benchmarks.timing import spread
from benchmarks.tools import measured

NODES = (100, 300, 1000, 2500, 5000, 10000)
MEGABYTES = (1, 4, 16, 64, 125, 250, 500)
_ROUNDS = 5
_BLOCK = 8  # nodes of a RepVGG block


def run(
    work: Path, nodes: tuple[int, ...] = NODES, megabytes: tuple[int, ...] = MEGABYTES
) -> Iterator[dict[str, Any]]:
    """Yield the result so far, after every shape of graph and every size of file."""
    planned: list[dict[str, Any]] = []
    weighed: list[dict[str, Any]] = []
    for size in megabytes:
        weighed.append(_weights(work, size))
        yield {"machine": describe(), "nodes": planned, "weights": weighed}
    for shape in SHAPES:
        planned.extend(_nodes(work, shape, nodes))
        yield {"machine": describe(), "nodes": planned, "weights": weighed}


def _nodes(work: Path, shape: str, counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of `onnx_repfuse.plan`.

    The sizes of one shape are interleaved, so that their ratios do not depend on other load.
    """
    import onnx

    from onnx_repfuse import plan

    seconds: dict[int, list[float]] = {count: [] for count in counts}
    paths = {count: work / f"{shape}.{count}.onnx" for count in counts}
    for count, path in paths.items():
        write(shape, count, 8, path)
    for _ in range(_ROUNDS):
        for count, path in paths.items():
            gc.collect()  # otherwise this plan pays for the garbage of the previous one
            start = time.process_time()
            plan(path)
            seconds[count].append(time.process_time() - start)
    rows = []
    for count, values in seconds.items():
        row = {"shape": shape, "nodes": len(onnx.load(paths[count]).graph.node), "seconds": spread(values)}
        print(f"plan {shape} {row['nodes']} nodes: {row['seconds'].median:.3f} s", flush=True)
        rows.append(row)
    return rows


def _weights(work: Path, size: int) -> dict[str, Any]:
    """Seconds and peak memory over a file of ten blocks, against load+save."""
    path = work / f"weights.{size}.onnx"
    write("blocks", 10 * _BLOCK, channels_of(size), path)
    row: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6}
    costs: dict[str, list[Any]] = {"load+save": [], "ours, unchecked": []}
    for _ in range(3):
        for tool in costs:
            costs[tool].append(measured(tool, path, work / "weights.out.onnx"))
    for tool, runs in costs.items():
        row[tool] = {
            "seconds": spread([c.seconds for c in runs]),
            "peak": spread([c.peak for c in runs]),
            "error": runs[0].error,
        }
    medians = " ".join(f"{t} {row[t]['seconds'].median:.2f} s {row[t]['peak'].median:.0f} MiB" for t in costs)
    print(f"{row['megabytes']:.0f} MB: {medians}", flush=True)
    path.unlink()
    return row


def channels_of(megabytes: int) -> int:
    """Channels of ten blocks of that size: their 3x3 and 1x1 kernels have 10 * 10 * channels**2 floats."""
    return max(8, round((megabytes * 1e6 / 4 / 100) ** 0.5))
