"""Index maps: operators that choose channels or positions are kernels, and go into the convolution behind them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_repfuse import Options, fuse, plan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal, run

END = np.iinfo(np.int64).max


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def gather(net: Net, x: str, *channels: int, axis: int = 1) -> str:
    return str(net.op("Gather", x, ints(net, *channels), axis=axis))


def cut(net: Net, x: str, axes: list[int], starts: list[int], ends: list[int], steps: list[int]) -> str:
    return str(net.op("Slice", x, *(ints(net, *values) for values in (starts, ends, axes, steps))))


def focus(net: Net, x: str = "x") -> str:
    """YOLO's: the four positions of each 2x2 block as channels."""
    parts = [
        cut(net, cut(net, x, [2], [row], [END], [2]), [3], [column], [END], [2])
        for column in (0, 1)
        for row in (0, 1)
    ]
    return str(net.op("Concat", *parts, axis=1))


# Choices of channels


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


# Positions


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


# Positions and channels


def shaped(net: Net, x: str, *sizes: int) -> str:
    return str(net.op("Reshape", x, ints(net, *sizes)))


def shuffled(net: Net, x: str, channels: int, groups: int, *space: int) -> str:
    """ShuffleNet's channel_shuffle."""
    split = shaped(net, x, -1, groups, channels // groups, *space)
    return shaped(net, net.op("Transpose", split, perm=[0, 2, 1, 3, 4]), -1, channels, *space)


def unshuffled(net: Net, x: str, channels: int, r: int, height: int, width: int) -> str:
    """torch's pixel_unshuffle."""
    split = shaped(net, x, -1, channels, height // r, r, width // r, r)
    moved = net.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    return shaped(net, moved, -1, channels * r * r, height // r, width // r)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("normalized", [False, True])
def test_space_to_depth(pad: int, normalized: bool) -> None:
    def block(net: Net) -> str:
        blocks = net.op("SpaceToDepth", "x", blocksize=2)
        blocks = net.op("Mul", blocks, net.channel(12)) if normalized else blocks
        return net.conv(blocks, 12, 8, 3, pad=pad)

    net = Net(3, shape=("N", 3, 8, 6))
    check(net.model(block(net)), {"Conv": 1})
    net = Net(3)  # at sizes that are not even, neither runs or the original does not
    model = net.model(block(net))
    fused = fuse(model).model
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    for height, width in ((6, 6), (8, 6), (10, 16)):
        x = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
        np.testing.assert_allclose(run(fused, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("r", "height", "width"), [(2, 8, 6), (3, 9, 9), (2, 2, 4)])
def test_pixel_unshuffle(r: int, height: int, width: int) -> None:
    net = Net(3, shape=("N", 3, height, width))
    blocks = unshuffled(net, "x", 3, r, height, width)
    check(net.model(net.conv(blocks, 3 * r * r, 8, 3)), {"Conv": 1})


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), ("N", 6, 5, 4)])
def test_channel_shuffle_goes_into_the_weights(shape: tuple[int | str, ...]) -> None:
    net = Net(shape=shape)
    check(net.model(net.conv(shuffled(net, "x", 6, 2, 5, 4), 6, 8, 3)), {"Conv": 1})
    net = Net(shape=shape)
    check(net.model(shuffled(net, net.conv("x", 6, 6, 3), 6, 3, 5, 4)), {"Conv": 1})


def test_channel_shuffles_around_a_depthwise() -> None:
    net = Net(shape=("N", 6, 5, 4))
    middle = net.bn(net.conv(shuffled(net, "x", 6, 2, 5, 4), 6, 6, 3, group=6), 6)
    check(net.model(net.op("Relu", shuffled(net, middle, 6, 3, 5, 4))), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("batch", ["N", 3])
def test_halves_of_rows_as_channels_are_no_blocks_of_neighbours(batch: int | str, channels: int) -> None:
    """A block takes neighbours from each other: here position w of a channel stands in half w // 2."""
    net = Net(shape=(batch, channels, 4))
    y = shaped(net, shaped(net, net.op("Relu", "x"), -1, 4), -1, channels * 2, 2)
    result = check(net.model(net.op("Relu", y)), None)
    assert not fuse(result.model, options=Options(check=False)).report.folds


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_transposes_that_undo_each_other_are_no_shuffle(times: int) -> None:
    """Three of (N, 1, 2) would be read as a space to depth, and keep apart what is around them."""
    net = Net(shape=("N", 1, 2))
    moved = net.op("MatMul", "x", net.random(2, 2))
    for _ in range(2 * times):
        moved = net.op("Transpose", moved, perm=[0, 2, 1])
    check(net.model(net.op("Add", moved, net.op("MatMul", "x", net.random(2, 2)))), {"MatMul": 1})


def test_a_shuffle_between_nodes_that_undo_each_other() -> None:
    net = Net(shape=(2, 6, 5, 4))
    moved = "x"
    for number in range(4):
        moved = shuffled(net, moved, 6, 2, 5, 4) if number == 2 else moved
        moved = net.op("Transpose", moved, perm=[0, 1, 3, 2])
    check(net.model(net.conv(moved, 6, 8, 3)), {"Conv": 1})


def test_a_shuffle_whose_groups_do_not_fit_is_one_gather() -> None:
    net = Net(shape=("N", 6, 5, 4))
    model = net.model(net.conv(shuffled(net, "x", 6, 2, 5, 4), 6, 6, 3, group=3))
    check(model, {"Gather": 1, "Conv": 1}, Reason.COST)


# height and width change places; another split, of another axis
@pytest.mark.parametrize("middle", [(-1, 2, 3, 4, 5), (-1, 3, 2, 5, 4), (-1, 6, 5, 2, 2)])
def test_what_is_no_shuffle_of_channels_stays(middle: tuple[int, ...]) -> None:
    net = Net(shape=("N", 6, 5, 4))
    perm = [0, 2, 1, 3, 4] if middle[1] != 6 else [0, 1, 3, 2, 4]
    moved = shaped(net, net.op("Transpose", shaped(net, "x", *middle), perm=perm), -1, 6, 5, 4)
    expected = {"Conv": 1} if middle == (-1, 3, 2, 5, 4) else None
    check(net.model(net.conv(moved, 6, 8, 3)), expected)


def asked(net: Net, x: str, *sizes: int | tuple[int, int], casts: int = 0) -> str:
    """A list of numbers and of sizes of x, (axis, divisor), as the TorchScript exporter computes it.

    It puts two Casts to the same type behind each quotient.
    """
    parts = []
    for size in sizes:
        if isinstance(size, int):
            parts.append(ints(net, size))
            continue
        axis, divisor = size
        one = net.op("Gather", net.op("Shape", x), net.const(np.array(axis)))
        if divisor > 1:
            one = net.op("Div", one, net.const(np.array(divisor)))
            for _ in range(casts):
                one = net.op("Cast", one, to=7)
        parts.append(net.op("Unsqueeze", one, ints(net, 0)))
    return str(net.op("Concat", *parts, axis=0))


def shuffled_at_any_size(net: Net, x: str, groups: int, casts: int = 0) -> str:
    batch, channels, height, width = ((axis, 1) for axis in range(4))
    split = net.op("Reshape", x, asked(net, x, batch, groups, (1, groups), height, width, casts=casts))
    swapped = net.op("Transpose", split, perm=[0, 2, 1, 3, 4])
    return str(net.op("Reshape", swapped, asked(net, x, batch, channels, height, width)))


@pytest.mark.parametrize("casts", [0, 1, 2])
def test_channel_shuffle_of_unknown_size_goes_into_the_weights(casts: int) -> None:
    net = Net(6)
    check(net.model(net.conv(shuffled_at_any_size(net, "x", 2, casts), 6, 8, 3)), {"Conv": 1})
    net = Net(6)
    check(net.model(shuffled_at_any_size(net, net.conv("x", 6, 6, 3), 3, casts)), {"Conv": 1})


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_size_that_is_computed_by_way_of_many_paths_is_followed_once(op: str) -> None:
    net = Net(6)
    size = net.op("Gather", net.op("Shape", "x"), ints(net, 0))
    for _ in range(22):  # four million paths
        size = net.op(op, size, size)
    target = net.op("Concat", size, ints(net, 6), asked(net, "x", (2, 1), (3, 1)), axis=0)
    assert plan(net.model(net.bn(net.conv(net.op("Reshape", "x", target), 6, 6, 3), 6))).folds


def test_halves_of_a_shuffled_tensor_whose_ends_follow_from_its_channels() -> None:
    """ShuffleNet v2's `x.chunk(2, dim=1)` behind a shuffle: each half is a choice of channels."""
    net = Net(8)
    moved = shuffled_at_any_size(net, net.op("Relu", "x"), 2)
    ends = asked(net, moved, (1, 2)), asked(net, moved, (1, 1))
    parts = [
        net.op("Slice", moved, start, end, ints(net, 1))
        for start, end in ((ints(net, 0), ends[0]), (ends[0], ends[1]))
    ]
    model = net.model(*(net.conv(part, 4, 5, 1) for part in parts))
    result = fuse(model)
    assert result.report.folds
    assert not {"Reshape", "Transpose"} & {node.op_type for node in result.model.graph.node}
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_pixel_unshuffle_of_unknown_size(r: int, pad: int) -> None:
    """Where r does not divide a size, the Reshape does not run."""
    net = Net(2)
    batch, height, width = (0, 1), (2, r), (3, r)
    split = net.op("Reshape", "x", asked(net, "x", batch, 2, height, r, width, r))
    moved = net.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    blocks = net.op("Reshape", moved, asked(net, "x", batch, 2 * r * r, height, width))
    model = net.model(net.conv(blocks, 2 * r * r, 4, 3, pad=pad))
    fused = fuse(model).model
    assert [node.op_type for node in fused.graph.node] == ["Conv"]
    for rows, columns in ((3, 3), (4, 3), (5, 8)):
        x = np.random.default_rng(0).standard_normal((2, 2, rows * r, columns * r)).astype(np.float32)
        np.testing.assert_allclose(run(fused, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_the_other_half_of_a_size_is_no_block() -> None:
    """(n, C, 2, h/2, ...): neighbours along the height stay neighbours."""
    net = Net(2)
    split = net.op("Reshape", "x", asked(net, "x", (0, 1), 2, 2, (2, 2), (3, 1)))
    moved = net.op("Transpose", split, perm=[0, 1, 2, 3, 4])
    halves = net.op("Reshape", moved, asked(net, "x", (0, 1), 4, (2, 2), (3, 1)))
    model = net.model(net.conv(halves, 4, 4, 3))
    assert "Reshape" in {node.op_type for node in fuse(model).model.graph.node}


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), ("N", 3, "H", "W")])
@pytest.mark.parametrize("nd", [True, False])
def test_channels_gathered_between_transposes(shape: tuple[int | str, ...], nd: bool) -> None:
    """The torch exporter's x[:, [2, 1, 0]]."""
    net = Net(shape=shape)
    first = net.op("Transpose", "x", perm=[1, 0, 2, 3])
    if nd:
        chosen = net.op("GatherND", first, net.const(np.array([[2], [1], [0]], np.int64)))
    else:
        chosen = gather(net, first, 2, 1, 0, axis=0)
    check(net.model(net.conv(net.op("Transpose", chosen, perm=[1, 0, 2, 3]), 3, 8, 3)), {"Conv": 1})


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("how", ["Gather", "Split", "Slice"])
@pytest.mark.parametrize("transforms", [False, True])
def test_channels_taken_one_by_one(space: int, how: str, transforms: bool) -> None:
    """torchvision's `transform_input`, and torch.stack of channels: an axis goes and comes again."""
    net = Net(3, shape=("N", 3, "H", "W", "D")[: space + 2])
    parts = []
    one = ints(net, 1)
    split = net.op("Split", "x", ints(net, 1, 1, 1), outputs=3, axis=1) if how == "Split" else []
    for number in (2, 0, 1):
        if how == "Gather":
            y = net.op("Gather", "x", net.const(np.array(number)), axis=1)
        else:
            part = split[number] if split else cut(net, "x", [1], [number], [number + 1], [1])
            y = net.op("Squeeze", part, one)
        y = net.op("Unsqueeze", y, one)
        if transforms:
            y = net.op("Sub", net.op("Mul", y, net.const(0.4 + number)), net.const(0.1))
        parts.append(y)
    y = net.op("Concat", *parts, axis=1)
    check(net.model(net.conv(y, 3, 8, (3,) * space, pad=0)), {"Conv": 1})


def test_an_image_or_a_row_taken_alone_is_no_channel() -> None:
    for axis in (0, 2):
        net = Net(shape=(3, 3, 3, 3))
        y = net.op("Unsqueeze", net.op("Gather", "x", net.const(np.array(1)), axis=axis), ints(net, axis))
        model = net.model(net.conv(net.op("Mul", y, net.const(2.0)), 3, 8, (1, 1)))
        assert counts(fuse(model).model)["Gather"] == 1
    net = Net(shape=(3, 3, 3, 3))
    y = net.op("Unsqueeze", net.op("Gather", "x", net.const(np.array(1)), axis=0), ints(net, 1))
    check(net.model(net.conv(y, 1, 8, (1, 1))), None)  # the channels of one image as images of one channel


def test_positions_gathered_between_transposes_stay() -> None:
    net = Net(shape=(2, 3, 5, 4))
    first = net.op("Transpose", "x", perm=[2, 1, 0, 3])
    chosen = net.op("GatherND", first, net.const(np.array([[4], [1], [0], [2], [3]], np.int64)))
    check(net.model(net.conv(net.op("Transpose", chosen, perm=[2, 1, 0, 3]), 3, 8, 3)), None)


# Channels to positions


def depth_to_space(net: Net, x: str, mode: str) -> str:
    return str(net.op("DepthToSpace", x, blocksize=2, mode=mode))


MODES = pytest.mark.parametrize("mode", ["DCR", "CRD"])


@MODES
def test_affine_behind_depth_to_space_goes_into_the_convolution_before(mode: str) -> None:
    net = Net(4)
    up = depth_to_space(net, net.conv("x", 4, 12, 3), mode)
    y = net.op("Add", net.op("Mul", net.bn(up, 3), net.channel(3)), net.channel(3))
    check(net.model(net.op("Relu", y)), {"Conv": 1, "DepthToSpace": 1, "Relu": 1})


@MODES
@pytest.mark.parametrize("group", [1, 2])
def test_pointwise_behind_depth_to_space_goes_into_the_convolution_before(mode: str, group: int) -> None:
    net = Net(4)
    up = depth_to_space(net, net.conv("x", 4, 16, 3), mode)
    y = net.op("Relu", net.bn(net.conv(up, 4, 2, 1, group=group), 2))
    result = check(net.model(y), {"Conv": 1, "DepthToSpace": 1, "Relu": 1})
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert list(weight.dims) == [8, 4, 3, 3]


@MODES
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 2), (1, 3), (2, 4)])
def test_channels_behind_depth_to_space(mode: str, start: int, end: int) -> None:
    """In the order of DCR, the parts of channel c are as far apart as there are channels: all count, not those kept."""
    net = Net(4)
    y = cut(net, depth_to_space(net, net.conv("x", 4, 16, 3), mode), [1], [start], [end], [1])
    result = check(net.model(y), {"Conv": 1, "DepthToSpace": 1})
    weight = next(t for t in result.model.graph.initializer if len(t.dims) == 4)
    assert list(weight.dims) == [4 * (end - start), 4, 3, 3]


