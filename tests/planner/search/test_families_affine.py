"""One value per channel before and after Conv, constants however they are written, and what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal
from tests.versions import since


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("scalar", [False, True])
def test_arithmetic_after_conv(op: str, first: bool, scalar: bool) -> None:
    net = Net(4)
    inner = net.conv("x", 4, 4, 3)
    constant = net.const(1.7) if scalar else net.channel(4)
    if op == "Div" and first:
        check(net.model(net.op(op, constant, inner)), None)
        return
    check(net.model(net.op(op, *((constant, inner) if first else (inner, constant)))), {"Conv": 1})


@pytest.mark.parametrize("pad", [0, 1])
def test_norm_before_conv(pad: int) -> None:
    """With pads, its shift stays, and so it stays whole: over an Add, runtimes give up their blocked layouts."""
    net = Net(4)
    out = net.conv(net.bn("x", 4), 4, 4, 3, pad=pad)
    if pad:
        check(net.model(out), None, Reason.BORDER)
    else:
        check(net.model(out), {"Conv": 1})


def test_norms_between_padded_convolutions() -> None:
    """As in ArcFace's iresnet: BatchNormalization before a padded Conv stays one, and those behind it go."""
    net = Net(4)
    y = net.op("Relu", net.conv_bn("x", 4, 4, 3))
    for _ in range(2):
        inner = net.op("PRelu", net.conv_bn(net.bn(y, 4), 4, 4, 3), net.channel(4))
        y = net.add(net.conv_bn(inner, 4, 4, 3), y)
    check(net.model(y), {"Conv": 5, "Relu": 1, "BatchNormalization": 2, "PRelu": 2, "Add": 2}, Reason.BORDER)


def test_factors_beside_a_norm_before_a_padded_convolution() -> None:
    """What is left of both is one BatchNormalization."""
    net = Net(4)
    y = net.op("Mul", net.bn(net.op("Relu", "x"), 4), net.channel(4))
    check(net.model(net.conv(y, 4, 4, 3)), {"Relu": 1, "BatchNormalization": 1, "Conv": 1})


def test_scale_before_padded_conv() -> None:
    net = Net(4)
    check(net.model(net.conv(net.op("Mul", "x", net.channel(4)), 4, 4, 3)), {"Conv": 1})
    net = Net(4)
    check(net.model(net.conv(net.op("Div", "x", net.const(6.0)), 4, 4, 3)), {"Conv": 1})


def test_learnable_affine_between_pointwise_convs() -> None:
    net = Net(4)
    y = net.op("Add", net.op("Mul", net.conv("x", 4, 4, 3), net.const(1.3)), net.const(0.2))
    y = net.op("Add", net.op("Mul", net.op("HardSwish", y), net.const(0.7)), net.const(-0.4))
    check(net.model(net.conv(y, 4, 4, 1)), {"Conv": 2, "HardSwish": 1})


def test_implicit_knowledge() -> None:
    net = Net(4)
    added = net.op("Add", net.const(net.rng.standard_normal((1, 4, 1, 1))), "x")
    out = net.op("Mul", net.const(net.rng.standard_normal((1, 6, 1, 1))), net.conv(added, 4, 6, 1))
    check(net.model(out), {"Conv": 1})


def test_norm_read_by_two_pointwise_convs() -> None:
    net = Net(4)
    norm = net.bn("x", 4)
    check(net.model(net.conv(norm, 4, 2, 1), net.conv(norm, 4, 3, 1)), {"Conv": 2})


def test_norms_in_a_row() -> None:
    net = Net(4)
    check(net.model(net.bn(net.bn("x", 4), 4)), {"BatchNormalization": 1})


def test_identity_and_dropout_between() -> None:
    net = Net(4)
    y = net.op("Dropout", net.op("Identity", net.op("Identity", net.conv("x", 4, 4, 3))))
    check(net.model(net.bn(y, 4)), {"Conv": 1})


def test_live_dropout_stays() -> None:
    net = Net(4)
    y = net.op("Dropout", net.conv("x", 4, 4, 3), net.const(0.0), net.const(np.array(True)))
    check(net.model(net.bn(y, 4)), None, Reason.TRAINING)


# what broadcasting says, and what it does not


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 1, 4), (1, 1, 4, 4), (4, 4)])
def test_constants_along_space_are_not_per_channel(op: str, shape: tuple[int, ...]) -> None:
    net = Net(shape=(1, 4, 4, 4))
    value = net.const(net.rng.standard_normal(shape))
    check(net.model(net.op(op, net.conv("x", 4, 4, 3), value)), None, Reason.BROADCAST)


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_rank_up_on_conv1d(op: str) -> None:
    net = Net(shape=(1, 4, 4))
    value = net.const(net.rng.standard_normal((4, 1, 1)))
    check(net.model(net.op(op, net.conv("x", 4, 4, (1,)), value)), None, Reason.BROADCAST)
    net = Net(shape=(4, 4, 4))
    value = net.const(net.rng.standard_normal((4, 1, 1)))
    check(net.model(net.op(op, net.conv("x", 4, 4, (1,)), value)), None, Reason.BROADCAST)


