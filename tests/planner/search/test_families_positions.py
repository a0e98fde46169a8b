"""Choices of positions are kernels: a Slice with steps is a stride, a crop is padding taken away."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import fuse, plan
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, run
from tests.index_maps import END, cut


def focus(net: Net, x: str = "x") -> str:
    """YOLO's: the four positions of each 2x2 block as channels."""
    parts = [
        cut(net, cut(net, x, [2], [row], [END], [2]), [3], [column], [END], [2])
        for column in (0, 1)
        for row in (0, 1)
    ]
    return str(net.op("Concat", *parts, axis=1))


@pytest.mark.parametrize(
    ("axes", "starts", "steps", "pad"),
    [([2], [0], [2], 0), ([2], [0], [2], 1), ([2, 3], [1, 0], [2, 3], 1), ([3], [2], [3], 1)],
)
def test_a_slice_with_steps_is_a_stride(
    axes: list[int], starts: list[int], steps: list[int], pad: int
) -> None:
    net = Net(4)
    sliced = cut(net, "x", axes, starts, [END] * len(axes), steps)
    check(net.model(net.conv(sliced, 4, 4, 3, pad=pad)), {"Conv": 1}, largest=9)


def test_a_slice_behind_a_convolution_is_a_stride() -> None:
    net = Net(4)
    check(
        net.model(cut(net, net.conv("x", 4, 4, 3), [2, 3], [0, 0], [END] * 2, [2, 2])), {"Conv": 1}, largest=7
    )


def test_a_slice_of_channels_and_space() -> None:
    net = Net(4)
    sliced = cut(net, "x", [3, 1], [0, -1], [END, -END], [2, -1])
    check(net.model(net.conv(sliced, 4, 4, 3)), {"Conv": 1}, largest=7)


def test_where_the_padding_would_read_on_is_refused() -> None:
    net = Net(4, shape=("N", 4, 8, 8))  # x[2::2], padded: at -1 the Conv reads zero, x[0] would be there
    sliced = cut(net, "x", [2], [2], [END], [2])
    check(net.model(net.conv(sliced, 4, 4, 3, pad=1)), None, Reason.BORDER, largest=7)
    net = Net(4, shape=("N", 4, 8, 8))  # x[:-1]: behind its end the Conv reads zero, not the last row
    sliced = cut(net, "x", [2], [0], [-1], [1])
    check(net.model(net.conv(sliced, 4, 4, 3, pad=1)), None, Reason.BORDER, largest=7)


def test_a_crop_before_an_unpadded_convolution_stays_where_it_would_cost() -> None:
    net = Net(4, shape=("N", 4, 8, 8))
    check(
        net.model(net.conv(cut(net, "x", [2], [2], [END], [1]), 4, 4, 3, pad=0)), None, Reason.COST, largest=9
    )


def test_a_crop_behind_a_padded_convolution_takes_its_padding() -> None:
    net = Net(4, shape=("N", 4, 5, 6))
    model = net.model(cut(net, net.conv("x", 4, 4, 3), [2, 3], [1, 1], [-1, -1], [1, 1]))
    result = check(model, {"Conv": 1}, largest=7)
    (conv,) = result.model.graph.node
    assert next(list(a.ints) for a in conv.attribute if a.name == "pads") == [0, 0, 0, 0]


def test_slices_that_depend_on_the_size_stay() -> None:
    for start, end in ((-4, END), (0, 4), (2, END), (0, -1)):
        net = Net(4)
        check(net.model(net.conv(cut(net, "x", [2], [start], [end], [2]), 4, 4, 3)), None, largest=8)


def test_slices_of_the_batch_stay() -> None:
    net = Net(4, shape=(4, 4, 6, 6))
    check(net.model(net.conv(cut(net, "x", [0], [0], [END], [2]), 4, 4, 3)), None)


def test_slices_of_a_known_size() -> None:
    net = Net(4, shape=("N", 4, 9, 9))
    sliced = cut(net, "x", [2, 3], [-9, 1], [9, 100], [2, 2])
    check(net.model(net.conv(sliced, 4, 4, 3, pad=1)), {"Conv": 1})


