"""A verifier that can fail: planted faults are caught by probes, in place and in whole models; correct folds pass.

Folds are made here in float64 numpy; nothing of the algebra takes part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.records.verdict import StageVerdict, Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.outputs.compare import verify_outputs
from tests.verifier.folds_in_place import check_folds

Arrays = dict[str, np.ndarray]
SINGLE, HALF = np.float32, np.float16
FAULTS = ("mean", "sign", "swap channels", "swap rows", "stride", "flip", "one weight")


def elem(dtype: type) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def model(
    nodes: list[Any], inputs: list[Any], output: str, constants: Arrays, dtype: type
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info(output, elem(dtype), None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def batch_norm(rng: np.random.Generator, channels: int, wild: bool, dtype: type) -> Arrays:
    if not wild:
        found = {
            "scale": rng.uniform(0.5, 1.5, channels),
            "bias": rng.normal(0, 0.3, channels),
            "mean": rng.normal(0, 0.5, channels),
            "var": rng.uniform(0.3, 2, channels),
        }
    else:
        found = {
            "scale": rng.uniform(0.5, 1.5, channels) * rng.choice([-1, 1], channels),
            "bias": rng.normal(0, 3, channels),
            "mean": rng.normal(0, 5, channels),
            "var": 10 ** rng.uniform(-3, 2, channels),
        }
    return {name: value.astype(dtype) for name, value in found.items()}


def block(
    seed: int,
    channels: int = 16,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    dtype: type = SINGLE,
    wild: bool = False,
    fault: str = "",
) -> FoldCase:
    """RepVGG's block, kxk + 1x1 (+ identity), each with its BatchNormalization, and its one convolution."""
    rng = np.random.default_rng(seed)
    each, pad = channels // groups, kernel // 2
    big = rng.normal(0, (each * kernel**2) ** -0.5, (channels, each, kernel, kernel)).astype(dtype)
    small = rng.normal(0, each**-0.5, (channels, each, 1, 1)).astype(dtype)
    norms = [batch_norm(rng, channels, wild, dtype) for _ in range(3)]
    branches = [("a0", "a"), ("b0", "b")] + ([("x", "c")] if stride == 1 else [])
    strides = [stride, stride]
    nodes = [
        helper.make_node("Conv", ["x", "big"], ["a0"], pads=[pad] * 4, strides=strides, group=groups),
        helper.make_node("Conv", ["x", "small"], ["b0"], strides=strides, group=groups),
    ]
    constants: Arrays = {"big": big, "small": small}
    weight, bias = np.zeros((channels, each, kernel, kernel)), np.zeros(channels)
    rows = np.arange(channels)
    for index, (source, target) in enumerate(branches):
        norm = norms[index]
        constants.update({f"{name}{index}": value for name, value in norm.items()})
        names = [f"{name}{index}" for name in ("scale", "bias", "mean", "var")]
        nodes.append(helper.make_node("BatchNormalization", [source, *names], [target]))
        exact = {name: value.astype(np.float64) for name, value in norm.items()}
        slope = exact["scale"] / np.sqrt(exact["var"] + np.float32(1e-5))
        if target == "a":
            weight += big.astype(np.float64) * slope[:, None, None, None]
        elif target == "b":
            weight[:, :, pad, pad] += small[:, :, 0, 0].astype(np.float64) * slope[:, None]
        else:
            weight[rows, rows % each, pad, pad] += slope
        bias += exact["bias"] - exact["mean"] * slope * (not (fault == "mean" and target == "b"))
    nodes.append(helper.make_node("Sum", [target for _, target in branches], ["y"]))
    pads = [pad] * 4
    if fault == "sign":
        weight[channels // 2] *= -1
    elif fault == "swap channels":
        weight[:, [0, 1]] = weight[:, [1, 0]]
    elif fault == "swap rows":
        weight[[0, 1]], bias[[0, 1]] = weight[[1, 0]], bias[[1, 0]]
    elif fault == "stride":
        pads = [pad - 1, pad - 1, pad + 1, pad + 1]
    elif fault == "flip":
        weight = weight[:, :, ::-1]
    elif fault == "one weight":
        weight[rng.integers(channels), rng.integers(each), 0, kernel - 1] += 1e-3
    elif fault == "one weight by a thousandth":
        weight[rng.integers(channels), rng.integers(each), 0, kernel - 1] *= 1.001
    inputs = [helper.make_tensor_value_info("x", elem(dtype), ["n", channels, "h", "w"])]
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=pads, strides=strides, group=groups)
    folded = {"w": weight.astype(dtype), "b": bias.astype(dtype)}
    return FoldCase(model(nodes, inputs, "y", constants, dtype), model([conv], inputs, "y", folded, dtype))


