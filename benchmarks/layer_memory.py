"""`python -m benchmarks.layer_memory`: peak memory of comparing two models, without and with the tensors inside.

Each way of comparing runs in a process of its own. The models are chains of Conv and Relu whose weights are small
beside what they compute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16
WAYS = {"outputs only": "outputs", "--layers": "sliced", "--layers in one slice": "whole"}


def write(path: Path, convs: int, side: int) -> int:
    """Write a chain of pairs of Conv and Relu on maps of `side` x `side`; returns the bytes of its tensors."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"
    for index in range(convs):
        values = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) * (2 / (9 * CHANNELS)) ** 0.5
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        x = f"r{index}"
    shape = [1, CHANNELS, side, side]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return len(nodes) * CHANNELS * side * side * 4


def measured(way: str, path: Path) -> dict[str, float]:
    """Peak bytes above those of the imports, processor seconds and slices of one way, a value of `WAYS`."""
    command = [sys.executable, "-m", "benchmarks.layer_memory", "--child", way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _child(way: str, path: str) -> None:
    import time

    import onnx_repfuse.verifier.comparing.layers as slices
    from onnx_repfuse import compare

    if way == "whole":
        slices.MAX_SLICE_BYTES = 1 << 50  # type: ignore[misc]
    before, start = _peak(), time.process_time()
    result = compare(path, path, layers=way != "outputs")
    seconds = time.process_time() - start
    count = result.layers.slices if result.layers is not None else 0
    print(json.dumps({"peak": _peak() - before, "seconds": seconds, "slices": count}))


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layer_memory", description=__doc__)
    parser.add_argument("--convs", type=int, default=100)
    parser.add_argument("--side", type=int, default=256, help="height and width of the maps")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(*arguments.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        held = write(path, arguments.convs, arguments.side)
        print(
            f"{2 * arguments.convs} tensors of {held / 1e6:.0f} MB together, {path.stat().st_size / 1e6:.1f} MB file"
        )
        for name, way in WAYS.items():
            found = measured(way, path)
            print(
                f"{name:<24} {found['peak'] / 1e6:6.0f} MB above the imports, {found['seconds']:5.1f} s of processor "
                f"time, {found['slices']} slices",
                flush=True,
            )


if __name__ == "__main__":
    main()
