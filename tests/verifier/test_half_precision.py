"""Whole models in half precision are judged against their float32 twin, so that something is observed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import OutputVerdict, Status
from onnx_repfuse.report.json_report import dumps
from onnx_repfuse.verifier.arithmetic_weights import with_cast_weights
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from onnx_repfuse.verifier.outputs.float32_twin import behind_short_weights, float32_twin, uses_short_floats
from tests.build import Net
from tests.versions import since_bfloat16

F16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


def residual(
    blocks: int = 6, gain: float = 0.2, shape: Any = (1, 8, 24, 24), tail: Any = None, dtype: Any = np.float16
) -> onnx.ModelProto:
    """Residual blocks with BatchNormalization kept, average and Gemm; `gain` scales what depends on the input."""
    net = Net(8, dtype=dtype, shape=shape)
    x = net.op("Mul", "x", net.const(gain))
    for _ in range(blocks):
        inner = net.op("Relu", net.conv_bn(x, 8, 8, 3))
        x = net.op("Relu", net.add(net.conv_bn(inner, 8, 8, 3), x))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", pooled, net.random(8, 100), net.random(100))
    return net.model(tail(net, y) if tail else y)


def one_output(first: onnx.ModelProto, second: onnx.ModelProto, **options: Any) -> OutputVerdict:
    (verdict,) = verify_outputs(first, second, **options).outputs
    return verdict


def changed(model: onnx.ModelProto, name: str, change: Any) -> onnx.ModelProto:
    """A copy of which `change` has edited the array of one initializer."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


@pytest.mark.parametrize("shape", [(1, 8, 24, 24), ("N", 8, "H", "W")])
def test_a_folded_residual_network_in_float16_is_observed_and_passes(shape: Any) -> None:
    original = residual(shape=shape)
    result = fuse(original)
    verification = result.report.verification
    assert result.report.folds
    assert verification is not None
    (verdict,) = verification.outputs
    assert verdict.status is Status.PASSED, verdict
    assert verdict.against == "compared with the original in float32"
    assert 0 < verdict.max_abs <= verdict.tolerance
    assert np.isfinite(verdict.max_rel)
    # The comparison of the two files on these seeds says the same.
    again = one_output(original, result.model, optimized=True, spec=FeedSpec(seeds=verification.seeds))
    assert (again.status, again.max_abs) == (verdict.status, verdict.max_abs)


def test_without_a_larger_input_it_would_be_lost_in_noise() -> None:
    """Why there is a strong feed: given the same data alone, the verdict is "not observed"."""
    model = residual(gain=0.002)
    rng = np.random.default_rng(0)
    data = tuple({"x": rng.standard_normal((1, 8, 24, 24)).astype(np.float16)} for _ in range(3))
    assert one_output(model, model, spec=FeedSpec(data=data)).status is Status.NOT_OBSERVED
    assert one_output(model, model).status is Status.PASSED


def test_outputs_that_sink_to_zero_are_read_at_a_larger_input() -> None:
    def tail(net: Net, y: str) -> str:
        zero_mean = net.op("Mul", "x", net.const(1e-5))
        return str(net.op("Mul", net.op("GlobalAveragePool", zero_mean), net.const(1e-3)))

    assert one_output(residual(tail=tail), residual(tail=tail)).status is Status.PASSED


@pytest.mark.parametrize("fault", ["swapped", "negated", "bias"])
def test_a_fault_in_one_layer_fails(fault: str) -> None:
    original = residual()
    names = [t.name for t in original.graph.initializer if len(t.dims) == 4]

    def swap(array: Any) -> None:
        array[[0, 1]] = array[[1, 0]]

    def negate(array: Any) -> None:
        array[0] *= -1

    def shift(array: Any) -> None:
        array += 0.25

    if fault == "bias":
        scale = next(n for n in original.graph.node if n.op_type == "BatchNormalization").input[2]
        wrong = changed(original, scale, shift)
    else:
        wrong = changed(original, names[3], swap if fault == "swapped" else negate)
    verdict = one_output(original, wrong)
    assert verdict.status is Status.FAILED
    assert "from the original in float32" in verdict.message


def test_the_result_may_be_as_far_off_as_the_noise_or_twice_the_originals_error() -> None:
    original = residual()
    bias = next(t.name for t in original.graph.initializer if list(t.dims) == [100])
    data = ({"x": np.random.default_rng(0).standard_normal((1, 8, 24, 24)).astype(np.float16)},)
    allowed = one_output(original, original, spec=FeedSpec(data=data)).tolerance
    for factor, status in ((1.5, Status.FAILED), (0.4, Status.PASSED)):
        moved = changed(original, bias, lambda b, f=factor: np.add(b, f * allowed, out=b, casting="unsafe"))
        assert one_output(original, moved, spec=FeedSpec(data=data)).status is status


def test_a_float32_output_behind_half_precision_is_judged_by_the_twin() -> None:
    """As converters leave it that keep the types of inputs and outputs."""

    def model(dtype: Any = np.float16) -> onnx.ModelProto:
        made = residual(dtype=dtype, tail=lambda net, y: net.op("Cast", y, to=TensorProto.FLOAT))
        made.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        return made

    verdict = one_output(model(), model())
    assert (verdict.dtype, verdict.status) == ("float32", Status.PASSED)
    assert verdict.against
    assert not one_output(model(np.float32), model(np.float32)).against