@MODES
@pytest.mark.parametrize("channels", [(2, 0, 1), (3, 1), (0, 0, 2), (1, 2, 1, 3, 0), (3,)])
@pytest.mark.parametrize("is_scaled", ["before", "behind", ""])
def test_chosen_channels_behind_depth_to_space(mode: str, channels: tuple[int, ...], is_scaled: str) -> None:
    net = Net(4)
    y = depth_to_space(net, net.conv("x", 4, 16, 3), mode)
    if is_scaled == "before":
        y = net.op("Add", net.op("Mul", y, net.channel(4)), net.channel(4))
    y = gather(net, y, *channels)
    if is_scaled == "behind":
        y = net.bn(y, len(channels))
    result = fuse(net.model(y))
    assert equal(net.model(y), result.model) > 0
    grows = len(channels) > 4  # and where it repeats channels, each has a factor of its own
    assert ("Gather" in counts(result.model)) == grows
    is_left = not {"Mul", "Add", "BatchNormalization"}.isdisjoint(counts(result.model))
    assert is_left == (grows and is_scaled == "behind")
    if mode == "DCR":
        alike = Net(4)  # an inner tensor of other channels: sizes are those of the tensor, not of the part
        first = alike.op("Slice", alike.conv("x", 4, 20, 3), *(ints(alike, n) for n in (2, 18, 1)))
        y = gather(alike, depth_to_space(alike, first, mode), *channels)
        assert equal(alike.model(y), fuse(alike.model(y)).model) > 0


