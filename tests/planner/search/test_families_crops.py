"""Crops, pads that repeat positions, Expand and Tile: a pointwise Conv works where there are fewer positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.graph.operators.index_maps import END_OF_AXIS
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, equal
from tests.versions import since

REFLECTS = since(
    "ONNX Runtime before 1.24 reads beyond what is too small to be reflected", onnxruntime="1.24"
)
WRAPS = since("ONNX Runtime before 1.20 wraps beyond the input", onnxruntime="1.20")

BY_MACS = Options(cost="macs")
Map = Callable[[Net, str], str]


def cropped(net: Net, x: str) -> str:
    ends = net.const(np.array([4, 5]))
    return str(net.op("Slice", x, net.const(np.array([1, 0])), ends, net.const(np.array([2, 3]))))


def padded(mode: str) -> Map:
    pads = np.array([0, 0, 1, 2, 0, 0, 2, 1])
    return lambda net, x: str(net.op("Pad", x, net.const(pads), mode=mode))


def expanded(net: Net, x: str) -> str:
    mean = net.op("GlobalAveragePool", x)
    return str(net.op("Expand", mean, net.const(np.array([1, 1, 3, 4]))))


def expanded_with_channels(net: Net, x: str) -> str:
    mean = net.op("GlobalAveragePool", x)
    return str(net.op("Expand", mean, net.const(np.array([2, 6, 3, 4]))))


def tiled(net: Net, x: str) -> str:
    return str(net.op("Tile", x, net.const(np.array([1, 1, 2, 3]))))


ENLARGE = [padded("edge"), padded("reflect"), tiled, expanded, expanded_with_channels]


def test_crop_of_a_pointwise_conv() -> None:
    net = Net(6, shape=(2, 6, 5, 7))
    y = cropped(net, net.conv(net.op("Relu", "x"), 6, 4, 1))
    result = check(net.model(net.op("Relu", y)), {"Relu": 2, "Slice": 1, "Conv": 1}, options=BY_MACS)
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Slice", "Conv", "Relu"]


@pytest.mark.parametrize("batch", [4, "N"])
@pytest.mark.parametrize("axes", [(0,), (0, 2)])
def test_every_second_image_is_not_every_image(batch: int | str, axes: tuple[int, ...]) -> None:
    """A Slice with steps over the batch is no convolution, whatever it does with space."""
    net = Net(3, shape=(batch, 3, 5, 5))
    count = len(axes)
    bounds = ([0] * count, [np.iinfo(np.int64).max] * count, list(axes), [2] * count)
    y = net.op("Slice", "x", *(net.const(np.array(number)) for number in bounds))
    check(net.model(net.conv(y, 3, 2, 1)), None, options=Options(check=False))


BATCHES: dict[str, Map] = {
    "cut": lambda net, x: str(net.op("Slice", x, *(net.const(np.array([k])) for k in (0, 1, 0)))),
    "tiled": lambda net, x: str(net.op("Tile", x, net.const(np.array([2, 1, 2, 2])))),
    "expanded": lambda net, x: str(net.op("Expand", x, net.const(np.array([2, 1, 1, 1])))),
    "padded": lambda net, x: str(
        net.op("Pad", x, net.const(np.array([0, 0, 1, 0, 2, 0, 0, 0])), mode="edge")
    ),
}


@pytest.mark.parametrize("way", BATCHES)
@pytest.mark.parametrize("conv_first", [False, True])
def test_a_conv_does_not_pass_what_changes_a_batch_of_unknown_size(way: str, conv_first: bool) -> None:
    """Of four images, one may be left, or eight: how much it takes is told by image."""
    net = Net(6, shape=("N", 6, 5, 7))
    x = net.op("Relu", "x")
    y = BATCHES[way](net, net.conv(x, 6, 4, 1)) if conv_first else net.conv(BATCHES[way](net, x), 6, 4, 1)
    model = net.model(net.op("Relu", y))
    check(model, None, options=BY_MACS)


@pytest.mark.parametrize("space_map", ENLARGE)
def test_pointwise_conv_of_what_is_repeated(space_map: Map) -> None:
    net = Net(6, shape=(2, 6, 5, 7))
    model = net.model(net.op("Relu", net.conv(space_map(net, net.op("Relu", "x")), 6, 4, 1)))
    before = [node.op_type for node in model.graph.node]
    result = check(model, {op: before.count(op) for op in before}, options=BY_MACS)
    after = [node.op_type for node in result.model.graph.node]
    assert after[-3:] == ["Conv", before[-3], "Relu"]


@pytest.mark.parametrize("mode", ["edge", "reflect", pytest.param("wrap", marks=WRAPS)])
def test_norm_behind_a_pad_goes_into_the_conv_before_it(mode: str) -> None:
    net = Net(4, opset=19, shape=(1, 4, 5, 7))
    y = net.bn(padded(mode)(net, net.conv("x", 4, 4, 3)), 4)
    check(net.model(net.op("Relu", y)), {"Conv": 1, "Pad": 1, "Relu": 1})


def test_channels_that_are_padded_or_repeated_stay() -> None:
    net = Net(4, shape=(1, 4, 5, 7))
    y = net.op("Pad", net.conv("x", 4, 4, 3), net.const(np.array([0, 1, 0, 0, 0, 1, 0, 0])), mode="edge")
    check(net.model(net.bn(y, 6)), None)
    net = Net(4, shape=(1, 4, 5, 7))
    y = net.op("Tile", net.conv("x", 4, 4, 3), net.const(np.array([1, 2, 1, 1])))
    check(net.model(net.bn(y, 8)), None)


@pytest.mark.parametrize("behind", ["nothing", "norm", "factor", "sum", "difference"])
def test_a_slice_of_all_positions_is_no_convolution(behind: str) -> None:
    """It takes no multiply-add, and nothing that it folds with does."""
    net = Net(shape=(2, 3, 3, 3))
    bounds = [net.const(np.array([number])) for number in (-5, np.iinfo(np.int64).max, 3, 1)]
    x = net.bn(net.op("Slice", "x", *(net.const(np.array([number])) for number in (0, 2, 1))), 2)
    y = net.op("Slice", x, *bounds)
    y = net.bn(y, 2) if behind == "norm" else y
    y = net.op("Mul", y, net.channel(2)) if behind == "factor" else y
    y = net.add(y, net.op("Mul", x, net.channel(2))) if behind == "sum" else y
    y = net.op("Sub", x, net.op("Mul", y, net.channel(2))) if behind == "difference" else y
    report = fuse(net.model(y), options=Options(check=False)).report
    assert "Conv" not in report.after.ops
    assert report.after.macs == 0


# sizes that are not known


def crop(net: Net, x: str, first: int = 1, last: int = -1, **bounds: str) -> str:
    """x[:, :, first:last, first:last]"""
    both = {name: net.const(np.array([at, at])) for name, at in (("starts", first), ("ends", last))}
    both |= bounds
    return str(net.op("Slice", x, both["starts"], both["ends"], net.const(np.array([2, 3]))))


@pytest.mark.parametrize("bounds", [(1, -1), (0, -2), (2, 5), (-3, END_OF_AXIS)])
def test_norm_behind_a_crop_of_unknown_sizes_goes_into_the_conv_before_it(bounds: tuple[int, int]) -> None:
    net = Net(4)
    y = net.bn(crop(net, net.conv("x", 4, 4, 3, pad=1), *bounds), 4)
    check(net.model(net.op("Relu", y)), {"Conv": 1, "Slice": 1, "Relu": 1}, largest=9)


@pytest.mark.parametrize("mode", ["edge", pytest.param("reflect", marks=REFLECTS)])
def test_norm_behind_a_pad_of_unknown_sizes_goes_into_the_conv_before_it(mode: str) -> None:
    net = Net(4, opset=19)
    y = net.bn(padded(mode)(net, net.conv("x", 4, 4, 3, pad=1)), 4)
    check(net.model(net.op("Relu", y)), {"Conv": 1, "Pad": 1, "Relu": 1}, largest=9)


@pytest.mark.parametrize("space_map", [padded("edge"), tiled])
def test_pointwise_conv_of_what_is_repeated_at_unknown_sizes(space_map: Map) -> None:
    net = Net(6)
    model = net.model(net.op("Relu", net.conv(space_map(net, net.op("Relu", "x")), 6, 4, 1)))
    before = [node.op_type for node in model.graph.node]
    result = check(model, {op: before.count(op) for op in before}, options=BY_MACS, largest=9)
    assert [node.op_type for node in result.model.graph.node][-3:] == ["Conv", before[-3], "Relu"]


def test_pointwise_conv_behind_an_expand_to_the_size_of_another_tensor() -> None:
    """An image's average, which every position gets (`expand_as`)."""
    net = Net(6)
    space = net.op("Slice", net.op("Shape", "x"), *(net.const(np.array([k])) for k in (2, 4)))
    sizes = net.op("Concat", net.const(np.array([1, 1])), space, axis=0)
    y = net.op("Expand", net.op("GlobalAveragePool", net.op("Relu", "x")), sizes)
    model = net.model(net.op("Relu", net.conv(y, 6, 4, 1)))
    result = fuse(model, options=BY_MACS)
    order = [node.op_type for node in result.model.graph.node]
    assert order.index("Conv") < order.index("Expand")
    assert equal(model, result.model, 9) > 0


