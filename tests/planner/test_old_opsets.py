"""Below opset 7, Add, Sub, Mul and Div broadcast along `axis`, and only with `broadcast=1`: read, and written, so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_repfuse import Options, Reason, fuse
from onnx_repfuse.verifier.legacy_broadcast import legacy_operators
from tests.parts import Weights, graph, info, model, node, random


def _agree(made: onnx.ModelProto, x: Any, folds: int, **options: Any) -> onnx.ModelProto:
    """The result; it is valid, computes the same of `x`, has so many folds, and a second run finds none."""
    result = fuse(made, options=Options(**options))
    assert result.model is not None
    assert len(result.report.folds) == folds, result.report.refusals
    onnx.checker.check_model(result.model, full_check=True)
    want, got = (_run(m, x) for m in (made, result.model))
    assert want.shape == got.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert not fuse(result.model).report.folds
    return result.model


def _run(made: onnx.ModelProto, x: Any) -> Any:
    return ReferenceEvaluator(made, new_ops=legacy_operators()).run(None, {"x": x})[0]


def _model(
    nodes: list[onnx.NodeProto], weights: Weights, shape: list[Any], opset: int = 6
) -> onnx.ModelProto:
    body = graph(nodes, [info("y", None)], weights, [info("x", shape)])
    body.input.extend(info(name, np.shape(value)) for name, value in weights.items())
    body.output[0].CopyFrom(info("y", ["a", "b", "c", "d"][: len(shape)]))
    return model(body, opset=opset, ir=3)


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
def test_a_constant_along_the_rows_is_not_taken_per_column(op: str) -> None:
    nodes = [node("MatMul", "x w", "a"), node(op, "a s", "y", broadcast=1, axis=0)]
    made = _model(nodes, {"w": random(4, 4), "s": random(4) + 4}, [4, 4])
    result = fuse(made, options=Options(check=False))
    assert not result.report.folds
    assert Reason.BROADCAST in {refusal.reason for refusal in result.report.refusals}


@pytest.mark.parametrize("axis", [1, -1, None])
def test_a_factor_along_the_columns_folds_into_the_product(axis: int | None) -> None:
    along = {} if axis is None else {"axis": axis}
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a s", "y", broadcast=1, **along)]
    _agree(_model(nodes, {"w": random(4, 5), "s": random(5)}, [3, 4]), random(3, 4), 1)


def test_a_factor_along_the_channels_folds_into_the_conv() -> None:
    nodes = [node("Conv", "x w", "a"), node("Mul", "a s", "b", broadcast=1, axis=1)]
    nodes.append(node("Add", "b t", "y", broadcast=1, axis=1))
    weights = {"w": random(4, 3, 1, 1), "s": random(4), "t": random(4)}
    _agree(_model(nodes, weights, [2, 3, 4, 4]), random(2, 3, 4, 4), 1)


def test_a_factor_along_height_is_refused_though_it_is_as_long() -> None:
    nodes = [node("Conv", "x w", "a"), node("Mul", "a s", "y", broadcast=1, axis=2)]
    made = _model(nodes, {"w": random(4, 3, 1, 1), "s": random(4)}, [2, 3, 4, 4])
    assert not fuse(made, options=Options(check=False)).report.folds


def test_constants_are_computed_along_their_axis() -> None:
    nodes = [node("Mul", "w s", "v", broadcast=1, axis=0), node("Conv", "x v", "a"), node("Conv", "a u", "y")]
    weights = {"w": random(4, 3, 1, 1), "s": random(4), "u": random(2, 4, 1, 1)}
    _agree(_model(nodes, weights, [2, 3, 4, 4]), random(2, 3, 4, 4), 1)


@pytest.mark.parametrize("check", [True, False])
def test_what_is_written_broadcasts_along_the_channels(check: bool) -> None:
    """A shift before padding cannot go into the Conv: an Add stays, with its `broadcast` and `axis`."""
    nodes = [node("Mul", "x s", "a", broadcast=1, axis=1), node("Add", "a t", "b", broadcast=1, axis=1)]
    nodes.append(node("Conv", "b w", "y", pads=[1] * 4))
    weights = {"s": np.abs(random(3)) + 1, "t": random(3), "w": random(4, 3, 3, 3)}
    fused = _agree(_model(nodes, weights, [2, 3, 4, 4]), random(2, 3, 4, 4), 1, check=check)
    (shift,) = (n for n in fused.graph.node if n.op_type == "Add")
    assert {a.name: a.i for a in shift.attribute} == {"broadcast": 1, "axis": 1}


@pytest.mark.parametrize("opset", [1, 6])
def test_no_gemm_is_written_that_no_runtime_has(opset: int) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "y", broadcast=1)]
    made = _model(nodes, {"w": random(4, 3), "b": random(3)}, [2, 4], opset=opset)
    assert not fuse(made, options=Options(check=False)).report.folds
