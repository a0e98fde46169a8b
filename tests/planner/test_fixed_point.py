"""One run is the fixed point: a second one finds nothing, whatever the first one has learned on its way."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import Options, fuse
from tests.build import Net, check, counts, equal, run


def runs_once(model: onnx.ModelProto, ops: dict[str, int]) -> None:
    """One run reaches these op counts, and a second one changes no byte."""
    first = fuse(model)
    assert counts(first.model) == ops
    second = fuse(first.model)
    assert not second.report.folds
    assert second.model.SerializeToString(deterministic=True) == first.model.SerializeToString(
        deterministic=True
    )
    assert equal(model, first.model) > 0


def test_layouts_of_nodes_that_are_gone_are_forgotten() -> None:
    """A MatMul by 1 says that channels are last; without it, only the Conv says where they are."""
    net = Net(shape=("N", 1, 1, 1), opset=11)
    product = net.op("MatMul", "x", net.const(np.ones((1, 1))))
    total = net.op("Add", net.const(np.array([0.5])), product)
    runs_once(net.model(net.op("Conv", total, net.random(4, 1, 1, 1))), {"Conv": 1})


def test_a_deferred_bias_is_one_of_its_own_channels() -> None:
    """The bias of the last Conv needs a kernel, and is not one of the BatchNormalization beside it."""
    net = Net(shape=(3, 6, 4, 4))
    net.more_inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, (3, 6, 4, 4)))
    first = net.op("Conv", "x", net.random(6, 1, 1, 1), net.random(6), group=6)
    branches = [net.bn("other", 6), net.conv("x", 6, 6, 1, bias=False), net.conv(first, 6, 6, 1, bias=False)]
    model = net.model(net.op("Concat", *branches, axis=1))
    runs_once(model, {"BatchNormalization": 1, "Conv": 1, "Concat": 1})


@pytest.mark.parametrize("place", ["input", "clip", "product"])
def test_an_identity_does_not_hide_an_activation(place: str) -> None:
    net = Net(4, opset=17)

    def through(name: str, here: str) -> str:
        return str(net.op("Identity", name)) if place == here else name

    x = net.conv("x", 4, 4, 1)
    argument = net.op("Add", through(x, "input"), net.const(3.0))
    clipped = through(net.op("Clip", argument, net.const(0.0), net.const(6.0)), "clip")
    product = through(net.op("Mul", clipped, x), "product")
    runs_once(net.model(net.op("Div", product, net.const(6.0))), {"Conv": 1, "HardSwish": 1})


@pytest.mark.parametrize("stride", [1, 2])
def test_elements_are_a_multiple_of_the_channels_where_no_size_is_known(stride: int) -> None:
    """Of the input only the rank is known; what reads it says how many channels it has."""
    net = Net(shape=("N", "C", "H", "W"))
    strides = [stride, stride]
    first = net.op("Conv", "x", net.random(9, 9, 1, 1), strides=strides)
    second = net.op("Conv", net.bn("x", 9), net.random(9, 9, 3, 3), strides=strides, pads=[1] * 4)
    model = net.model(net.op("Relu", first), net.op("Relu", second))
    once = fuse(model, options=Options(check=False))
    again = fuse(once.model, options=Options(check=False))
    assert not again.report.folds
    assert not once.report.notes


def test_an_identity_is_no_fold_of_its_own_where_its_consumer_folds() -> None:
    net = Net(4)
    model = net.model(net.bn(net.op("Identity", net.op("Identity", net.conv("x", 4, 4, 3))), 4))
    result = check(model, {"Conv": 1})
    (fold,) = result.report.folds
    assert [node.op for node in fold.absorbed] == ["Conv", "Identity", "Identity", "BatchNormalization"]


def test_a_kept_identity_stays() -> None:
    net = Net(4)
    model = net.model(net.op("Relu", net.op("Identity", net.op("Relu", "x"))))
    kept = fuse(model, options=Options(keep=(model.graph.node[1].name,)))
    assert counts(kept.model) == {"Relu": 2, "Identity": 1}


def test_a_fold_whose_output_takes_another_name_is_called_by_that() -> None:
    """`Mean(n, n)` is n, which the fold before computes: so that takes the name of the output, and is proved by it."""
    net = Net(4)
    name = net.conv_bn("x", 4, 4, 3)
    model = net.model(net.op("Mean", name, name))
    result = check(model, {"Conv": 1})
    (output,) = (value.name for value in model.graph.output)
    assert [fold.output for fold in result.report.folds] == [output]


@pytest.mark.parametrize("op", ["Gather", "Slice", "Sub", "Neg", "Mul", "Reshape"])
def test_what_reads_a_tensor_along_two_axes_is_not_written_anew_as_it_is(op: str) -> None:
    """A MatMul says that the last axis has 2, of which the file says nothing: sizes that are assumed differ."""
    net = Net(shape=("N", 3, "H", "W"))
    x = net.conv("x", 3, 3, 3, bias=False, group=3)
    more = {
        "Gather": [net.const(np.array([1, 2, 1]))],
        "Slice": [net.const(np.array([n])) for n in (1, 3, 1)],
        "Sub": [net.channel(3)],
        "Mul": [net.channel(3)],
        "Reshape": [net.const(np.array([0, 3, 1, -1]))],
    }
    other = net.op(op, x, *more.get(op, ()), **({"axis": 1} if op == "Gather" else {}))
    model = net.model(net.op("MatMul", x, net.random(2, 3)), other)
    result = fuse(model, options=Options(check=False))
    assert result.report.notes == ()
    again = fuse(result.model, options=Options(check=False))
    assert not again.report.folds
    assert len(again.model.graph.node) == len(result.model.graph.node) == len(model.graph.node)


def test_planning_ends_where_one_axis_is_channels_for_two_readers() -> None:
    """The norm reads the height as channels, of which it has six; assumed are as many as of any image."""
    net = Net(2, shape=(1, 2, "H", "W"))
    x = net.add(net.conv("x", 2, 2, 1), net.conv("x", 2, 2, 1))
    x = net.op("Sub", x, net.conv_bn("x", 2, 2, 5, group=2))
    rows = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 3, 1]), net.random(2, 2))
    y = net.op("Softmax", net.op("Add", rows, net.random(2)))
    model = net.model(net.op("Transpose", y, perm=[0, 3, 1, 2]), net.bn(rows, 6))
    result = fuse(model, options=Options(check=False))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 8)).astype(np.float32)}
    for a, b in zip(run(model, feed), run(result.model, feed), strict=True):
        assert np.allclose(a, b, atol=1e-5)


def test_what_kept_a_shape_is_forgotten_once_it_is_gone() -> None:
    """The Reshape needs the shape of the pool, which is given out, too; without it, that of the product will do."""
    net = Net(4)
    pooled = net.op("GlobalAveragePool", net.conv_bn("x", 4, 4, 3))
    sizes = net.op("Shape", pooled)
    product = net.op("Reshape", net.op("Mul", pooled, net.const(2.0)), sizes)
    given_out = net.op("Cast", sizes, to=TensorProto.FLOAT)
    runs_once(net.model(product, given_out), {"Conv": 1, "GlobalAveragePool": 1, "Shape": 1, "Cast": 1})


@pytest.mark.parametrize("wrapped", ["CastLike", "Reshape", "Expand"])
def test_what_a_constant_behind_a_no_op_makes_is_a_constant_in_the_same_run(wrapped: str) -> None:
    """As the functions of onnx's operators are expanded: of one, cast to the type of x, the square root."""
    net = Net(4, shape=(2, 4), opset=17)
    two = net.op("Constant", value=numpy_helper.from_array(np.full((2, 4), 2.0, np.float32)))
    other = "x" if wrapped == "CastLike" else net.op("Shape", net.op("Relu", "x"))
    divisor = net.op("Sqrt", net.op("Exp", net.op(wrapped, two, other)))
    runs_once(
        net.model(net.op("Sigmoid", net.op("Div", net.op("Relu", "x"), divisor))),
        {"Relu": 1, "Div": 1, "Sigmoid": 1},
    )


