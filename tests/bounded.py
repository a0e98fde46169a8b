"""Plan small files that ask for much, each in a process with limits: `python -m tests.bounded [NAME...]`.

A file of a few kilobytes may say "pad by 10,000", "a kernel of a million taps" or "repeat this number a billion times".
Planning such a file takes at most 1 GB and 30 seconds, whatever it says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.build import Array

__all__ = ["MODELS", "chain", "limit_memory"]

BYTES, SECONDS = 1 << 30, 30
CHAIN = 20_000  # nodes
HUGE = 10_000
Builder = Callable[[], onnx.ModelProto]
RNG = np.random.default_rng(0)
# One value per channel: scale, shift, mean, variance.
NORM = {
    "s": RNG.uniform(0.9, 1.1, 4),
    "b": RNG.normal(0, 0.1, 4),
    "m": RNG.normal(0, 0.1, 4),
    "v": np.ones(4),
}
KERNEL = {"w": RNG.standard_normal((4, 4, 3, 3)) * 0.1, "one": RNG.standard_normal((4, 4, 1, 1)) * 0.1}


def limit_memory(nbytes: int = BYTES, seconds: int = 4 * SECONDS) -> None:
    """Limit what this process may take. Linux only."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    shape: tuple[int | str, ...] = ("N", 4, "H", "W"),
) -> onnx.ModelProto:
    tensors = []
    for name, value in constants.items():
        array = np.asarray(value)
        tensors.append(
            numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "bounded", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _nodes(*steps: tuple[str, str, dict[str, object]]) -> list[onnx.NodeProto]:
    """Nodes from (operator, "inputs -> output", attributes)."""
    nodes = []
    for op, names, attributes in steps:
        inputs, _, output = names.partition(" -> ")
        nodes.append(helper.make_node(op, inputs.split(), [output], **attributes))
    return nodes


def chain(
    *links: tuple[str, str, dict[str, object]],
    nodes: int = CHAIN,
    constants: dict[str, Array] | None = None,
    shape: tuple[int | str, ...] = ("N", 4, 16, 16),
) -> onnx.ModelProto:
    """Links of (operator, inputs, attributes), again and again; "." is what the node before made."""
    made, name = [], "x"
    for number in range(nodes):
        op, inputs, attributes = links[number % len(links)]
        read = [name if operand == "." else operand for operand in inputs.split()]
        name = f"t{number}"
        made.append(helper.make_node(op, read, [name], **attributes))
    return _model(made, constants or {}, shape)


def _wide_border() -> onnx.ModelProto:
    pads = np.array([0, 0, HUGE, HUGE] * 2)
    steps = _nodes(
        ("Pad", "x p -> a", {}), ("Add", "a zero -> c", {}), ("Conv", "c w -> d", {}), ("Relu", "d -> y", {})
    )
    return _model(steps, {"p": pads, "zero": np.zeros((1, 4, 1, 1)), **KERNEL})


def _border_of_many_axes() -> onnx.ModelProto:
    pads = np.array([0, 0, 60, 60, 60] * 2)
    steps = _nodes(
        ("Pad", "x p -> a", {}), ("Add", "a zero -> c", {}), ("Conv", "c w -> d", {}), ("Relu", "d -> y", {})
    )
    kernel = RNG.standard_normal((4, 4, 3, 3, 3))
    return _model(steps, {"p": pads, "zero": np.zeros((1, 4, 1, 1, 1)), "w": kernel}, ("N", 4, "D", "H", "W"))


def _huge_constants() -> onnx.ModelProto:
    """Pads of a billion elements, which a node computes."""
    steps = _nodes(("Expand", "zero many -> e", {}), ("Pad", "x e -> a", {}), ("Conv", "a w -> y", {}))
    return _model(steps, {"zero": np.array([0]), "many": np.array([10**9]), "w": KERNEL["w"]})


def _kernels() -> Iterator[tuple[str, Builder]]:
    """Two operators whose kernels, pads, strides or dilations are huge."""
    pads = np.array([0, 0, HUGE, HUGE] * 2)
    window = {"kernel_shape": [HUGE, HUGE]}
    pairs = {
        "pad-conv": [("Pad", "x p -> a", {}), ("Conv", "a w -> y", {})],
        "conv-pad": [("Conv", "x w -> a", {}), ("Pad", "a p -> y", {})],
        "pool-pool": [("AveragePool", "x -> a", window), ("AveragePool", "a -> y", window)],
        "pool-conv": [("AveragePool", "x -> a", window), ("Conv", "a one -> y", {})],
        "dilated-conv": [("Conv", "x w -> a", {"dilations": [HUGE] * 2}), ("Conv", "a w -> y", {})],
        "strided-conv": [("Conv", "x w -> a", {"strides": [HUGE] * 2}), ("Conv", "a w -> y", {})],
        "sum of unlike pads": [
            ("Conv", "x w -> a", {"pads": [HUGE] * 4}),
            ("Conv", "x one -> c", {"pads": [HUGE - 1] * 4}),
            ("Add", "a c -> y", {}),
        ],
        "sum of unlike dilations": [
            ("Conv", "x w -> a", {"pads": [HUGE] * 4, "dilations": [HUGE] * 2}),
            ("Conv", "x w -> c", {"pads": [1] * 4}),
            ("Add", "a c -> y", {}),
        ],
    }
    for name, steps in pairs.items():
        yield name, lambda steps=steps: _model(_nodes(*steps), {"p": pads, **KERNEL})


def _chains() -> Iterator[tuple[str, Builder]]:
    norm, conv = ("BatchNormalization", ". s b m v", {}), ("Conv", ". one", {})
    mul, add = ("Mul", ". k", {}), ("Add", ". k", {})
    there, back = ("Transpose", ".", {"perm": [0, 2, 3, 1]}), ("Transpose", ".", {"perm": [0, 3, 1, 2]})
    scalar = {"k": np.float32(1.001)}
    sizes = {"r": np.array([-1, 4, 256]), "q": np.array([-1, 4, 16, 16])}
    pad_one = {"p": np.array([0, 0, 1, 1] * 2)}
    yield "norms", lambda: chain(norm, constants=NORM)
    yield "factors", lambda: chain(mul, constants={"k": NORM["s"].reshape(4, 1, 1)})
    yield "scalars", lambda: chain(mul, add, constants=scalar)
    yield "identities", lambda: chain(("Identity", ".", {}))
    yield "pointwise convs", lambda: chain(conv, constants=KERNEL)
    yield "convs and norms", lambda: chain(conv, norm, constants={**KERNEL, **NORM})
    yield "transposes", lambda: chain(there, back)
    yield "factors between transposes", lambda: chain(there, mul, back, mul, constants=scalar)
    yield "reshapes", lambda: chain(("Reshape", ". r", {}), ("Reshape", ". q", {}), constants=sizes)
    yield "doublings", lambda: chain(("Add", ". .", {}))
    yield "sums with x", lambda: chain(("Add", ". x", {}))
    yield "norms and activations", lambda: chain(norm, ("Relu", ".", {}), constants=NORM)
    yield "pads", lambda: chain(("Pad", ". p", {}), constants=pad_one)
    yield (
        "pads and convs",
        lambda: chain(("Pad", ". p", {}), ("Conv", ". w", {}), constants={**pad_one, **KERNEL}),
    )
    wide = {name: np.resize(value, 1 << 14) for name, value in NORM.items()}
    yield "wide norms", lambda: chain(norm, nodes=CHAIN // 2, constants=wide, shape=("N", 1 << 14, 8, 8))


MODELS: dict[str, Builder] = {
    "wide border": _wide_border,
    "border of many axes": _border_of_many_axes,
    "huge constants": _huge_constants,
    **dict(_kernels()),
    **dict(_chains()),
}

_PLAN = """
import sys, resource
from tests.bounded import limit_memory
limit_memory()
import onnx_repfuse
report = onnx_repfuse.plan(sys.argv[1])
use = resource.getrusage(resource.RUSAGE_SELF)
print(f"{use.ru_utime + use.ru_stime:6.1f} s {use.ru_maxrss >> 10:5} MB  folds {len(report.folds)}")
"""


def main(names: list[str]) -> int:
    """Plan each model in a process of its own; the number of those that took too much."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, build in MODELS.items():
            if names and name not in names:
                continue
            path = Path(folder) / "model.onnx"
            onnx.save(build(), path)
            done = subprocess.run(
                [sys.executable, "-c", _PLAN, path], capture_output=True, text=True, check=False
            )
            failures += done.returncode != 0
            print(f"{name:28} {(done.stdout or done.stderr).strip().splitlines()[-1]}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
