"""Two models that anybody may have made: other precisions, parts of sequences, values that are not finite, text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.records.comparison import Comparison
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.comparing.two_models import compare_models
from onnx_repfuse.verifier.inputs import FeedSpec
from tests.build import Net

FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
RNG = np.random.default_rng(5)


def info(name: str, shape: Any, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def build(nodes: Any, inputs: Any, outputs: Any, weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network(seed: int = 1) -> onnx.ModelProto:
    """A residual network of float32 with class scores."""
    net = Net(4, shape=("N", 4, "H", "W"), seed=seed)
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.add(net.conv_bn(x, 4, 4, 3), x))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.op("Gemm", pooled, net.random(4, 12), net.random(12)))


def cast_to(model: onnx.ModelProto, kind: int, keep_io: bool = False) -> onnx.ModelProto:
    """The same network with other floats; with `keep_io` behind Casts, as converters write it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in copy.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    (given,), (result,) = copy.graph.input, copy.graph.output
    if not keep_io:
        given.type.tensor_type.elem_type = result.type.tensor_type.elem_type = kind
        return copy
    for node in copy.graph.node:
        node.input[:] = ["x_cast" if name == given.name else name for name in node.input]
        node.output[:] = ["y_cast" if name == result.name else name for name in node.output]
    copy.graph.node.insert(0, helper.make_node("Cast", [given.name], ["x_cast"], to=kind))
    copy.graph.node.append(helper.make_node("Cast", ["y_cast"], [result.name], to=FLOAT))
    return copy


