"""`python -m benchmarks`: measure all parts, or those named by `--only`, and write docs/benchmarks.md and its plots."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import authors, calibrate, growth, latency, leaderboard, toolcost
from benchmarks.exports import BY_NAME, LARGEST, MODELS, Model
from benchmarks.pages import write_pages
from benchmarks.runtimes import RUNTIMES

PARTS = ("calibrate", "latency", "authors", "tools", "growth", "leaderboard")
DOCS = Path(__file__).parent.parent / "docs"
LEADERBOARD = "leaderboard.jsonl"
TOOL_MODELS = ("ppocr_cls", "repvgg_a0", "mobileone_s0", "fastvit_t8", "yolov10n", LARGEST.name)


def main() -> None:
    arguments = _arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in () if arguments.pages else arguments.only or PARTS:
            if part == "leaderboard":
                _leaderboard(arguments)
                continue
            path = arguments.results / f"{part}.json"
            for result in _run(part, arguments, Path(folder)):
                path.write_text(json.dumps(_merged(path, result), indent=1), encoding="utf-8")
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(arguments.results.glob("*.json"))
    }
    board = leaderboard.latest(leaderboard.read(arguments.results / LEADERBOARD))
    write_pages({**results, **({"leaderboard": board} if board else {})}, arguments.docs)


def _leaderboard(arguments: argparse.Namespace) -> None:
    """Measure what is not known yet."""
    records = leaderboard.run(
        arguments.exports.parent,
        arguments.results / LEADERBOARD,
        only=tuple(arguments.files),
        settings=tuple(
            (r, t) for r, t in leaderboard.SETTINGS if r in arguments.runtimes and t in arguments.threads
        ),
        seconds=2 if arguments.quick else arguments.seconds,
        check=not arguments.unchecked,
    )
    for record in records:
        print(leaderboard.say(record), flush=True)


def _merged(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The rows of this run, and those of earlier runs that this run did not measure again."""
    if path.stem not in ("latency", "authors", "tools") or not path.exists():
        return result
    rows = {latency.key(row): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    rows.update({latency.key(row): row for row in result["rows"]})
    order = list(BY_NAME)
    return {**result, "rows": sorted(rows.values(), key=lambda row: order.index(row["model"]))}


def _run(part: str, arguments: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the results of a part: after each model, if there are several."""
    if part == "calibrate":
        result = calibrate.run(passes=1 if arguments.quick else 4)
        if arguments.write_constants:
            calibrate.write_constants(result)
        yield result
    if part == "latency":
        for model in arguments.models or MODELS:
            yield latency.run(
                [model],
                arguments.exports,
                work,
                exporters=tuple(arguments.exporters),
                threads=tuple(arguments.threads),
                seconds=2 if arguments.quick else arguments.seconds,
                runtimes=tuple(arguments.runtimes),
            )
    if part == "authors":
        for model in arguments.models or MODELS:
            seconds = 2 if arguments.quick else arguments.seconds
            yield authors.run(model, arguments.exports, work, tuple(arguments.exporters), seconds)
    if part == "tools":
        for model in arguments.models or [BY_NAME[name] for name in TOOL_MODELS]:
            yield toolcost.run([model], arguments.exports, work, rounds=2 if arguments.quick else 5)
    if part == "growth":
        yield from growth.run(work, *(((100, 1000), (1, 16)) if arguments.quick else ()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    add("--models", nargs="+", type=_model, metavar="NAME", help=f"of {', '.join(BY_NAME)}")
    add("--files", nargs="+", default=["*"], metavar="GLOB", help="of the leaderboard: globs of their names")
    add("--unchecked", action="store_true", help="make ours with --no-check, for the leaderboard")
    add("--exporters", nargs="+", choices=("ts", "dynamo"), default=["ts", "dynamo"])
    add("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=list(RUNTIMES))
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--seconds", type=float, default=15, metavar="S", help="for one row of the latencies")
    add("--quick", action="store_true", help="few rounds: to see that it runs; the figures are worth nothing")
    add(
        "--exports",
        type=Path,
        default=Path(".bench/exports"),
        metavar="DIR",
        help="full-size models, made if absent",
    )
    add(
        "--results",
        type=Path,
        default=Path(".bench/results"),
        metavar="DIR",
        help="raw results, one JSON a part",
    )
    add("--docs", type=Path, default=DOCS, metavar="DIR", help="where the pages and plots go")
    add("--pages", action="store_true", help="measure nothing, write the pages from the results")
    add(
        "--write-constants",
        action="store_true",
        help="write the calibrated prices into onnx_repfuse/planner/pricing/cost.py",
    )
    return parser.parse_args()


def _model(name: str) -> Model:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"unknown model {name!r}")
    return BY_NAME[name]


if __name__ == "__main__":
    main()
