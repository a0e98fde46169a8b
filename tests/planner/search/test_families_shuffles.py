"""Positions that become channels, and channels that are shuffled, go into the convolution behind them."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import Options, fuse, plan
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal, run
from tests.index_maps import asked, cut, gather, ints, shaped, shuffled


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
