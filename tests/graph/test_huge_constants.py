"""Constants that would be larger than memory are not computed while planning, and decide nothing."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from onnx_repfuse import InputError, plan
from tests.parts import Weights, batch_norm, graph, info, model, node, norm, random

resource = pytest.importorskip("resource")  # not on Windows
HUGE = 1 << 40
MEMORY = 256 << 20  # that a plan of a few nodes may take, at most


def _made(nodes: list[NodeProto], weights: Weights) -> onnx.ModelProto:
    """A block whose input gets a huge constant added to, and one beside it that does not."""
    nodes = [*nodes, node("Add", "x k", "u"), node("Conv", "u w", "a"), node("Conv", "x w", "c")]
    nodes += [batch_norm("c", "b"), node("Relu", "a", "z"), node("Relu", "b", "y")]
    weights = {**weights, "w": random(4, 3, 1, 1), **norm(4)}
    return model(graph(nodes, [info("y", None), info("z", None)], weights, [info("x", [1, 3, 4, 4])]))


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("ConstantOfShape", "s", "k")], {"s": [HUGE]}),
        ([node("Identity", "s", "t"), node("ConstantOfShape", "t", "k")], {"s": [HUGE, HUGE]}),
        ([node("Range", "zero big one", "r"), node("Cast", "r", "k", to=1)], {"zero": 0, "big": HUGE, "one": 1}),
        ([node("Expand", "one s", "k")], {"one": np.float32(1), "s": [HUGE]}),
        ([node("Tile", "v s", "k")], {"v": random(3), "s": [HUGE]}),
        ([node("Mul", "v h", "k")], {"v": random(1 << 16, 1), "h": random(1, 1 << 16)}),
        ([node("MatMul", "v h", "k")], {"v": random(1 << 16, 1), "h": random(1, 1 << 16)}),
        ([node("Gather", "v i", "k", axis=0)], {"v": random(2, 1 << 15), "i": np.zeros(1 << 16, np.int64)}),
        ([node("Unsqueeze", "i a", "j"), node("Add", "i j", "l"), node("Cast", "l", "k", to=1)],
         {"i": np.zeros(1 << 16, np.int64), "a": [1]}),
    ],
)  # fmt: skip
def test_a_huge_constant_takes_no_memory(nodes: list[NodeProto], weights: Weights) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(InputError):
        report = plan(_made(nodes, weights))
        assert len(report.folds) == 1
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken * 1024 < MEMORY


@pytest.mark.parametrize("op", ["Cast", "Add", "Concat", "Gather"])
def test_a_long_vector_takes_no_memory(op: str) -> None:
    """Inference would propagate the values of a waveform, 150 bytes an element, as those of a list of sizes."""
    first = {
        "Cast": node("Cast", "v", "l", to=7),
        "Add": node("Add", "v v", "l"),
        "Concat": node("Concat", "v v", "l", axis=0),
        "Gather": node("Gather", "v i", "l"),
    }
    nodes = [first[op], node("Shape", "l", "k0"), node("Cast", "k0", "k", to=1)]
    made = _made(nodes, {"i": [0]})
    made.graph.input.append(info("v", [1 << 34]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert plan(made).folds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
