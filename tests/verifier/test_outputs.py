"""Whole models compared: calibrated tolerances, and every kind of output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.verdict import Status, Verification
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from tests.verifier.small_models import F, build, info
from tests.versions import since_bfloat16

I64 = TensorProto.INT64


def linear(
    scale: float = 1.0, tail: list[Any] | None = None, output: Any = None, rows: Any = 4
) -> onnx.ModelProto:
    """x @ w -> t, then `tail`; w is random but fixed, and scaled."""
    weight = np.random.default_rng(0).normal(0, 0.2, (16, 12)).astype(np.float32) * np.float32(scale)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), *(tail or [])]
    return build(nodes, [info("x", [rows, 16])], [output or info("t", None)], {"w": weight})


def check(first: onnx.ModelProto, second: onnx.ModelProto, **options: Any) -> Verification:
    return verify_outputs(first, second, **options)


def test_a_model_equals_itself() -> None:
    result = check(linear(), linear())
    (verdict,) = result.outputs
    assert result
    assert result.judge == "onnxruntime"
    assert result.seeds == (0, 1, 2)
    assert (verdict.max_abs, verdict.max_rel, verdict.over_noise) == (0, 0, 0)
    assert verdict.cosine == pytest.approx(1)
    assert verdict.top1 == 1
    assert verdict.dtype == "float32"
    assert 0 < max(verdict.noise) < verdict.tolerance


def test_the_original_runs_five_times_and_the_result_three_times() -> None:
    assert check(linear(), linear()).runs == (5, 3)


def test_only_a_feed_that_fails_has_its_noise_measured_again() -> None:
    """The third feed meets a division by almost nothing: its noise is not that of the first, scaled."""
    last = np.random.default_rng(2).standard_normal((4, 16)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 1]),
             helper.make_node("Sub", ["m", "near"], ["d"]), helper.make_node("Div", ["t", "d"], ["y"])]  # fmt: skip
    near = {"w": linear().graph.initializer, "near": np.float32(last.mean() - 1e-5)}
    near["w"] = numpy_helper.to_array(near["w"][0])

    def model(factor: float) -> onnx.ModelProto:
        moved = np.float32(near["near"] * np.float32(factor))
        return build(nodes, [info("x", [4, 16])], [info("y", None)], {**near, "near": moved})

    rounded = check(model(1), model(1 + 2.0**-23))
    assert rounded.runs == (6, 3)
    assert rounded
    wrong = check(model(1), model(1.001))
    assert wrong.status is Status.FAILED
    assert wrong.runs[0] <= 5 + 2 * 3


def test_a_relative_change_of_a_thousandth_fails_and_says_what_would_have_passed() -> None:
    result = check(linear(), linear(1.001))
    (verdict,) = result.outputs
    assert result.status is Status.FAILED
    assert verdict.minimum_tolerance == verdict.max_abs > verdict.tolerance
    assert verdict.over_noise > 100
    assert "is allowed" in verdict.message
    assert check(linear(), linear(1.001), rtol=0.01, atol=1e-4)


def test_user_tolerances_replace_the_calibrated_one() -> None:
    assert not check(linear(), linear(1.0 + 1e-6), rtol=1e-9)
    assert not check(linear(), linear(1.001), atol=1e-6)
    assert check(linear(), linear(1.001), atol=0.1)


def test_nan_equals_nan_only_and_infinity_equals_infinity_only() -> None:
    tail = [helper.make_node("Log", ["t"], ["y"])]  # NaN for half of the values
    result = check(linear(tail=tail, output=info("y", None)), linear(tail=tail, output=info("y", None)))
    assert result.outputs[0].max_abs == 0
    other = [helper.make_node("Relu", ["t"], ["r"]), helper.make_node("Log", ["r"], ["y"])]  # -inf instead
    result = check(linear(tail=tail, output=info("y", None)), linear(tail=other, output=info("y", None)))
    assert result.status is Status.FAILED
    assert result.outputs[0].max_abs == float("inf")


def test_constant_outputs_are_not_observed() -> None:
    tail = [helper.make_node("Mul", ["t", "zero"], ["y"])]
    models = [linear(tail=tail, output=info("y", None)) for _ in range(2)]
    for model in models:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    result = check(*models)
    assert result.outputs[0].status is Status.NOT_OBSERVED
    assert not result


def test_an_output_drowned_in_noise_is_not_observed() -> None:
    tail = [helper.make_node("Add", ["t", "huge"], ["a"]), helper.make_node("Sub", ["a", "huge"], ["y"])]
    models = [linear(tail=tail, output=info("y", None)) for _ in range(2)]
    for model in models:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(2**23), "huge"))
    assert check(*models).status is Status.NOT_OBSERVED


def test_nothing_compared_is_a_failure() -> None:
    assert Verification().status is Status.FAILED
    assert not Verification()


def test_discrete_outputs_are_compared_exactly() -> None:
    for op, kind in (("Sign", F), ("ArgMax", I64)):
        tail = [helper.make_node(op, ["t"], ["y"])]
        same = linear(tail=tail, output=info("y", None, kind))
        assert check(same, same)
    tail = [helper.make_node("ArgMax", ["t"], ["y"], axis=1)]
    other = [helper.make_node("Neg", ["t"], ["u"]), helper.make_node("ArgMax", ["u"], ["y"], axis=1)]
    result = check(
        linear(tail=tail, output=info("y", None, I64)), linear(tail=other, output=info("y", None, I64))
    )
    assert result.status is Status.FAILED
    assert "differ" in result.outputs[0].message


def flip(scale: float) -> onnx.ModelProto:
    """An ArgMax over pairs of nearly equal columns: rounding decides."""
    rng = np.random.default_rng(0)
    column = rng.normal(0, 0.2, (16, 1)).astype(np.float32)
    weight = np.concatenate([column, np.nextafter(column, np.float32(9))], 1) * np.float32(scale)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("Mul", ["t", "back"], ["u"]),
        helper.make_node("ArgMax", ["u"], ["y"], axis=1, keepdims=0),
    ]
    back = np.float32(1 / scale)
    return build(nodes, [info("x", [500, 16])], [info("y", None, I64)], {"w": weight, "back": back})


def test_a_flip_by_rounding_is_accepted_where_the_deciding_tensor_passed() -> None:
    result = check(flip(1.0), flip(3.0))
    (verdict,) = result.outputs
    assert result, verdict.message
    assert (verdict.name, verdict.dtype) == ("y", "int64")
    assert verdict.against == "judged before the ArgMax, at 'u'"
    assert "'u'" in verdict.message
    assert "rounding flips decisions" in verdict.message


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "HardSigmoid"])
def test_figures_next_to_passed_are_those_of_what_was_judged(op: str) -> None:
    """A sigmoid of about -100 is 1e-44 or zero, whatever the result. Its input is judged, and the figures are its."""

    def model(factor: float) -> onnx.ModelProto:
        tail = [helper.make_node("Add", ["t", "low"], ["a"]), helper.make_node(op, ["a"], ["y"])]
        made = linear(factor, tail=tail, output=info("y", None))
        low = np.full(12, -100, np.float32)
        low[0] = 0 if op == "Softmax" else -100  # one class takes all
        made.graph.initializer.append(numpy_helper.from_array(low, "low"))
        return made

    for factor in (1.0, 1 + 2.0**-23):
        result = check(model(1.0), model(factor))
        (verdict,) = result.outputs
        assert result, verdict.message
        assert verdict.against == f"judged before the {op}, at 'a'"
        assert verdict.max_abs <= verdict.tolerance
        assert np.isfinite(verdict.max_rel)
        assert verdict.tolerance > 1e-6
        assert verdict.cosine == pytest.approx(1)
    wrong = check(model(1.0), model(1.01))
    assert wrong.status is Status.FAILED


def test_a_flip_behind_a_tensor_that_failed_is_a_failure() -> None:
    second = flip(3.0)
    second.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(0.3), "back"))
    assert not check(flip(1.0), second)


def test_a_flip_that_the_deciding_tensor_does_not_explain_is_a_failure() -> None:
    second = flip(3.0)
    second.graph.node[2].CopyFrom(helper.make_node("ArgMin", ["u"], ["y"], axis=1, keepdims=0))
    assert not check(flip(1.0), second)


def test_interfaces_must_agree() -> None:
    other = linear()
    other.graph.output[0].name = "elsewhere"
    other.graph.node[0].output[0] = "elsewhere"
    result = check(linear(), other)
    assert result.status is Status.FAILED
    assert "outputs differ" in result.notes[-1]
    other = build([helper.make_node("Relu", ["z"], ["t"])], [info("z", [4, 16])], [info("t", None)])
    assert "inputs differ" in check(linear(), other).notes[-1]


def test_shapes_and_types_must_agree() -> None:
    tail = [helper.make_node("Transpose", ["t"], ["y"])]
    first = linear(tail=[helper.make_node("Identity", ["t"], ["y"])], output=info("y", None))
    result = check(first, linear(tail=tail, output=info("y", None)))
    assert result.status is Status.FAILED
    assert "has shape [12, 4] instead of [4, 12]" in result.outputs[0].message
    tail = [helper.make_node("Cast", ["t"], ["y"], to=TensorProto.DOUBLE)]
    result = check(first, linear(tail=tail, output=info("y", None, TensorProto.DOUBLE)))
    assert "has type float64 instead of float32" in result.outputs[0].message


def test_a_result_that_does_not_load_or_run_fails(tmp_path: Path) -> None:
    broken = build([helper.make_node("NoSuchOp", ["x"], ["t"])], [info("x", [4, 16])], [info("t", None)])
    result = check(linear(), broken)
    assert result.status is Status.FAILED
    assert "does not run" in result.outputs[0].message
    assert "\n" not in result.outputs[0].message
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    assert not verify_outputs(linear(), empty)
    assert not verify_outputs(linear(), tmp_path / "missing.onnx")


def test_an_original_that_does_not_run_is_an_input_error() -> None:
    broken = build([helper.make_node("NoSuchOp", ["x"], ["t"])], [info("x", [4, 16])], [info("t", None)])
    with pytest.raises(InputError) as caught:
        check(broken, linear())
    assert "\n" not in str(caught.value)
    assert "NoSuchOp" in str(caught.value)


def test_if_branches_run() -> None:
    then = helper.make_graph([helper.make_node("Neg", ["t"], ["a"])], "then", [], [info("a", None)])
    other = helper.make_graph([helper.make_node("Relu", ["t"], ["b"])], "else", [], [info("b", None)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = [info("x", [4, 16]), info("c", [], TensorProto.BOOL)]
    weight = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)
    first = build(nodes, inputs, [info("y", None)], {"w": weight})
    assert check(first, first)
    second = build(nodes, inputs, [info("y", None)], {"w": weight * np.float32(1.01)})
    assert not check(first, second)


def test_outputs_whose_shape_depends_on_values_fail_where_they_differ() -> None:
    def count(threshold: float) -> onnx.ModelProto:
        nodes = [helper.make_node("Greater", ["x", "t"], ["g"]), helper.make_node("NonZero", ["g"], ["y"])]
        constants = {"t": np.float32(threshold)}
        return build(nodes, [info("x", [40])], [info("y", None, I64)], constants)

    assert check(count(0), count(0))
    result = check(count(0), count(0.5))
    assert result.status is Status.FAILED
    assert "has shape" in result.outputs[0].message


def test_the_parts_of_a_sequence_are_judged_one_by_one() -> None:
    nodes = [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    model = build(nodes, [info("x", [3, 4])], [helper.make_value_info("y", kind)])
    result = check(model, model)
    assert {verdict.name for verdict in result.outputs} == {"y.length", "y[0]", "y[1]", "y[2]"}
    assert result


def test_a_sequence_input_is_no_output() -> None:
    """Its parts were once taken for outputs that only the result has."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    nodes = [helper.make_node("SequenceAt", ["x", "i"], ["t"]), helper.make_node("Exp", ["t"], ["y"])]
    model = build(nodes, [helper.make_value_info("x", kind)], [info("y", None)], {"i": np.int64(1)})
    data = tuple({"x": [np.full(3, step + part, np.float32) for part in range(2)]} for step in range(2))
    result = check(model, model, spec=FeedSpec(data=data))
    assert [verdict.name for verdict in result.outputs] == ["y"]
    assert result