def test_constant_that_changes_the_rank() -> None:
    net = Net(4)
    value = net.const(net.rng.standard_normal((1, 1, 4, 1, 1)))
    check(net.model(net.op("Add", net.conv("x", 4, 4, 3), value)), None, Reason.BROADCAST)


def test_constant_that_widens_one_channel() -> None:
    net = Net(4)
    check(net.model(net.op("Mul", net.conv("x", 4, 1, 3), net.channel(4))), None, Reason.BROADCAST)


# constants behind nodes


def _wrapped(net: Net, value: Any, how: str) -> str:
    array = np.asarray(value, np.float32)
    name = net.const(array)
    if how == "identity":
        return str(net.op("Identity", net.op("Identity", name)))
    if how == "cast":
        return str(net.op("Cast", net.const(array.astype(np.float64), np.float64), to=TensorProto.FLOAT))
    if how == "reshape":
        return str(net.op("Reshape", net.const(array.ravel()), net.const(np.array(array.shape, np.int64))))
    if how == "unsqueeze" and len(array) == 1:
        return str(net.op("Unsqueeze", net.const(array[0]), net.const(np.array([0], np.int64))))
    if how == "transpose":
        return str(net.op("Transpose", net.const(array.T), perm=list(range(array.ndim))[::-1]))
    if how == "arithmetic":
        return str(net.op("Sqrt", net.op("Mul", name, name)))

    made = net.fresh("constant")
    net.nodes.append(helper.make_node("Constant", [], [made], value=numpy_helper.from_array(array, made)))
    return made


@pytest.mark.parametrize(
    "how", ["node", "identity", "cast", "reshape", "unsqueeze", "transpose", "arithmetic"]
)
def test_constants_behind_nodes(how: str) -> None:
    net = Net(4)
    value = _wrapped(net, np.abs(net.rng.standard_normal((1, 4, 1, 1))), how)
    weight = _wrapped(net, np.abs(net.rng.standard_normal((4, 4, 3, 3))), how)
    check(net.model(net.op("Mul", net.op("Conv", "x", weight, pads=[1] * 4), value)), {"Conv": 1})


def test_constant_of_shape() -> None:

    net = Net(4)
    value = net.op(
        "ConstantOfShape",
        net.const(np.array([4, 1, 1], np.int64)),
        value=numpy_helper.from_array(np.array([1.5], np.float32)),
    )
    check(net.model(net.op("Mul", net.conv("x", 4, 4, 3), value)), {"Conv": 1})


def test_norm_decomposed() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    mean, scale, shift = net.channel(4), net.channel(4), net.channel(4)
    variance = net.const(net.rng.uniform(0.5, 2, (4, 1, 1)))
    deviation = net.op("Sqrt", net.op("Add", variance, net.const(1e-5)))
    y = net.op("Mul", net.op("Div", net.op("Sub", y, mean), deviation), scale)
    check(net.model(net.op("Add", y, shift)), {"Conv": 1})


# BatchNormalization through the ages

OPSET_23 = pytest.param(23, marks=since("onnx before 1.18 knows no opset 23", onnx="1.18"))


@pytest.mark.parametrize("opset", [6, 7, 8, 9, 11, 13, 14, 15, 18, 21, OPSET_23])
def test_norm_of_every_opset(opset: int) -> None:
    net = Net(4, opset=opset, ir=10 if opset < 22 else 11)
    attrs = {"is_test": 1} if opset < 7 else {"spatial": 1} if opset < 9 else {}
    model = net.model(net.bn(net.conv("x", 4, 4, 3), 4, **attrs))
    if opset == 6:  # ONNX Runtime has no kernel for it
        assert counts(fuse(model, options=Options(check=False)).model) == {"Conv": 1}
        return
    check(model, {"Conv": 1})


def test_one_initializer_in_several_slots() -> None:
    net = Net(4)
    ones = net.const(net.rng.uniform(0.5, 2, 4))
    y = net.conv("x", 4, 4, 3)
    check(net.model(net.op("BatchNormalization", y, ones, ones, ones, ones)), {"Conv": 1})


def test_one_weight_under_two_norms() -> None:
    net = Net(4)
    weight = net.random(4, 4, 3, 3)
    inputs = ("x", net.op("Abs", "x"))
    a, b = (net.bn(net.op("Conv", x, weight, pads=[1] * 4), 4) for x in inputs)
    check(net.model(net.op("Relu", a), net.op("Sigmoid", b)), {"Abs": 1, "Conv": 2, "Relu": 1, "Sigmoid": 1})