@MODES
def test_what_is_not_pointwise_stays_behind_depth_to_space(mode: str) -> None:
    net = Net(4)
    check(net.model(net.conv(depth_to_space(net, net.conv("x", 4, 16, 3), mode), 4, 4, 3)), None)
    net = Net(4)  # before it, a factor per channel is none of the few channels behind it
    up = depth_to_space(net, net.op("Mul", net.op("Relu", net.conv("x", 4, 16, 3)), net.channel(16)), mode)
    check(net.model(net.conv(up, 4, 4, 3)), None)
    net = Net(4)  # more channels: more multiply-adds than apart
    up = depth_to_space(net, net.conv("x", 4, 16, 3), mode)
    check(net.model(net.conv(up, 4, 16, 1)), None)


@MODES
def test_a_depth_to_space_with_other_consumers_stays(mode: str) -> None:
    net = Net(4)
    up = depth_to_space(net, net.conv("x", 4, 12, 3), mode)
    check(net.model(net.op("Relu", net.bn(up, 3)), net.op("Sigmoid", up)), None)


@pytest.mark.parametrize(("opset", "axis"), [(17, -3), (11, -3), (10, 1)])
def test_a_shuffle_that_two_convolutions_read_is_one_gather(opset: int, axis: int) -> None:
    """As between the stages of ShuffleNet. OpenVINO leaves out a permutation whose axis counts from the front."""
    net = Net(6, shape=(1, 6, 5, 4), opset=opset)
    y = shuffled(net, net.op("Relu", "x"), 6, 2, 5, 4)
    deep = net.op("Relu", net.conv(y, 6, 6, 3, group=6))
    model = net.model(net.op("Concat", deep, net.op("Relu", net.conv(y, 6, 6, 3, group=2)), axis=1))
    result = fuse(model).model
    nodes = [node for node in result.graph.node if node.op_type == "Gather"]
    assert [helper.get_node_attr_value(node, "axis") for node in nodes] == [axis]
    assert not counts(result).get("Transpose")
    assert fuse(result).model == result