def test_models_with_duplicate_node_names_run_in_the_runtime() -> None:
    model = linear(tail=[helper.make_node("Relu", ["t"], ["y"])], output=info("y", None))
    for node in model.graph.node:
        node.name = "twice"
    result = check(model, model)
    assert result
    assert result.judge == "onnxruntime"


@pytest.mark.parametrize(
    "kind", [TensorProto.DOUBLE, pytest.param(TensorProto.BFLOAT16, marks=since_bfloat16)]
)
def test_types_without_a_kernel_are_judged_by_the_reference(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)

    def conv(scale: float) -> onnx.ModelProto:
        weight = (np.random.default_rng(0).normal(size=(4, 3, 3, 3)) * scale).astype(dtype)
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
        return build(nodes, [info("x", [1, 3, 6, 6], kind)], [info("y", None, kind)], {"w": weight}, 22)

    result = check(conv(1), conv(1))
    assert result, [verdict.message for verdict in result.outputs]
    assert result.judge == "reference"
    assert any("reference evaluator" in note for note in result.notes)
    assert not check(conv(1), conv(1.1))


def test_noise_decides_not_a_fixed_tolerance() -> None:
    """Off by 5e-4: fine where the model's own noise is as large, else a fault."""

    def cancel(amount: float, shift: float) -> onnx.ModelProto:
        tail = [helper.make_node("Add", ["t", "big"], ["a"]), helper.make_node("Sub", ["a", "more"], ["y"])]
        model = linear(tail=tail, output=info("y", None))
        constants = {"big": np.float32(amount), "more": np.float32(amount) + np.float32(shift)}
        model.graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in constants.items()
        )
        return model

    assert check(cancel(4096, 0), cancel(4096, 2**-11))
    assert not check(cancel(0, 0), cancel(0, 2**-11))


