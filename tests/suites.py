"""Run the tool on every model below some folders, and sort what happened by cause.

    python -m tests.suites ~/models ../shared/zoo        # any folders of .onnx files
    python -m tests.suites --backend                     # the node tests of the onnx package

Each model runs in a process of its own, forked from one that has imported all, with a limit of time and of memory. A
result is judged without the code under test: ONNX Runtime, all optimizations off, on seeds the tool does not use
(or on the test data beside the model).

    wrong    the output differs from the input by more than the noise allows
    broken   exit 0, but the file does not load, is not valid, or has another interface
    again    a second run on the output changes it
    crash    the process died, or an internal error
    slow     over the time limit
    exit N   the exit codes, with the reason that was printed
    fine     everything else
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray

SECONDS = 300
MEMORY = 8 << 30  # bytes of address space
SIZES = (7, 3)  # of dims that the file leaves open
_BOUNDED = ("Sigmoid", "Softmax", "Tanh")
Feed = dict[str, NDArray[Any]]
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        "onnx_repfuse.cli.run",
        "onnx_repfuse.pipeline.run",
        "onnx_repfuse.quiet_runtime",
        "onnx_repfuse.verifier.folds.isolated",
        "onnx_repfuse.verifier.outputs.compare",
        "onnx_repfuse.verifier.scopes.check",
    ]
)


def judge_model(path: Path) -> str:
    """What happened to one model: a word as in the list above, a colon, and the reason."""
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "fused.onnx", Path(folder) / "report.json"
        words = [path, "-o", output, "--json", report, "--quiet"]
        code, said = _run(*words)
        recorded = next(iter(sorted(path.parent.glob("test_data_set_*"))), None)
        if code == 1 and recorded is not None:  # it may run on few inputs only: sizes and axes, for example
            code, said = _run(*words, "--input-data", recorded)
        if code is None:
            return "slow"
        if code < 0 or "internal error" in said:
            return f"crash: signal {-code}" if code < 0 else f"crash: {said}"
        if code != 0:
            return f"exit {code}: {said}"
        code, said = _in_a_process(_judge, path, output)
        if code is None:
            return "slow: judge"
        if code == 2:
            return said
        if code != 0:
            return f"crash: judge: {said}"
        told = json.loads(report.read_text(encoding="utf-8"))
        folds = told["folds"] or told.get("changes")
        if folds:
            again = Path(folder) / "again.onnx"
            given_up = any(one["reason"] == "verification" for one in told["refusals"])
            checks = () if given_up else ("--no-check",)  # what failed its proof would be tried again
            code, _ = _run(output, "-o", again, *checks, "--quiet")
            if code == 0 and again.read_bytes() != output.read_bytes():
                return "again: a second run changes the file"
        return f"fine: {'folded' if folds else 'nothing to fold'}" + (", not compared" if said else "")


def _run(*words: object) -> tuple[int | None, str]:
    """The exit code of the tool (None: over the time limit), and its last line."""
    return _in_a_process(_tool, [str(word) for word in words])


LOST = 255  # what the server says of a process of which it did not see the end


def _in_a_process(work: Callable[..., int], *arguments: object) -> tuple[int | None, str]:
    """As `_once`; once more where that was lost."""
    outcome = _once(work, *arguments)
    return outcome if outcome[0] != LOST else _once(work, *arguments)


def _once(work: Callable[..., int], *arguments: object) -> tuple[int | None, str]:
    """What a function gives out, or minus the signal that ended it, and the last line it wrote.

    The process is forked from one that has imported all: starting Python anew takes ten times as long as most models.
    """
    with tempfile.NamedTemporaryFile() as said:
        process = _PROCESSES.Process(target=_child, args=(said.name, work, *arguments))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None, ""
        lines = Path(said.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return process.exitcode, lines[-1] if lines else ""


def _child(said: str, work: Callable[..., int], *arguments: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(work(*arguments))


def _tool(words: list[str]) -> int:
    from onnx_repfuse.cli.main import main as command

    return command(words)


def _judge(before: Path, after: Path) -> int:
    verdict = compare(before, after)
    print(verdict, flush=True)
    return 2 if verdict and not verdict.startswith("(") else 0


def compare(before: Path, after: Path) -> str:
    """What is wrong with a result; "" if nothing is; words in brackets where the original does not run."""
    from onnx_repfuse.quiet_runtime import ort

    def session(path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    one, other = (onnx.load(path, load_external_data=False).graph for path in (before, after))
    for side in ("input", "output"):
        if _interface(one, side) != _interface(other, side):
            return f"broken: another {side}"
    try:
        first = session(before)
    except Exception:
        return "(the original does not load)"
    try:
        second = session(after)
    except Exception as error:
        return f"broken: {type(error).__name__}: {str(error).splitlines()[0]}"
    compared, share = False, 1e-2 if _uses_half(before) else 1e-5
    bounded = {name for node in one.node if node.op_type in _BOUNDED for name in node.output}
    for feed in _feeds(before, first):
        try:
            expected = first.run(None, feed)
        except Exception:
            continue  # a size that the model does not take
        try:
            results = second.run(None, feed)
        except Exception as error:
            return f"broken: does not run: {str(error).splitlines()[0]}"
        try:
            moved = first.run(None, {name: _nudged(value) for name, value in feed.items()})
        except Exception:  # an input is a list of scales, which must be exact
            moved = expected
        compared = True
        for output, a, b, c in zip(first.get_outputs(), expected, results, moved, strict=True):
            if not _close(a, b, c, share, output.name in bounded):
                return f"wrong: output {output.name!r}"
    return "" if compared else "(no input was found that the original takes)"


def _interface(graph: onnx.GraphProto, side: str) -> list[bytes]:
    """Names, types and shapes; before IR 4 initializers stand among the inputs, and those may change."""
    weights = {tensor.name for tensor in graph.initializer}
    return [v.SerializeToString(deterministic=True) for v in getattr(graph, side) if v.name not in weights]


def _nudged(value: NDArray[Any]) -> NDArray[Any]:
    """Floats, one unit in the last place higher: what a model makes of that is its noise."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.asarray(np.nextafter(value, np.asarray(np.inf, value.dtype)))  # a scalar stays an array
    return value


