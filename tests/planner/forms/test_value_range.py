"""Weights that the model's float type cannot hold, and kernels whose taps add up to zero."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import Inexact
from onnx_repfuse.planner.weights.rounding import check_underflow, keep_zero_sums
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status
from tests.build import Net, check, counts
from tests.versions import since_bfloat16

HALF, SINGLE = np.float16, np.float32


def row_of_factors(net: Net, y: str, value: float, count: int = 60) -> str:
    for _ in range(count):
        y = net.op("Mul", y, net.const(np.array(value)))
    return y


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize(
    ("dtype", "value", "muls", "reason"),
    [
        (SINGLE, 100.0, 4, Reason.OVERFLOW),
        (HALF, 10.0, 15, Reason.OVERFLOW),
        (HALF, 0.1, 15, Reason.UNDERFLOW),
        (SINGLE, 0.01, 1, None),  # zero in float32, as it was
    ],
)
def test_a_row_of_factors_folds_as_far_as_the_type_reaches(
    dtype: Any, value: float, muls: int, reason: Reason | None, is_checked: bool
) -> None:
    """And the healthy block beside it folds."""
    net = Net(4, dtype=dtype)
    row = row_of_factors(net, "x", value)
    report = fuse(net.model(row, net.conv_bn("x", 4, 4, 3)), options=Options(check=is_checked))
    assert counts(report.model) == {"Mul": muls, "Conv": 1}
    reasons = {refusal.reason for refusal in report.report.refusals}
    assert reasons == ({reason} if reason else set())


@pytest.mark.parametrize(
    ("value", "length", "muls", "reason", "is_checked"),
    [(0.1, 2, 0, None, True), (0.1, 6, 1, Reason.UNDERFLOW, True), (0.1, 15, 3, Reason.UNDERFLOW, True),
     (0.1, 15, 3, Reason.UNDERFLOW, False), (10.0, 15, 3, Reason.OVERFLOW, False)],
)  # fmt: skip
def test_a_convolution_takes_as_much_of_a_row_as_its_weights_reach(
    value: float, length: int, muls: int, reason: Reason | None, is_checked: bool
) -> None:
    """Its kernel is read once it is known not to fit, and the rest of the row is folded."""
    net = Net(4, dtype=HALF)
    y = row_of_factors(net, net.conv("x", 4, 4, 3), value, length)
    result = fuse(net.model(y), options=Options(check=is_checked))
    assert counts(result.model) == {"Conv": 1, **({"Mul": muls} if muls else {})}
    assert {refusal.reason for refusal in result.report.refusals} == ({reason} if reason else set())
    assert result.model is not None
    again = fuse(result.model, options=Options(check=is_checked))
    assert not again.report.folds
    assert again.model == result.model


@pytest.mark.parametrize("is_checked", [True, False])
@pytest.mark.parametrize("dtype", [SINGLE, HALF])
def test_a_row_of_convolutions_that_overflow_leaves_the_rest(dtype: Any, is_checked: bool) -> None:
    """Their weights are known only when they are computed."""
    net = Net(4, dtype=dtype)
    y = net.op("Conv", "x", net.const(np.full((4, 4, 1, 1), 100.0)), kernel_shape=[1, 1])
    for _ in range(40):
        y = net.op("Conv", y, net.const(np.full((4, 4, 1, 1), 100.0)), kernel_shape=[1, 1])
    healthy = net.conv_bn("x", 4, 4, 3)
    result = fuse(net.model(healthy, y), options=Options(check=is_checked))
    assert "BatchNormalization" not in counts(result.model)
    assert Reason.OVERFLOW in {refusal.reason for refusal in result.report.refusals}


def test_all_folds_that_overflow_are_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_repfuse.pipeline import run

    monkeypatch.setattr(run, "MAX_ATTEMPTS", 1)
    net = Net(4, dtype=HALF)
    branches = []
    for number in range(40):
        weight = net.const(np.full((4, 4, 1, 1), 300.0 + number))  # equal ones would be merged
        branches.append(net.op("Mul", net.op("Conv", "x", weight), net.const(300.0)))
    healthy = net.conv_bn("x", 4, 4, 3)
    model = net.model(healthy, *branches)
    for is_checked in (True, False):
        result = fuse(model, options=Options(check=is_checked))
        assert counts(result.model) == {"Conv": 41, "Mul": 40}
        assert [r.reason for r in result.report.refusals].count(Reason.OVERFLOW) == 40


def test_weights_that_sink_to_subnormals_are_refused() -> None:
    net = Net(4, dtype=HALF)
    y = net.op("Mul", "x", net.const(np.array(1 / 65504)))
    check(net.model(net.conv(y, 4, 4, 3)), None, Reason.UNDERFLOW)


@pytest.mark.parametrize("dtype", [SINGLE, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16)])
def test_a_type_of_float32s_range_is_not_refused(dtype: Any) -> None:
    net = Net(4, dtype=dtype, opset=22)
    y = net.op("Mul", "x", net.const(np.array(1 / 65504, dtype)))
    model = net.model(net.conv(y, 4, 4, 3))
    assert counts(fuse(model).model) == {"Conv": 1}


def test_float32_is_never_refused_for_underflow() -> None:
    check_underflow(np.full((2, 3), 1e-42), onnx.TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("row", "is_refused"),
    [
        ([1e-6, 0.5], False),  # a subnormal beside an ordinary weight
        ([1.03e-5, 2.07e-5], True),
        ([0.0, 0.0], False),
        ([2.0**-24, 2.0**-20], False),  # exact
        ([1e-9, 1e-9], True),
    ],
)
def test_a_channel_underflows_where_rounding_costs_more_than_u_times_its_largest(
    row: list[float], is_refused: bool
) -> None:
    weights = np.array([[1.0, 1.0], row])
    if is_refused:
        with pytest.raises(Inexact) as raised:
            check_underflow(weights, onnx.TensorProto.FLOAT16)
        assert raised.value.reason is Reason.UNDERFLOW
    else:
        check_underflow(weights, onnx.TensorProto.FLOAT16)


def zero_sum_kernels(shape: tuple[int, ...], axes: tuple[int, ...]) -> NDArray[np.float64]:
    weights = np.random.default_rng(1).standard_normal(shape)
    return np.asarray(weights - weights.mean(axes, keepdims=True))


@pytest.mark.parametrize("dtype", [HALF, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16)])
@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3)])
def test_a_zero_sum_is_kept(dtype: Any, axes: tuple[int, ...]) -> None:
    exact = zero_sum_kernels((16, 8, 3, 3), axes)
    rounded = exact.astype(dtype)
    kept = keep_zero_sums(exact, rounded.copy()).astype(np.float64)
    before, after = (np.abs(w.astype(np.float64).sum(axes)) for w in (rounded, kept))
    assert after.mean() < before.mean() / 4
    assert (after <= before).all()
    ulps = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
    scale = float(ml_dtypes.finfo(dtype).eps) / float(np.finfo(np.float16).eps)
    assert (np.abs(kept - exact) <= scale * ulps).all()  # of each tap, no more than an ulp


def test_other_sums_and_types_are_rounded_as_they_are() -> None:
    exact = np.random.default_rng(2).standard_normal((4, 3, 3, 3))
    assert (keep_zero_sums(exact, exact.astype(HALF)) == exact.astype(HALF)).all()
    edge = zero_sum_kernels((4, 3, 3, 3), (2, 3))
    assert (keep_zero_sums(edge, edge.astype(SINGLE)) == edge.astype(SINGLE)).all()


def test_an_edge_filter_of_several_branches_does_not_see_brightness() -> None:
    """A 1x1 in front of Sobel and Laplace filters, as in an ECB, folded into one 3x3 of float16."""
    net = Net(4, dtype=HALF)
    sobel = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], float)
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)
    branches = []
    for mask in (sobel, sobel.T, laplace):
        y = net.op("Conv", "x", net.random(4, 4, 1, 1), kernel_shape=[1, 1])
        scale = net.rng.uniform(0.1, 1.0, (4, 1, 1, 1)).astype(HALF)
        weight = net.const(scale * mask)
        branches.append(net.op("Conv", y, weight, kernel_shape=[3, 3], group=4, pads=[1] * 4))
    result = fuse(net.model(net.add(*branches)))
    assert counts(result.model) == {"Conv": 1}
    assert result.report.verification is not None
    assert result.report.verification.status is not Status.FAILED
    weight = numpy_helper.to_array(result.model.graph.initializer[0]).astype(np.float64)
    assert np.abs(weight.sum((2, 3))).max() <= 2.0**-12
