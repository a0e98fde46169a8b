"""Factors and shifts behind a normalization go into its scale and bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal, run
from tests.versions import since


def layer_norm(net: Net, *, bias: bool = True, axis: int = -1, shape: tuple[int, ...] = (8,)) -> str:
    return str(
        net.op(
            "LayerNormalization", "x", net.random(*shape), *([net.random(*shape)] if bias else []), axis=axis
        )
    )


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (1, 1, 8)])
@pytest.mark.parametrize("is_first", [False, True])
def test_arithmetic_behind_a_layer_norm(op: str, shape: tuple[int, ...], is_first: bool) -> None:
    if op == "Div" and is_first:
        return  # not linear
    net = Net(shape=("N", 5, 8))
    y, c = layer_norm(net), net.const(net.rng.uniform(0.5, 2, shape))
    y = net.op(op, *((c, y) if is_first else (y, c)))
    ops = {"LayerNormalization": 1} if len(shape) < 2 else {"LayerNormalization": 1, op: 1}
    check(net.model(y), ops if len(shape) < 2 else None)


def test_a_row_of_them() -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op("Neg", net.op("Mul", layer_norm(net, bias=False), net.random(8)))
    y = net.op("Sub", net.op("Add", y, net.random(8)), net.const(0.3))
    check(net.model(net.op("Div", y, net.const(1.5))), {"LayerNormalization": 1})


@pytest.mark.parametrize(
    ("shape", "behind"), [((5, 8), (8,)), ((5, 8), (5, 1)), ((5, 8), (5, 8)), ((5, 8), ())]
)
def test_several_axes(shape: tuple[int, ...], behind: tuple[int, ...]) -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op("Mul", layer_norm(net, axis=1, shape=shape), net.const(net.rng.uniform(0.5, 2, behind)))
    check(net.model(net.op("Add", y, net.random(8))), {"LayerNormalization": 1})


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_behind_an_instance_norm(rank: int) -> None:
    net = Net(shape=("N", 4, *"HWD"[:rank]))
    y = net.op("InstanceNormalization", "x", net.random(4), net.random(4))
    y = net.op("Add", net.op("Mul", net.bn(y, 4), net.channel(4, rank)), net.const(0.5))
    check(net.model(y), {"InstanceNormalization": 1})


@since("GroupNormalization has values per channel from opset 21 on", onnxruntime="1.20")
def test_behind_a_group_norm() -> None:
    net = Net(4, opset=21)
    y = net.op("GroupNormalization", "x", net.random(4), net.random(4), num_groups=2)
    model = net.model(net.op("Sub", net.op("Div", y, net.channel(4)), net.channel(4)))
    result = fuse(model)
    assert counts(result.model) == {"GroupNormalization": 1}
    assert equal(model, result.model) > 0
    old = Net(4, opset=18)
    y = old.op("GroupNormalization", "x", old.random(2), old.random(2), num_groups=2)
    assert not fuse(old.model(old.op("Mul", y, old.channel(4)))).report.folds


@pytest.mark.parametrize("shape", [(5, 1), (5, 8), (2, 1, 1)])
def test_a_value_for_each_row_stays(shape: tuple[int, ...]) -> None:
    net = Net(shape=(2, 5, 8))
    check(net.model(net.op("Mul", layer_norm(net), net.const(net.rng.uniform(0.5, 2, shape)))), None)


@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 3, 5), (2, 1, 1, 1)])
def test_a_value_for_each_position_stays(shape: tuple[int, ...]) -> None:
    net = Net(shape=(2, 4, 3, 5))
    y = net.op("InstanceNormalization", "x", net.random(4), net.random(4))
    check(net.model(net.op("Mul", y, net.const(net.rng.uniform(0.5, 2, shape)))), None)


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 12582912.0), (np.float16, 1536.0)])
def test_a_rounding_that_is_wanted_stays(dtype: Any, large: float) -> None:
    net = Net(shape=("N", 5, 8), dtype=dtype)
    y = net.op("Add", layer_norm(net), net.const(large))
    check(net.model(net.op("Sub", y, net.const(large))), None)


@pytest.mark.parametrize("value", [1e39, np.inf, np.nan])
def test_what_no_float_holds_stays(value: float) -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op("Mul", layer_norm(net), net.const(np.float32(1e30)))
    y = net.op("Mul", y, net.const(np.float32(1e30 if value == 1e39 else value)))
    assert "Mul" in counts(fuse(net.model(y), options=Options(check=False)).model)


def test_other_consumers_kept_nodes_and_parameters_that_vary() -> None:
    net = Net(shape=("N", 5, 8))
    y = layer_norm(net)
    check(net.model(net.op("Mul", y, net.random(8)), net.op("Relu", y)), None)
    kept = Net(shape=("N", 5, 8))
    model = kept.model(kept.op("Mul", layer_norm(kept), kept.random(8)))
    assert not fuse(model, options=Options(keep=("layernorm*",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.AFFINE}))).report.folds
    varying = Net(shape=("N", 5, 8))
    y = varying.op("LayerNormalization", "x", varying.default(np.ones(8, np.float32)), axis=-1)
    assert not fuse(varying.model(varying.op("Mul", y, varying.random(8)))).report.folds


@pytest.mark.parametrize(("factor", "is_folded"), [(1e10, True), (1e19, True), (1e20, False), (3e38, False)])
@pytest.mark.parametrize("op", ["InstanceNormalization", "LayerNormalization"])
def test_a_scale_near_the_largest_float(op: str, factor: float, is_folded: bool) -> None:
    """ONNX Runtime divides the scale of an InstanceNormalization by the deviation, and multiplies it by the mean."""
    net = Net(shape=(2, 4, 3, 5))
    parameters = [net.const(np.full(n, 1e-3)) for n in ((4, 4) if op[0] == "I" else (5, 5))]
    if factor < 1e38:
        parameters = [net.const(np.ones(4 if op[0] == "I" else 5)) for _ in range(2)]
    model = net.model(net.op("Mul", net.op(op, "x", *parameters), net.const(np.float32(factor))))
    result = fuse(model, options=Options(check=False))
    assert len(result.report.folds) == (is_folded or op[0] == "L")
    assert [r.reason for r in result.report.refusals] == ([] if result.report.folds else [Reason.OVERFLOW])
    x = (np.random.default_rng(0).standard_normal((2, 4, 3, 5)) * 1e-3 + 3).astype(np.float32)
    before, after = run(model, {"x": x})[0], run(result.model, {"x": x})[0]
    assert np.isfinite(before).all()
    assert np.abs(after / factor - before / factor).max() < 1e-3


def test_what_stays_behind_a_norm_is_told() -> None:
    for value, reason in ((12582912.0, Reason.PRECISION), (np.inf, Reason.NON_FINITE)):
        net = Net(shape=(2, 4, 3, 5))
        y = net.op("InstanceNormalization", "x", net.random(4), net.random(4))
        model = net.model(net.op("Add", y, net.const(np.float32(value))))
        assert reason in {r.reason for r in fuse(model, options=Options(check=False)).report.refusals}


@pytest.mark.parametrize(("ops", "left"), [(("Mul", "Add"), 1), (("Mul", "Sub"), 1), (("Div",), 0)])
def test_behind_an_instance_norm_that_others_read(ops: tuple[str, ...], left: int) -> None:
    net = Net(4)
    z = y = net.op("InstanceNormalization", "x", net.random(4), net.random(4))
    for op in ops:
        y = net.op(op, y, net.channel(4))
    model = net.model(net.op("Relu", y), net.op("Tanh", z))
    expected = {"InstanceNormalization": 1, "BatchNormalization": 1, "Relu": 1, "Tanh": 1}
    check(model, expected if left else None)
    avoiding = fuse(model, options=Options(avoid=frozenset({"BatchNormalization"})))
    assert "BatchNormalization" not in counts(avoiding.model)