def sequence(seed: int, biased: bool, dtype: type = SINGLE, channels: int = 32) -> FoldCase:
    """A 1x1 Conv followed by a padded 3x3: exact without the inner bias, wrong at the padding with it."""
    rng = np.random.default_rng(seed)
    inner = rng.normal(0, channels**-0.5, (channels, channels, 1, 1)).astype(dtype)
    outer = rng.normal(0, (9 * channels) ** -0.5, (channels, channels, 3, 3)).astype(dtype)
    bias = (rng.normal(0, 0.3, channels) * biased).astype(dtype)
    inputs = [helper.make_tensor_value_info("x", elem(dtype), ["n", channels, "h", "w"])]
    nodes = [
        helper.make_node("Conv", ["x", "inner", "bias"], ["t"]),
        helper.make_node("Conv", ["t", "outer"], ["y"], pads=[1] * 4),
    ]
    before = model(nodes, inputs, "y", {"inner": inner, "outer": outer, "bias": bias}, dtype)
    wide = outer.astype(np.float64)
    weight = np.einsum("omij,mc->ocij", wide, inner[:, :, 0, 0].astype(np.float64)).astype(dtype)
    total = np.einsum("omij,m->o", wide, bias.astype(np.float64)).astype(dtype)
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1] * 4)
    return FoldCase(before, model([conv], inputs, "y", {"w": weight, "b": total}, dtype))


def network(case: FoldCase, side: str = "before", tail: str = "logits", size: int = 20) -> onnx.ModelProto:
    """A stem, the fold, a head: img -> Conv, Relu -> x -> y -> Relu, mean, MatMul (-> Softmax, ArgMax)."""
    body = case.before.graph if side == "before" else case.after.graph
    kind = body.input[0].type.tensor_type.elem_type
    channels = body.input[0].type.tensor_type.shape.dim[1].dim_value
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(99)
    nodes = [
        helper.make_node("Conv", ["img", "stem", "stem_bias"], ["st"], pads=[1] * 4),
        helper.make_node("Relu", ["st"], ["x"]),
        *body.node,
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["p"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["p", "head"], ["logits"]),
        helper.make_node("Mul", ["logits", "sharp"], ["sharpened"]),
        helper.make_node("Softmax", ["sharpened"], ["softmax"]),
        helper.make_node("ArgMax", ["logits"], ["argmax"], axis=1),
    ]
    constants = {
        "stem": rng.normal(0, 0.3, (channels, 3, 3, 3)).astype(dtype),
        "stem_bias": rng.normal(0, 0.1, channels).astype(dtype),
        "head": rng.normal(0, channels**-0.5, (channels, 10)).astype(dtype),
        "sharp": np.asarray(10000, dtype=dtype),
    }
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("img", kind, [1, 3, size, size])],
        [helper.make_tensor_value_info(tail, TensorProto.INT64 if tail == "argmax" else kind, None)],
        [*body.initializer, *kept],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_place(case: FoldCase, seed: int = 0) -> StageVerdict:
    (verdict,) = check_folds(network(case), [case], seed=seed)
    assert verdict.stage == "in-place"
    return verdict


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride", "seeds"),
    [(8, 1, 3, 1, 12), (48, 1, 3, 2, 6), (64, 64, 3, 1, 6), (32, 4, 5, 1, 6), (24, 24, 13, 1, 2)],
)
def test_correct_folds_pass(
    dtype: type, wild: bool, channels: int, groups: int, kernel: int, stride: int, seeds: int
) -> None:
    for seed in range(seeds):
        case = block(seed, channels, groups=groups, kernel=kernel, stride=stride, dtype=dtype, wild=wild)
        for verdict in (probe(case, seed), in_place(case, seed)):
            assert verdict.status is Status.PASSED, verdict.message
            assert verdict.judge == "onnxruntime"
            assert 0 <= verdict.error <= verdict.tolerance


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("wild", [False, True])
def test_correct_large_folds_pass(dtype: type, wild: bool) -> None:
    case = block(0, 512, dtype=dtype, wild=wild)
    for verdict in (probe(case), in_place(case)):
        assert verdict.status is Status.PASSED, verdict.message


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_planted_faults_are_caught_twice(fault: str, stride: int) -> None:
    for seed in range(3):
        case = block(seed, stride=stride, fault=fault)
        for verdict in (probe(case, seed), in_place(case, seed)):
            assert verdict.status is Status.FAILED, (verdict.stage, verdict.message)
            assert verdict.error > verdict.tolerance
            assert "'y' differs by" in verdict.message