def test_one_weight_on_one_tensor_under_two_norms_is_one_conv() -> None:
    """The two are equal nodes; as two folded ones they would take twice the multiply-adds."""
    net = Net(4)
    weight = net.random(4, 4, 3, 3)
    a, b = (net.bn(net.op("Conv", "x", weight, pads=[1] * 4), 4) for _ in range(2))
    left = {"Conv": 1, "BatchNormalization": 2, "Relu": 1, "Sigmoid": 1}
    check(net.model(net.op("Relu", a), net.op("Sigmoid", b)), left)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype: Any) -> None:
    net = Net(4, dtype=dtype)
    out = net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1), net.bn("x", 4))
    check(net.model(out), {"Conv": 1}, tolerance=5e-3 if dtype == np.float16 else 1e-12)


def test_half_conv_with_single_norm_parameters() -> None:
    net = Net(4, dtype=np.float16)
    y = net.conv("x", 4, 4, 3)
    model = net.model(net.bn(y, 4, dtype=np.float32))
    result = check(model, {"Conv": 1}, tolerance=1e-2)
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}


def test_half_overflow_is_refused() -> None:
    net = Net(4, dtype=np.float16)
    weight = net.const(np.full((4, 4, 1, 1), 300.0))
    check(net.model(net.op("Mul", net.op("Conv", "x", weight), net.const(300.0))), None, Reason.OVERFLOW)


def normalized_by(slot: int, value: float) -> onnx.ModelProto:
    """A Conv, and a BatchNormalization one of whose parameters has this value."""
    net = Net(4)
    parameters = net.statistics(4)
    parameters[slot - 1] = net.const(np.array([1, value, 1, 1]))
    return net.model(net.op("BatchNormalization", net.conv("x", 4, 4, 3), *parameters))


@pytest.mark.parametrize(
    ("slot", "value"), [(1, np.inf), (2, np.inf), (3, np.inf), *((n, np.nan) for n in range(1, 5))]
)
def test_parameters_that_are_not_finite(slot: int, value: float) -> None:
    check(normalized_by(slot, value), None, Reason.NON_FINITE)


@since("ONNX Runtime before 1.22 gives NaN for it", onnxruntime="1.22")
def test_an_infinite_variance_is_a_scale_of_zero() -> None:
    check(normalized_by(4, np.inf), {"Conv": 1})


def test_nan_in_a_kernel() -> None:
    net = Net(4)
    kernel = net.rng.standard_normal((4, 4, 3, 3))
    kernel[1, 1, 1, 1] = np.nan
    y = net.op("Conv", "x", net.const(kernel), pads=[1] * 4)
    check(net.model(net.bn(y, 4)), None, Reason.NON_FINITE)


def test_training_mode() -> None:
    net = Net(4)
    y, *_ = net.op(
        "BatchNormalization", net.conv("x", 4, 4, 3), *net.statistics(4), outputs=3, training_mode=1
    )
    result = check(net.model(y), None, Reason.TRAINING)
    assert "model.eval()" in result.report.refusals[0].message


def test_five_outputs() -> None:
    net = Net(4, opset=8)
    y, *_ = net.op("BatchNormalization", net.conv("x", 4, 4, 3), *net.statistics(4), outputs=5)

    report = fuse(net.model(y), options=Options(check=False)).report
    assert not report.folds
    assert Reason.TRAINING in {r.reason for r in report.refusals}


def test_statistics_per_position() -> None:
    net = Net(shape=("N", 4, 3, 3), opset=7)
    values = [net.const(net.rng.uniform(0.5, 2, (4, 3, 3))) for _ in range(4)]
    out = net.op("BatchNormalization", net.conv("x", 4, 4, 3), *values, spatial=0)

    report = fuse(net.model(out), options=Options(check=False)).report
    assert not report.folds
    assert Reason.SPATIAL in {r.reason for r in report.refusals}


def test_statistics_per_position_of_a_matrix() -> None:
    """MXNet's exporter writes spatial=0 everywhere; (N, C) has no positions."""
    net = Net(shape=("N", 8), opset=8)
    y = net.op("Gemm", "x", net.random(6, 8), net.random(6), transB=1)
    check(
        net.model(net.op("Tanh", net.op("BatchNormalization", y, *net.statistics(6), spatial=0))),
        {"Gemm": 1, "Tanh": 1},
    )


