"""The oracle resizes as ONNX Runtime does, in every mode; and what the planner believes of Resize holds there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnx_repfuse.verifier.oracle.resize import resize
from onnx_repfuse.verifier.oracle.tensor import Context, Tensor

COORDINATES = (
    "half_pixel",
    "asymmetric",
    "pytorch_half_pixel",
    "align_corners",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
)
SIZES = (1, 2, 3, 8)
SCALES = (0.3, 0.5, 1, 1.5, 2.6, 4)


def run(attrs: dict[str, Any], x: np.ndarray, inputs: dict[str, np.ndarray], opset: int) -> np.ndarray:
    """In ONNX Runtime; `inputs` are those behind x, where one of no elements is left out."""
    names = ["x", *(name if value.size else "" for name, value in inputs.items())]
    graph = helper.make_graph(
        [helper.make_node("Resize", names, ["y"], **attrs)],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in inputs.items() if value.size],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def cases(mode: str, coordinates: str) -> Iterator[tuple[dict[str, Any], tuple[int, ...], dict[str, Any]]]:
    """Attributes, shape of x, and inputs behind it: one axis is resized."""
    empty = np.zeros(0, np.float32)
    flags = [(0, 0)] if mode == "nearest" else [(0, 0), (1, 0), (1, 1)]
    flags += [(0, 1)] if mode == "cubic" else []
    rounded = (
        ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil") if mode == "nearest" else ("floor",)
    )
    for size, scale, (antialias, outside), nearest in itertools.product(SIZES, SCALES, flags, rounded):
        count = int(np.floor(np.float32(size) * np.float32(scale)))
        if count < 1:
            continue
        attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
        attrs |= {"antialias": antialias} if antialias else {}
        attrs |= {"exclude_outside": outside} if outside else {}
        roi = empty
        if coordinates == "tf_crop_and_resize":
            roi = np.array([0, 0, 0.1, 0, 1, 1, 0.8, 1], np.float32)
        by_scale = {"roi": roi, "scales": np.array([1, 1, scale, 1], np.float32)}
        by_size = {"roi": roi, "scales": empty, "sizes": np.array([2, 3, count, 5], np.int64)}
        for inputs in (by_scale, by_size):
            yield attrs, (2, 3, size, 5), inputs


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_oracle_resizes_as_the_runtime_does(mode: str, coordinates: str) -> None:
    """And both map a constant to the same constant, which lets a bias move through a Resize."""
    rng = np.random.default_rng(0)
    jumps = 0
    for opset, (attrs, shape, inputs) in itertools.product((18,), cases(mode, coordinates)):
        x = rng.standard_normal(shape).astype(np.float32)
        expected = run(attrs, x, inputs, opset)
        node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attrs)
        given = [Tensor.of(value) if value.size else None for value in inputs.values()]
        actual = resize(Context.of(node, opset), Tensor.of(x), *given)
        assert actual.value.shape == expected.shape
        if mode == "nearest" and np.abs(actual.value - expected).max() > 0:
            jumps += 1  # a position that a rounding decides
        else:
            np.testing.assert_allclose(actual.value, expected, rtol=0, atol=2e-5, err_msg=str((attrs, shape)))
        constant = run(attrs, np.full(shape, 0.7, np.float32), inputs, opset)
        np.testing.assert_allclose(constant, 0.7, rtol=0, atol=1e-5, err_msg=str((attrs, shape)))
    assert jumps <= 4, "more than a rounding differs"


@pytest.mark.parametrize("scale", [0.4, 2.0])
def test_the_first_resize_took_the_position_before_or_behind(scale: float) -> None:
    x = np.arange(10, dtype=np.float32).reshape(1, 1, 10, 1)
    scales = {"scales": np.array([1, 1, scale, 1], np.float32)}
    expected = run({}, x, scales, 10)
    node = helper.make_node("Resize", ["x", "s"], ["y"])
    actual = resize(Context.of(node, 10), Tensor.of(x), Tensor.of(scales["scales"]))
    assert actual.value.tolist() == expected.tolist()