def test_a_conv_does_not_move_behind_a_crop_that_may_leave_nothing() -> None:
    """Of two positions the crop leaves none, which ONNX Runtime's Conv does not take; the Slice does."""
    net = Net(4)
    model = net.model(net.op("Relu", crop(net, net.conv(net.op("Relu", "x"), 4, 6, 1))))
    check(model, None, Reason.SHAPE, options=BY_MACS)


def test_a_conv_moves_behind_a_crop_where_another_one_takes_what_it_leaves() -> None:
    net = Net(4)
    y = crop(net, net.conv(net.op("Relu", "x"), 4, 6, 1))
    model = net.model(net.conv(y, 6, 5, 1))
    result = check(model, {"Relu": 1, "Slice": 1, "Conv": 1}, options=BY_MACS, largest=9)
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Slice", "Conv"]


def test_a_conv_does_not_move_before_a_crop() -> None:
    net = Net(4)
    model = net.model(net.conv(crop(net, net.op("Relu", "x")), 4, 2, 1))
    check(model, None, largest=9)


def test_a_crop_by_computed_bounds_and_of_the_batch_stays() -> None:
    net = Net(4)
    ends = net.op("Slice", net.op("Shape", "x"), net.const(np.array([2])), net.const(np.array([4])))
    y = crop(net, net.conv("x", 4, 4, 3, pad=1), ends=str(net.op("Sub", ends, net.const(np.array([1, 2])))))
    assert not fuse(net.model(net.bn(y, 4))).report.folds
    net = Net(4)
    bounds = [net.const(np.array([k])) for k in (0, 1, 0)]
    y = net.op("Slice", net.conv("x", 4, 4, 3, pad=1), *bounds)
    assert not fuse(net.model(net.bn(y, 4))).report.folds


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("left_out", [0, 2, 3])
@pytest.mark.parametrize(
    ("k", "attrs"),
    [
        (8, {"strides": [4]}),
        (8, {"strides": [4], "pads": [1, 0]}),
        (8, {"strides": [4], "output_padding": [2], "group": 2}),
        (4, {"strides": [1], "dilations": [3]}),
    ],
)
def test_a_crop_behind_a_transposed_conv_is_its_pads(
    first: int, left_out: int, k: int, attrs: dict[str, Any]
) -> None:
    """FCN crops what a bilinear ConvTranspose writes, causal audio codecs its end."""
    groups = attrs.get("group", 1)
    net = Net(4, shape=(2, 4, 6))
    y = net.op("ConvTranspose", "x", net.random(4, 6 // groups, k), net.random(6), **attrs)
    size = net.model(y).graph.output[0].type.tensor_type.shape.dim[2].dim_value
    ends = net.const(np.array([size - left_out]))
    y = net.op("Slice", y, net.const(np.array([first])), ends, net.const(np.array([2])))
    y = net.op("Mul", y, net.channel(6, 1))
    check(net.model(net.op("Tanh", y)), {"ConvTranspose": 1, "Tanh": 1})


def test_a_crop_of_the_inside_of_a_transposed_image() -> None:
    net = Net(4, shape=("N", 4, 5, 6))
    y = net.op("ConvTranspose", "x", net.random(4, 1, 4, 4), strides=[2, 2], group=4)
    cut = [net.const(np.array(values)) for values in ([1, 0], [11, 13], [2, 3])]
    check(net.model(net.op("Tanh", net.op("Slice", y, *cut))), {"ConvTranspose": 1, "Tanh": 1})


@pytest.mark.parametrize(
    "cut",
    [
        [[4], [24], [2]],  # a single position of the input would leave none
        [[0], [END_OF_AXIS], [2], [2]],  # a step
    ],
)
def test_slices_behind_a_transposed_conv_that_are_no_pads(cut: list[list[int]]) -> None:
    net = Net(4, shape=(2, 4, 6))
    y = net.op("ConvTranspose", "x", net.random(4, 6, 8), strides=[4])
    y = net.op("Slice", y, *(net.const(np.array(values)) for values in cut))
    check(net.model(net.op("Tanh", y)), None)
