"""`python -m benchmarks`: measure everything, or what `--only` names, and write docs/benchmarks.md and its plots."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import calibrate, growth, latency, toolcost
from benchmarks.exports import BY_NAME, LARGEST, MODELS, Model
from benchmarks.pages import write_pages

PARTS = ("calibrate", "latency", "tools", "growth")
DOCS = Path(__file__).parent.parent / "docs"
TOOL_MODELS = ("ppocr_cls", "repvgg_a0", "mobileone_s0", "fastvit_t8", "yolov10n", LARGEST.name)


def main() -> None:
    arguments = _arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.only or PARTS:
            if not arguments.pages:
                result = _run(part, arguments, Path(folder))
                text = json.dumps(result, indent=1)
                (arguments.results / f"{part}.json").write_text(text, encoding="utf-8")
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(arguments.results.glob("*.json"))
    }
    write_pages(found, arguments.docs)


def _run(part: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    if part == "calibrate":
        result = calibrate.run(passes=1 if arguments.quick else 4)
        if arguments.write_constants:
            calibrate.write_constants(result)
        return result
    if part == "latency":
        return latency.run(
            arguments.models or list(MODELS),
            arguments.exports,
            work,
            exporters=tuple(arguments.exporters),
            threads=tuple(arguments.threads),
            seconds=2 if arguments.quick else 15,
        )
    if part == "tools":
        models = arguments.models or [BY_NAME[name] for name in TOOL_MODELS]
        return toolcost.run(models, arguments.exports, work, rounds=2 if arguments.quick else 5)
    if arguments.quick:
        return growth.run(work, nodes=(100, 1000), megabytes=(1, 16))
    return growth.run(work)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    add("--models", nargs="+", type=_model, metavar="NAME", help=f"of {', '.join(BY_NAME)}")
    add("--exporters", nargs="+", choices=("ts", "dynamo"), default=["ts", "dynamo"])
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    add("--quick", action="store_true", help="few rounds: to see that it runs; the figures are worth nothing")
    add(
        "--exports",
        type=Path,
        default=Path("build/exports"),
        metavar="DIR",
        help="full-size models, made if absent",
    )
    add(
        "--results",
        type=Path,
        default=Path("build/benchmarks"),
        metavar="DIR",
        help="raw results, one JSON a part",
    )
    add("--docs", type=Path, default=DOCS, metavar="DIR", help="where the pages and plots go")
    add("--pages", action="store_true", help="measure nothing, write the pages from the results")
    add(
        "--write-constants",
        action="store_true",
        help="write the calibrated prices into onnx_repfuse/plan/cost.py",
    )
    return parser.parse_args()


def _model(name: str) -> Model:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"unknown model {name!r}")
    return BY_NAME[name]


if __name__ == "__main__":
    main()
