"""Folds of half-precision models, judged as if every tensor were stored in its type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.half_precision import loses_precision
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import EQUAL
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from tests.build import Net, counts
from tests.half_faults import blocks, case_of, caught, fixed_blocks, plant
from tests.versions import since_bfloat16

HALF = np.float16
SEEN_NOWHERE = "no values"


def side(dtype: Any, nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> onnx.ModelProto:
    """A side of a fold: x (N, 4, H, W) -> y."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "side",
        [helper.make_tensor_value_info("x", kind, ["N", 4, "H", "W"])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def node(op: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], **attributes)


def kernel(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("dtype", [HALF, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16)])
def test_the_oracle_rounds_what_each_node_stores(dtype: Any) -> None:
    model = side(
        dtype, [node("Mul", "x", "a", "t"), node("Add", "t", "b", "y")], a=np.array(1.1), b=np.array(3.0)
    )
    x = np.linspace(-2, 2, 8).reshape(1, 4, 1, 2).astype(dtype)
    product = (x.astype(np.float64) * float(np.array(1.1).astype(dtype))).astype(dtype).astype(np.float64)
    stored = Oracle(model, stored_as=np.dtype(dtype))({"x": x}).value
    assert (stored == (product + 3.0).astype(dtype).astype(np.float64)).all()
    assert not (Oracle(model)({"x": x}).value == stored).all()


def averaged_case(dtype: Any, factor: float) -> FoldCase:
    """A factor behind an average, and in front of it."""
    weight = kernel(4, 4, 1, 1)
    weight -= weight.mean(axis=1, keepdims=True)  # so that averages are small beside what is averaged
    scaled = weight * factor
    before = [node("Conv", "x", "w", "c"), node("GlobalAveragePool", "c", "p"), node("Mul", "p", "s", "y")]
    after = [node("Conv", "x", "v", "c"), node("GlobalAveragePool", "c", "y")]
    return FoldCase(
        side(dtype, before, w=weight, s=np.array(factor)), side(dtype, after, v=scaled.astype(dtype))
    )


@pytest.mark.parametrize(
    ("dtype", "factor", "is_worse"),
    [
        (HALF, 1264.0, True),  # 255 * 1264 overflows
        (HALF, 0.5, False),
        pytest.param(ml_dtypes.bfloat16, 1264.0, False, marks=since_bfloat16),
        (np.float32, 1e20, False),  # not in half precision: the question does not arise
    ],
)
def test_an_overflow_before_an_average_is_seen(dtype: Any, factor: float, is_worse: bool) -> None:
    assert ("overflow" in loses_precision(averaged_case(dtype, factor), SEEN_NOWHERE)) is is_worse


@pytest.mark.parametrize("dtype", [HALF, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16)])
def test_a_fold_that_errs_more_than_twice_as_much_is_seen(dtype: Any) -> None:
    """A difference of large sums: the weights of an edge filter, rounded badly, on bright images."""
    edge = np.zeros((4, 1, 3, 3))
    edge[:, 0, 0], edge[:, 0, 2] = [0.3, 0.6, 0.3], [-0.3, -0.6, -0.3]
    exact = [node("Conv", "x", "w", "y", group=4)]
    wrong = edge.copy()
    wrong[:, 0, 0, 1] *= 1 + 3 * float(ml_dtypes.finfo(dtype).eps)
    good, bad = (FoldCase(side(dtype, exact, w=edge), side(dtype, exact, w=w)) for w in (edge, wrong))
    assert loses_precision(good, SEEN_NOWHERE) == ""
    assert "times the original's" in loses_precision(bad, SEEN_NOWHERE)


def test_the_range_of_the_models_own_intermediates_counts() -> None:
    """An overflow that values up to 255 do not reach."""
    case = averaged_case(HALF, 64.0)
    assert loses_precision(case, SEEN_NOWHERE) == ""
    values = np.array([-3000.0, 3000.0], HALF).reshape(1, 1, 1, 2)
    assert "overflow" in loses_precision(case, {"x": values, "y": values})


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean"])
@pytest.mark.parametrize(
    ("dtype", "factor", "is_moved"), [(HALF, 1264.0, False), (HALF, 0.5, True), (np.float32, 1264.0, True)]
)
def test_a_factor_above_one_stays_behind_an_average(
    pool: str, dtype: Any, factor: float, is_moved: bool
) -> None:
    net = Net(4, shape=("N", 4, 7, 7), dtype=dtype)
    more = {"axes": [2, 3]} if pool == "ReduceMean" else {}
    mean = net.op(pool, net.conv("x", 4, 4, 3), **more)
    parameters = [net.const(np.full(4, v)) for v in (factor, 0.25, 0.0, 1.0)]
    result = fuse(net.model(net.op("BatchNormalization", mean, *parameters)))
    assert (counts(result.model) == {"Conv": 1, pool: 1}) is is_moved
    reasons = {refusal.reason for refusal in result.report.refusals}
    assert (Reason.PRECISION in reasons) is not is_moved