def test_a_convolution_of_one_value_per_channel() -> None:
    net = Net(4)
    out = net.op("Conv", net.op("Relu", "x"), net.const(np.ones((4, 1, 1, 1))), group=4)
    check(net.model(net.op("Tanh", out)), {"Relu": 1, "Tanh": 1})
    net = Net(4)
    out = net.op("Conv", net.op("Relu", "x"), net.channel(4, 3), group=4)
    result = fuse(net.model(net.op("Tanh", out)), options=Options(cost="macs"))
    assert counts(result.model) == {"Relu": 1, "Tanh": 1, "Mul": 1}


@pytest.mark.parametrize("op", ["Sum", "Mean"])
@pytest.mark.parametrize("constants", [1, 2])
@pytest.mark.parametrize("scalar", [False, True])
def test_sums_with_constants(op: str, constants: int, scalar: bool) -> None:
    """A constant among the operands of Sum or Mean is a shift, wherever it stands."""
    net = Net(4)
    values = [net.const(1.7) if scalar else net.channel(4) for _ in range(constants)]
    check(net.model(net.op(op, values[0], net.conv("x", 4, 4, 3), *values[1:])), {"Conv": 1})
    net = Net(shape=("N", 4))
    values = [net.const(1.7) if scalar else net.random(4) for _ in range(constants)]
    check(net.model(net.op(op, net.op("Gemm", "x", net.random(4, 4)), *values)), {"Gemm": 1})
    net = Net(4)
    branches = [net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1)]
    check(net.model(net.op(op, *branches, net.channel(4))), {"Conv": 1})


def test_a_sum_with_a_constant_per_position_stays() -> None:
    net = Net(4, shape=("N", 4, 6, 6))
    out = net.op("Sum", net.conv("x", 4, 4, 3), net.const(np.ones((6, 6))))
    check(net.model(out), None, Reason.BROADCAST)
    net = Net(4)
    out = net.op("Sum", net.conv("x", 4, 4, 3), net.const(np.full((4, 1, 1), np.inf)))
    assert fuse(net.model(out)).report.refusals[0].reason is Reason.NON_FINITE


@pytest.mark.parametrize(
    "around", ["alone", "two", "behind a Mul", "before an Add", "two consumers", "a sum"]
)
def test_a_shift_that_padding_keeps_stays_in_a_batch_normalization(around: str) -> None:
    """Between Convs, runtimes keep their blocked layouts over a BatchNormalization, and leave them for an Add."""
    net = Net(8, shape=(1, 8, 9, 7))
    y = net.op("Relu", net.conv("x", 8, 8, 3))
    factor = net.const(np.linspace(0.5, 2, 8).reshape(8, 1, 1))
    if around == "behind a Mul":
        y = net.op("Mul", y, factor)
    y = net.bn(y, 8)
    if around == "two":
        y = net.bn(y, 8)
    if around == "before an Add":
        y = net.op("Add", y, factor)
    z = net.conv(y, 8, 8, 3)
    if around == "two consumers":
        z = net.op("Add", net.op("Sigmoid", z), net.op("Relu", net.conv(y, 8, 8, 1)))
    if around == "a sum":
        z = net.op("Add", z, net.conv(y, 8, 8, 1))
    model = net.model(net.op("Relu", z))
    result = fuse(model)
    left = counts(result.model)
    assert left["BatchNormalization"] == 1
    assert left.get("Add", 0) == (around == "two consumers")
    assert "Mul" not in left
    assert equal(model, result.model) > 0


def test_a_factor_written_as_a_depthwise_conv_goes_into_all_that_read_it() -> None:
    """A BatchNormalization is, to some exporters, a depthwise 1x1 Conv."""
    net = Net(4)
    y = net.conv(net.op("Relu", "x"), 4, 4, 1, group=4)
    first, second = net.conv(y, 4, 5, 1), net.conv(y, 4, 6, 1)
    check(net.model(net.op("Relu", first), net.op("Sigmoid", second)), {"Relu": 2, "Conv": 2, "Sigmoid": 1})


def test_a_conv_of_several_taps_is_not_computed_for_each_that_reads_it() -> None:
    net = Net(4)
    y = net.conv(net.op("Relu", "x"), 4, 4, 3, group=4)
    first, second = net.conv(y, 4, 5, 1), net.conv(y, 4, 6, 1)
    check(net.model(net.op("Relu", first), net.op("Sigmoid", second)), None)


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_a_factor_that_callers_may_set_stays_unless_it_is_frozen(op: str) -> None:
    net = Net(4)
    factor = net.default(np.full((4, 1, 1), 1.5, np.float32))
    model = net.model(net.op("Relu", net.op(op, net.conv("x", 4, 4, 3), factor)))
    check(model, None, Reason.OVERRIDABLE)
    frozen = fuse(model, options=Options(freeze_initializers=True))
    assert counts(frozen.model) == {"Conv": 1, "Relu": 1}
