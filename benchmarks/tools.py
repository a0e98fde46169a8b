"""Every tool as a function from file to file, run in a process of its own: processor time, and peak memory.

`python -m benchmarks.tools NAME INPUT OUTPUT` runs one tool; `measured` starts that command and reads its cost. Time
counts from after the tool's imports, which are timed separately. Memory is the peak of the whole process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Processor seconds and wall seconds of the tool, seconds of its imports, peak memory in MiB; or the error."""

    seconds: float
    wall: float
    imports: float
    peak: float
    error: str = ""


Job = Callable[[str, str], object]


def _load_save() -> Job:
    import onnx

    return lambda source, target: onnx.save(onnx.load(source), target)


def _onnxsim() -> Job:
    import onnx
    import onnxsim

    return lambda source, target: onnx.save(onnxsim.simplify(source)[0], target)


def _onnxslim() -> Job:
    import onnxslim

    return lambda source, target: onnxslim.slim(source, target)


def _onnxoptimizer() -> Job:
    import onnx
    import onnxoptimizer

    return lambda source, target: onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)


def _onnxscript() -> Job:
    import onnx
    import onnxscript.optimizer
    import onnxscript.rewriter

    def job(source: str, target: str) -> None:
        model = onnxscript.optimizer.optimize(onnx.load(source))
        onnx.save(onnxscript.rewriter.rewrite(model), target)

    return job


def _ours(name: str) -> Job:
    """Ours: "ours" or "ours -O2", with the words "unchecked" and "frozen" after commas."""
    import onnx_graphsurgeon
    import onnxruntime  # noqa: F401

    from onnx_repfuse import Options, fuse

    assert onnx_graphsurgeon
    head, *words = name.split(", ")
    options = Options(
        check="unchecked" not in words,
        level=2 if head.endswith("-O2") else 1,
        freeze_initializers="frozen" in words,
    )
    return lambda source, target: fuse(source, target, options)


TOOLS: dict[str, Callable[[], Job]] = {
    "load+save": _load_save,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
}
COMPARED = (*TOOLS, "ours", "ours, unchecked")
PEERS = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")


def measured(name: str, source: Path, target: Path, *, timeout: float = 900) -> Cost:
    """Run a tool in a new process."""
    target.unlink(missing_ok=True)
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-m", "benchmarks.tools", name, str(source), str(target)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=root, check=False
        )
    except subprocess.TimeoutExpired:
        return Cost(0, 0, 0, 0, f"no result after {timeout:g} s")
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return Cost(0, 0, 0, 0, lines[-1][:200])
    return Cost(**json.loads(process.stdout.strip().splitlines()[-1]))


def _peak() -> float:
    """Peak memory in MiB. On Linux not `ru_maxrss`, which a process inherits from its parent."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / (1 << 10)


def main(arguments: list[str]) -> None:
    name, source, target = arguments
    start = time.process_time()
    job = TOOLS[name]() if name in TOOLS else _ours(name)
    middle, wall = time.process_time(), time.perf_counter()
    job(source, target)
    end, wall = time.process_time(), time.perf_counter() - wall
    if not Path(target).exists():
        raise SystemExit("wrote nothing")
    result = {"seconds": end - middle, "wall": wall, "imports": middle - start, "peak": _peak()}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
