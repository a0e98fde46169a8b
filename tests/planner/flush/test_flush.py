"""Weights that are too small to show become zero: which, where, and where not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.planner.flush.gains import Gains
from onnx_repfuse.planner.flush.small_weights import least_magnitude
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Change, Kind
from onnx_repfuse.records.verdict import Status
from tests.build import Array, Net, run
from tests.versions import since_bfloat16

NO_FLUSH = Options(skip=frozenset((Kind.FLUSH,)))
SUBNORMAL, TINY, SMALL = 2e-39, 3e-33, 4e-29  # below 1.2e-38; below 1e-30; left alone


def _weight(shape: tuple[int, ...], channel: int, values: dict[int, float], dtype: Any = np.float32) -> Array:
    """Ordinary weights, but of these indices along the axis of the output channels, which are all of one value."""
    weight = np.random.default_rng(1).uniform(0.5, 1.5, shape)
    for index, value in values.items():
        weight[(slice(None),) * channel + (index,)] = value
    return weight.astype(dtype)


def _zeros(model: onnx.ModelProto, name: str) -> Array:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return np.asarray(numpy_helper.to_array(tensor).astype(np.float64) == 0)


def _flushes(model: onnx.ModelProto, options: Options | None = None) -> tuple[Change, ...]:
    changes = fuse(model, options=options).report.changes
    assert {change.kind for change in changes} <= {Kind.FLUSH}
    return changes


Layer = tuple[str, tuple[int, ...], int, tuple[int | str, ...], dict[str, int]]
LAYERS: dict[str, Layer] = {
    "conv": ("Conv", (4, 3, 3, 3), 0, ("N", 3, 9, 9), {}),
    "grouped conv": ("Conv", (4, 2, 3, 3), 0, ("N", 4, 9, 9), {"group": 2}),
    "conv of one axis": ("Conv", (4, 3, 3), 0, ("N", 3, 9), {}),
    "transposed": ("ConvTranspose", (3, 4, 2, 2), 1, ("N", 3, 5, 5), {}),
    "gemm": ("Gemm", (3, 4), 1, ("N", 3), {}),
    "gemm transposed": ("Gemm", (4, 3), 0, ("N", 3), {"transB": 1}),
    "matmul": ("MatMul", (3, 4), 1, ("N", 5, 3), {}),
    "matmul of batches": ("MatMul", (2, 3, 4), 2, (2, 5, 3), {}),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_small_channels_of_every_linear_operator_become_zero(name: str) -> None:
    op, shape, channel, inputs, attributes = LAYERS[name]
    net = Net(shape=inputs)
    weight = _weight(shape, channel, {0: SUBNORMAL, 1: TINY, 2: SMALL})
    w = net.const(weight)
    bias = [] if op == "MatMul" else [net.const(np.array([SUBNORMAL, TINY, SMALL, 1.0]))]
    model = net.model(net.op("Relu", net.op(op, "x", w, *bias, **attributes)))
    result = fuse(model)
    of_channel = np.moveaxis(_zeros(result.model, w), channel, 0).reshape(4, -1)
    assert of_channel.all(axis=1).tolist() == [True, True, False, False]
    assert not of_channel[2:].any()
    if bias:
        assert _zeros(result.model, bias[0]).tolist() == [True, True, False, False]
    (change, *_) = (c for c in result.report.changes if c.flushed and c.flushed.tensor == w)
    assert change.flushed is not None
    assert (change.flushed.count, change.flushed.size) == (weight.size // 2, weight.size)
    assert change.flushed.largest == np.float32(TINY)
    per_channel = np.abs(np.where(weight < 1e-30, weight, 0)).sum(
        axis=tuple(
            a for a in range(len(shape)) if a != channel and not (name == "matmul of batches" and a == 0)
        )
    )
    assert change.flushed.bound == pytest.approx(float(per_channel.max()), rel=1e-6)
    assert change.flushed.is_times_input
    assert fuse(result.model).model.SerializeToString() == result.model.SerializeToString()
    x = np.random.default_rng(0).standard_normal([2 if d == "N" else d for d in inputs]).astype(np.float32)
    before, after = run(model, {"x": x}), run(result.model, {"x": x})
    assert np.abs(before[0] - after[0]).max() <= sum(
        c.flushed.bound * max(1.0, float(np.abs(x).max())) for c in result.report.changes if c.flushed
    )


def test_groups_of_a_transposed_convolution_have_channels_of_their_own() -> None:
    net = Net(shape=("N", 4, 5, 5))
    weight = np.random.default_rng(1).uniform(0.5, 1.5, (4, 2, 2, 2))
    weight[:2, 1] = TINY  # output channel 1, of the first group; channel 3 has the same index in the second
    w = net.const(weight)
    result = fuse(net.model(net.op("ConvTranspose", "x", w, group=2)))
    assert np.array_equal(_zeros(result.model, w), weight.astype(np.float32) < 1e-30)


def test_beside_ordinary_weights_only_what_is_far_smaller_becomes_zero() -> None:
    net = Net(3)
    weight = np.ones((3, 3, 1, 1))
    weight[0, :, 0, 0] = [1.0, TINY, SUBNORMAL]
    weight[1, :, 0, 0] = [1e-20, TINY, SUBNORMAL]  # 1e-20 * 2^-60 is 1e-38
    weight[2, :, 0, 0] = [1e-29, TINY, SMALL]
    w = net.const(weight)
    result = fuse(net.model(net.op("Conv", "x", w)))
    zeros = _zeros(result.model, w)[..., 0, 0]
    assert zeros.tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_without_the_check_only_subnormals_become_zero() -> None:
    net = Net(3)
    w = net.const(_weight((4, 3, 1, 1), 0, {0: SUBNORMAL, 1: TINY}))
    b = net.const(np.array([SUBNORMAL, TINY, 1.0, 1.0]))
    result = fuse(net.model(net.op("Conv", "x", w, b)), options=Options(check=False))
    assert _zeros(result.model, w)[..., 0, 0].all(axis=1).tolist() == [True, False, False, False]
    assert _zeros(result.model, b).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16), np.float16]
)
def test_each_float_type_has_its_limits(dtype: Any) -> None:
    limits = ml_dtypes.finfo(dtype)
    net = Net(shape=("N", 3), dtype=dtype)
    w = net.const(_weight((3, 4), 1, {0: float(limits.smallest_subnormal) * 3}, dtype))
    model = net.model(net.op("MatMul", "x", w))
    plan = make_plan(Document.from_model(model), Options())
    assert plan.flushing is not None
    assert list(plan.flushing.flushed) == ([] if dtype is np.float16 else [w])


def test_planning_reads_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(8, shape=("N", 8, 9, 9))
    y = "x"
    for number in range(2):  # both blocks fold, so that channels are looked at in what folds made
        branches = [net.conv(y, 8, 8, 3, pads=[1] * 4), net.conv(y, 8, 8, 1), net.bn(y, 8)]
        y = str(net.op("Relu", net.op("Sum", *branches)))
        if number == 0:  # a weight that is far from 1e-30 in its channels only
            y = str(net.conv(y, 8, 8, 3))
    reads: list[str] = []
    read = Document.array

    def counted(document: Document, tensor: onnx.TensorProto) -> Any:
        reads.append(tensor.name)
        return read(document, tensor)

    monkeypatch.setattr(Document, "array", counted)
    model = net.model(y)
    plan = make_plan(Document.from_model(model), Options())
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert len(plan.folds) == 2
    assert sorted(name for name in reads if name in weights) == sorted(weights)


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ([3.0, -2.0, 5.0], 2.0),
        ([1e-29, 1.0], float(np.float32(1e-29))),
        ([3.0, 0.0], 0.0),
        ([3.0, np.nan], 0.0),
        ([3.0, np.inf], 3.0),
        ([3.0, SUBNORMAL], None),
        ([3.0, 0.0, -TINY], None),
        ([np.nan, TINY], None),
        ([], 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_least_magnitude_of_a_weight(values: list[float], least: float | None, dtype: Any) -> None:
    found = least_magnitude(np.array(values, dtype), 1e-30)
    assert found == (None if least is None else pytest.approx(least, rel=1e-2))


def test_skip_only_and_keep() -> None:
    net = Net(3)
    w = net.const(_weight((4, 3, 1, 1), 0, {0: SUBNORMAL}))
    model = net.model(net.op("Conv", "x", w, name="stem"))
    assert _flushes(model)
    for options in (NO_FLUSH, Options(only=frozenset((Kind.AFFINE,))), Options(keep=("st*",))):
        result = fuse(model, options=options)
        assert not result.report.changes
        assert result.model.SerializeToString() == model.SerializeToString()
    assert _flushes(model, Options(only=frozenset((Kind.FLUSH,))))


def test_a_weight_that_a_fold_makes_is_flushed() -> None:
    """Normal weights times a normal factor, as subnormals."""
    net = Net(3)
    weight = np.ones((4, 3, 3, 3))
    weight[:2] *= 1e-20
    gamma, zero, one = np.array([1e-20, 1e-20, 1, 1]), net.const(np.zeros(4)), net.const(np.ones(4))
    shift = net.const(np.array([0, 0, 0.5, 0.5]))
    conv = net.op("Conv", "x", net.const(weight), pads=[1] * 4)
    model = net.model(net.op("Relu", net.op("BatchNormalization", conv, net.const(gamma), shift, zero, one)))
    result = fuse(model)
    (change,) = result.report.changes
    assert change.flushed is not None
    assert (change.flushed.count, len(result.report.folds)) == (2 * 27, 1)
    assert _zeros(result.model, change.flushed.tensor).sum() == 2 * 27
    assert fuse(result.model).model.SerializeToString() == result.model.SerializeToString()
    kept = fuse(model, options=NO_FLUSH)
    assert not kept.report.changes
    assert not _zeros(kept.model, change.flushed.tensor).any()


def test_constant_nodes_and_models_of_old_ir_versions() -> None:
    weight = _weight((4, 3, 1, 1), 0, {0: SUBNORMAL})
    net = Net(3)
    constant = net.op("Constant", value=numpy_helper.from_array(weight, "inner"))
    result = fuse(net.model(net.op("Conv", "x", constant)))
    (node,) = (node for node in result.model.graph.node if node.op_type == "Constant")
    assert node.attribute[0].t.name == "inner"
    assert (numpy_helper.to_array(node.attribute[0].t) == 0).sum() == 3
    old = Net(3, ir=3, opset=8)
    w = old.const(weight)
    model = old.model(old.op("Conv", "x", w))
    result = fuse(model)
    assert _zeros(result.model, w).sum() == 3
    assert [value.name for value in result.model.graph.input] == [value.name for value in model.graph.input]


def test_a_weight_in_a_data_file_is_flushed_there(tmp_path: Path) -> None:
    net = Net(32)
    w = net.const(_weight((64, 32, 3, 3), 0, {5: SUBNORMAL}))
    model = net.model(net.op("Conv", "x", w))
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    fuse(path, output)
    assert output.stat().st_size < 5000
    assert _zeros(onnx.load(output), w).sum() == 32 * 9


def test_weights_that_somebody_else_reads_stay() -> None:
    def conv(net: Net, w: str) -> str:
        return str(net.op("Conv", "x", w))

    weight = _weight((3, 3, 1, 1), 0, {0: SUBNORMAL})
    net = Net(3)
    w = net.const(weight)
    assert not _flushes(net.model(conv(net, w), w))  # an output
    net = Net(shape=(1, 3, "H", "W"))
    w = net.const(weight)
    assert not _flushes(net.model(net.op("Conv", "x", w), net.op("Add", net.op("Relu", "x"), w)))
    net = Net(3)  # a graph input that callers may set
    w = net.const(weight)
    net.more_inputs.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, weight.shape))
    assert not _flushes(net.model(conv(net, w)))
    net = Net(3)  # an operand of a sum
    assert not _flushes(net.model(net.op("Add", net.op("Relu", "x"), net.const(weight[0]))))


def _dead(net: Net) -> str:
    """A tensor of which the first half of the channels is next to nothing: (N, 4, H, W)."""
    weight = _weight((4, 4, 1, 1), 0, {0: SUBNORMAL, 1: SUBNORMAL})
    return str(net.op("Relu", net.op("Conv", "x", net.const(weight))))


def _by_own(reduction: str) -> Callable[[Net, str], str]:
    def build(net: Net, y: str) -> str:
        return str(
            net.op(
                "Div",
                y,
                net.op(reduction, y, axes=[1])
                if reduction != "ReduceSum"
                else net.op(reduction, y, net.const(np.array([1]))),
            )
        )

    return build


def _op(op: str, *constants: Any, **attributes: Any) -> Callable[[Net, str], str]:
    return lambda net, y: str(net.op(op, y, *(net.const(np.asarray(c)) for c in constants), **attributes))


def _captured(net: Net, y: str) -> str:
    body = helper.make_graph(
        [helper.make_node("Relu", [y], ["inner"])], "body", [], [helper.make_empty_tensor_value_info("inner")]
    )
    return str(net.op("If", net.const(np.array(True)), then_branch=body, else_branch=body))


def _layer_norm(epsilon: float) -> Callable[[Net, str], str]:
    def build(net: Net, y: str) -> str:
        last = net.op("Transpose", y, perm=[0, 2, 3, 1])
        return str(
            net.op("LayerNormalization", last, net.const(np.ones(4)), net.const(np.zeros(4)), epsilon=epsilon)
        )

    return build


def _decomposed_norm(epsilon: float) -> Callable[[Net, str], str]:
    def build(net: Net, y: str) -> str:
        centred = net.op("Sub", y, net.op("ReduceMean", y, axes=[1]))
        variance = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0)), axes=[1])
        return str(net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.const(epsilon)))))

    return build


def _then(*steps: Callable[[Net, str], str]) -> Callable[[Net, str], str]:
    def build(net: Net, y: str) -> str:
        for step in steps:
            y = step(net, y)
        return y

    return build


SHOWING: dict[str, Callable[[Net, str], str]] = {
    "log": _op("Log"),
    "reciprocal": _op("Reciprocal"),
    "sign": _op("Sign"),
    "ceil": _op("Ceil"),
    "sqrt": _op("Sqrt"),
    "greater": _op("Greater", 0.0),
    "less": _op("Less", 1e-38),
    "equal": _op("Equal", 0.0),
    "argmax": _op("ArgMax", axis=1),
    "topk": lambda net, y: str(net.op("TopK", y, net.const(np.array([2])), axis=1, outputs=2)[1]),
    "non-zero": _op("NonZero"),
    "bool": _op("Cast", to=TensorProto.BOOL),
    "threshold": _op("ThresholdedRelu", alpha=0.0),
    "power -1": _op("Pow", -1.0),
    "power 0.5": _op("Pow", 0.5),
    "own sum": _by_own("ReduceSum"),
    "own maximum": _by_own("ReduceMax"),
    "l1": _op("LpNormalization", axis=1, p=1),
    "l2": _op("LpNormalization", axis=1, p=2),
    "l2 pool": _op("GlobalLpPool"),
    "layer norm without epsilon": _layer_norm(0.0),
    "decomposed norm without epsilon": _decomposed_norm(0.0),
    "decomposed norm with a tiny epsilon": _decomposed_norm(1e-20),
    "factor of 1e31": _op("Mul", 1e31),
    "division by 1e-31": _op("Div", 1e-31),
    "large weights": _op("Conv", np.full((2, 4, 1, 1), 1e30)),
    "large weights with a bias": _op("Conv", np.full((2, 4, 1, 1), 1e30), np.ones(2)),
    "two large factors": _then(_op("Mul", 1e4), _op("Mul", 1e4)),
    "a factor before what hides": _then(_op("Mul", 1e31), _op("Sigmoid")),
    "batch norm of a tiny variance": _op(
        "BatchNormalization", np.ones(4), np.zeros(4), np.zeros(4), np.full(4, 1e-30), epsilon=1e-30
    ),
    "subgraph": _captured,
    "behind a conv without a bias": _then(_op("Conv", np.ones((4, 4, 1, 1))), _op("Log")),
    "behind a pool and a concat": _then(
        _op("MaxPool", kernel_shape=[2, 2]), lambda net, y: str(net.op("Concat", y, y, axis=1)), _op("Log")
    ),
    "behind an addition of zeros": _then(_op("Add", np.array([0.0, 1, 1, 1]).reshape(4, 1, 1)), _op("Log")),
    "one of two consumers": lambda net, y: str(net.op("Add", net.op("Sigmoid", y), net.op("Log", y))),
}


@pytest.mark.parametrize("name", list(SHOWING))
def test_where_it_might_show_nothing_is_flushed(name: str) -> None:
    net = Net(4, shape=("N", 4, 5, 5), opset=13 if "norm" in name or "own max" in name else 17)
    if name.startswith("layer"):
        net.opset = 17
    model = net.model(SHOWING[name](net, _dead(net)))
    # Alone: folds may take a factor behind it into the weight, which is not small any more then.
    plan = make_plan(Document.from_model(model), Options(only=frozenset((Kind.FLUSH,))))
    assert plan.flushing is not None
    assert None in plan.flushing.scanned.values()
    assert not plan.flushing.flushed


HIDING: dict[str, Callable[[Net, str], str]] = {
    "output": lambda net, y: y,
    "log of what a bias hides": _then(_op("Conv", np.ones((4, 4, 1, 1)), np.full(4, 0.1)), _op("Log")),
    "log of a sigmoid": _then(_op("Sigmoid"), _op("Log")),
    "log of a softmax": _then(_op("Softmax", axis=1), _op("Log")),
    "log of x + 1": _then(_op("Add", 1.0), _op("Log")),
    "log of 1 - x": lambda net, y: str(net.op("Log", net.op("Abs", net.op("Sub", net.const(1.5), y)))),
    "division by a clipped mean": lambda net, y: str(
        net.op("Div", y, net.op("Clip", net.op("ReduceMean", y, axes=[1]), net.const(1e-3)))
    ),
    "argmax of scores with biases": _then(
        _op("Conv", np.random.default_rng(3).standard_normal((4, 4, 1, 1)), np.array([0.1, 0.2, 0.3, 0.4])),
        _op("ArgMax", axis=1),
        _op("Cast", to=TensorProto.FLOAT),
    ),
    "batch norm, then sign": _then(
        _op("BatchNormalization", np.ones(4), np.full(4, 0.3), np.zeros(4), np.ones(4)), _op("Sign")
    ),
    "layer norm": _layer_norm(1e-5),
    "decomposed norm": _decomposed_norm(1e-6),
    "pools": _then(_op("AveragePool", kernel_shape=[2, 2]), _op("MaxPool", kernel_shape=[2, 2])),
    "activations": _then(
        *(_op(op) for op in ("HardSwish", "LeakyRelu", "Tanh", "Elu", "Selu", "HardSigmoid"))
    ),
    "shapes": _then(_op("Transpose", perm=[0, 2, 3, 1]), _op("Reshape", np.array([0, -1])), _op("Softmax")),
    "factor": _op("Mul", 1e3),
    "its shape": lambda net, y: str(net.op("Cast", net.op("Shape", y), to=TensorProto.FLOAT)),
    "gate": lambda net, y: str(net.op("Mul", y, net.op("Sigmoid", net.op("GlobalAveragePool", y)))),
    "nobody": lambda net, y: (net.op("Log", y), str(net.op("Relu", "x")))[1],
}


@pytest.mark.parametrize("name", list(HIDING))
def test_where_it_cannot_show_outputs_stay_bit_for_bit(name: str) -> None:
    net = Net(4, shape=("N", 4, 5, 5), opset=17)
    model = net.model(HIDING[name](net, _dead(net)))
    result = fuse(model, options=Options(only=frozenset((Kind.FLUSH,))))
    assert [change.kind for change in result.report.changes] == [Kind.FLUSH], result.report.refusals
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
    for before, after in zip(run(model, {"x": x}), run(result.model, {"x": x}), strict=True):
        assert np.abs(before.astype(np.float64) - after).max() <= 1e-34


@pytest.mark.parametrize(
    "mask", [np.finfo(np.float32).min, -np.inf, 1e30], ids=["lowest number", "infinity", "large"]
)
def test_behind_a_mask_nothing_is_flushed(mask: float) -> None:
    def model(*, is_bounded: bool) -> onnx.ModelProto:
        net = Net(4, shape=("N", 4, 5, 5))
        y = net.op("Where", net.op("Greater", "x", net.const(0.0)), "x", net.const(np.array(mask)))
        y = net.op("Softmax", y, axis=1) if is_bounded else net.op("MaxPool", y, kernel_shape=[1, 1])
        weight = _weight((4, 4, 1, 1), 0, {0: SUBNORMAL})
        return net.model(net.op("Conv", y, net.const(weight)))

    for is_bounded in (True, False):
        plan = make_plan(Document.from_model(model(is_bounded=is_bounded)), Options())
        assert plan.flushing is not None
        assert bool(plan.flushing.flushed) is is_bounded


def test_what_the_check_does_not_accept_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gains, "of", lambda self, name: 0.0)
    net = Net(4, shape=("N", 4, 5, 5))
    result = fuse(net.model(SHOWING["log"](net, _dead(net))))
    assert not result.report.changes
    (refusal,) = result.report.refusals
    assert refusal.reason is Reason.VERIFICATION
    assert "small weights were left as they are" in refusal.message


def test_the_allowance_for_flushed_weights_hides_no_ordinary_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnx_repfuse.planner.flush.flushing.TINY", {TensorProto.FLOAT: 1e-3})
    monkeypatch.setattr("onnx_repfuse.planner.flush.flushing.UNSEEN", 1.0)
    net = Net(4, shape=("N", 4, 5, 5))
    weight = np.ones((4, 4, 1, 1))
    weight[0, 0] = 9e-4
    result = fuse(net.model(net.op("Conv", "x", net.const(weight))))
    assert not result.report.changes
    assert result.report.refusals


def test_channels_that_folding_makes_small_leave_in_the_same_run() -> None:
    """Both the weight and the factor are ordinary floats; their product is a dead channel, which goes."""
    net = Net(8)
    weight = net.rng.standard_normal((32, 8, 3, 3))
    weight[:16] *= 1e-20
    is_dead = np.arange(32) < 16
    conv = net.op("Conv", "x", net.const(weight), pads=[1] * 4)
    statistics = (np.where(is_dead, 1e-20, 1.0), np.where(is_dead, 1e-35, 0.5), np.zeros(32), np.ones(32))
    norm = net.op("BatchNormalization", conv, *map(net.const, statistics))
    model = net.model(net.conv(net.op("Relu", norm), 32, 8, 3))
    result = fuse(model)
    assert {change.kind for change in result.report.changes} == {Kind.FLUSH}
    assert {change.flushed.count for change in result.report.changes if change.flushed} == {16, 16 * 72}
    assert result.report.after.macs == result.report.before.macs // 2
    assert fuse(result.model).model.SerializeToString() == result.model.SerializeToString()
    x = np.random.default_rng(0).standard_normal((1, 8, 9, 9)).astype(np.float32)
    (before,), (after,) = run(model, {"x": x}), run(result.model, {"x": x})
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("op", ["Identity", "Mul"])
def test_channels_of_an_evaluated_weight_that_are_small_leave_in_the_same_run(op: str) -> None:
    net = Net(8)
    stored = net.const(_weight((32, 8, 3, 3), 0, dict.fromkeys(range(16), TINY)))
    weight = net.op(op, stored, net.const(np.full((8, 1, 1), 1.5))) if op == "Mul" else net.op(op, stored)
    conv = net.op("Conv", "x", weight, pads=[1] * 4)
    result = fuse(net.model(net.conv(net.op("Relu", conv), 32, 8, 3)))
    assert [change.kind for change in result.report.changes] == [Kind.FLUSH]
    assert result.report.after.macs == result.report.before.macs // 2
    assert fuse(result.model).model.SerializeToString() == result.model.SerializeToString()


def test_a_bias_that_folding_makes_small_goes_through_padding_in_the_same_run() -> None:
    net = Net(4)
    first = net.op("Conv", "x", net.random(8, 4, 1, 1), net.const(np.full(8, 1e-20)))
    scaled = net.op("Mul", first, net.const(np.full((8, 1, 1), 1e-15)))
    model = net.model(
        net.conv(net.op("Mul", scaled, net.const(np.full((8, 1, 1), 1e15))), 8, 4, 3, bias=True)
    )
    result = fuse(model)
    assert fuse(result.model).model.SerializeToString() == result.model.SerializeToString()
    assert result.report.verification


def test_weights_are_flushed_where_a_fold_was_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_repfuse.pipeline import compare_models
    from onnx_repfuse.pipeline import run as run_module

    real = compare_models.compare

    def compare(baseline: Any, result: Path, *rest: Any) -> Any:
        found = real(baseline, result, *rest)
        is_folded = not any(node.op_type == "BatchNormalization" for node in onnx.load(result).graph.node)
        verdict = replace(found.outputs[0], status=Status.FAILED) if is_folded else found.outputs[0]
        return replace(found, outputs=(verdict,))

    monkeypatch.setattr(run_module, "compare", compare)
    monkeypatch.setattr(compare_models, "compare", compare)
    net = Net(4)
    dead = net.conv(_dead(net), 4, 4, 3)
    result = fuse(net.model(net.op("Sigmoid", dead), net.conv_bn(net.op("Relu", dead), 4, 4, 3)))
    assert result.report.after.ops["BatchNormalization"] == 1
    assert Kind.FLUSH in {change.kind for change in result.report.changes}