def pixel_shuffled(net: Net, x: str, channels: int, mode: str, *space: int) -> str:
    """pixel_shuffle by 2 as torch writes it, or the other order; without `space`, the graph computes the sizes."""
    parts, perm = (
        ((channels, 2, 2), [0, 1, 4, 2, 5, 3]) if mode == "CRD" else ((2, 2, channels), [0, 3, 4, 1, 5, 2])
    )
    if space:
        split = shaped(net, x, -1, *parts, *space)
        moved = net.op("Transpose", split, perm=perm)
        return shaped(net, moved, -1, channels, *(2 * size for size in space))
    split = net.op("Reshape", x, asked(net, x, (0, 1), *parts, (2, 1), (3, 1)))
    moved = net.op("Transpose", split, perm=perm)
    doubled = net.op("Mul", asked(net, x, (2, 1), (3, 1)), ints(net, 2, 2))
    target = net.op("Concat", asked(net, x, (0, 1), channels), doubled, axis=0)
    return str(net.op("Reshape", moved, target))


SPACE = pytest.mark.parametrize("space", [(), (5, 4), (1, 3)])


@MODES
@SPACE
def test_what_is_behind_a_pixel_shuffle_goes_into_the_convolution_before(
    mode: str, space: tuple[int, ...]
) -> None:
    shape = ("N", 4, *space) if space else ("N", 4, "H", "W")
    for channels in (1, 3):
        net = Net(shape=shape)
        up = pixel_shuffled(net, net.conv("x", 4, 4 * channels, 3), channels, mode, *space)
        y = net.op("Mul", net.bn(up, channels), net.channel(channels))
        check(net.model(net.op("Relu", y)), {"Conv": 1, "DepthToSpace": 1, "Relu": 1})
    net = Net(shape=shape)
    up = pixel_shuffled(net, net.conv("x", 4, 16, 3), 4, mode, *space)
    model = net.model(net.op("Relu", net.bn(net.conv(up, 4, 2, 1), 2)))
    check(model, {"Conv": 1, "DepthToSpace": 1, "Relu": 1})


