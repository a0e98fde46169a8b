"""Parallel branches and sequences of Conv: what must become one, what must stay, and why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, weight


@pytest.mark.parametrize("bias", [False, True])
def test_kxk_then_1x1(bias: bool) -> None:
    net = Net(4)
    net_out = net.conv(net.conv("x", 4, 8, 3, bias=bias), 8, 4, 1, bias=bias)
    check(net.model(net_out), {"Conv": 1})


def test_1x1_with_bias_then_padded_kxk_is_refused() -> None:
    net = Net(4)
    check(net.model(net.conv(net.conv("x", 4, 16, 1), 16, 4, 3)), None, Reason.BORDER)


@pytest.mark.parametrize(("bias", "pad"), [(False, 1), (True, 0), (False, 0)])
def test_1x1_then_kxk(bias: bool, pad: int) -> None:
    net = Net(4)
    check(net.model(net.conv(net.conv("x", 4, 16, 1, bias=bias), 16, 4, 3, pad=pad)), {"Conv": 1})


def test_1x1_then_1x1_narrow_stays() -> None:
    net = Net(32)
    check(net.model(net.conv(net.conv("x", 32, 4, 1), 4, 32, 1)), None, Reason.COST)


def test_1x1_then_1x1_wide_folds() -> None:
    net = Net(4)
    check(net.model(net.conv(net.conv("x", 4, 32, 1), 32, 4, 1)), {"Conv": 1})


def test_depthwise_then_pointwise_stays() -> None:
    net = Net(8)
    check(net.model(net.conv(net.conv("x", 8, 8, 3, group=8), 8, 8, 1)), None, Reason.COST)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("first", [1, 8])
def test_branches_of_one_conv_take_it_in_together(group: int, first: int) -> None:
    net = Net(8)
    shared = net.conv("x", 8, 8, 3, group=first)
    branches = [net.conv(shared, 8, 8, 1, group=group), net.conv(shared, 8, 8, 1, group=group)]
    if group == 1 and first == 8:  # more multiply-adds than depthwise and pointwise
        check(net.model(net.add(*branches)), {"Conv": 2})
    else:
        check(net.model(net.add(*branches)), {"Conv": 1})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 2])
def test_repvgg(stride: int, width: int) -> None:
    net = Net(4)
    branches = [
        net.conv_bn("x", 4, 4, 3, strides=[stride] * 2, group=width),
        net.conv_bn("x", 4, 4, 1, strides=[stride] * 2, group=width),
    ]
    if stride == 1:
        branches.append(net.bn("x", 4))
    check(net.model(net.op("Relu", net.add(*branches))), {"Conv": 1, "Relu": 1})


def test_mobileone_with_its_zero_plus() -> None:
    net = Net(4)
    total = net.const(np.zeros(()))
    for k in (3, 3, 3, 1):
        total = net.add(total, net.conv_bn("x", 4, 4, k, group=4))
    check(net.model(net.op("Relu", net.add(total, net.bn("x", 4)))), {"Conv": 1, "Relu": 1})


def test_qarepvgg_norm_after_the_sum() -> None:
    net = Net(4)
    point = net.op("Mul", net.conv("x", 4, 4, 1), net.const(0.5))
    check(net.model(net.bn(net.add(net.conv_bn("x", 4, 4, 3), point, "x"), 4)), {"Conv": 1})


def test_acnet() -> None:
    net = Net(4)
    names = [net.conv_bn("x", 4, 4, k) for k in ((3, 3), (1, 3), (3, 1))]
    check(net.model(net.add(*names)), {"Conv": 1})


@pytest.mark.parametrize("chain", [False, True])
def test_separable_pairs_stay(chain: bool) -> None:
    net = Net(8)
    if chain:
        out = net.conv(net.conv("x", 8, 8, (1, 7), bias=False), 8, 8, (7, 1))
    else:
        out = net.add(net.conv("x", 8, 8, (1, 5)), net.conv("x", 8, 8, (5, 1)))
    check(net.model(out), None, Reason.COST)


def test_replknet() -> None:
    net = Net(4)
    check(net.model(net.add(*(net.conv_bn("x", 4, 4, k, group=4) for k in (13, 5)))), {"Conv": 1}, largest=8)


def test_dilation_is_widened_only_as_far_as_needed() -> None:
    net = Net(4)
    names = [
        net.conv("x", 4, 4, 3, dilations=[4, 4], group=4),
        net.conv("x", 4, 4, 5, dilations=[2, 2], group=4),
    ]
    result = check(net.model(net.add(*names)), {"Conv": 1}, largest=8)
    attributes = {a.name: list(a.ints) for a in result.model.graph.node[0].attribute if a.ints}
    assert attributes["dilations"] == [2, 2]
    assert attributes["kernel_shape"] == [5, 5]


def test_ecbsr_edges() -> None:
    net = Net(4)
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32)
    names = [net.conv("x", 4, 4, 3), "x", net.conv(net.conv("x", 4, 8, 1, bias=False), 8, 4, 3)]
    for mask in (sobel, sobel.T, laplace):
        kernel = net.const(mask[None, None] * net.rng.standard_normal((4, 1, 1, 1)))
        first = net.conv("x", 4, 4, 1, bias=False)
        names.append(net.op("Conv", first, kernel, net.random(4), group=4, pads=[1] * 4))
    check(net.model(net.add(*names)), {"Conv": 1})


def test_identity_of_other_channels_or_stride_is_no_identity() -> None:
    net = Net(1)
    check(net.model(net.add(net.conv("x", 1, 4, 3), "x")), None, Reason.BROADCAST)
    net = Net(4, shape=("N", 4, 3, 3))
    check(net.model(net.add(net.conv("x", 4, 4, 3, pad=0), "x")), None)


def test_residuals_without_activation() -> None:
    net = Net(4)
    check(net.model(net.add("x", net.conv("x", 4, 4, 3))), {"Conv": 1})
    net = Net(4)
    inner = net.op("Sub", net.conv_bn("x", 4, 4, 3, group=4), net.bn("x", 4))
    check(net.model(net.add("x", net.op("Mul", net.channel(4), inner))), {"Conv": 1})


def test_repmixer_with_branches() -> None:
    net = Net(4)
    norm = net.bn("x", 4)
    mixer = net.add(net.bn("x", 4), net.conv_bn("x", 4, 4, 3, group=4), net.conv_bn("x", 4, 4, 1, group=4))
    out = net.add("x", net.op("Mul", net.op("Sub", mixer, norm), net.channel(4)))
    check(net.model(out), {"Conv": 1})


def test_repvit_depthwise() -> None:
    net = Net(4)
    first = net.add(net.conv_bn("x", 4, 4, 3, group=4), net.conv("x", 4, 4, 1, group=4), "x")
    check(net.model(net.bn(first, 4)), {"Conv": 1})
    net = Net(4)
    check(
        net.model(net.add(net.conv_bn("x", 4, 4, 7, group=4), net.conv_bn("x", 4, 4, 3, group=4))),
        {"Conv": 1},
    )


def test_ghost_keeps_its_concat() -> None:
    net = Net(4)
    primary = net.op("Relu", net.conv_bn("x", 4, 4, 1))
    cheap = net.op("Relu", net.conv_bn(primary, 4, 4, 3, group=4))
    check(net.model(net.op("Concat", primary, cheap, axis=1)), {"Conv": 2, "Relu": 2, "Concat": 1})


def test_repghost() -> None:
    net = Net(4)
    primary = net.op("Relu", net.conv_bn("x", 4, 4, 1))
    check(
        net.model(net.op("Relu", net.add(net.conv_bn(primary, 4, 4, 3, group=4), net.bn(primary, 4)))),
        {"Conv": 2, "Relu": 2},
    )


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_sum_of_many(op: str) -> None:
    net = Net(4)
    check(net.model(net.op(op, *(net.conv("x", 4, 4, k) for k in (3, 1, 3)))), {"Conv": 1})


def test_sub_and_neg() -> None:
    net = Net(4)
    out = net.op("Neg", net.op("Sub", net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1)))
    check(net.model(out), {"Conv": 1})


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    net = Net(shape=("N", 4, *("L", "H", "W")[:rank]))
    names = [net.conv_bn("x", 4, 4, (3,) * rank), net.conv_bn("x", 4, 4, (1,) * rank), net.bn("x", 4)]
    out = net.conv(net.op("Mul", net.add(*names), net.channel(4, rank)), 4, 2, (1,) * rank)
    check(net.model(out), {"Conv": 1})


def test_stride_two_equal_alignment() -> None:
    net = Net(4)
    names = [net.conv("x", 4, 4, 3, strides=[2, 2], pad=1), net.conv("x", 4, 4, 1, strides=[2, 2], pad=0)]
    check(net.model(net.add(*names)), {"Conv": 1}, largest=6)


def test_strides_that_differ_are_refused() -> None:
    net = Net(shape=("N", 4, 1, 1))
    names = [net.conv("x", 4, 4, 3, strides=[2, 2]), net.conv("x", 4, 4, 1)]
    check(net.model(net.add(*names)), None, Reason.GRID)


def test_even_kernels() -> None:
    net = Net(4)
    names = [net.conv("x", 4, 4, 2, pad=[0, 0, 1, 1]), net.conv("x", 4, 4, 4, pad=[1, 1, 2, 2]), "x"]
    check(net.model(net.add(*names)), {"Conv": 1})


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad_dynamic_at_stride_one(auto: str) -> None:
    net = Net(4)
    a, b = (net.conv("x", 4, 4, k, auto_pad=auto) for k in (2, 2))
    check(net.model(net.add(a, net.bn(b, 4))), {"Conv": 1})


def test_auto_pad_strided_dynamic_is_refused() -> None:
    net = Net(4)
    check(
        net.model(net.bn(net.conv("x", 4, 4, 3, auto_pad="SAME_UPPER", strides=[2, 2]), 4)),
        None,
        Reason.SHAPE,
    )


def test_a_relu_ends_a_region() -> None:
    net = Net(4)
    check(net.model(net.bn(net.op("Relu", net.conv("x", 4, 4, 3)), 4)), None)


def test_unireplknet_dilations() -> None:
    net = Net(4)
    names = [net.conv_bn("x", 4, 4, 13, group=4)]
    names += [
        net.conv_bn("x", 4, 4, k, group=4, dilations=[d, d])
        for k, d in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
    ]
    result = check(net.model(net.add(*names)), {"Conv": 1}, largest=8)
    assert list(weight(result).dims)[2:] == [13, 13]


def test_stride_two_other_alignment() -> None:
    net = Net(4)
    names = [net.conv("x", 4, 4, 3, strides=[2, 2], pad=pad) for pad in ([0, 0, 2, 2], [1, 1, 1, 1])]
    result = check(net.model(net.add(*names)), {"Conv": 1}, largest=6)
    assert list(weight(result).dims)[2:] == [4, 4]


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [5, 6])
def test_auto_pad_strided_is_exact_for_the_proved_size(auto: str, size: int) -> None:
    net = Net(shape=("N", 4, size, size))
    a, b = (net.conv("x", 4, 4, k, auto_pad=auto, strides=[2, 2]) for k in (3, 1))
    check(net.model(net.add(a, b)), {"Conv": 1})


def test_long_linear_residual_chain_folds_without_doubling() -> None:
    """x + f(x), whose x is such a sum itself: every link reads the links before it twice."""
    net, x = Net(4), "x"
    for _ in range(40):
        x = net.add(net.conv(x, 4, 4, 1, bias=False), x)
    check(net.model(x), {"Conv": 1}, tolerance=1e-3, again=False)


def in_groups(
    net: Net, groups: int, rank: int, op: str = "Conv", *, split: str = "Split", width: int = 2
) -> str:
    """A convolution of each part of the channels, and a Concat, as converters write groups."""
    if split == "Split":
        sizes = net.const(np.array([width] * groups))
        parts = net.op("Split", "x", sizes, outputs=groups, axis=1)
    else:
        ends = [
            [net.const(np.array([number])) for number in (width * i, width * i + width, 1)]
            for i in range(groups)
        ]
        parts = [net.op("Slice", "x", *numbers) for numbers in ends]
    if op == "Conv":
        outputs = [net.conv(part, width, 3, (3,) * rank, strides=[2] * rank) for part in parts]
    else:
        outputs = [
            net.op(op, part, net.random(width, 3, *(2,) * rank), net.random(3), strides=[2] * rank)
            for part in parts
        ]
    return str(net.op("Concat", *outputs, axis=1))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("split", ["Split", "Slice"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_parts_side_by_side_are_the_groups_of_one(rank: int, split: str, op: str) -> None:
    net = Net(shape=("N", 6, *(7, 8, 9)[:rank]))
    result = check(net.model(net.bn(in_groups(net, 3, rank, op, split=split), 9)), {op: 1})
    (node,) = result.model.graph.node
    assert onnx.helper.get_node_attr_value(node, "group") == 3
    assert result.report.before.macs == result.report.after.macs


def test_of_one_channel_each_they_are_a_depthwise_convolution() -> None:
    net = Net(shape=("N", 8, "H", "W"))
    check(net.model(in_groups(net, 8, 2, width=1)), {"Conv": 1})


def test_in_another_order_or_of_other_kernels_they_stay_apart() -> None:
    net = Net(4)
    a, b = net.op("Split", "x", net.const(np.array([2, 2])), outputs=2, axis=1)
    turned = net.model(net.op("Concat", net.conv(b, 2, 2, 3), net.conv(a, 2, 2, 3), axis=1))
    assert counts(fuse(turned).model)["Conv"] == 2
    other = Net(4)
    a, b = other.op("Split", "x", other.const(np.array([2, 2])), outputs=2, axis=1)
    model = other.model(other.op("Concat", other.conv(a, 2, 2, 3), other.conv(b, 2, 2, 1), axis=1))
    assert counts(fuse(model).model)["Conv"] == 2
