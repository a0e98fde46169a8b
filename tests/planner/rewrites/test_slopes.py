"""PRelu: with one slope a LeakyRelu, with several at level 2 what runtimes are faster with."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_repfuse import Options, fuse, plan
from onnx_repfuse.pipeline import level
from onnx_repfuse.records.report import Kind
from onnx_repfuse.records.verdict import Status
from tests.build import Net, check, counts

FASTEST = Options(level=2)


@pytest.fixture(autouse=True)
def _nothing_else_simplifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level, "installed", lambda: ())


def slopes(*values: float, shape: tuple[int, ...] = (4, 1, 1), dtype: type = np.float32) -> onnx.ModelProto:
    """A PRelu behind a Conv, at 32x32."""
    net = Net(4, shape=("N", 4, 32, 32), dtype=dtype)
    slope = np.full(shape, values[0]) if len(values) == 1 else np.reshape(values, shape)
    y = net.op("PRelu", net.conv("x", 4, 4, 3), net.const(slope))
    return net.model(y)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (4, 1, 1), (1, 4, 1, 1), (32, 32)])
@pytest.mark.parametrize("slope", [0.25, 0.0, -0.5, 1.5])
def test_one_slope_is_a_leaky_relu(shape: tuple[int, ...], slope: float) -> None:
    result = check(slopes(slope, shape=shape), {"Conv": 1, "LeakyRelu": 1})
    assert [fold.kind for fold in result.report.folds] == [Kind.ACTIVATION]
    (node,) = (node for node in result.model.graph.node if node.op_type == "LeakyRelu")
    assert onnx.helper.get_node_attr_value(node, "alpha") == slope


def test_it_is_bit_by_bit_the_same() -> None:
    model = slopes(0.1)
    fused = fuse(model).model
    x = np.random.default_rng(0).standard_normal((1, 4, 32, 32)).astype(np.float32)
    before, after = (ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (model, fused))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "model",
    [
        slopes(0.1, 0.2, 0.3, 0.4),
        slopes(float("inf")),
        slopes(0.1, dtype=np.float16),
        slopes(0.1, shape=(1, 1, 1, 1, 1)),  # ONNX Runtime gives the output its rank
    ],
    ids=["several", "not finite", "half", "rank"],
)
def test_what_stays(model: onnx.ModelProto) -> None:
    assert plan(model).after.ops.get("PRelu") == 1


def test_what_is_no_constant_or_kept_or_not_to_be_folded_stays() -> None:
    net = Net(4, shape=("N", 4, 32, 32))
    computed = net.model(net.op("PRelu", "x", net.op("ReduceMax", "x", keepdims=1)))
    assert plan(computed, FASTEST).after.ops.get("PRelu") == 1
    for options in (Options(skip=frozenset({Kind.ACTIVATION})), Options(avoid=frozenset({"LeakyRelu"}))):
        assert plan(slopes(0.25), options).after.ops.get("PRelu") == 1
    named = slopes(0.25)
    named.graph.node[1].name = "stays"
    assert plan(named, Options(keep=("stays",))).after.ops.get("PRelu") == 1


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1)])
def test_several_slopes_at_level_2(shape: tuple[int, ...]) -> None:
    model = slopes(0.1, 1.0, -0.5, 1.5, shape=shape)
    ops = {"Conv": 1, "Relu": 1, "Mul": 2, "Add": 1}
    result = fuse(model, options=FASTEST)
    assert counts(result.model) == ops
    assert result.report.verification.status is Status.PASSED
    check_equal(model, result.model)
    assert fuse(result.model, options=FASTEST).report.verification.unchanged


def check_equal(model: onnx.ModelProto, fused: onnx.ModelProto) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 32, 32)).astype(np.float32)
    before, after = (ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (model, fused))
    assert np.abs(before - after).max() < 2e-6 * np.abs(before).max()


@pytest.mark.parametrize(
    "model", [slopes(0.1, 0.2, 0.3, 5.0), slopes(0.1, 0.2, 0.3, float("nan"))], ids=["large", "nan"]
)
def test_slopes_that_would_cancel_stay_at_level_2(model: onnx.ModelProto) -> None:
    assert plan(model, FASTEST).after.ops.get("PRelu") == 1


def test_small_tensors_stay_at_level_2() -> None:
    net = Net(4, shape=(1, 4))
    model = net.model(net.op("PRelu", "x", net.const([0.1, 0.2, 0.3, 0.4])))
    assert plan(model, FASTEST).after.ops == {"PRelu": 1}


def test_slopes_that_enlarge_the_tensor_stay() -> None:
    for slope in (np.full((4, 1, 1), 0.25), np.arange(4.0).reshape(4, 1, 1)):
        net = Net(1, shape=("N", 1, 64, 64))
        assert plan(net.model(net.op("PRelu", "x", net.const(slope))), FASTEST).after.ops.get("PRelu") == 1