def test_lists_of_sizes_do_not_keep_a_fold_from_growing() -> None:
    """LeViT's queries with dynamic axes: a norm behind Flatten, and attention's factor, which comes up to it."""
    net = Net(shape=("N", "T", 8))
    shape = net.op("Shape", "x")

    def listed(*last: int) -> str:
        ends = [net.const(np.array([k])) for k in (0, 2, 0)]
        return str(net.op("Concat", net.op("Slice", shape, *ends), net.const(np.array(last)), axis=0))

    def heads(y: str) -> str:
        return str(net.op("Transpose", net.op("Reshape", y, listed(2, 4)), perm=[0, 2, 1, 3]))

    product = net.op("MatMul", net.op("Reshape", net.op("Relu", "x"), listed(8)), net.random(8, 8))
    normed = net.bn(net.op("Flatten", product, axis=2), 8)
    q = heads(net.op("Reshape", normed, net.op("Shape", product)))
    k = net.op("Transpose", heads(net.op("Tanh", "x")), perm=[0, 1, 3, 2])
    scores = net.op("Mul", net.op("MatMul", q, k), net.const(0.5))
    result = check(
        net.model(net.op("Softmax", scores, axis=-1)),
        {"Shape": 1, "Slice": 1, "Concat": 1, "Relu": 1, "Tanh": 1, "Reshape": 2, "Transpose": 3, "MatMul": 2,
         "Add": 1, "Softmax": 1},
    )  # fmt: skip
    assert "Mul" not in counts(result.model)