def test_focus() -> None:
    net = Net(3, shape=("N", 3, 8, 10))
    result = check(net.model(net.conv(focus(net), 12, 8, 3)), {"Conv": 1})
    assert result.report.after.macs == result.report.before.macs
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert list(weight.dims) == [8, 3, 6, 6]


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_focus_of_an_unknown_size(pad: int, stride: int) -> None:
    """Of an odd size, its Slices differ in size, and the Concat does not run."""
    net = Net(3)
    model = net.model(net.conv(focus(net), 12, 8, 3, pad=pad, strides=[stride, stride]))
    fused = fuse(model).model
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    for height, width in ((6, 6), (8, 6), (10, 16), (12, 14)):
        x = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
        np.testing.assert_allclose(run(fused, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_slices_that_broadcast_at_unknown_sizes_stay() -> None:
    """Of three rows, x[::2] has two, and x[1::2] one, which the Add repeats."""
    net = Net(3)
    y = net.add(cut(net, "x", [2], [0], [END], [2]), cut(net, "x", [2], [1], [END], [2]))
    result = fuse(net.model(net.conv(y, 3, 4, 1)))
    assert "Slice" in {node.op_type for node in result.model.graph.node}


def test_a_focus_that_no_convolution_reads_proves_nothing() -> None:
    """Of one position, a Concat leaves its empty operands out."""
    net = Net(3)
    rows = [cut(net, "x", [2], [row], [END], [2]) for row in (0, 1)]
    y = net.conv(net.add(*rows), 3, 4, 1)
    result = fuse(net.model(y, net.op("Relu", net.op("Concat", *rows, axis=1))))
    assert "Add" in {node.op_type for node in result.model.graph.node}


def test_focus_alone_stays() -> None:
    net = Net(3, shape=("N", 3, 8, 10))
    ops = {"Slice": 4, "Concat": 1, "Relu": 1, "Conv": 1}  # a Slice may take two axes at once
    check(net.model(net.conv(net.op("Relu", focus(net)), 12, 8, 3)), ops)


def test_what_leaves_nothing_of_a_small_tensor_is_not_moved_into_a_convolution() -> None:
    net = Net(4)  # of one row, x[1::2] is empty, and a Conv of none does not run
    model = net.model(cut(net, net.conv("x", 4, 4, 1), [2], [1], [END], [2]))
    assert not plan(model).folds
    check(model, None, Reason.SHAPE, largest=5)


def test_haar() -> None:
    net = Net(2, shape=("N", 2, 8, 6))
    a, b, c, d = (cut(net, "x", [2, 3], [i, j], [END] * 2, [2, 2]) for i in (0, 1) for j in (0, 1))
    half = net.const(0.5)
    bands = []
    for rows, columns in (("Add", "Add"), ("Add", "Sub"), ("Sub", "Add"), ("Sub", "Sub")):
        band = net.op(rows, net.op(columns, a, b), net.op(columns, c, d))
        bands.append(net.op("Mul", band, half))
    result = check(net.model(net.conv(net.op("Concat", *bands, axis=1), 8, 16, 3)), {"Conv": 1})
    assert result.report.after.macs == result.report.before.macs


@pytest.mark.parametrize("shape", [None, (1, 4, 9, 9)])
def test_slices_of_slices_are_one(shape: tuple[int, ...] | None) -> None:
    net = Net(4, shape=shape)
    y = net.conv("x", 4, 4, 3)
    half = cut(net, cut(net, net.op("Relu", y), [2], [0], [END], [2]), [3], [0], [END], [3])
    outputs = net.op("Sigmoid", half), net.op("Sigmoid", y)
    ops = {"Conv": 1, "Relu": 1, "Sigmoid": 2, "Slice": 1}
    check(net.model(*outputs), ops, largest=7)


def test_slices_of_slices_of_one_axis_are_one() -> None:
    net = Net(4, shape=(1, 4, 9, 9))
    y = net.conv("x", 4, 4, 3)
    part = cut(net, cut(net, net.op("Relu", y), [2], [1], [-1], [2]), [2], [1], [3], [1])
    outputs = net.op("Sigmoid", part), net.op("Sigmoid", y)
    check(net.model(*outputs), {"Conv": 1, "Relu": 1, "Sigmoid": 2, "Slice": 1})
