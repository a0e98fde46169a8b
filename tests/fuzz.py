"""Damaged models through the command line: `python -m tests.fuzz --minutes 30 --seed 7`.

Allowed outcomes: exit code 0 and a file that computes what the input computes; or exit code 1 to 4, one line that
says what is wrong, and no file. Tracebacks, hangs and crashes are failures. Each run takes place in a worker process
that may die.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import random
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from onnx_repfuse.quiet_runtime import ort
from tests.mutations import mutate

MODELS = Path(__file__).parent.parent / "models"
PATIENCE = 60.0  # seconds that a mutant may take
LARGEST = 1 << 20  # elements of an input; larger ones are not run


def sources(largest: int) -> list[Path]:
    """The bundled models up to a size in bytes."""
    return sorted(p for p in MODELS.glob("*.onnx") if p.stat().st_size <= largest)


def work(pipe: Connection) -> None:
    """Work in a process: receive (mutant, options), send (exit code, problem or '')."""
    while True:
        path, options = pipe.recv()
        try:
            pipe.send(judge(Path(path), options))
        except BaseException:
            pipe.send((-1, traceback.format_exc()))


def judge(path: Path, options: list[str]) -> tuple[int, str]:
    """Run the command line on a mutant and check that the outcome is allowed."""
    from onnx_repfuse.cli.main import main

    output = path.parent / "out" / "fused.onnx"
    output.parent.mkdir(exist_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(path), str(output), "-q", *options])
    said = err.getvalue()
    written = sorted(p.name for p in output.parent.iterdir())
    if code == 0:
        problem = compare(path, output) if output.exists() else "exit 0, but nothing was written"
    elif written:
        problem = f"exit {code}, but {written} was written"
    elif code not in (1, 3) or said.count("\n") != 1 or not said.strip():
        problem = f"exit {code} with {said!r}"
    elif "internal error" in said or "Traceback" in said or len(said) > 1000:
        problem = said
    else:
        problem = ""
    for left in output.parent.iterdir():
        left.unlink()
    return code, problem


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession) -> list[Any]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in session.get_inputs():
        dims = [d if isinstance(d, int) else 2 if i == 0 else 32 for i, d in enumerate(value.shape)]
        assert np.prod([float(d) for d in dims]) < LARGEST
        dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
        draw = rng.standard_normal(dims) if value.type in dtype else np.ones(dims)
        feeds[value.name] = draw.astype(dtype.get(value.type, np.int64))
    return list(session.run(None, feeds))


def compare(first: Path, second: Path) -> str:
    """Compare the outputs; '' if they are equal or the first model does not run."""
    if first.read_bytes() == second.read_bytes():
        return ""
    try:
        old = _run(_session(first))
    except Exception:
        return ""
    try:
        new = _run(_session(second))
    except Exception as error:
        return f"the input runs, the output does not: {error}"
    for a, b in zip(old, new, strict=True):
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            return f"{a.shape} became {b.shape}"
        finite = np.isfinite(a)
        top = np.abs(a[finite].astype(np.float64)).max(initial=0)
        if (finite != np.isfinite(b)).any() and top < 1e30:
            return "not finite where the input is, or finite where it is not"
        apart = np.abs(a[finite].astype(np.float64) - b[finite].astype(np.float64)).max(initial=0)
        if top < 1e30 and not apart <= (1e-3 if a.dtype == np.float32 else 3e-2) * top + 1e-6:
            return f"off by {apart:.3g} of {top:.3g}"
    return ""


class Worker:
    """A process that judges mutants, and is replaced when it hangs or dies."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.start()

    def start(self) -> None:
        self.pipe, other = self.context.Pipe()
        self.process = self.context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def judge(self, path: Path, options: list[str]) -> tuple[int, str]:
        self.pipe.send((str(path), options))
        try:
            if self.pipe.poll(PATIENCE):
                outcome: tuple[int, str] = self.pipe.recv()
                return outcome
            problem = f"still running after {PATIENCE:.0f} s"
        except EOFError:
            self.process.join()
            problem = f"the process died with {self.process.exitcode}"
        self.stop()
        self.start()
        return -1, problem

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def fuzz(
    seed: int, *, examples: int = 1 << 62, minutes: float = 1e9, largest: int = 1 << 30
) -> tuple[Counter[int], list[str]]:
    """Count exit codes and list problems. A mutant depends on (seed, number) only."""
    codes: Counter[int] = Counter()
    finds: list[str] = []
    end = time.monotonic() + 60 * minutes
    files = sources(largest)
    worker = Worker()
    with TemporaryDirectory() as folder:
        mutant = Path(folder) / "mutant.onnx"
        number = 0
        while number < examples and time.monotonic() < end:
            rng = random.Random(f"{seed}/{number}")
            source = rng.choice(files)
            data = mutate(source.read_bytes(), rng)
            options = rng.choice(
                [[], ["--no-check"], ["--no-check"], ["--no-check", "--freeze-initializers"]]
            )
            mutant.write_bytes(data)
            code, problem = worker.judge(mutant, options)
            codes[code] += 1
            if problem:
                finds.append(f"{seed}/{number} {source.name} {' '.join(options)}: {problem}")
            number += 1
    worker.stop()
    return codes, finds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=60_000, help="bytes of a model to start from")
    arguments = parser.parse_args()
    codes, finds = fuzz(arguments.seed, minutes=arguments.minutes, largest=arguments.largest)
    print(f"seed {arguments.seed}: {sum(codes.values())} mutants, exit codes {dict(sorted(codes.items()))}")
    for find in finds:
        print(find)
    return int(bool(finds))


if __name__ == "__main__":
    raise SystemExit(main())
