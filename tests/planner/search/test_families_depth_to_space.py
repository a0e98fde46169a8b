"""Channels that become positions: what is behind a DepthToSpace or a Flatten goes into what is before it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_repfuse import Options, fuse
from tests.build import Net, check, counts, equal
from tests.index_maps import asked, cut, gather, ints, shaped, shuffled


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
