"""Files of one network against each other in one runtime, interleaved, in several openings.

`python -m benchmarks.race` reads what to race from its standard input and prints the result: a runtime that dies takes
only this process with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.equality import Expected
from benchmarks.runtimes import RUNTIMES, Given, feeds
from benchmarks.timing import Clock, interleaved, ratios, spread

OPENINGS = 3  # of each file: the place of a session's memory changes times by several percent
AGAIN = 14  # openings in which a loss must show again
NOTABLE = 0.02  # a smaller difference from 1 may come from the machine

Job = dict[str, Any]
Function = Callable[[], object]


def race(
    files: Mapping[str, Path],
    inputs: list[Any],
    runtime: str,
    threads: int,
    seconds: float,
    clock: Clock,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each call of each file; and the files that do not run, with the reason."""
    samples: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for opening in range(OPENINGS):
        functions = {}
        for name in turned(list(files), opening):
            function, error = opened(runtime, files[name], inputs, threads)
            if function is None:
                failed[name] = error
            else:
                functions[name] = function
        timed = interleaved(functions, seconds=seconds / OPENINGS, fewest=3, clock=clock, warm=1)
        for name in files:
            if name in timed:
                samples.setdefault(name, []).extend(timed[name])
    return samples, failed


def turned(names: list[str], opening: int) -> list[str]:
    """The order in which files are opened, rotated at each opening."""
    first = opening * len(names) // OPENINGS
    return names[first:] + names[:first]


def opened(runtime: str, path: Path, inputs: list[Any], threads: int) -> tuple[Function | None, str]:
    """A function that runs the model once; or None, and why the model does not run."""
    try:
        function = RUNTIMES[runtime](path, inputs, threads)
        function()
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return function, ""


def against(samples: Mapping[str, list[float]], ours: str) -> dict[str, Any]:
    """Our time as a multiple of each file's."""
    return {name: ratios(samples, ours, name) for name in samples if ours in samples}


def confirmed(
    files: Mapping[str, Path], pair: tuple[str, str], inputs: list[Any], runtime: str, threads: int
) -> float:
    """The median over new openings of the time of the first as a multiple of the second's; the order alternates."""
    found = []
    for opening in range(AGAIN):
        functions: dict[str, Function] = {}
        for name in pair if opening % 2 else pair[::-1]:
            function, error = opened(runtime, files[name], inputs, threads)
            if function is None:
                raise RuntimeError(error)
            functions[name] = function
        samples = interleaved(functions, seconds=0.1, fewest=3, warm=1)
        found.append(ratios(samples, *pair).median)
    return spread(found).median


def run(job: Job) -> dict[str, Any]:
    """Race what the job names. Files of the same bytes run once.

    Args:
        job: `files` by column, the input first; `runtime`, `threads`, `shape`, `given`, `seconds`; `same`: column ->
            the earlier column with the same bytes; `ours` and `rivals`: columns among which losses are looked for.
    """
    runtime, threads = job["runtime"], job["threads"]
    files = {name: Path(path) for name, path in job["files"].items()}
    first = next(iter(files))
    given: dict[str, Given] = {n: tuple(v) if isinstance(v, list) else v for n, v in job["given"].items()}
    inputs = feeds(files[first], tuple(job["shape"]), given)
    failed: dict[str, str] = {}
    expected = Expected(files[first], inputs, runtime, threads)
    for name in [name for name in files if name != first]:
        function, error = opened(runtime, files[name], inputs, threads)
        error = error if function is None else expected.unequal(function())
        if error:
            failed[name] = error
            del files[name]
    samples, errors = race(files, inputs, runtime, threads, job["seconds"], time.process_time)
    for name, twin in job["same"].items():
        if twin in samples:
            samples[name] = samples[twin]
        else:
            failed[name] = failed.get(twin, "")
    again: dict[str, dict[str, float]] = {}
    for ours in job["ours"]:
        found = {
            name: value.median for name, value in against(samples, ours).items() if name in job["rivals"]
        }
        for rival, value in found.items():
            pair = job["same"].get(ours, ours), job["same"].get(rival, rival)
            if value > 1 + NOTABLE and rival in (first, max(found, key=lambda name: found[name])):
                again.setdefault(ours, {})[rival] = confirmed(files, pair, inputs, runtime, threads)
    return {
        "rounds": len(samples[first]),
        "ms": {name: spread([1000 * value for value in values]) for name, values in samples.items()},
        **{f"{ours}/": against(samples, ours) for ours in job["ours"]},
        "failed": {**failed, **errors},
        "again": again,
    }


def raced(job: Job, *, timeout: float) -> dict[str, Any]:
    """`run`, in a process of its own; a result with "error" only if that fails."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.race"]
    try:
        process = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=root,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {timeout:g} s"}
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return {"error": lines[-1][:200]}
    result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