def test_large_external_data_is_opened_by_path(tmp_path: Path) -> None:
    path, other = tmp_path / "m" / "a.onnx", tmp_path / "b.onnx"
    path.parent.mkdir()
    onnx.save(linear(), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    onnx.save(linear(), other)
    result = verify_outputs(path, other)
    assert result
    assert max(result.outputs[0].noise) > 0
    for node_name in ("twice",):
        proto = onnx.load(path, load_external_data=False)
        proto.graph.node.append(helper.make_node("Relu", ["t"], ["y"], name=node_name))
        proto.graph.node[0].name = node_name
        onnx.save(proto, path)
    assert verify_outputs(path, other)


def test_damaged_files_raise_no_traceback_and_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = linear(tail=[helper.make_node("Relu", ["t"], ["y"])], output=info("y", None)).SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    seen = set()
    for _ in range(300):
        data = bytearray(good)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data[: rng.integers(1, len(data) * 2)]))
        seen.add(verify_outputs(linear(), path).status)
        messages = []
        try:
            verify_outputs(path, path)
        except InputError as error:
            messages.append(str(error))
        assert not any("\n" in message for message in messages)
    assert Status.FAILED in seen
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "status"), [([[7, 7], [7, 7]], Status.NOT_OBSERVED), ([[1, 2], [3, 4]], Status.PASSED)]
)
def test_integers_that_do_not_differ_on_a_single_feed_show_nothing(values: Any, status: Status) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Cast", ["s"], ["c"], to=I64),
             helper.make_node("Mul", ["c", "zero"], ["n"]), helper.make_node("Add", ["n", "fixed"], ["y"])]  # fmt: skip
    constants = {"zero": np.zeros(2, np.int64), "fixed": np.array(values, np.int64)}
    model = build(nodes, [info("x", [2, 3])], [info("y", None, I64)], constants)
    data = ({"x": np.ones((2, 3), np.float32)},)
    (verdict,) = check(model, model, spec=FeedSpec(data=data)).outputs
    assert verdict.status is status
    several = FeedSpec(data=(*data, {"x": np.zeros((2, 3), np.float32)}))
    (verdict,) = check(model, model, spec=several).outputs
    assert verdict.status is Status.NOT_OBSERVED