def test_a_pixel_shuffle_alone_is_one_operator() -> None:
    net = Net(12)
    check(net.model(net.op("Relu", pixel_shuffled(net, net.op("Sigmoid", "x"), 3, "CRD"))), ONE_SHUFFLE)
    net = Net(12)
    both = net.op("Relu", pixel_shuffled(net, net.op("Sigmoid", "x"), 3, "CRD"))
    result = fuse(net.model(both), options=Options(avoid=frozenset({"DepthToSpace"})))
    assert "DepthToSpace" not in {node.op_type for node in result.model.graph.node}


ONE_SHUFFLE = {"Sigmoid": 1, "DepthToSpace": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("parts", "perm"),
    [
        ((3, 2, 2), [0, 1, 5, 2, 4, 3]),  # height and width change places
        ((3, 2, 2), [0, 1, 4, 3, 5, 2]),  # rows and columns of the block do
        ((2, 3, 2), [0, 2, 4, 1, 5, 3]),  # neither order of channels
    ],
)
def test_what_is_no_pixel_shuffle_stays(parts: tuple[int, ...], perm: list[int]) -> None:
    net = Net(12, shape=("N", 12, 4, 4))
    moved = net.op("Transpose", shaped(net, net.op("Relu", "x"), -1, *parts, 4, 4), perm=perm)
    model = net.model(net.op("Relu", net.bn(shaped(net, moved, -1, 3, 8, 8), 3)))
    result = fuse(model)
    assert "DepthToSpace" not in {node.op_type for node in result.model.graph.node}
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("how", ["Flatten", "Reshape"])
@pytest.mark.parametrize("batch", [2, "N"])
def test_norm_before_flattened_positions(how: str, batch: int | str) -> None:
    net = Net(shape=(batch, 4, 3, 2))
    x = net.op("Mul", net.bn(net.op("Relu", "x"), 4), net.channel(4))
    flat = net.op("Flatten", x) if how == "Flatten" else shaped(net, x, -1, 24)
    y = net.bn(net.op("Gemm", flat, net.random(5, 24), net.random(5), transB=1), 5)
    check(net.model(y), {"Relu": 1, how: 1, "Gemm": 1})


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("op", ["Flatten", "Reshape"])
@pytest.mark.parametrize("part", ["all", "first", "others", "chosen"])
def test_arithmetic_before_flattened_positions_of_channels_on_the_last_axis(
    space: int, op: str, part: str
) -> None:
    """As Keras flattens: the positions of a channel are as far apart as there are channels."""
    net = Net(shape=("N", *(2,) * space, 5))
    y = net.op("Relu", "x")
    width = 5 if part == "all" else 3
    if part == "chosen":
        y = gather(net, y, 4, 0, 2, axis=-1)
    elif part != "all":
        start = 0 if part == "first" else 1
        y = cut(net, y, [space + 1], [start], [start + 3], [1])
    y = net.op("Add", net.op("Mul", y, net.random(width)), net.random(width))
    many = width * 2**space
    y = net.op("Flatten", y) if op == "Flatten" else net.op("Reshape", y, ints(net, -1, many))
    kept = {"all": {}, "chosen": {"Gather": 1}}.get(part, {"Slice": 1})
    expected = {"Relu": 1, op: 1, "Gemm": 1, **kept}
    check(net.model(net.op("Gemm", y, net.random(many, 4), net.random(4))), expected)


@pytest.mark.parametrize("op", ["MaxPool", "GlobalMaxPool"])
def test_norm_before_a_maximum_before_flattened_positions(op: str) -> None:
    net = Net(shape=("N", 3, 4, 4))
    y = net.op("Relu", "x")
    y = net.op("Add", net.op("Mul", y, net.const(np.array([0.5, 2.0, 3.0]).reshape(3, 1, 1))), net.channel(3))
    window = {"kernel_shape": [2, 2], "strides": [2, 2]} if op == "MaxPool" else {}
    y = net.op("Flatten", net.op(op, y, **window))
    many = 12 if op == "MaxPool" else 3
    model = net.model(net.op("Gemm", y, net.random(many, 5), net.random(5)))
    check(model, {"Relu": 1, op: 1, "Flatten": 1, "Gemm": 1})


def test_positions_flattened_together_with_the_batch_stay() -> None:
    net = Net(shape=(2, 4, 3, 2))
    flat = shaped(net, net.bn(net.op("Relu", "x"), 4), 4, 12)
    check(net.model(net.op("MatMul", flat, net.random(12, 5))), None)


def test_pointwise_before_flattened_positions_stays() -> None:
    net = Net(shape=("N", 4, 3, 2))
    flat = net.op("Flatten", net.conv("x", 4, 4, 1))
    check(net.model(net.op("Gemm", flat, net.random(5, 24), net.random(5), transB=1)), None)


