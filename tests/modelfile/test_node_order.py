"""Nodes are read in topological order, whatever the file's; initializers that nobody reads may hold anything."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import InputError, fuse
from onnx_repfuse.modelfile.document import Document
from tests.build import run
from tests.parts import agree, batch_norm, graph, info, model, node, norm, random, rarely
from tests.versions import since


def _blocks(order: list[int]) -> onnx.ModelProto:
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "c"),
        batch_norm("c", "n"),
        node("Conv", "n v", "d"),
        node("Add", "d x", "s"),
        node("Relu", "s", "y"),
    ]
    weights = {"w": random(3, 3, 1, 1), "v": random(3, 3, 1, 1), **norm(3)}
    body = graph(
        [nodes[place] for place in order],
        [info("y", ["n", 3, "h", "w_"])],
        weights,
        [info("x", ["n", 3, "h", "w_"])],
    )
    return model(body)


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0, 1, 3, 5, 4], [0, 1, 2, 3, 5, 4]])
def test_unsorted_nodes_are_folded_as_sorted_ones_are(order: list[int]) -> None:
    made, usual = _blocks(order), _blocks([0, 1, 2, 3, 4, 5])
    report = agree(made, {"x": random(1, 3, 4, 4)}, folds=len(fuse(usual).report.folds))
    assert report.folds
    fused = fuse(made).model
    assert fused is not None
    onnx.checker.check_model(fused, full_check=True)


def test_unsorted_nodes_stay_as_they_are_where_nothing_is_folded() -> None:
    nodes = [node("Relu", "a", "y"), node("Tanh", "x", "a")]
    made = model(graph(nodes, [info("y", None)], {}, [info("x", [3])]))
    result = fuse(made)
    assert result.model is not None
    assert result.model.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)


@since("ONNX Runtime before 1.24 ends the process where it optimizes such a model", onnxruntime="1.24")
def test_what_subgraphs_read_comes_before_them() -> None:
    """ONNX Runtime sorts the main graph's nodes, but no subgraph's."""
    then = graph([node("Conv", "x w", "b"), batch_norm("b", "o")], [info("o", None)])
    other = graph([node("Identity", "late", "o2")], [info("o2", None)])
    made = rarely(then, other, {"w": random(4, 3, 1, 1), **norm(4)})
    made.graph.node.append(node("Conv", "x w", "late"))
    agree(made, {"x": random(1, 3, 4, 4)}, {"x": 100 * random(1, 3, 4, 4) + 200}, folds=1)


def test_functions_are_sorted() -> None:
    body = [node("Neg", "a", "Y"), node("Abs", "X", "a")]
    made = model(
        graph([helper.make_node("F", ["x"], ["y"], domain="local")], [info("y", None)], {}, [info("x", [3])])
    )
    made.opset_import.add(domain="local", version=1)
    made.functions.append(
        helper.make_function("local", "F", ["X"], ["Y"], body, [helper.make_opsetid("", 17)])
    )
    with Document.from_model(made) as document:
        assert [n.op_type for n in document.model.functions[0].node] == ["Abs", "Neg"]


@pytest.mark.parametrize("where", ["graph", "branch", "itself"])
def test_a_cycle_is_an_error_of_the_model(where: str) -> None:
    ring = [node("Add", "x b", "a"), node("Neg", "a", "b"), node("Relu", "b", "y")]
    if where == "itself":
        ring = [node("Add", "x y", "y")]
    made = model(graph(ring, [info("y", None)], {}, [info("x", [3])]))
    if where == "branch":
        branch = graph(ring, [info("y", None)])
        nodes = [node("If", "c", "z", then_branch=branch, else_branch=branch)]
        made = model(graph(nodes, [info("z", None)], {}, [info("x", [3]), info("c", [], TensorProto.BOOL)]))
    with pytest.raises(InputError, match="the graph has a cycle"):
        fuse(made)


@pytest.mark.parametrize("data", [b"", b"1234567", bytes(4000)])
@pytest.mark.parametrize("dims", [[], [1], [1 << 40]])
def test_an_initializer_that_nobody_reads_may_be_broken(data: bytes, dims: list[int]) -> None:
    made = _blocks([0, 1, 2, 3, 4, 5])
    broken = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=dims, raw_data=data)
    made.graph.initializer.append(broken)
    result = fuse(made)
    assert result.model is not None
    assert result.report.folds
    (kept,) = (tensor for tensor in result.model.graph.initializer if tensor.name == "k")
    assert kept == broken
    feed = {"x": random(1, 3, 4, 4)}
    np.testing.assert_allclose(run(result.model, feed)[0], run(made, feed)[0], rtol=1e-4, atol=1e-4)


def test_a_broken_initializer_that_a_branch_reads_is_an_error() -> None:
    then = graph([node("Add", "x k", "o")], [info("o", None)])
    other = graph([node("Identity", "x", "o2")], [info("o2", None)])
    made = rarely(then, other, {})
    made.graph.initializer.append(
        TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[2], raw_data=b"1234")
    )
    with pytest.raises(InputError, match="tensor 'k' claims"):
        fuse(made)
