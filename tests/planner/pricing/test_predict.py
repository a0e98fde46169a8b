"""Predicted times: what runtimes compute once, when they load a model, takes none."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner.predict import predicted_cost
from tests.parts import graph, info, model, node


def _predicted(made: onnx.ModelProto) -> int:
    (scope,) = read_scopes(Document.from_model(made))
    return predicted_cost(scope, "ort-cpu")


def _stepped(nodes: list[onnx.NodeProto], **weights: object) -> onnx.ModelProto:
    """Nodes, and a Slice to `last`, beside an activation and a matrix product."""
    nodes = [
        *nodes,
        node("Slice", "x first last", "s"),
        node("Sigmoid", "s", "a"),
        node("MatMul", "a w", "y"),
    ]
    values = {"first": [0], "w": np.ones((8, 8), np.float32), **weights}
    return model(graph(nodes, [info("y", None)], values, [info("x", ["n", 8])]))


def test_constants_take_no_time_however_they_are_written() -> None:
    stored = _stepped([], last=[4])
    value = numpy_helper.from_array(np.array([4]))
    as_node = _stepped([helper.make_node("Constant", [], ["last"], value=value)])
    computed = _stepped([node("Add", "two two", "last")], two=[2])
    assert _predicted(stored) == _predicted(as_node) == _predicted(computed) > 0


def test_what_reads_an_input_takes_time() -> None:
    size = _stepped([node("Shape", "x", "all"), node("Gather", "all zero", "last")], zero=[0])
    assert _predicted(size) > _predicted(_stepped([], last=[4]))