def changed(model: onnx.ModelProto, index: int, factor: float) -> onnx.ModelProto:
    """One weight of one initializer times a factor."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = copy.graph.initializer[index]
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("keep_io", [False, True])
def test_float32_and_float16_differ_by_what_float16_rounds(seed: int, keep_io: bool) -> None:
    full = network(seed)
    half = cast_to(full, HALF, keep_io)
    for first, second, judge in ((full, half, "second"), (half, full, "first")):
        result = compare_models(first, second)
        (verdict,) = result.verification.outputs
        assert result, verdict
        assert result.judged_by == judge
        assert set(result.precisions) == {"float32", "float16"}
        (statistics,) = result.outputs
        assert 1e-5 < verdict.max_abs <= verdict.tolerance
        assert statistics.absolute is not None
        assert statistics.absolute.max == verdict.max_abs
        assert statistics.dtypes == (
            ("float32",) * 2
            if keep_io
            else ("float32", "float16")
            if judge == "second"
            else ("float16", "float32")
        )


@pytest.mark.parametrize("index", [0, 4, -2])
def test_a_wrong_weight_is_more_than_float16_rounds(index: int) -> None:
    full = network()
    for first, second in (
        (full, changed(cast_to(full, HALF), index, -1)),
        (changed(full, index, -1), cast_to(full, HALF)),
    ):
        result = compare_models(first, second)
        assert result.verification.status is Status.FAILED
        assert "differs by" in result.verification.outputs[0].message


def test_data_of_the_first_model_is_converted_for_the_second() -> None:
    full, half = network(), cast_to(network(), HALF)
    data = tuple({"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(2))
    strong = {"x": 20 * data[0]["x"]}
    result = compare_models(full, half, spec=FeedSpec(data=(*data, strong)))
    assert result, result.verification.outputs
    assert result.verification.shapes == ({"x": (1, 4, 8, 8)},)


def test_an_overflow_in_float16_is_a_difference() -> None:
    def scaled(kind: int) -> onnx.ModelProto:
        weights = {"big": np.array(6e4, helper.tensor_dtype_to_np_dtype(kind))}
        node = helper.make_node("Mul", ["x", "big"], ["y"])
        return build([node], [info("x", [40], kind)], [info("y", [40], kind)], weights)

    result = compare_models(scaled(FLOAT), scaled(HALF))
    assert result.verification.status is Status.FAILED
    (statistics,) = result.outputs
    assert statistics.only_one_finite > 0
    assert statistics.minimum_atol == math.inf


def test_float64_is_judged_by_the_noise_of_float32() -> None:
    def product(kind: int, weight: Any) -> onnx.ModelProto:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        return build(nodes, [info("x", [4, 8], kind)], [info("y", [4, 6], kind)], {"w": weight.astype(dtype)})

    weight = RNG.standard_normal((8, 6))
    single = product(FLOAT, weight)
    result = compare_models(product(DOUBLE, weight), single)
    assert result
    assert (result.judged_by, result.precisions) == ("second", ("float64", "float32"))
    wrong = weight.copy()
    wrong[0, 0] *= 1.0001
    assert not compare_models(product(DOUBLE, wrong), single)


def test_names_are_the_first_models_also_where_the_second_judges() -> None:
    full, half = network(), cast_to(network(), HALF)
    old = half.graph.output[0].name
    half.graph.output[0].name = half.graph.node[-1].output[0] = "scores"
    for node in half.graph.node:
        node.input[:] = ["image" if name == "x" else name for name in node.input]
    half.graph.input[0].name = "image"
    result = compare_models(full, half, by_order=True, spec=FeedSpec(shapes={"x": (1, 4, 9, 9)}))
    (verdict,) = result.verification.outputs
    assert verdict.name == old
    assert repr(old) in verdict.message
    assert (result.outputs[0].name, result.outputs[0].other) == (old, "scores")
    assert result.verification.shapes == ({"x": (1, 4, 9, 9)},)
    assert {difference.differs for difference in result.interface} == {("name", "type")}


def test_a_second_model_that_does_not_run_cannot_be_compared() -> None:
    half = cast_to(network(), HALF)
    half.graph.node[0].op_type = "NoSuchOp"
    result = compare_models(network(), half)
    assert result.verification.status is Status.FAILED
    assert "the second model does not run" in result.verification.notes[0]
    assert result.outputs == ()


def compared(nodes: Any, other: Any, outputs: Any, inputs: Any = None) -> Comparison:
    inputs = inputs or [info("x", [4, 6])]
    return compare_models(build(nodes, inputs, outputs), build(other, inputs, outputs))


def test_parts_of_a_sequence_have_statistics_of_their_own() -> None:
    split = helper.make_node("SplitToSequence", ["x"], ["y"], axis=0, keepdims=1)
    double = [helper.make_node("Add", ["x", "x"], ["z"])]
    twice = helper.make_node("SplitToSequence", ["z"], ["y"], axis=0, keepdims=1)
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    same = compared([split], [split], [sequence])
    assert same.verification.status is Status.PASSED
    assert [entry.name for entry in same.outputs] == [f"y[{index}]" for index in range(4)]
    result = compared([split], [*double, twice], [sequence])
    assert result.verification.status is Status.FAILED
    assert all(entry.relative and entry.relative.max == 1 for entry in result.outputs)


def test_integers_booleans_and_text() -> None:
    ints = compared(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1)],
        [helper.make_node("ArgMin", ["x"], ["y"], axis=1)],
        [info("y", None, TensorProto.INT64)],
    )
    assert ints.verification.status is Status.FAILED
    assert ints.outputs[0].absolute is not None
    flags = compared([helper.make_node("IsNaN", ["x"], ["y"])], [helper.make_node("IsInf", ["x"], ["y"])],
                     [info("y", None, TensorProto.BOOL)])  # fmt: skip
    assert (flags.outputs[0].different, flags.outputs[0].elements) == (0, 72)
    words = [info("s", [4], TensorProto.STRING)]
    back = [
        helper.make_node("Constant", [], ["back"], value_ints=[3, 2, 1, 0]),
        helper.make_node("Gather", ["s", "back"], ["y"]),
    ]
    same = [helper.make_node("Identity", ["s"], ["y"])]
    text = compared(same, back, [info("y", None, TensorProto.STRING)], words)
    assert text.verification.status is Status.FAILED
    assert text.outputs[0].different > 0
    assert text.outputs[0].absolute is None


def test_nan_on_both_sides_is_no_difference_and_empty_outputs_are_said() -> None:
    log = [helper.make_node("Log", ["x"], ["y"])]
    result = compared(log, log, [info("y", None)])
    (statistics,) = result.outputs
    assert (statistics.different, statistics.only_one_finite) == (0, 0)
    start = helper.make_node("Constant", [], ["zero"], value_ints=[0])
    empty = [start, helper.make_node("Slice", ["x", "zero", "zero"], ["y"])]
    result = compared(empty, empty, [info("y", None)])
    assert result.verification.status is Status.NOT_OBSERVED
    assert (result.outputs[0].elements, result.outputs[0].absolute) == (0, None)


def test_shapes_that_differ_have_a_verdict_and_no_figures() -> None:
    result = compared([helper.make_node("Identity", ["x"], ["y"])],
                      [helper.make_node("Transpose", ["x"], ["y"])], [info("y", None)])  # fmt: skip
    assert "has shape [6, 4] instead of [4, 6]" in result.verification.outputs[0].message
    assert result.outputs[0].elements == 0
