"""Why a BatchNormalization stays, where that is not in the nodes beside it: a true reason, and advice that helps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse import Reason, plan
from onnx_repfuse.report.advice import advice
from tests.build import Net
from tests.versions import since_bfloat16

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def reasons(model: onnx.ModelProto) -> dict[Reason, str]:
    report = plan(model)
    assert report.folds == ()
    return {refusal.reason: refusal.message for refusal in report.refusals}


def parsed(body: str, domains: str = '"" : 17') -> onnx.ModelProto:
    vectors = ", ".join(f"float[2] {name} = {{1, 2}}" for name in "sbmv")
    text = (
        f"<ir_version: 8, opset_import: [{domains}]> net (float[1,2,8,8] x) => (float[1,2,8,8] y) "
        f"<float[2,2,1,1] w = {{1, 2, 3, 4}}, uint8[2,2,1,1] q = {{1, 2, 3, 4}}, {vectors}> {{ {body} }}"
    )
    return onnx.parser.parse_model(text)


def test_behind_integers() -> None:
    model = parsed(
        "i, sc, zp = DynamicQuantizeLinear(x)  c = ConvInteger(i, q, zp)  f = Cast<to = 1>(c)  d = Mul(f, sc) "
        "y = BatchNormalization(d, s, b, m, v)"
    )
    found = reasons(model)
    assert "ConvInteger" in found[Reason.QUANTIZED]
    assert any("float model" in sentence for sentence in advice(plan(model)))
    assert plan(model).before.macs == 2 * 2 * 8 * 8


@pytest.mark.parametrize(
    ("node", "macs"),
    [
        ("QLinearConv(a, k, z, w8, k, z, k, z)", 4 * 64),
        ("MatMulInteger(a, a)", 2 * 8 * 8 * 8),
        ("QLinearMatMul(a, k, z, a, k, z, k, z)", 2 * 8 * 8 * 8),
    ],
)
def test_multiply_adds_in_integers_count(node: str, macs: int) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> net (uint8[1,2,8,8] a) => (uint8[1,2,8,8] y) '
        f"<uint8[2,2,1,1] w8 = {{1, 2, 3, 4}}, float k = {{0.1}}, uint8 z = {{0}}> {{ y = {node} }}"
    )
    assert plan(onnx.parser.parse_model(text)).before.macs == macs


def test_behind_a_cast() -> None:
    net = Net(4, dtype=np.float16)
    wide = net.op("Cast", net.conv("x", 4, 4, 3), to=FLOAT)
    parameters = [net.const(np.full(4, value), np.float32) for value in (1.5, 0.5, 0.25, 2.0)]
    model = net.model(net.op("Cast", net.op("BatchNormalization", wide, *parameters), to=HALF))
    found = reasons(model)
    assert list(found) == [Reason.UNSUPPORTED]
    assert "is between it and Conv" in found[Reason.UNSUPPORTED]


def test_behind_an_operator_of_another_domain() -> None:
    model = parsed(
        "g = other.QuickGelu(x)  n = BatchNormalization(g, s, b, m, v)  y = Conv(n, w)",
        '"" : 17, "other" : 1',
    )
    found = reasons(model)
    assert "QuickGelu" in found[Reason.CUSTOM_OPERATOR]
    (sentence,) = advice(plan(model))
    assert "before" in sentence
    assert "--input-shape" not in sentence + found[Reason.CUSTOM_OPERATOR]


def test_statistics_of_the_batch_are_no_training_mode() -> None:
    """What torch exports for `track_running_stats=False`, in eval mode."""
    model = parsed(
        "c = Conv(x, w)  mean = ReduceMean<axes = [0, 2, 3], keepdims = 0>(c)  var = Mul(mean, mean) "
        "y, rm, rv = BatchNormalization<training_mode = 1>(c, s, b, mean, var)"
    )
    assert list(reasons(model)) == [Reason.BATCH_STATISTICS]
    assert advice(plan(model)) == ()


@since_bfloat16
def test_a_bfloat16_identity_is_proved() -> None:
    """ONNX Runtime has the operator, but its Python interface takes no such values."""
    from onnx_repfuse import fuse

    model = parsed("c = Conv(x, w)  y = Relu(c)")
    del model.graph.initializer[:], model.graph.node[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    nodes = [helper.make_node(op, [a], [b], name=b) for op, a, b in
             (("Relu", "x", "a"), ("Identity", "a", "b"), ("Tanh", "b", "y"))]  # fmt: skip
    model.graph.node.extend(nodes)
    report = fuse(model).report
    assert [change.nodes for change in report.changes] == [("b",)]
    assert report.refusals == ()
    assert report.verification is not None
    assert [str(verdict.status) for verdict in report.verification.changes] == ["passed"]
