"""Parts of a Split: what stands behind each of them goes into the convolution before."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal
from tests.index_maps import END, cut, gather, ints, split


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