@since_bfloat16
def test_bfloat16_is_judged_by_the_twin() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=BF16),
    ]
    values = np.random.default_rng(0).standard_normal((4, 64))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", BF16, [4, 64])],
        [helper.make_tensor_value_info("y", BF16, [4, 64])],
        [helper.make_tensor(name, BF16, [4, 64], (values * 9).ravel().tolist()) for name in "wb"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    verdict = one_output(model, model)
    assert (verdict.dtype, verdict.status) == ("bfloat16", Status.PASSED)
    assert verdict.against == "compared with the original in float32"


def test_an_overflow_of_the_original_has_to_be_one_of_the_result() -> None:
    def tail(factor: float) -> Any:
        return lambda net, y: net.op("Concat", y, net.op("Mul", y, net.const(factor)), axis=1)

    same = one_output(residual(tail=tail(60000.0)), residual(tail=tail(60000.0)))
    assert same.max_abs < float("inf")
    other = one_output(residual(tail=tail(60000.0)), residual(tail=tail(600.0)))
    assert other.status is Status.FAILED


def test_user_tolerances_compare_with_the_original_itself() -> None:
    verdict = one_output(residual(), residual(), rtol=1e-3)
    assert (verdict.max_abs, verdict.against) == (0.0, "")


def test_the_twin_has_no_half_precision_left_anywhere() -> None:
    half = numpy_helper.from_array(np.ones(2, np.float16), "")
    half_vector = numpy_helper.from_array(np.ones(1, np.float16), "w")
    inner = [
        helper.make_node("Constant", [], ["c"], value=half),
        helper.make_node("Cast", ["c"], ["d"], to=F16),
    ]
    branch = helper.make_graph(inner, "b", [], [helper.make_tensor_value_info("d", F16, [2])])
    body = [helper.make_node("EyeLike", ["a"], ["e"], dtype=F16)]
    function = helper.make_function("own", "f", ["a"], ["e"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("If", ["flag"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["z"], value=numpy_helper.from_array(np.zeros(1, np.float16))
        ),
        helper.make_node("f", ["m"], ["e"], domain="own"),
        helper.make_node("SequenceConstruct", ["i", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, []), helper.make_tensor_value_info("m", F16, [2, 2])],
        [helper.make_tensor_sequence_value_info("y", F16, None), helper.make_tensor_value_info("e", F16, [2, 2])],
        [numpy_helper.from_array(np.array([2], np.int64), "shape"), half_vector],
        value_info=[helper.make_tensor_value_info("i", F16, [2])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[function])
    assert uses_short_floats(model)
    twin = float32_twin(model)
    assert twin is not None
    assert not uses_short_floats(twin)
    assert "FLOAT16" not in str(twin)
    onnx.checker.check_model(twin, full_check=True)
    assert uses_short_floats(model)  # which is not changed


def test_weights_that_are_only_stored_in_float16_leave_the_noise_of_float32() -> None:
    net = Net(8, shape=(1, 8, 24, 24))
    weight = net.op("Cast", net.random(8, 8, 3, 3, dtype=np.float16), to=TensorProto.FLOAT)
    model = net.model(net.bn(net.op("Conv", "x", weight), 8))
    verdict = verify_outputs(model, model).outputs[0]
    assert (verdict.status, verdict.against) == (Status.PASSED, "")


def autocast() -> onnx.ModelProto:
    """As `torch.autocast` exports a network: float32 weights, inputs and outputs, each behind or before a Cast."""
    net = Net(8, shape=(1, 8, 24, 24))

    def half(name: str) -> str:
        return net.op("Cast", name, to=F16)

    y = half("x")
    for _ in range(3):
        y = net.op("Conv", y, half(net.random(8, 8, 3, 3)), pads=[1, 1, 1, 1])
        y = net.op("Mul", y, half(net.random(8, 1, 1)))
        y = net.op("Relu", net.op("Add", y, half(net.random(8, 1, 1))))
    return net.model(net.op("Cast", y, to=TensorProto.FLOAT))


def test_weights_behind_a_cast_to_half_precision_have_its_noise() -> None:
    model = autocast()
    verdict = one_output(model, model)
    assert (verdict.dtype, verdict.status) == ("float32", Status.PASSED)
    assert verdict.against
    result = fuse(model)
    assert len(result.report.folds) == 3
    assert not [refusal for refusal in result.report.refusals if refusal.reason is Reason.VERIFICATION]
    assert result.report.verification.status is Status.PASSED
    weight = next(t.name for t in result.model.graph.initializer if list(t.dims) == [8, 8, 3, 3])
    wrong = changed(result.model, weight, lambda w: np.multiply(w, -1, out=w))
    assert one_output(model, wrong).status is Status.FAILED


def test_weights_of_a_subgraph_behind_a_cast_to_half_precision_count() -> None:
    model = parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, bool c) => (float[n] y) {
            y = If(c) <
                then_branch = a () => (float[n] u) {
                    w = Constant<value = float {3.0}>() h = Cast<to = 10>(w) s = Cast<to = 10>(x)
                    m = Mul(s, h) u = Cast<to = 1>(m)
                }, else_branch = b () => (float[n] v) { v = Identity(x) }>
        }"""
    )
    assert behind_short_weights(model) == {"y"}
    stored = with_cast_weights(model)
    assert [node.op_type for node in stored.graph.node[0].attribute[0].g.node].count("Constant") == 2
    assert with_cast_weights(stored) is stored


def test_the_json_report_says_what_was_compared() -> None:
    from onnx_repfuse.records.outcome import Outcome

    report = fuse(residual(blocks=1), options=Options()).report
    text = dumps([Outcome("fuse", "a", "b", report=report)], "0", many=False, exit_code=0)
    assert '"against": "compared with the original in float32"' in text
    assert "from the original in float32" in text