def test_a_fold_that_overflows_on_images_is_undone() -> None:
    """The factor is a dense 1x1 Conv, which planning does not read."""
    net = Net(4, shape=("N", 4, 7, 7), dtype=HALF)
    weight = net.rng.standard_normal((4, 4, 1, 1))
    weight -= weight.mean(axis=1, keepdims=True)
    mean = net.op("GlobalAveragePool", net.op("Conv", "x", net.const(weight), kernel_shape=[1, 1]))
    dense = net.const(net.rng.standard_normal((4, 4, 1, 1)) * 1000)
    healthy = net.conv_bn("x", 4, 4, 3)
    result = fuse(net.model(net.op("Conv", mean, dense, kernel_shape=[1, 1]), healthy))
    assert "BatchNormalization" not in counts(result.model)
    assert Reason.PRECISION in {refusal.reason for refusal in result.report.refusals}


def test_good_half_precision_folds_stay() -> None:
    for seed in range(3):
        net = Net(8, dtype=HALF, seed=seed)
        out = net.add(net.conv_bn("x", 8, 8, 3), net.conv_bn("x", 8, 8, 1), net.bn("x", 8))
        assert counts(fuse(net.model(net.op("Relu", out))).model) == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize("make", [blocks, fixed_blocks])
def test_one_weight_off_by_a_hundredth_is_seen_in_half_precision(make: Any) -> None:
    """The long form, `python -m tests.half_faults`, has 60 of each."""
    seen, seen_later, false_alarms = caught(make(6))
    assert (seen, seen_later, false_alarms) == (6, 6, 0)


@pytest.mark.parametrize("wrong", [None, 1, 100, 574])
def test_a_weight_whose_result_is_multiplied_by_another_source_is_seen(wrong: int | None) -> None:
    """Where that source is zero, an impulse shows nothing."""
    weight, scale = kernel(8, 8, 3, 3) / 8, np.linspace(0.5, 1.5, 8).reshape(8, 1, 1)
    before = [node("Conv", "x", "w", "a"), node("Mul", "a", "gate", "b"), node("Mul", "b", "s", "y")]
    after = [node("Conv", "x", "v", "a"), node("Mul", "a", "gate", "y")]
    moved = (weight.astype(HALF) * scale[..., None].astype(HALF).astype(np.float64)).astype(HALF)
    if wrong is not None:
        moved.flat[wrong] *= HALF(1.01)
    models = side(HALF, before, w=weight, s=scale), side(HALF, after, v=moved)
    for model in models:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
        gate = helper.make_tensor_value_info("gate", onnx.TensorProto.FLOAT16, ["M", 8, 1, 1])
        model.graph.input.append(gate)
    status = probe(FoldCase(*models)).status
    assert status is (Status.PASSED if wrong is None else Status.FAILED)


def test_a_fold_is_not_judged_at_sizes_that_fit_by_chance_where_the_file_proves_others() -> None:
    """Matrices of three channels take images of 1x2x3, as a head of one broadcasts."""
    model = next(fixed_blocks(1))
    assert "none but the smallest sizes" in probe(case_of(model)).message
    assert probe(case_of(model, sized=True)).status is Status.PASSED
    wrong = case_of(model, sized=True)
    plant(wrong, 0)
    assert probe(wrong).status is Status.FAILED


@pytest.mark.parametrize("op", ["Mul", "MatMul"])
def test_sparse_signal_takes_little_memory_and_none_where_nothing_is_summed(op: str) -> None:
    sizes = (1, 64, 128, 128)
    weight = kernel(64, 128, 128) if op == "Mul" else kernel(64, 128, 16)
    models = []
    for name in ("w", "v"):
        model = side(HALF, [node(op, "x", name, "y")], **{name: weight})
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
        models.append(model)
    case = FoldCase(*models)
    found = [s.feed["x"] for s in stimuli(case, (EQUAL,)) if s.kind == "sparse"]
    assert bool(found) is (op == "MatMul")
    assert sum(feed.size for feed in found) <= 1 << 23
    assert all(0 < (feed != 0).mean() < 0.03 for feed in found)