def _uses_half(path: Path) -> bool:
    """Whether anything is computed in half precision; the output may be cast from it."""
    graph = onnx.load(path, load_external_data=False).graph
    kinds = [tensor.data_type for tensor in graph.initializer]
    kinds += [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    return any(kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for kind in kinds)


def _close(a: Any, b: Any, moved: Any, share: float, is_bounded: bool) -> bool:
    """Equal within 20 times the noise of the original, or `share` of the largest value.

    Of a function that ends at 0 and 1, an ulp of 1 is allowed, too: runtimes compute its tails no better.
    """
    if isinstance(a, list):
        return len(a) == len(b) and all(
            _close(x, y, z, share, is_bounded) for x, y, z in zip(a, b, moved, strict=False)
        )
    if not isinstance(a, np.ndarray) or a.dtype.kind not in "fc":
        return bool(np.array_equal(a, b) or not np.array_equal(a, moved))
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return False
    finite = np.isfinite(a)
    if not finite.any():
        return True
    x, y, z = (v[finite].astype(np.float64) for v in (a, b, moved))
    noise = np.abs(x - z).max() if np.isfinite(z).all() else 0.0
    tail = float(np.finfo(a.dtype).eps) if is_bounded else 0.0
    return bool(np.abs(x - y).max() <= max(20 * noise, share * np.abs(x).max(), tail))


def _feeds(path: Path, session: Any) -> list[Feed]:
    """The test data beside a model, else random inputs of a few sizes, magnitudes and signs."""
    names = [value.name for value in session.get_inputs()]
    recorded = []
    for folder in sorted(path.parent.glob("test_data_set_*")):
        files = sorted(folder.glob("input_*.pb"), key=lambda p: int(re.sub(r"\D", "", p.stem)))
        try:
            tensors = [onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
        except Exception:
            continue  # a sequence or an optional value
        recorded.append(dict(zip(names, tensors, strict=False)))
    if recorded:
        return recorded
    rng = np.random.default_rng(4711)
    feeds = []
    for size in (*SIZES, 32, 224):
        for scale in (1.0, 50.0):
            feed = {v.name: _value(rng, v.type, [_dim(d, i, size) for i, d in enumerate(v.shape)], scale)
                    for v in session.get_inputs()}  # fmt: skip
            if all(value is not None for value in feed.values()):
                feeds.append(feed)
        if not any(isinstance(d, str) or d is None for v in session.get_inputs() for d in v.shape):
            break
    return feeds


def _dim(dim: Any, axis: int, size: int) -> int:
    return dim if isinstance(dim, int) else 2 if axis == 0 else size


def _value(rng: np.random.Generator, kind: str, shape: list[int], scale: float) -> Any:
    match = re.fullmatch(r"tensor\((\w+)\)", kind)
    name = match.group(1) if match else ""
    if name in ("float", "double", "float16"):
        dtype = {"float": np.float32, "double": np.float64, "float16": np.float16}[name]
        return (rng.standard_normal(shape) * scale).astype(dtype)
    if name == "bool":
        return rng.random(shape) < 0.5
    if re.fullmatch(r"u?int\d+", name):
        return rng.integers(0, 3, shape).astype(name)
    return None


def write_backend_tests(folder: Path) -> None:
    """The models of the onnx package's own node tests, with their data."""
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind="node"):
        if case.model is None:
            continue
        place = folder / case.name
        place.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, place / "model.onnx")
        for number, (inputs, _) in enumerate(case.data_sets or ()):
            data = place / f"test_data_set_{number}"
            data.mkdir()
            for index, value in enumerate(inputs):
                if isinstance(value, np.ndarray):
                    tensor = onnx.numpy_helper.from_array(value)
                    (data / f"input_{index}.pb").write_bytes(tensor.SerializeToString())


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--backend", is_flag=True, help="Also the node tests of the installed onnx package.")
@click.option("--jobs", default=2, show_default=True)
def main(folders: tuple[Path, ...], backend: bool, jobs: int) -> None:
    """Run the tool on every .onnx file below FOLDERS and print what happened, by cause."""
    with tempfile.TemporaryDirectory() as root:
        if backend:
            write_backend_tests(Path(root))
        places = [*folders, Path(root)]
        paths = [
            path
            for place in places
            for path in ([place] if place.is_file() else sorted(place.rglob("*.onnx")))
        ]
        tally: Counter[str] = Counter()
        with ThreadPoolExecutor(jobs) as pool:
            for path, verdict in zip(paths, pool.map(judge_model, paths), strict=True):
                cause = verdict.split(":")[0] if not verdict.startswith("exit") else verdict
                tally[re.sub(r"'[^']*'|\d{2,}", "...", cause)] += 1
                if not verdict.startswith("fine"):  # at once: a whole suite takes hours
                    click.echo(f"{path.parent.name}/{path.name}: {verdict}")
    for cause, count in tally.most_common():
        click.echo(f"{count:6}  {cause}")
    sys.exit(any(cause.split(":")[0] in ("wrong", "broken", "again", "crash") for cause in tally))


if __name__ == "__main__":
    main()