@pytest.mark.parametrize("fault", FAULTS[:-1])
def test_planted_faults_are_caught_twice_in_half_precision(fault: str) -> None:
    case = block(1, dtype=HALF, fault=fault)
    for verdict in (probe(case), in_place(case)):
        assert verdict.status is Status.FAILED, (verdict.stage, verdict.message)


def test_one_weight_of_4608_off_by_a_thousandth_is_caught_twice() -> None:
    case = block(3, 512, fault="one weight")
    for verdict in (probe(case), in_place(case)):
        assert verdict.status is Status.FAILED, (verdict.stage, verdict.message)


def test_probes_see_one_weight_of_4608_off_by_a_thousandth_of_itself() -> None:
    assert probe(block(4, 512, fault="one weight by a thousandth")).status is Status.FAILED


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_wrong_padding_is_caught_twice(dtype: type) -> None:
    for verdict in (probe(sequence(0, True, dtype)), in_place(sequence(0, True, dtype))):
        assert verdict.status is Status.FAILED, (verdict.stage, verdict.message)
    for verdict in (probe(sequence(0, False, dtype)), in_place(sequence(0, False, dtype))):
        assert verdict.status is Status.PASSED, (verdict.stage, verdict.message)


def test_probes_are_deterministic() -> None:
    assert probe(block(0)) == probe(block(0))


@pytest.mark.parametrize("fault", FAULTS)
def test_whole_models_show_planted_faults(fault: str) -> None:
    case = block(5, fault=fault)
    result = verify_outputs(network(case), network(case, "after"))
    assert not result
    assert result.status is Status.FAILED


def test_whole_models_with_correct_folds_pass() -> None:
    for seed in range(8):
        case = block(seed, wild=seed % 2 == 1)
        result = verify_outputs(network(case), network(case, "after"), spec=FeedSpec(seeds=(seed, 1 + seed)))
        assert result, [verdict.message for verdict in result.outputs]


@pytest.mark.parametrize("tail", ["softmax", "argmax"])
def test_outputs_that_cannot_show_a_fault_are_judged_by_their_deciding_tensors(tail: str) -> None:
    case = block(5, fault="one weight")
    result = verify_outputs(network(case, tail=tail), network(case, "after", tail=tail))
    (verdict,) = result.outputs
    assert result.status is Status.FAILED
    assert "which decides it" in verdict.message
    case = block(5)
    assert verify_outputs(network(case, tail=tail), network(case, "after", tail=tail))


@pytest.mark.parametrize("tail", ["softmax", "argmax"])
def test_outputs_that_cannot_show_a_fault_are_not_observed_without_deciding_tensors(tail: str) -> None:
    case = block(5, fault="one weight")
    other = network(case, "after", tail=tail)
    for node in other.graph.node:  # nothing but the interface keeps its name
        for names in (node.input, node.output):
            names[:] = [f"{name}_" if name in ("logits", "sharpened") else name for name in names]
    result = verify_outputs(network(case, tail=tail), other)
    assert [verdict.status for verdict in result.outputs] == [Status.NOT_OBSERVED]
    assert not result
    assert result.status is Status.NOT_OBSERVED
    assert ("cannot show a fault" if tail == "softmax" else "does not depend") in result.outputs[0].message
