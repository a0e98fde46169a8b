"""Faults that random graphs found, one test each."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, TensorProto, helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check


def test_an_output_that_is_another_tensor_takes_an_identity_once() -> None:
    net = Net(4)
    name = net.conv("x", 4, 4, 1)
    net.nodes[-1].name = "first"
    check(net.model(net.op("Identity", net.bn(name, 4))), {"Conv": 1})
    net = Net(4)
    name = net.conv("x", 4, 4, 1)
    check(net.model(net.op("Mean", name, name)), {"Conv": 1})
    net = Net(4)
    name = net.bn(net.op("Relu", "x"), 4)
    check(net.model(net.op("Identity", name)), {"Relu": 1, "BatchNormalization": 1})
    net = Net(4)
    check(net.model(net.op("Identity", net.op("Relu", "x"))), None)


def test_what_nobody_reads_is_left_alone() -> None:
    net = Net(4)
    double = net.add("x", "x")
    net.conv(net.op("Mul", double, net.channel(4)), 4, 4, 3)
    sizes = net.const(np.array([1, 3]))
    _, used = net.op("Split", double, sizes, outputs=2, axis=1)
    check(net.model(used), None)  # nor does it say where the channels of `double` are, which would be a Mul
    net = Net(4)
    _, used = net.op(
        "Split", net.add(net.conv("x", 4, 4, 3), "x"), net.const(np.array([1, 3])), outputs=2, axis=1
    )
    check(net.model(used), {"Conv": 1})


def test_a_conv_of_no_known_positions_is_not_rewritten_as_itself() -> None:
    net = Net(4)
    bounds = [net.const(np.array([value])) for value in (1, 2, 0)]
    part = net.op("Slice", "x", *bounds)  # of the batch, of which one is assumed
    check(net.model(net.conv(part, 4, 4, 3, auto_pad="SAME_UPPER")), None)


def test_a_tensor_that_is_assumed_to_be_empty_is_not_rewritten_as_itself() -> None:
    net = Net(4)
    part = net.op("Slice", "x", *(net.const(np.array([value])) for value in (1, 4, 0)))
    first = net.op("Slice", part, *(net.const(np.array([value])) for value in (0, 1, 1)))
    rest = net.op("Slice", part, *(net.const(np.array([value])) for value in (1, 4, 1)))
    joined = net.op("Concat", net.conv(first, 1, 1, 3), rest, axis=1)
    check(net.model(net.op("Relu", joined), net.op("Mul", part, "x")), None)


def test_no_batch_normalization_is_written_for_channels_on_the_last_axis() -> None:
    net = Net(4)
    last = net.op("Transpose", "x", perm=[0, 2, 3, 1])
    product = net.op("MatMul", last, net.random(4, 3))
    first = net.op("Transpose", net.op("Add", product, net.random(3)), perm=[0, 3, 1, 2])
    model = net.model(net.bn(first, 3), net.op("Relu", product))
    check(model, {"Transpose": 2, "MatMul": 1, "Relu": 1, "BatchNormalization": 1})


def test_an_overflow_that_a_later_round_reads_is_refused() -> None:
    net = Net(4)
    wide = net.op("Conv", "x", net.random(4, 4, 1, 1), net.const(np.full(4, 3e38)))
    total = net.op("Add", net.op("Add", wide, wide), net.conv(net.op("Relu", "x"), 4, 4, 3))
    # x + x is 2 * x, but that factor does not go into the Conv, nor does that of the BatchNormalization with it.
    ops = {"Conv": 2, "Mul": 1, "Add": 1, "Relu": 1}
    check(net.model(net.bn(total, 4)), ops, Reason.OVERFLOW)


def test_a_concat_with_an_operand_of_unknown_size_is_not_rewritten_as_itself() -> None:
    net = Net(4)
    branches = []
    for op in ("Add", "Sub"):
        inner = helper.make_tensor_value_info(f"inner_{op}", TensorProto.FLOAT, None)
        node = helper.make_node(op, ["x", "x"], [inner.name])
        branches.append(helper.make_graph([node], op, [], [inner]))
    unknown = net.op("If", net.default(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    branch = net.conv("x", 4, 2, 5)
    total = net.op("Sum", unknown, "x")
    check(net.model(net.op("Concat", branch, total, axis=1)), None)


def test_what_pools_over_the_columns_of_a_product_does_not_keep_them() -> None:
    for op, attrs in (
        ("GlobalAveragePool", {}),
        ("AveragePool", {"kernel_shape": [1, 2], "strides": [1, 2]}),
    ):
        net = Net(shape=(2, 4, 5, 6))
        pooled = net.op(op, net.op("MatMul", "x", net.random(6, 3)), **attrs)
        check(net.model(net.op("Sum", pooled, pooled, pooled)), None)
    net = Net(shape=(2, 4, 5, 6))
    padded = net.op("Pad", net.op("MatMul", "x", net.random(6, 3)), net.const(np.array([0] * 7 + [2])))
    check(net.model(net.op("Sum", padded, padded, padded)), None)


def test_weights_have_the_type_of_what_they_replace_where_inference_gives_up() -> None:
    net = Net(shape=("N", 3, "H", "W"), opset=18, dtype=np.dtype(np.float16))
    branches = []
    for op in ("Add", "Sub"):
        inner = helper.make_tensor_value_info(f"inner_{op}", TensorProto.FLOAT16, None)
        branches.append(helper.make_graph([helper.make_node(op, ["x", "x"], [inner.name])], op, [], [inner]))
    unknown = net.op("If", net.default(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    scaled = net.conv(net.op("Mul", unknown, net.const(np.float16(2))), 3, 3, 3)
    _, part = net.op("Split", scaled, net.const(np.array([1, 2])), outputs=2, axis=1)
    model = net.model(net.op("Relu", net.bn(part, 2)), net.op("Sigmoid", part))
    counted = {"If": 1, "Conv": 1, "Relu": 1, "Sigmoid": 1, "BatchNormalization": 1}
    check(model, counted, tolerance=5e-3)  # ten roundings to eleven bits


def test_what_is_beside_a_wider_tensor_need_not_be_as_wide() -> None:
    """Inference does not see the shape behind an If; neither Add nor a Mul that a Conv reads says what it is."""
    net = Net(4)
    narrow = net.op("ReduceMean", "x", axes=[1], keepdims=1)
    branches = []
    for op in ("Relu", "Neg"):
        inner = helper.make_tensor_value_info(f"inner_{op}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(op, [narrow], [inner.name])], op, [], [inner]))
    unseen = net.op("If", net.default(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    total = net.op("Mul", net.op("Mul", unseen, net.channel(4)), net.const(np.float32(2)))
    result = check(
        net.model(net.conv(total, 4, 4, 3), unseen), {"ReduceMean": 1, "If": 1, "Mul": 1, "Conv": 1}
    )
    assert Reason.SHAPE in {refusal.reason for refusal in result.report.refusals}


def test_a_border_costs_multiply_adds_where_sizes_are_unknown_too() -> None:
    """A Pad after a 1x1 Conv is not taken into it: the border would be computed instead of filled in."""
    for shape in ((1, 4, 8, 8), ("N", 4, "H", "W")):
        net = Net(shape=shape)
        padded = net.op("Pad", net.conv("x", 4, 4, 1), net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
        check(net.model(net.op("Relu", padded)), None)


def test_a_tensor_read_along_two_axes_has_two_numbers_of_channels() -> None:
    net = Net(shape=(2, 3, 4, 6))
    both = net.conv("x", 3, 3, 3)
    last = net.op("Sigmoid", net.op("MatMul", both, net.random(6, 2)))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.conv(both, 3, 4, 1)))
    head = net.op("Gemm", net.bn(pooled, 4), net.random(4, 3), net.random(3))
    ops = {"Conv": 1, "MatMul": 1, "Sigmoid": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    check(net.model(last, head), ops)


def test_a_scalar_that_cannot_be_held_is_no_scalar() -> None:
    """An overflow that an earlier round made: who looks for activations and idioms must not stumble over it."""

    def overflowing() -> np.ndarray:
        raise Inexact(Reason.OVERFLOW)

    consts = {
        "bad": Const((), TensorProto.FLOAT, overflowing),
        "good": Const((1,), TensorProto.FLOAT, lambda: np.array([2.5], np.float32)),
        "long": Const((2,), TensorProto.FLOAT, lambda: np.zeros(2, np.float32)),
    }
    scope = Scope((), "", 17, GraphProto(), [], {}, {}, consts, set(), set(), set())
    assert [scope.scalar(name) for name in ("bad", "good", "long", "none")] == [None, 2.5, None, None]


@pytest.mark.parametrize("out", [3, 4])
def test_consumers_with_another_channel_axis_do_not_look_through(out: int) -> None:
    """A product along the last axis, read by two operators along the second: seed 916."""
    net = Net(4)
    product = net.op("Add", net.op("MatMul", "x", net.random(4, out)), net.random(out))
    first, second = net.bn(product, 4), net.op("ConvTranspose", product, net.random(4, 2, 3, 3))
    check(net.model(first, second), None)


def test_a_split_is_one_node_whatever_its_outputs() -> None:
    """Two outputs that were absorbed paid for two nodes, and three nodes became four: seed 937."""
    net = Net(2, shape=("N", 2, "H", "W"))
    net.nodes.append(
        helper.make_node("Split", [net.conv("x", 2, 4, 3), net.const([2, 2])], ["a", "b"], axis=1)
    )
    swapped = net.op("GlobalAveragePool", net.op("Concat", "b", "a", axis=1))
    result = fuse(net.model(swapped), options=Options(check=False))
    assert len(result.model.graph.node) <= 4


def test_one_channel_of_a_product_is_a_factor_at_once() -> None:
    """What was written in the first round was known as a factor only by a second run: seed 949.

    It is one Conv of one channel now: of the three that are computed, one is read.
    """
    net = Net(1)
    first = net.op("ConvTranspose", "x", net.random(1, 1, 3, 3))
    rows = net.op("Transpose", first, perm=[0, 2, 3, 1])
    total = net.op("Add", net.op("MatMul", rows, net.random(1, 3)), net.random(3))
    back = net.op("Transpose", total, perm=[0, 3, 1, 2])
    net.nodes.append(helper.make_node("Split", [back, net.const([2, 1])], ["a", "b"], axis=1))
    model = net.model(net.op("Relu", first), "b")
    check(model, {"ConvTranspose": 1, "Relu": 1, "Conv": 1})


def test_what_was_too_many_convolutions_alone_may_be_allowed_in_a_joint_step() -> None:
    """Putting `a(x) + x` into one 3x3 of four outputs was taken although a 3x3 of two and a 1x1 cost half."""
    net = Net(4)
    both = net.add(net.conv("x", 4, 4, 1, bias=False), "x")
    wide = net.op("Concat", both, both, axis=1)
    narrow = net.op("Transpose", net.conv(wide, 8, 2, 3, bias=False), perm=[0, 2, 3, 1])
    back = net.op("Transpose", net.op("MatMul", narrow, net.random(2, 4)), perm=[0, 3, 1, 2])
    model = net.model(back)
    check(model, {"Conv": 2})
    weights = [tuple(t.dims) for t in fuse(model).model.graph.initializer if len(t.dims) == 4]
    assert sorted(weights) == [(2, 4, 3, 3), (4, 2, 1, 1)]


def test_a_norm_that_is_read_twice_by_one_stays_a_norm() -> None:
    net = Net(4)
    shared = net.bn(net.op("Relu", "x"), 4)
    part = net.op("Slice", shared, net.const([0]), net.const([3]), net.const([1]))
    model = net.model(net.op("Mul", shared, net.channel(4)), net.op("Add", part, part))
    check(model, {"Relu": 1, "Slice": 1, "BatchNormalization": 2})


def test_a_split_of_which_one_output_is_used_is_a_node() -> None:
    net = Net(2)
    net.nodes.append(
        helper.make_node("Split", [net.conv("x", 2, 6, 3), net.const([4, 2])], ["a", "b"], axis=1)
    )
    check(net.model(net.op("Relu", "b")), {"Conv": 1, "Relu": 1})


def test_a_product_counts_by_its_weight_where_sizes_contradict_it() -> None:
    """A Gemm of 120 rows behind a Flatten of 224 by 224 pixels: the MatMul in its place counted 200,704 rows."""
    net = Net(4, opset=6)
    flat = net.bn(net.op("Flatten", "x"), 120, is_test=1)
    model = net.model(net.op("Gemm", flat, net.random(1, 120), net.random(1), transB=1, broadcast=1))
    report = fuse(model, options=Options(check=False)).report
    assert report.before.macs == report.after.macs == 120
