"""Build a large model of sparse files and measure the memory of fusing it: `python -m tests.large [GB]`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["build", "measure"]

SHARE = 0.05  # of the weights are folded
WIDTH = 1024
SCRIPT = """
import json, resource, sys, time
import onnx, onnx_graphsurgeon, onnx_repfuse
from onnx_repfuse import (Options, fuse)
import onnx_repfuse.api
if sys.argv[3] == "1":
    import onnx_repfuse.quiet_runtime
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) << 10
before, start = peak(), time.perf_counter()
report = fuse(sys.argv[1], sys.argv[2], Options(check=sys.argv[3] == "1")).report
status = str(report.verification and report.verification.status)
print(json.dumps({"peak": peak(), "above": peak() - before, "seconds": time.perf_counter() - start,
                  "folds": len(report.folds), "status": status,
                  "notes": report.verification.notes if report.verification else [],
                  "stages": report.seconds}))
"""


def build(path: Path, nbytes: int) -> Path:
    """Build a model with `nbytes` of external data: MatMuls that do not fold, and a Conv with a BatchNormalization.

    The weights are in three files, one in a subfolder, at offsets. Those of the products are holes in sparse files,
    except for the first numbers of each block of rows.
    """
    rng = np.random.default_rng(0)
    width, each = WIDTH, WIDTH * WIDTH * 4
    folded = max(1, round(nbytes * SHARE / each))
    side = round((folded * WIDTH * WIDTH) ** 0.5) // 8 * 8
    count = (nbytes - side * side * 4) // each
    (path.parent / "part").mkdir(parents=True, exist_ok=True)
    names = ["a.bin", "part/b.bin", "part/c.bin"]
    offsets = dict.fromkeys(names, 4096)
    nodes, tensors = [], []

    def external(name: str, shape: tuple[int, ...], values: np.ndarray | None, file: str) -> None:
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        length = int(np.prod(shape)) * 4
        entries = {"location": file, "offset": str(offsets[file]), "length": str(length)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        with open(path.parent / file, "r+b" if (path.parent / file).exists() else "w+b") as out:
            out.seek(offsets[file])
            out.write((values if values is not None else np.ones(16, np.float32)).tobytes())
            out.truncate(max(offsets[file] + length, (path.parent / file).stat().st_size))
        offsets[file] += -(-length // 4096) * 4096
        tensors.append(tensor)

    external(
        "w", (side, side, 1, 1), rng.standard_normal((side, side)).astype(np.float32) / side**0.5, names[1]
    )
    nodes.append(helper.make_node("Conv", ["x", "w"], ["c"]))
    norm = {"s": rng.uniform(0.5, 1.5, side), "b": rng.standard_normal(side), "m": rng.standard_normal(side),
            "v": rng.uniform(0.5, 2, side)}  # fmt: skip
    tensors += [numpy_helper.from_array(value.astype(np.float32), name) for name, value in norm.items()]
    nodes.append(helper.make_node("BatchNormalization", ["c", *norm], ["n"]))
    nodes.append(helper.make_node("Relu", ["n"], ["r"]))
    total = "z"
    for index in range(count):
        external(f"p{index}", (width, width), None, names[index % 3])
        nodes.append(helper.make_node("MatMul", ["z", f"p{index}"], [f"q{index}"]))
        nodes.append(helper.make_node("Sin", [f"q{index}"], [f"t{index}"]))
        total = f"t{index}" if index == 0 else f"u{index}"
        if index:
            nodes.append(
                helper.make_node("Add", [f"t{index}", "t0" if index == 1 else f"u{index - 1}"], [total])
            )
    graph = helper.make_graph(
        nodes, "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", side, 2, 2]),
         helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None),
         helper.make_tensor_value_info(total, TensorProto.FLOAT, None)],
        tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def measure(path: Path, output: Path, *, check: bool) -> dict:
    """Fuse in a process of its own. `above` is its peak memory minus that of the imports."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(output), str(int(check))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    return {**json.loads(process.stdout), "size": size}


if __name__ == "__main__":
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.3
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder) / "in" / "m.onnx", int(gigabytes * (1 << 30)))
        for check in (False, True):
            cost = measure(model, Path(folder) / "out.onnx", check=check)
            print(
                f"check {check}: {cost['size'] / 1e9:.2f} GB, peak {cost['peak'] / 1e9:.2f} GB "
                f"({cost['peak'] / cost['size']:.2f}x), {cost['seconds']:.1f} s, {cost['status']}"
            )
            print(cost["notes"], cost["stages"])
