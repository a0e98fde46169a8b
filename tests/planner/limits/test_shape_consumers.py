"""A Shape does not read values: a tensor is absorbed although its shape is asked for, if another one has that shape."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import fuse
from tests.build import Net, check, counts, equal


def _size(net: Net, x: str, axis: int) -> str:
    """One size of a tensor, as torch exports `x.size(axis)`: shape (1,)."""
    index = net.const(np.array(axis))
    return str(net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), index), net.const(np.array([0]))))


def _flat(net: Net, x: str, *, part: bool) -> str:
    """`x.flatten(1)`, its batch taken from the Shape of x."""
    if part:
        ends = [net.const(np.array([k])) for k in (0, 1, 0)]
        batch = net.op("Slice", net.op("Shape", x), *ends)
    else:
        batch = _size(net, x, 0)
    target = net.op("Concat", batch, net.const(np.array([-1])), axis=0)
    return str(net.op("Reshape", x, target))


@pytest.mark.parametrize("part", [False, True])
def test_a_factor_whose_shape_is_asked_for_goes_into_the_next_product(part: bool) -> None:
    net = Net(8, shape=("N", 8, 1, 1))
    y = net.op("Mul", net.op("HardSwish", "x"), net.const(0.8))
    model = net.model(net.op("Gemm", _flat(net, y, part=part), net.random(8, 4), net.random(4)))
    result = fuse(model)
    assert "Mul" not in counts(result.model)
    assert len(result.model.graph.node) == len(model.graph.node) - 1
    onnx.checker.check_model(result.model, full_check=True)
    assert equal(model, result.model) > 0
    again = fuse(result.model)
    assert not again.report.folds


def test_a_norm_behind_a_convolution_whose_shape_is_asked_for() -> None:
    """The Shape then reads what the folded Conv computes, which stands behind where the Shape was."""
    net = Net(4)
    inner = net.conv("x", 4, 4, 3)
    height = net.op("Cast", _size(net, inner, 2), to=onnx.TensorProto.FLOAT)
    model = net.model(net.op("Relu", net.bn(inner, 4)), height)
    check(model, {"Conv": 1, "Relu": 1, "Shape": 1, "Gather": 1, "Unsqueeze": 1, "Cast": 1})


def test_a_shape_that_the_fold_itself_needs() -> None:
    """The sum behind the norm reads zeros in the norm's own shape: the Shape cannot read the sum."""
    net = Net(4)
    inner = net.op("Relu", "x")
    scaled = net.op("Mul", inner, net.channel(4))
    zeros = net.op("ConstantOfShape", net.op("Shape", scaled))
    model = net.model(net.op("Add", net.bn(scaled, 4), zeros))
    result = fuse(model)
    assert equal(model, result.model) > 0
    onnx.checker.check_model(result.model, full_check=True)
    assert "Mul" not in counts(result.model)  # the Shape reads the Relu
    net = Net(4)
    inner = net.conv("x", 4, 6, 3, pad=0)
    zeros = net.op("ConstantOfShape", net.op("Shape", inner))
    model = net.model(net.op("Add", net.bn(inner, 6), zeros))
    result = fuse(model)
    assert equal(model, result.model) > 0
    onnx.checker.check_model(result.model, full_check=True)


def test_a_shape_of_which_no_other_tensor_is_known() -> None:
    """Half the size of the image has the tensor between the two Convs alone."""
    net = Net(4)
    inner = net.conv("x", 4, 6, 1, bias=False, strides=[2, 2])
    sizes = net.op("Cast", net.op("Shape", inner), to=onnx.TensorProto.FLOAT)
    model = net.model(net.conv(inner, 6, 2, 1, strides=[2, 2]), sizes)
    check(model, None)


def test_channels_that_no_other_tensor_has_are_written_as_a_number() -> None:
    net = Net(4)
    inner = net.conv("x", 4, 6, 1, bias=False)
    sizes = net.op("Cast", net.op("Shape", inner), to=onnx.TensorProto.FLOAT)
    model = net.model(net.conv(inner, 6, 2, 1), sizes)
    check(model, {"Conv": 1, "Shape": 1, "Mul": 1, "Add": 1, "Cast": 1}, more_nodes=1)


def test_sizes_that_are_not_read_may_differ() -> None:
    """The first Conv's batch and height are those of the image."""
    net = Net(4)
    inner = net.conv("x", 4, 6, 1, bias=False)
    sizes = [_size(net, inner, axis) for axis in (0, 2)]
    wanted = net.op("Concat", *sizes, net.const(np.array([-1])), axis=0)
    model = net.model(net.op("Reshape", net.conv(inner, 6, 2, 1), wanted))
    check(model, {"Conv": 1, "Shape": 1, "Gather": 2, "Unsqueeze": 2, "Concat": 1, "Reshape": 1})
