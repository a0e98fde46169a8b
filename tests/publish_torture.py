"""Runs that write beside one another, runs that are killed, and inputs that change: every output is whole and its own.

    python -m tests.publish_torture --rounds 100 --kills 200 --changes 50

A round starts two writers at the same time, as two processes or with `--jobs 2`. Their models have external data files
of one name, or data named like an output, or they write one output; the output's folder may be a link. Afterwards each
output that was reported as written must hold the weights of its own input. A kill ends a run with SIGKILL at a random
moment: its output is then the old one or the new one, never a mixture. A change rewrites or shortens the input at a
random moment of a run, which must end with its one result or with an error, and never by a signal.

Prints how many outputs were fine, refused, wrong and broken; exits with 1 if any was wrong or broken.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["torture"]

ROWS, COLUMNS = 128, 128  # of the weight of each model: 64 kB
FIRST, SECOND = 1.0, 3.0  # the weights of the two models of a round
REFUSED = (1, 3)  # exit codes of a run that says why it wrote nothing
DATA_NAMES = ("weights.bin", "sub/weights.bin", "a.onnx", "b.onnx", "o.onnx", "a.onnx.data", "o.onnx.data")


def write_model(path: Path, value: float, *, foldable: bool, data: str = "weights.bin") -> Path:
    """Write `y = (x @ W) * s`, whose weight `W` is `value` everywhere and is stored in the external file `data`.

    Without `foldable` there is a Relu between the two, and nothing to fold. Data of the model's own name is stored in
    the model.
    """
    (path.parent / data).parent.mkdir(parents=True, exist_ok=True)
    weights = {"W": np.full((ROWS, COLUMNS), value, np.float32), "s": np.full(COLUMNS, 2.0, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "W"], ["m"])]
    if not foldable:
        nodes.append(helper.make_node("Relu", ["m"], ["r"]))
    nodes.append(helper.make_node("Mul", [nodes[-1].output[0], "s"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "torture",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", ROWS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", COLUMNS])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    outside = data != path.name
    onnx.save(
        model, path, save_as_external_data=outside, location=data if outside else None, size_threshold=1024
    )
    return path


def state_of(path: Path, values: Sequence[float]) -> str:
    """`fine` if the weights of a model are those of one of the `values`, folded or not; else `wrong` or `broken`."""
    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(path)
        kernel = next(numpy_helper.to_array(w) for w in model.graph.initializer if len(w.dims) == 2)
    except Exception as error:  # whatever does not load is broken, and the reader wants to know how
        return f"broken: {type(error).__name__}"
    is_folded = all(node.op_type != "Mul" for node in model.graph.node)
    allowed = [np.float32(value * 2 if is_folded else value) for value in values]
    return "fine" if any((kernel == value).all() for value in allowed) else "wrong"


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnx_repfuse", *map(str, words), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def result_of(code: int, path: Path, values: Sequence[float]) -> str:
    """The state of what a run reported as written, or that it refused."""
    if code == 0:
        return state_of(path, values)
    return f"refused ({code})" if code in REFUSED else f"broken: exit code {code}"


def output_folder(folder: Path, rng: random.Random) -> Path:
    """An empty folder, or a link to one."""
    (folder / "real").mkdir()
    if rng.random() < 0.3:
        (folder / "out").symlink_to(folder / "real", target_is_directory=True)
        return folder / "out"
    return folder / "real"


def race(folder: Path, seed: int) -> Counter[str]:
    """Two writers at once; the states of what they reported as written, and of their inputs."""
    rng = random.Random(seed)
    foldable = rng.random() < 0.5
    # Most rounds in which every output is proved take too long to meet in the moment of publishing.
    check = [] if rng.random() < 0.2 else ["--no-check"]
    data = [rng.choice(DATA_NAMES)] * 2 if rng.random() < 0.8 else rng.sample(DATA_NAMES, 2)
    inputs = [
        write_model(folder / "in1" / "a.onnx", FIRST, foldable=foldable, data=data[0]),
        write_model(folder / "in2" / "b.onnx", SECOND, foldable=foldable, data=data[1]),
    ]
    out = output_folder(folder, rng)
    way = rng.choice(["two outputs", "two outputs", "one output", "jobs"])
    if way == "jobs":
        code = start(*inputs, "--out-dir", out, "--jobs", 2, *check).wait()
        targets, allowed = [out / "a.onnx", out / "b.onnx"], [(FIRST,), (SECOND,)]
        # The code is that of the worst: without 0, only what is there can be judged.
        codes = [code if code == 0 or not target.exists() else 0 for target in targets]
    else:
        names = ["o.onnx", "o.onnx"] if way == "one output" else ["a.onnx", "b.onnx"]
        targets = [out / name for name in names]
        # Of one output, the last to finish wins, whole.
        allowed = [(FIRST, SECOND)] * 2 if way == "one output" else [(FIRST,), (SECOND,)]
        runs = [start(model, "-o", target, *check) for model, target in zip(inputs, targets, strict=True)]
        codes = [run.wait() for run in runs]
    tally = Counter(map(result_of, codes, targets, allowed))
    for model, value in zip(inputs, (FIRST, SECOND), strict=True):
        state = state_of(model, (value,))
        if state != "fine":
            tally[f"input {state}"] += 1
    if any(path.name.startswith(".") for path in out.iterdir()):
        tally["left something behind (broken)"] += 1
    return tally


def kill(folder: Path, seed: int) -> Counter[str]:
    """A run over an older output, killed before it is as old as the run before; the state of the output."""
    rng = random.Random(seed)
    old = write_model(folder / "old" / "m.onnx", FIRST, foldable=rng.random() < 0.5)
    new = write_model(folder / "new" / "m.onnx", SECOND, foldable=rng.random() < 0.7)
    target = output_folder(folder, rng) / "m.onnx"
    started = time.perf_counter()
    if start(old, "-o", target, "--no-check").wait() != 0:
        return Counter(["broken: the first run failed"])
    longest = time.perf_counter() - started  # measured each time: the machine may have other work
    run = start(new, "-o", target, "--no-check")
    # Most of a run is spent on imports: nothing is written before half of it is over.
    time.sleep(rng.uniform(0.4 * longest, longest))
    run.kill()
    code = run.wait()
    if code == 0:  # it was faster
        return Counter([state_of(target, (SECOND,))])
    killed = -signal.SIGKILL if os.name == "posix" else 1
    state = state_of(target, (FIRST, SECOND)) if code == killed else f"broken: exit code {code}"
    return Counter([f"{state} after a kill"])


def change(folder: Path, seed: int, longest: float) -> Counter[str]:
    """A run whose input changes within `longest` seconds; its result, which must be one model or an error."""
    rng = random.Random(seed)
    model = write_model(
        folder / "in" / "m.onnx",
        FIRST,
        foldable=rng.random() < 0.7,
        data=rng.choice(["weights.bin", "m.onnx"]),  # external, or in the model
    )
    target = output_folder(folder, rng) / "o.onnx"
    holder = model.with_name("weights.bin")
    holder = holder if holder.exists() else model
    data = holder.read_bytes()
    run = start(model, "-o", target, *([] if rng.random() < 0.5 else ["--no-check"]))
    time.sleep(rng.uniform(0.3 * longest, longest))
    if rng.random() < 0.5:
        os.truncate(holder, rng.randrange(len(data)))
    else:  # in place: to a reader the file is half old and half new for a moment
        with open(holder, "r+b", buffering=0) as file:
            new = data.replace(np.float32(FIRST).tobytes(), np.float32(SECOND).tobytes())
            for at in range(0, len(new), 4096):
                file.seek(at)
                file.write(new[at : at + 4096])
    code = run.wait()
    if code < 0:
        return Counter([f"broken: ended by {signal.Signals(-code).name}"])
    return Counter([result_of(code, target, (FIRST, SECOND))])


def torture(rounds: int, kills: int, changes: int, seed: int = 0) -> Counter[str]:
    """The states of all outputs, and how many there were of each."""
    tally: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        warm = write_model(Path(root) / "warm" / "m.onnx", FIRST, foldable=True)
        started = time.perf_counter()
        start(warm, "-o", warm.with_name("o.onnx"), "--no-check").wait()
        alone = time.perf_counter() - started
        for number in range(rounds):
            tally += race(_folder(root, "race", number), seed + number)
        for number in range(kills):
            tally += kill(_folder(root, "kill", number), seed + number)
        for number in range(changes):
            tally += change(_folder(root, "change", number), seed + number, 2 * alone)
    return tally


def _folder(root: str, what: str, number: int) -> Path:
    folder = Path(root) / f"{what}{number}"
    folder.mkdir()
    return folder


@click.command()
@click.option("--rounds", default=100, show_default=True, help="Pairs of writers at the same time.")
@click.option("--kills", default=200, show_default=True, help="Runs that are killed.")
@click.option("--changes", default=50, show_default=True, help="Runs whose input changes.")
@click.option("--seed", default=0, show_default=True)
def main(rounds: int, kills: int, changes: int, seed: int) -> None:
    """Run, and exit with 1 if an output is wrong or broken."""
    tally = torture(rounds, kills, changes, seed)
    for state, count in sorted(tally.items()):
        click.echo(f"{count:5}  {state}")
    sys.exit(is_bad(tally))


def is_bad(tally: Counter[str]) -> bool:
    """Whether any output was wrong or broken."""
    return any("wrong" in state or "broken" in state for state in tally)


if __name__ == "__main__":
    main()
