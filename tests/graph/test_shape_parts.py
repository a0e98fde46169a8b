"""Known parts of shapes that are not known whole: constants where the runtime holds to them, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from onnx_repfuse.records.verdict import Status
from tests.build import counts, run
from tests.parts import Weights, graph, info, model, node, random

INTS: Weights = {
    "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "list_0": [0], "list_1": [1], "list_3": [3],
    "list_-1": [-1], "list_end": [np.iinfo(np.int64).max], "rows": [2, 2],
}  # fmt: skip


def _scaled(
    nodes: list[NodeProto], shape: list[Any] | None = None, weights: Weights = INTS
) -> onnx.ModelProto:
    """Adds the float of a picked size to x, which is (n, 3, h, 8)."""
    nodes = [node("Shape", "x", "s"), *nodes, node("Cast", "k", "f", to=1), node("Add", "x f", "y")]
    used = {name for one in nodes for name in one.input}
    weights = {name: value for name, value in weights.items() if name in used}
    return model(graph(nodes, [info("y", None)], weights, [info("x", shape or ["n", 3, "h", 8])]))


@pytest.mark.parametrize(
    ("nodes", "value"),
    [
        ([node("Gather", "s one", "k")], 3),
        ([node("Gather", "s list_-1", "k")], 8),
        ([node("Slice", "s list_1 list_-1", "p"), node("Gather", "p zero", "k")], 3),
        ([node("Slice", "s list_3 list_end list_0", "k")], 8),
        ([node("Gather", "s list_1", "g"), node("Squeeze", "g list_0", "q"), node("Mul", "q two", "k")], 6),
        ([node("Gather", "s zero", "a"), node("Unsqueeze", "a list_0", "b"), node("Gather", "s list_1", "c"),
          node("Concat", "b c", "l", axis=0), node("Gather", "l one", "k")], 3),
        ([node("Cast", "s", "i", to=TensorProto.INT32), node("Gather", "i one", "k")], 3),
    ],
    ids=str,
)  # fmt: skip
def test_a_proved_size_is_an_initializer(nodes: list[NodeProto], value: int) -> None:
    made = _scaled(nodes)
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == {"Add": 1}
    (change,) = result.report.changes
    assert change.kind is Kind.CONSTANT
    assert "from constants and proved sizes alone" in change.claim
    assert result.report.verification is not None
    (verdict,) = result.report.verification.changes
    assert verdict.status is Status.PASSED
    for shape in ((1, 3, 5, 8), (2, 3, 1, 8)):
        x = random(*shape)
        np.testing.assert_array_equal(run(result.model, {"x": x})[0], x + np.float32(value))
    again = fuse(result.model).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Gather", "s zero", "k")],  # not known
        [node("Slice", "s list_0 list_3", "k0"), node("ReduceMax", "k0", "k", keepdims=0)],
        # of rank 2, a Gather picks rows
        [
            node("Reshape", "s rows", "r"),
            node("Gather", "r one", "t"),
            node("ReduceMax", "t", "k", keepdims=0),
        ],
    ],
    ids=str,
)
def test_an_unknown_size_stays_computed(nodes: list[NodeProto]) -> None:
    made = _scaled(nodes)
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == counts(made)
    feed = {"x": random(5, 3, 2, 8)}
    np.testing.assert_array_equal(run(result.model, feed)[0], run(made, feed)[0])


def test_what_a_caller_may_override_decides_nothing() -> None:
    made = _scaled([node("Gather", "s place", "k")], weights={"place": np.int64(1)})
    made.graph.input.append(info("place", [], TensorProto.INT64))
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == counts(made)


def test_what_is_declared_of_an_inner_tensor_decides_nothing() -> None:
    nodes = [node("NonZero", "x", "z"), node("Cast", "z", "zf", to=1), node("Shape", "zf", "s")]
    nodes += [node("Gather", "s one", "k"), node("Cast", "k", "f", to=1), node("Add", "x f", "y")]
    made = model(graph(nodes, [info("y", None)], {"one": np.int64(1)}, [info("x", ["n", 3])]))
    made.graph.value_info.append(info("zf", [2, 6]))
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == counts(made)


def test_sizes_are_left_where_constants_are_skipped() -> None:
    made = _scaled([node("Gather", "s one", "k")])
    result = fuse(made, options=Options(skip=frozenset({Kind.CONSTANT})))
    assert result.model is not None
    assert counts(result.model) == counts(made)
