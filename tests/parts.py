"""Unusual models, node by node; `agree` checks that fusing does not change what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnx_repfuse import Options, Report, fuse
from tests.build import run

RNG = np.random.default_rng(0)
Weights = dict[str, Any]


def random(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def norm(channels: int) -> Weights:
    """The parameters of a BatchNormalization."""
    positive = RNG.uniform(0.5, 1.5, (2, channels)).astype(np.float32)
    return {"ps": positive[0], "pb": random(channels), "pm": random(channels), "pv": positive[1]}


def batch_norm(x: str, y: str) -> NodeProto:
    return helper.make_node("BatchNormalization", [x, "ps", "pb", "pm", "pv"], [y])


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(" "), outputs.split(" "), **attributes)


def info(name: str, shape: Sequence[int | str] | None, data_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, data_type, shape)


def graph(
    nodes: list[NodeProto],
    outputs: list[ValueInfoProto],
    weights: Weights | None = None,
    inputs: Sequence[ValueInfoProto] = (),
) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    return helper.make_graph(nodes, "g", list(inputs), outputs, tensors)


def model(body: onnx.GraphProto, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def agree(model: onnx.ModelProto, *feeds: dict[str, Any], folds: int | None = 0) -> Report:
    """Fuse with and without a check; the outputs must be equal for every feed.

    `folds` is the number without a check.
    """
    checked, trusted = fuse(model), fuse(model, options=Options(check=False))
    for result in (checked, trusted):
        assert result.model is not None
        for feed in feeds:
            for want, got in zip(run(model, feed), run(result.model, feed), strict=True):
                assert want.shape == got.shape
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    assert folds is None or len(trusted.report.folds) == folds
    return checked.report


def rarely(then: onnx.GraphProto, other: onnx.GraphProto, weights: Weights) -> onnx.ModelProto:
    """An If branch that runs only for inputs with an element above 50."""
    nodes = [
        node("ReduceMax", "x", "most", keepdims=0),
        node("Greater", "most limit", "c"),
        node("If", "c", "y", then_branch=then, else_branch=other),
    ]
    weights = {"limit": np.float32(50), **weights}
    return model(graph(nodes, [info("y", ["n", 4, "h", "w_"])], weights, [info("x", ["n", 3, "h", "w_"])]))
