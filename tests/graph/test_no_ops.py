"""Nodes that give out what they read vanish at any rank; what only looks like one stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal


def _net(*shape: int | str) -> Net:
    net = Net()
    net.shape = shape
    return net


def _gone(net: Net, out: str) -> None:
    """Between a Relu and a Tanh, a no-op vanishes and nothing else changes."""
    model = net.model(net.op("Tanh", out))
    result = fuse(model)
    assert counts(result.model) == {"Relu": 1, "Tanh": 1}, counts(result.model)
    assert [change.kind for change in result.report.changes] == [Kind.NO_OP]
    assert not result.report.folds
    assert equal(model, result.model) > 0


def _stays(net: Net, out: str, *more: str) -> None:
    model = net.model(net.op("Tanh", out), *more)
    result = fuse(model)
    assert result.model.SerializeToString() == model.SerializeToString()


SHAPES: list[tuple[int | str, ...]] = [
    (),
    (4,),
    ("N", 4),
    ("N", 4, 5),
    ("N", 4, "H", "W"),
    ("N", 4, "D", "H", 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("op", "value"), [("Mul", 1.0), ("Div", 1.0), ("Pow", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Add", -0.0)]
)
@pytest.mark.parametrize("first", [False, True])
def test_arithmetic_with_one_and_zero(
    shape: tuple[int | str, ...], op: str, value: float, first: bool
) -> None:
    net = _net(*shape)
    first = first and op in ("Add", "Mul")
    inner, constant = net.op("Relu", "x"), net.const(value)
    _gone(net, net.op(op, *((constant, inner) if first else (inner, constant))))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["Identity", "Cast", "Dropout", "Max", "Mean", "Min", "Sum", "Transpose"])
def test_copies(shape: tuple[int | str, ...], op: str) -> None:
    attributes: dict[str, dict[str, Any]] = {
        "Cast": {"to": TensorProto.FLOAT},
        "Transpose": {"perm": list(range(len(shape)))},
    }
    if op == "Transpose" and not shape:
        return  # an empty list is no attribute
    net = _net(*shape)
    _gone(net, net.op(op, net.op("Relu", "x"), **attributes.get(op, {})))


def test_views_of_everything() -> None:
    net = Net(shape=("N", 4, 5))
    _gone(net, net.op("Reshape", net.op("Relu", "x"), net.const(np.array([-1, 4, 5]))))
    net = Net(shape=(2, 4, 5))
    _gone(net, net.op("Expand", net.op("Relu", "x"), net.const(np.array([1, 4, 1]))))
    net = Net(shape=(2, 4, 5))
    whole = [net.const(np.array([k])) for k in (0, 4, 1)]
    _gone(net, net.op("Slice", net.op("Relu", "x"), *whole))
    net = Net(shape=(2, 4, 5))
    _gone(net, net.op("Concat", net.op("Relu", "x"), axis=1))


@pytest.mark.parametrize("op", ["Expand", "Tile", "Split"])
def test_one_of_a_tensor_of_any_size(op: str) -> None:
    net = Net(shape=("N", "L", 5))
    y = net.op("Relu", "x")
    lists = {"Expand": [1, 1], "Tile": [1, 1, 1], "Split": [5]}
    attributes = {"axis": 2} if op == "Split" else {}
    _gone(net, net.op(op, y, net.const(np.array(lists[op])), **attributes))


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("attributes", [{}, {"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}])
def test_pools_of_one_position(op: str, space: int, attributes: dict[str, Any]) -> None:
    net = _net("N", 4, *"DHW"[:space])
    attributes = {"kernel_shape": [1] * space, "strides": [1] * space, **attributes}
    _gone(net, net.op(op, net.op("Relu", "x"), **attributes))


def test_pools_that_skip_pad_or_tell_indices_stay() -> None:
    net = Net(shape=("N", 4, "H", "W"))
    _stays(net, net.op("MaxPool", net.op("Relu", "x"), kernel_shape=[1, 1], strides=[2, 2]))
    net = Net(shape=("N", 4, 5, 6))
    values, indices = net.op("MaxPool", net.op("Relu", "x"), outputs=2, kernel_shape=[1, 1])
    _stays(net, values, net.op("Cast", indices, to=TensorProto.FLOAT))
    net = Net(shape=("N", 4, "H", "W"))  # of Reciprocal's two infinities, it takes the other one
    net.nodes.append(onnx.helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[1, 1]))
    _stays(net, net.op("Reciprocal", "pooled"))
    net = Net(shape=("N", 4, "H", "W"))
    _stays(net, net.op("LpPool", net.op("Relu", "x"), kernel_shape=[1, 1]))


@pytest.mark.parametrize(
    "op", ["GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"]
)
def test_reductions_of_one_position(op: str) -> None:
    for shape, is_one in ((("N", 4, 1, 1), True), ((2, 4, "H", 1), False)):
        net = _net(*shape)
        lists = [net.const(np.array([2, 3]))] if op == "ReduceSum" else []
        attributes = {"axes": [2, 3]} if op.startswith("Reduce") and op != "ReduceSum" else {}
        y = net.op(op, net.op("Relu", "x"), *lists, **attributes)
        (_gone if is_one else _stays)(net, y)
    if op.startswith("Reduce") and op != "ReduceSum":
        net = _net("N", 4, 1, 1)
        _stays(net, net.op(op, net.op("Relu", "x"), axes=[2, 3], keepdims=0))


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_pads_and_splits_of_any_rank(rank: int) -> None:
    shape = ("N", 4, 5, 6)[:rank]
    net = _net(*shape)
    _gone(net, net.op("Pad", net.op("Relu", "x"), net.const(np.zeros(2 * rank, np.int64))))
    net = _net(*shape)
    _gone(net, net.op("Split", net.op("Relu", "x"), net.const(np.array([4])), axis=1))


def test_a_cast_to_the_type_of_another_tensor() -> None:
    net = _net("N", 4)
    _gone(net, net.op("CastLike", net.op("Relu", "x"), net.const(1.0)))
    net = _net("N", 4)
    whole = net.op("CastLike", net.op("Relu", "x"), net.const(np.array(1)))
    _stays(net, net.op("CastLike", whole, net.const(1.0)))


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("condition", [(), (1,), (4,), (1, 4)])
def test_where_that_takes_all_of_one_tensor(taken: bool, condition: tuple[int, ...]) -> None:
    net = _net("N", 4)
    y, other = net.op("Relu", "x"), net.const(np.ones(4))
    _gone(net, net.op("Where", net.const(np.full(condition, taken)), *((y, other) if taken else (other, y))))


@pytest.mark.parametrize("taken", [False, True])
def test_where_beside_a_tensor_of_the_same_shape(taken: bool) -> None:
    net = _net("N", 4, "L")
    y, other = net.op("Relu", "x"), net.op("Abs", "x")
    _gone(net, net.op("Where", net.const(np.array(taken)), *((y, other) if taken else (other, y))))


@pytest.mark.parametrize("op", ["Where", "MaxPool", "Max", "Pow"])
def test_no_ops_at_the_end_of_a_graph(op: str) -> None:
    """As the Where of torch.lerp: its producer computes the output."""
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    inputs = {"Where": [net.const(np.array([False])), net.op("Relu", y), y], "Pow": [y, net.const(1.0)]}
    attributes = {"kernel_shape": [1, 1]} if op == "MaxPool" else {}
    model = net.model(net.op(op, *inputs.get(op, [y]), **attributes))
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1}
    assert equal(model, result.model) > 0


def test_where_that_widens_or_takes_of_both_stays() -> None:
    for shape, condition, other in (
        (("N", 1), np.ones(4, bool), np.ones(1)),
        (("N", 1), np.array(True), np.ones(4)),
        (("N", "L"), np.array(True), np.ones(4)),
        ((4,), np.ones((1, 1), bool), np.ones(4)),
        (("N", 4), np.array([True, True, True, False]), np.ones(4)),
        (("N", 4), np.array(True), None),  # beside a tensor of which nobody knows how many rows it has
    ):
        net = _net(*shape)
        y = net.op("Relu", "x")
        if other is None:
            net.more_inputs.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ("M", 4)))
        beside = net.op("Abs", "z") if other is None else net.const(other)
        _stays(net, net.op("Where", net.const(condition), y, beside))


@pytest.mark.parametrize(
    ("equation", "is_same"),
    [("ab->ab", True), ("a b -> a b", True), ("aa->aa", False)],
)
def test_einsum_of_one_operand(equation: str, is_same: bool) -> None:
    # one that orders axes otherwise becomes a Transpose: tests/planner/rewrites/test_plain_moves.py
    net = _net(4, 4)
    (_gone if is_same else _stays)(net, net.op("Einsum", net.op("Relu", "x"), equation=equation))


PERMUTATIONS = [(None, None), ([1, 0, 2], [1, 0, 2]), ([1, 2, 0], [2, 0, 1]), ([0, 2, 1], [0, 2, 1])]


@pytest.mark.parametrize(("first", "second"), PERMUTATIONS)
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_transpose_that_undoes_another(
    first: list[int] | None, second: list[int] | None, is_shared: bool
) -> None:
    net = Net(shape=("N", 4, 5))
    y = net.op("Relu", "x")
    there = net.op("Transpose", y, **({"perm": first} if first else {}))
    back = net.op("Transpose", there, **({"perm": second} if second else {}))
    model = net.model(net.op("Tanh", back), *([net.op("Exp", there)] if is_shared else []))
    result = fuse(model)
    assert counts(result.model).get("Transpose", 0) == is_shared
    assert [change.kind for change in result.report.changes] == [Kind.NO_OP]
    assert equal(model, result.model) > 0


def test_transposes_that_do_not_undo_each_other_stay() -> None:
    for first, second in (([1, 2, 0], [1, 2, 0]), ([1, 0, 2], [0, 2, 1])):
        net = Net(shape=("N", 4, 5))
        _stays(net, net.op("Transpose", net.op("Transpose", net.op("Relu", "x"), perm=first), perm=second))


def test_a_row_of_transposes() -> None:
    net = Net(shape=("N", 4, 5))
    y = net.op("Relu", "x")
    for _ in range(6):
        y = net.op("Transpose", y, perm=[0, 2, 1])
    model = net.model(net.op("Tanh", y))
    result = fuse(model)
    assert counts(result.model) == {"Relu": 1, "Tanh": 1}
    assert equal(model, result.model) > 0


def test_a_cast_to_a_wider_type_and_back() -> None:
    for own, through, is_exact in (
        (np.float32, TensorProto.DOUBLE, True),
        (np.float32, TensorProto.FLOAT16, False),
        (np.float32, TensorProto.INT64, False),
        (np.float16, TensorProto.FLOAT, True),
        (np.float16, TensorProto.BFLOAT16, False),
    ):
        net = Net(shape=("N", 4), dtype=own)
        kind = TensorProto.FLOAT if own is np.float32 else TensorProto.FLOAT16
        y = net.op("Cast", net.op("Cast", net.op("Relu", "x"), to=through), to=kind)
        model = net.model(net.op("Relu", y))
        assert ("Cast" not in counts(fuse(model).model)) == is_exact, through


def test_between_convolutions() -> None:
    """Where channels are known, too."""
    net = Net(4)
    y = net.op("Max", net.op("Pow", net.conv("x", 4, 4, 3), net.const(1.0)))
    model = net.model(net.op("Relu", net.bn(net.op("Min", y), 4)))
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1, "Relu": 1}
    assert equal(model, result.model) > 0


def test_what_broadcasts_stays() -> None:
    for shape, constant in (
        (("N", 4, 1), np.ones(3)),  # widens the last axis
        (("N", 4, "L"), np.ones(3)),  # may widen it
        ((4,), np.ones((1, 1))),  # adds an axis
        ((), np.ones(1)),
    ):
        net = _net(*shape)
        _stays(net, net.op("Mul", net.op("Relu", "x"), net.const(constant)))
    net = _net("N", 4)
    _stays(net, net.op("Expand", net.op("Relu", "x"), net.const(np.array([1, 1, 1]))))
    net = _net("N", 4)
    _stays(
        net,
        net.op("Pow", net.op("Relu", "x"), net.const(2.0)),
        net.op("Tile", "x", net.const(np.array([1, 2]))),
    )


def test_what_is_no_identity_stays() -> None:
    net = Net(shape=("N", 4))
    _stays(net, net.op("Div", net.const(1.0), net.op("Relu", "x")))
    net = Net(shape=(3, 4))
    _stays(net, net.op("Slice", net.op("Relu", "x"), *(net.const(np.array([k])) for k in (-1, -9, 0, -1))))
    net = Net(shape=(4, 4))
    _stays(net, net.op("Transpose", net.op("Relu", "x")))
    net = Net(shape=("N", 4))
    half = net.op("Cast", net.op("Relu", "x"), to=TensorProto.FLOAT16)
    _stays(net, net.op("Cast", half, to=TensorProto.FLOAT))
    net = Net(shape=("N", 4))
    dropped, mask = net.op("Dropout", net.op("Relu", "x"), outputs=2)
    _stays(net, dropped, net.op("Cast", mask, to=TensorProto.FLOAT))


@pytest.mark.parametrize(
    ("behind", "is_visible"),
    [
        (("Reciprocal",), True),
        (("Neg", "Reciprocal"), True),
        (("Abs", "Reciprocal"), False),
        (("Softmax", "Reciprocal"), False),
        (("Neg",), False),
    ],
)
def test_the_sign_of_a_zero(behind: tuple[str, ...], is_visible: bool) -> None:
    """-0 + 0 is 0, and 1 / -0 is not 1 / 0. An Add of -0, and a Sub of 0, change nothing."""
    for op, zero, stays in (
        ("Add", 0.0, is_visible),
        ("Add", -0.0, False),
        ("Sub", 0.0, False),
        ("Sub", -0.0, is_visible),
    ):
        net = Net(shape=("N", 4))
        y = net.op(op, net.op("Neg", net.op("Relu", "x")), net.const(zero))
        for name in behind:
            y = net.op(name, y)
        model = net.model(y)
        result = fuse(model)
        assert (op in counts(result.model)) == stays, (op, zero)
        feeds = {"x": -np.ones((1, 4), np.float32)}
        before, after = (_run(one, feeds) for one in (model, result.model))
        np.testing.assert_array_equal(before, after)


BEHIND_ZERO: dict[str, tuple[bool, Callable[[Net, str], str]]] = {
    "a negative power": (True, lambda net, x: net.op("Pow", x, net.const(-1.0))),
    "an unknown power": (True, lambda net, x: net.op("Pow", x, "e")),
    "an even power": (False, lambda net, x: net.op("Reciprocal", net.op("Pow", x, net.const(2.0)))),
    "an odd power": (True, lambda net, x: net.op("Reciprocal", net.op("Pow", x, net.const(3.0)))),
    "a sum that is not zero": (False, lambda net, x: net.op("Reciprocal", net.op("Add", x, net.const(1e-5)))),
    "a sum that may be zero": (True, lambda net, x: net.op("Reciprocal", net.op("Add", x, net.const([0, 0, 1, 1.])))),
    "an L2 norm": (False, lambda net, x: net.op("Reciprocal", net.op("ReduceL2", x, axes=[1]))),
    "a maximum over an axis": (True, lambda net, x: net.op("Reciprocal", net.op("ReduceMax", x, axes=[1]))),
    "a Clip above zero": (False, lambda net, x: net.op("Reciprocal", net.op("Clip", x, net.const(1e-12)))),
    "a Clip below zero": (False, lambda net, x: net.op("Reciprocal", net.op("Clip", x, "", net.const(-1.0)))),
    "a Clip at zero": (True, lambda net, x: net.op("Reciprocal", net.op("Clip", x, net.const(0.0)))),
    "a maximum above zero": (False, lambda net, x: net.op("Reciprocal", net.op("Max", net.const(1e-3), x))),
}  # fmt: skip


@pytest.mark.parametrize("behind", BEHIND_ZERO)
def test_what_loses_the_sign_of_a_zero(behind: str) -> None:
    """As the norm of an attention does, which is clipped before it divides."""
    net = Net(shape=("N", 4), opset=17)
    net.more_inputs.append(onnx.helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 4]))
    is_visible, write = BEHIND_ZERO[behind]
    model = net.model(write(net, net.op("Add", net.op("Neg", net.op("Relu", "x")), net.const(np.zeros(4)))))
    result = fuse(model, options=Options(check=False))
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer]
    zeros = [value for value in weights if value.shape == (4,) and not value.any()]
    assert bool(zeros) == is_visible
    feeds = {"x": -np.ones((1, 4), np.float32), "e": -np.ones((1, 4), np.float32)}
    before, after = (_run(one, feeds) for one in (model, result.model))
    np.testing.assert_array_equal(before, after)


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    return onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0]


def test_a_division_by_the_sum() -> None:
    net = Net(shape=("N", 4))
    y = net.op("Add", net.op("Relu", "x"), net.const(0.0))
    model = net.model(net.op("Div", net.const(1.0), y), net.op("Exp", y))
    assert "Add" in counts(fuse(model).model)


def test_a_part_of_a_fused_pattern_stays() -> None:
    """A LayerNorm whose gamma is 1 and beta 0 is one kernel to runtimes, as long as all its nodes are there."""
    net = Net(shape=("N", 5, 8))
    x = net.op("Relu", "x")
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0)), axes=[-1])
    y = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.const(1e-5))))
    y = net.op("Add", net.op("Mul", y, net.const(np.ones(8))), net.const(np.zeros(8)))
    model = net.model(net.op("Relu", y))
    assert fuse(model).model.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("size", [8, 4000])
def test_an_identity_of_a_weight_that_others_read(size: int) -> None:
    """Torch's legacy exporter writes one for each further module that shares a weight."""
    net = Net(shape=("N", 5, 8))
    bias, weight = net.random(size), net.random(8, size)
    y = net.op("Add", net.op("MatMul", "x", net.op("Identity", weight)), net.op("Identity", bias))
    z = net.op("Add", net.op("MatMul", net.op("Abs", "x"), weight), bias)
    result = check(
        net.model(net.op("Tanh", y), net.op("Exp", z)), {"MatMul": 2, "Add": 2, "Tanh": 1, "Exp": 1, "Abs": 1}
    )
    elements = sum(int(np.prod(tensor.dims)) for tensor in result.model.graph.initializer)
    assert elements <= 2 * 9 * 8 or elements == 9 * size
