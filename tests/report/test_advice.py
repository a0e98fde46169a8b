"""Advice on refusals the user can act on; protected patterns come last and in few words."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse import Kind, Options, Reason, Refusal, fuse, plan
from onnx_repfuse.records.verdict import StageVerdict, Status
from onnx_repfuse.report.advice import advice, brief, by_reason

MODELS = Path(__file__).parents[2] / "models"
NORM = """<float[2] g = {1, 2}, float[2] b = {1, 2}, float[2] m = {0, 1}, float[2] v = {1, 2},
    float[2,2,1,1] w = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}, int8[2,2,1,1] q = {1, 2, 3, 4}>"""
HEAD = '<ir_version: 8, opset_import: ["" : 17]> net'
IMAGE, RESULT = "float[N,2,H,W] x", "float[N,2,H,W] y"
TRAINING = (
    f"{HEAD} ({IMAGE}) => ({RESULT}) {NORM} "
    "{ c = Conv(x, w)  y, rm, rv = BatchNormalization<training_mode = 1>(c, g, b, m, v) }"
)
QUANTIZED = (
    f"{HEAD} ({IMAGE}) => ({RESULT}) {NORM} "
    "{ d = DequantizeLinear(q, s, z)  c = Conv(x, d)  y = BatchNormalization(c, g, b, m, v) }"
)
OVERRIDABLE = (
    f"{HEAD} ({IMAGE}, float[2,2,1,1] w) => ({RESULT}) {NORM} "
    "{ c = Conv(x, w)  y = BatchNormalization(c, g, b, m, v) }"
)


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        (TRAINING, Reason.TRAINING, "call model.eval()"),
        (QUANTIZED, Reason.QUANTIZED, "then quantize the result"),
    ],
)
def test_advice_for_reasons_the_user_can_act_on(text, reason, words):
    report = plan(onnx.parser.parse_model(text))
    assert report.folds == ()
    assert reason in {refusal.reason for refusal in report.refusals}
    assert [words in sentence for sentence in advice(report)] == [True]


@pytest.mark.parametrize("has_default", [False, True])
def test_weights_that_callers_may_set_come_with_advice(has_default):
    """Nothing can be frozen of an input that has no initializer."""
    model = onnx.parser.parse_model(OVERRIDABLE)
    if not has_default:
        del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("w")]
    report = plan(model)
    assert {refusal.reason for refusal in report.refusals} == ({Reason.OVERRIDABLE} if has_default else set())
    assert ["callers may set 1 of the weights" in sentence for sentence in advice(report)] == [
        True
    ] * has_default
    frozen = plan(model, Options(freeze_initializers=True))
    assert not advice(frozen)
    assert bool(frozen.folds) is has_default


def test_advice_to_freeze_needs_no_fold():
    """A Conv whose weights callers may set is slow though nothing is linear behind it."""
    text = f"{HEAD} ({IMAGE}, float[2,2,1,1] w) => ({RESULT}) {{ c = Conv(x, w)  y = Relu(c) }}"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), name="w"))
    assert ["--freeze-initializers" in sentence for sentence in advice(plan(model))] == [True]
    model.ir_version = 3
    assert advice(plan(model)) == ()


@pytest.mark.parametrize("opset", [13, 14])
def test_hard_swish_below_opset_14_comes_with_advice(opset):
    text = (
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[N,2,H,W] x) => (float[N,2,H,W] y) '
        "<float three = {3}, float zero = {0}, float six = {6}> "
        "{ a = Add(x, three)  c = Clip(a, zero, six)  m = Mul(x, c)  y = Div(m, six) }"
    )
    report = plan(onnx.parser.parse_model(text))
    if opset == 14:
        assert [fold.kind for fold in report.folds] == [Kind.ACTIVATION]
        assert advice(report) == ()
    else:
        assert report.folds == ()
        assert [refusal.reason for refusal in report.refusals] == [Reason.OPSET]
        assert ["--opset 14" in sentence for sentence in advice(report)] == [True]


def test_no_advice_without_a_cause():
    assert advice(plan(MODELS / "repvgg.train.onnx")) == ()


def test_a_fold_that_failed_verification_is_not_refused_for_its_cost(monkeypatch):
    """It is refused once, with the reason `verification`."""
    verdicts = iter([StageVerdict("isolated", Status.FAILED, 1.0, 0.1, "onnxruntime", "it differs")] * 2)
    # onnx_repfuse.verify is the function
    probes = importlib.import_module("onnx_repfuse.verifier.folds.isolated")
    monkeypatch.setattr(probes, "probe", lambda *_, **__: next(verdicts))
    model = onnx.parser.parse_model(OVERRIDABLE.replace(", float[2,2,1,1] w)", ")"))
    report = fuse(model).report
    assert [refusal.reason for refusal in report.refusals] == [Reason.VERIFICATION]
    assert "it differs" in report.refusals[0].message


def test_refusals_are_ordered_and_shortened():
    idiom = [
        Refusal(Reason.FUSED_PATTERN, f"Add 'a{i}' stays: {Reason.FUSED_PATTERN.prose}.", (f"a{i}",))
        for i in range(9)
    ]
    cost = Refusal(Reason.COST, "Conv 'c' and Conv 'd' stay apart: 3 MMAC instead of 2.", ("c", "d"))
    border = Refusal(Reason.BORDER, f"Conv 'c' and Add 'd' stay apart: {Reason.BORDER.prose}.", ("c", "d"))
    shape = Refusal(Reason.SHAPE, "Add 'b' stays: no shape.", ("b",))
    assert [reason for reason, _ in by_reason([*idiom, cost, cost, border, shape])] == [
        Reason.SHAPE, Reason.COST, Reason.BORDER, Reason.FUSED_PATTERN,
    ]  # fmt: skip
    assert [brief(one) for one in (idiom[0], border, cost)] == [
        "Add 'a0'",
        "Conv 'c' and Add 'd'",
        cost.message,
    ]