def rows_as_images(net: Net, x: str, how: str, *sizes: int) -> str:
    """(N, C*H*W) as (N, C, H, W); the batch as -1, as 0, or taken from the Shape of x."""
    if how != "shape":
        return shaped(net, x, -1 if how == "-1" else 0, *sizes)
    batch = net.op("Slice", net.op("Shape", "x"), ints(net, 0), ints(net, 1), ints(net, 0))
    return str(net.op("Reshape", x, net.op("Concat", batch, ints(net, *sizes), axis=0)))


@pytest.mark.parametrize("how", ["-1", "0", "shape"])
@pytest.mark.parametrize("sizes", [(4, 3, 2), (4, 6), (4, 1, 3, 2)])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_norm_behind_rows_that_become_images(how: str, sizes: tuple[int, ...], op: str) -> None:
    """A generator's Linear, view and BatchNormalization."""
    net = Net(shape=("N", 5))
    rows = net.op(op, "x", net.random(5, 24), *([net.random(24)] if op == "Gemm" else []))
    y = net.op("Relu", net.bn(rows_as_images(net, rows, how, *sizes), 4))
    model = net.model(y)
    others = {name: count for name, count in counts(model).items() if name not in (op, "BatchNormalization")}
    check(model, {**others, "Gemm": 1})


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("is_last", [True, False])
def test_arithmetic_behind_rows_that_become_images(op: str, is_last: bool) -> None:
    net = Net(shape=("N", 5))
    rows = net.op("Gemm", "x", net.random(5, 24), net.random(24))
    y = net.op(op, rows_as_images(net, rows, "-1", 4, 3, 2), net.channel(4))
    model = net.model(y if is_last else net.conv(y, 4, 6, 3))
    check(model, {"Gemm": 1, "Reshape": 1} if is_last else {"Gemm": 1, "Reshape": 1, "Conv": 1})


def test_pointwise_behind_rows_that_become_images() -> None:
    """As many channels: they go into the Gemm. Others would need another list of sizes, and stay."""
    for c_out, ops in ((4, {"Gemm": 1, "Reshape": 1}), (2, None)):
        net = Net(shape=("N", 5))
        images = rows_as_images(net, net.op("Gemm", "x", net.random(5, 24), net.random(24)), "-1", 4, 3, 2)
        check(net.model(net.conv(images, 4, c_out, 1)), ops)


@pytest.mark.parametrize(
    ("sizes", "ops"),
    [((8, 4, 3), {"Gemm": 1, "Reshape": 1}), ((-1, 4, 3), {"Gemm": 1, "Reshape": 1}), ((2, 4, 12), None)],
)
def test_rows_that_become_more_or_fewer_images(sizes: tuple[int, ...], ops: dict[str, int] | None) -> None:
    """A row that is several images has the factors of their channels several times; one of half an image has not."""
    net = Net(shape=(4, 5))
    rows = net.op("Gemm", "x", net.random(5, 24), net.random(24))
    check(net.model(net.bn(shaped(net, rows, *sizes), 4)), ops)


def test_rows_that_others_read_stay() -> None:
    net = Net(shape=("N", 5))
    rows = net.op("Gemm", "x", net.random(5, 24), net.random(24))
    y = net.bn(rows_as_images(net, rows, "-1", 4, 3, 2), 4)
    check(net.model(net.op("Relu", y), net.op("Softmax", rows)), None)


def test_factor_per_position_behind_rows_that_become_images_goes_into_the_rows() -> None:
    net = Net(shape=("N", 5))
    rows = net.op("Gemm", "x", net.random(5, 24), net.random(24))
    images = rows_as_images(net, rows, "-1", 4, 3, 2)
    check(net.model(net.op("Mul", images, net.random(1, 3, 2))), {"Gemm": 1, "Reshape": 1})


# Parts of a Split


def split(net: Net, x: str, *sizes: int) -> list[str]:
    return list(net.op("Split", x, ints(net, *sizes), outputs=len(sizes), axis=1))


@pytest.mark.parametrize("bias", [False, True])
def test_norm_behind_one_part_of_a_split_goes_into_those_rows(bias: bool) -> None:
    net = Net(4)
    first, second = split(net, net.conv("x", 4, 8, 3, bias=bias), 5, 3)
    outputs = net.op("Relu", net.bn(first, 5)), net.op("Sigmoid", second)
    result = check(net.model(*outputs), {"Conv": 1, "Split": 1, "Relu": 1, "Sigmoid": 1})
    assert result.report.after.macs == result.report.before.macs


def test_affine_operators_behind_several_parts_of_a_split() -> None:
    net = Net(4)
    a, b, c = split(net, net.conv("x", 4, 8, 3), 2, 3, 3)
    parts = net.op("Relu", net.bn(a, 2)), net.op("Sigmoid", net.op("Mul", c, net.channel(3)))
    check(net.model(*parts, net.op("Tanh", b)), {"Conv": 1, "Split": 1, "Relu": 1, "Sigmoid": 1, "Tanh": 1})


