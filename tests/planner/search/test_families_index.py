"""Choices of channels are kernels, and go into the convolution behind them."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal
from tests.index_maps import END, cut, gather, ints


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("channels", [(2, 1, 0), (0, 0, 2), (-1, 0, 1, 1), (0, 1, 2)])
def test_chosen_channels_are_columns(channels: tuple[int, ...], axis: int) -> None:
    net = Net(3)
    check(net.model(net.conv(gather(net, "x", *channels, axis=axis), len(channels), 8, 3)), {"Conv": 1})


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("op", ["Expand", "Tile", "Concat"])
@pytest.mark.parametrize("before", ["", "Sub"])
def test_a_grey_image_as_three_channels(op: str, before: str, space: int) -> None:
    net = Net(shape=("N", 1, "H", "W", "D")[: space + 2])
    y = net.op("Div", net.op("Sub", "x", net.const(0.4)), net.const(0.5)) if before else "x"
    listed = ints(net, 1, 3, *(1,) * space)
    y = net.op("Concat", y, y, y, axis=1) if op == "Concat" else net.op(op, y, listed)
    result = check(net.model(net.conv(y, 3, 8, (3,) * space, pad=0)), {"Conv": 1})
    weight = next(t for t in result.model.graph.initializer if len(t.dims) > 1)
    assert weight.dims[1] == 1


def test_channels_that_are_repeated_in_their_order() -> None:
    net = Net(4)
    y = net.op("Tile", net.op("Relu", "x"), ints(net, 1, 2, 1, 1))
    check(net.model(net.conv(y, 8, 8, 3)), {"Relu": 1, "Conv": 1})


@pytest.mark.parametrize(
    ("op", "amounts"), [("Expand", [1, 1, 3, 1, 1]), ("Expand", [2, 3, 1, 1]), ("Tile", [2, 3, 1, 1])]
)
def test_channels_repeated_together_with_images_stay(op: str, amounts: list[int]) -> None:
    net = Net(shape=(1, 1, "H", "W"))
    y = net.op(op, "x", ints(net, *amounts))
    if len(amounts) == 5:
        y = net.op("Squeeze", y, ints(net, 0))
    model = net.model(net.conv(y, 3, 8, 3))
    result = fuse(model, options=Options(check=False))
    assert counts(result.model)[op] == 1
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("channels", [(3, 1, 0, 2), (5, 0), (2, 3)])
def test_chosen_channels_are_rows(channels: tuple[int, ...]) -> None:
    net = Net(4)
    result = check(net.model(gather(net, net.conv("x", 4, 8, 3), *channels)), {"Conv": 1})
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert weight.dims[0] == len(channels)  # the others are not computed


@pytest.mark.parametrize("channels", [(2, 0), (1,)])
def test_a_convolution_of_fewer_channels_stays(channels: tuple[int, ...]) -> None:
    net = Net(3)  # over all three, it would take more multiply-adds
    check(net.model(net.conv(gather(net, "x", *channels), len(channels), 8, 3)), None)


def test_rows_of_groups_stay_in_groups() -> None:
    net = Net(8)
    result = check(
        net.model(gather(net, net.conv("x", 8, 8, 3, group=2), 3, 1, 0, 2, 7, 4, 5, 6)), {"Conv": 1}
    )
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert weight.dims[1] == 4


def test_columns_of_groups_stay_in_groups() -> None:
    net = Net(8)
    result = check(
        net.model(net.conv(gather(net, "x", 3, 1, 0, 2, 7, 4, 5, 6), 8, 8, 3, group=2)), {"Conv": 1}
    )
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert weight.dims[1] == 4


def test_a_permutation_across_groups_stays() -> None:
    net = Net(8)
    check(net.model(net.conv(gather(net, "x", 0, 4, 1, 5, 2, 6, 3, 7), 8, 8, 3, group=2)), None, Reason.COST)


def test_permutations_around_a_depthwise_permute_its_weights() -> None:
    net = Net(6)
    there, back = (3, 0, 5, 1, 4, 2), (1, 3, 5, 0, 4, 2)
    middle = net.bn(net.conv(gather(net, "x", *there), 6, 6, 3, group=6), 6)
    check(net.model(net.op("Relu", gather(net, middle, *back))), {"Conv": 1, "Relu": 1})


def test_a_permutation_and_its_inverse_vanish() -> None:
    net = Net(4)
    there_and_back = gather(net, gather(net, net.op("Relu", net.conv("x", 4, 4, 3)), 2, 0, 3, 1), 1, 3, 0, 2)
    check(net.model(net.op("Tanh", there_and_back)), {"Conv": 1, "Relu": 1, "Tanh": 1})


def test_a_choice_alone_stays() -> None:
    net = Net(4)
    check(net.model(net.op("Relu", gather(net, net.op("Relu", net.conv("x", 4, 4, 3)), 2, 0, 3, 1))), None)


def test_slices_backwards_and_with_steps_choose_channels() -> None:
    net = Net(6)
    backwards = cut(net, "x", [1], [-1], [-END], [-1])
    check(net.model(net.conv(backwards, 6, 8, 3)), {"Conv": 1})
    net = Net(6)
    every_second = cut(net, net.conv("x", 6, 8, 3), [1], [1], [END], [2])
    result = check(net.model(every_second), {"Conv": 1})
    assert next(t for t in result.model.graph.initializer if len(t.dims) == 4).dims[0] == 4


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 1, 2)])
def test_split_and_concat_choose_channels(order: tuple[int, ...]) -> None:
    net = Net(3)
    parts = net.op("Split", "x", ints(net, 1, 1, 1), outputs=3, axis=1)
    check(net.model(net.conv(net.op("Concat", *(parts[i] for i in order), axis=1), 3, 8, 3)), {"Conv": 1})


def test_bgr_with_mean_and_deviation_and_scale() -> None:
    net = Net(3)
    scaled = net.op("Div", "x", net.const(255.0))
    centred = net.op("Sub", gather(net, scaled, 2, 1, 0), net.channel(3))
    normal = net.op("Div", centred, net.channel(3))
    # The padding is zero behind the shift: it stays in front, everything else goes into the weight.
    check(net.model(net.conv(normal, 3, 8, 3)), {"Add": 1, "Conv": 1})
    net = Net(3)
    normal = net.op("Mul", net.op("Add", gather(net, "x", 2, 1, 0), net.channel(3)), net.channel(3))
    check(net.model(net.conv(normal, 3, 8, 3, pad=0)), {"Conv": 1})


def test_shift_in_front_of_the_choice() -> None:
    net = Net(3)
    normal = net.op("Mul", net.op("Add", "x", net.channel(3)), net.channel(3))
    check(net.model(net.conv(gather(net, normal, 2, 0, 1), 3, 8, 3)), {"Add": 1, "Conv": 1})


def test_channels_on_the_last_axis() -> None:
    net = Net(shape=("N", "T", 4))
    chosen = gather(net, "x", 3, 2, 1, 0, axis=2)
    check(net.model(net.op("MatMul", chosen, net.random(4, 5))), {"MatMul": 1})
    net = Net(shape=("N", "T", 4))
    product = net.op("MatMul", "x", net.random(4, 6))
    check(net.model(gather(net, product, 5, 0, 3, axis=-1)), {"MatMul": 1})


def test_indices_that_are_no_list_stay() -> None:
    net = Net(3, shape=(2, 3, 5, 5))
    check(net.model(net.op("Gather", "x", net.const(np.array(1, np.int64)), axis=1)), None)
    net = Net(3, shape=(2, 3, 5, 5))
    check(net.model(net.conv(gather(net, "x", 4, 3, 0, 1, axis=2), 3, 4, 3)), None)