def test_parts_of_a_split_of_a_matrix_product() -> None:
    net = Net(shape=("N", 4))
    product = net.op("Gemm", "x", net.random(4, 6), net.random(6))
    first, second = split(net, product, 2, 4)
    outputs = net.op("Relu", net.op("Mul", first, net.const(3.0))), net.op("Sigmoid", second)
    check(net.model(*outputs), {"Gemm": 1, "Split": 1, "Relu": 1, "Sigmoid": 1})


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("how", ["slice", "gather", "both"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_norm_behind_channels_that_slices_and_gathers_choose(op: str, how: str, space: int) -> None:
    net = Net(4, shape=("N", 4, "H", "W", "D")[: space + 2])
    window = (2,) * space
    y = net.conv("x", 4, 8, window, pad=0) if op == "Conv" else net.op(op, "x", net.random(4, 8, *window))
    first = gather(net, y, 6, 1, 0) if how != "slice" else cut(net, y, [1], [0], [3], [1])
    second = (
        gather(net, y, 7, 5, 2)
        if how == "gather"
        else cut(net, y, [1], [-1], [-3 if how == "both" else 3], [-1])
    )
    width = 2 if how == "both" else 3 if how == "gather" else 4
    outputs = (
        net.op("Relu", net.bn(first, 3)),
        net.op("Sigmoid", net.op("Mul", second, net.channel(width, space))),
    )
    kept = {"Gather": 2} if how == "gather" else {"Slice": 2} if how == "slice" else {"Gather": 1, "Slice": 1}
    if how == "both":  # 7 is chosen by one, 6 by both
        check(net.model(*outputs), None)
        return
    result = check(net.model(*outputs), {**kept, op: 1, "Relu": 1, "Sigmoid": 1})
    assert result.report.after.macs == result.report.before.macs


@pytest.mark.parametrize("how", ["slice", "gather", "split"])
@pytest.mark.parametrize("is_long", [(True, False), (True, True), (False, True)])
def test_several_operators_behind_channels_that_are_chosen(how: str, is_long: tuple[bool, bool]) -> None:
    """Each round folds one more behind each part: the folds share the convolution, and each is proved by its own."""
    net = Net(4)
    y = net.conv("x", 4, 8, 3)
    if how == "split":
        parts = list(split(net, y, 3, 5))
    else:
        low, high = (4, 1, 0), (7, 2, 3, 5, 6)
        parts = [gather(net, y, *low), gather(net, y, *high)] if how == "gather" else []
        parts = parts or [cut(net, y, [1], [0], [3], [1]), cut(net, y, [1], [3], [END], [1])]
    outputs = []
    for part, count, many in zip(parts, (3, 5), is_long, strict=True):
        part = net.op("Mul", part, net.channel(count))
        if many:
            part = net.op("Mul", net.op("Add", part, net.channel(count)), net.channel(count))
        outputs.append(net.op("Relu", part))
    kept = {"split": {"Split": 1}, "slice": {"Slice": 2}, "gather": {"Gather": 2}}[how]
    result = check(net.model(*outputs), {"Conv": 1, "Relu": 2, **kept})
    verification = result.report.verification
    assert verification is not None
    read = {name for node in net.nodes if node.op_type == "Relu" for name in node.input}
    assert {fold.output for fold in verification.folds} == read


def test_norm_behind_columns_that_slices_choose() -> None:
    net = Net(shape=("N", 4))
    product = net.op("Gemm", "x", net.random(4, 6), net.random(6))
    first, second = cut(net, product, [1], [0], [2], [1]), cut(net, product, [-1], [2], [END], [1])
    outputs = net.op("Relu", net.bn(first, 2)), net.op("Sigmoid", net.op("Sub", second, net.const(0.5)))
    check(net.model(*outputs), {"Gemm": 1, "Slice": 2, "Relu": 1, "Sigmoid": 1})


@pytest.mark.parametrize("beside", ["scalar", "channels", "nothing"])
def test_a_factor_and_then_a_shift_behind_a_part(beside: str) -> None:
    """The second round's fold reads what the first round's computed, though the other part's was noted later."""
    net = Net(4)
    first, second = split(net, net.conv("x", 4, 8, 3), 3, 5)
    first = net.op("Sub", net.op("Mul", first, net.channel(3)), net.channel(3))
    if beside != "nothing":
        second = net.op("Mul", second, net.const(0.3) if beside == "scalar" else net.channel(5))
    result = check(
        net.model(net.op("Relu", first), net.op("Tanh", second)),
        {"Conv": 1, "Split": 1, "Relu": 1, "Tanh": 1},
    )
    assert result.report.after.macs == result.report.before.macs


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("how", ["split", "slice", "gather"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_parts_behind_a_transpose_to_channels_last(op: str, how: str, space: int) -> None:
    net = Net(4, shape=("N", 4, "H", "W", "D")[: space + 2])
    window = (2,) * space
    y = net.conv("x", 4, 8, window, pad=0) if op == "Conv" else net.op(op, "x", net.random(4, 8, *window))
    y = net.op("Transpose", y, perm=[0, *range(2, space + 2), 1])
    if how == "split":
        first, second = net.op("Split", y, ints(net, 3, 5), outputs=2, axis=-1)
    elif how == "slice":
        first, second = cut(net, y, [-1], [0], [3], [1]), cut(net, y, [space + 1], [3], [END], [1])
    else:
        first, second = gather(net, y, 2, 0, 5, axis=-1), gather(net, y, 1, 3, 4, 6, 7, axis=space + 1)
    shifted = net.op("Sub", net.op("Mul", first, net.random(3)), net.random(3))
    outputs = net.op("Relu", shifted), net.op("Tanh", net.op("Mul", second, net.const(0.3)))
    kept = {"split": {"Split": 1}, "slice": {"Slice": 2}, "gather": {"Gather": 2}}[how]
    result = check(net.model(*outputs), {op: 1, "Transpose": 1, **kept, "Relu": 1, "Tanh": 1})
    assert result.report.after.macs == result.report.before.macs


@pytest.mark.parametrize("view", ["reshape", "resize", "pool", "several"])
def test_parts_behind_other_views(view: str) -> None:
    net = Net(shape=("N", 4, 6, 6))
    y = net.conv("x", 4, 8, 3)
    if view in ("reshape", "several"):
        y = net.op("Reshape", y, ints(net, 0, 8, 36))
    if view == "several":
        y = net.op("Transpose", y, perm=[0, 2, 1])
    if view == "resize":
        y = net.op("Resize", y, "", net.const(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    if view == "pool":
        y = net.op("GlobalAveragePool", y)
    axis = -1 if view == "several" else 1
    first, second = net.op("Split", y, ints(net, 3, 5), outputs=2, axis=axis)
    values = net.random(3) if view == "several" else net.channel(3, 1 if view == "reshape" else 2)
    outputs = net.op("Relu", net.op("Add", first, values)), net.op("Tanh", second)
    result = fuse(net.model(*outputs))
    assert "Add" not in counts(result.model), counts(result.model)
    assert equal(net.model(*outputs), result.model) > 0
    assert not fuse(result.model).report.folds


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_factor_of_a_part_stays_behind_an_average_in_half_precision(dtype: type) -> None:
    net = Net(4, dtype=dtype)
    first, second = split(net, net.op("GlobalAveragePool", net.conv("x", 4, 8, 3)), 3, 5)
    model = net.model(net.op("Relu", net.op("Mul", first, net.const(100.0))), net.op("Tanh", second))
    result = fuse(model, options=Options(check=False))
    assert ("Mul" in counts(result.model)) == (dtype is np.float16)


def test_parts_behind_a_view_that_others_read_or_that_pads_stay() -> None:
    net = Net(4)
    y = net.op("Transpose", net.conv("x", 4, 8, 3), perm=[0, 2, 3, 1])
    first, second = net.op("Split", y, ints(net, 3, 5), outputs=2, axis=3)
    scaled = net.op("Relu", net.op("Mul", first, net.random(3)))
    check(net.model(scaled, net.op("Tanh", second), net.op("Exp", y)), None)
    net = Net(4)  # the window counts zeros beside what is added
    y = net.op("AveragePool", net.conv("x", 4, 8, 3), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    first, second = split(net, y, 3, 5)
    result = fuse(net.model(net.op("Relu", net.op("Add", first, net.channel(3))), net.op("Tanh", second)))
    assert "Add" in counts(result.model)


def test_channels_that_are_chosen_and_read_otherwise_stay() -> None:
    net = Net(4)
    y = net.conv("x", 4, 8, 3)
    first, second = cut(net, y, [1], [0], [3], [1]), cut(net, y, [2], [0], [3], [1])
    check(net.model(net.op("Relu", net.bn(first, 3)), net.op("Sigmoid", second)), None)
    net = Net(4)
    y = net.conv("x", 4, 8, 3)
    first, second = cut(net, y, [1], [0], [3], [1]), cut(net, y, [1], [3], [END], [1])
    check(net.model(net.op("Relu", net.bn(first, 3)), net.op("Sigmoid", second), net.op("Tanh", y)), None)


def test_parts_of_a_split_with_other_consumers_stay() -> None:
    net = Net(4)
    first, second = split(net, net.conv("x", 4, 8, 3), 5, 3)
    outputs = net.op("Relu", net.bn(first, 5)), net.op("Tanh", first), net.op("Sigmoid", second)
    check(net.model(*outputs), None)
    net = Net(4)
    y = net.conv("x", 4, 8, 3)
    first, second = split(net, y, 5, 3)
    outputs = net.op("Relu", net.bn(first, 5)), net.op("Tanh", y), net.op("Sigmoid", second)
    check(net.model(*outputs), None)


def test_a_node_of_a_split_that_is_kept_stays() -> None:
    net = Net(4)
    first, second = split(net, net.conv("x", 4, 8, 3), 5, 3)
    norm = net.bn(first, 5)
    model = net.model(net.op("Relu", norm), net.op("Sigmoid", second))
    for kept in (norm, model.graph.node[0].name, model.graph.node[1].name):
        assert not fuse(model, options=Options(keep=(kept,))).report.folds
    assert not fuse(model, options=Options(skip=frozenset((Kind.CONCAT,)))).report.folds


def test_a_copy_of_a_copy() -> None:
    """A node of an earlier round turns out to copy another tensor, in the round in which its own output is copied."""
    net = Net(3)

    def one(x: str) -> str:
        return str(net.op("Unsqueeze", net.op("Gather", x, net.const(np.array(-2)), axis=1), ints(net, 1)))

    first = one(net.conv("x", 3, 4, 3))
    both = net.op("Concat", first, first, axis=1)
    last = gather(net, one(both), 0)
    model = net.model(net.conv(both, 2, 4, 3), net.op("Relu", last))
    assert equal(model, fuse(model, options=Options(check=False)).model) > 0
    check(model, {"Conv": 2, "Relu": 1})
