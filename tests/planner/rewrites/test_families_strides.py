"""Subsampling moves up: what all consumers of a tensor skip is not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, plan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import MANY, Net, check, counts


def strided(net: Net, x: str, stride: int = 2, c_in: int = 8, c_out: int = 6, **attrs: Any) -> str:
    """A 1x1 Conv with a stride."""
    return net.conv(x, c_in, c_out, 1, strides=[stride] * 2, **attrs)


def strides(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """Operator and first stride of every convolution and pool."""
    found = []
    for node in model.graph.node:
        given = {a.name: list(a.ints) for a in node.attribute}
        if node.op_type in ("Conv", "MaxPool", "AveragePool"):
            found.append((node.op_type, given.get("strides", [1])[0]))
    return found


def sizes(shape: str) -> tuple[Any, ...]:
    return ("N", 4, "H", "W") if shape == "symbolic" else (1, 4, 65, 66)


ACTIVATIONS: dict[str, Callable[[Net, str], str]] = {
    "relu": lambda net, x: net.op("Relu", x),
    "silu": lambda net, x: net.op("Mul", x, net.op("Sigmoid", x)),
    "prelu": lambda net, x: net.op("PRelu", x, net.channel(8)),
    "clip": lambda net, x: net.op("Clip", x, net.const(0.0), net.const(6.0)),
    "leaky": lambda net, x: net.op("LeakyRelu", x, alpha=0.2),
    "elu": lambda net, x: net.op("Elu", x),
    "tanh": lambda net, x: net.op("Tanh", x),
    "softplus": lambda net, x: net.op("Softplus", x),
    "abs": lambda net, x: net.op("Abs", x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", ["symbolic", "static"])
def test_an_activation_between(activation: str, shape: str) -> None:
    net = Net(4, shape=sizes(shape))
    y = ACTIVATIONS[activation](net, net.conv("x", 4, 8, 3))
    model = net.model(strided(net, y))
    result = check(model, counts(model), largest=9)
    assert [fold.kind for fold in result.report.folds] == [Kind.STRIDE]
    assert strides(result.model) == [("Conv", 2), ("Conv", 1)]


@pytest.mark.parametrize(
    "window",
    [
        {"k": 3, "pad": 1},
        {"k": 3, "pad": 0},
        {"k": 5, "pad": [2, 1, 0, 3]},
        {"k": 3, "dilations": [2, 2]},
        {"k": 3, "strides": [2, 2]},
        {"k": (1, 3), "strides": [1, 3], "pad": [0, 1, 0, 2]},
        {"k": 2, "pad": [1, 1, 0, 0], "group": 2},
        {"k": 1},
        {"k": 3, "pad": None, "auto_pad": "VALID"},
        {"k": 4, "pad": None, "auto_pad": "SAME_UPPER"},
        {"k": 4, "pad": None, "auto_pad": "SAME_LOWER"},
    ],
)
@pytest.mark.parametrize("stride", [2, 3])
def test_windows_of_the_convolution_before(window: dict[str, Any], stride: int) -> None:
    """Output sizes and borders agree at every size: pads stay as they are, also automatic ones."""
    net = Net(4)
    y = net.op("Relu", net.conv("x", 4, 8, window["k"], **{k: v for k, v in window.items() if k != "k"}))
    model = net.model(strided(net, y, stride))
    result = check(model, counts(model), largest=14)
    assert result.report.after.macs <= result.report.before.macs  # type: ignore[operator]
    assert strides(result.model)[-1] == ("Conv", 1)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(9, 10), (10, 13)])
def test_automatic_pads_with_a_stride_need_a_size(auto_pad: str, size: tuple[int, int]) -> None:
    for shape in ((1, 4, *size), ("N", 4, "H", "W")):
        net = Net(4, shape=shape)
        y = net.op("Relu", net.conv("x", 4, 8, 3, strides=[2, 2], auto_pad=auto_pad))
        model = net.model(strided(net, y, auto_pad=auto_pad, pad=None))
        check(model, counts(model) if "H" not in shape else None, largest=9)


@pytest.mark.parametrize(
    "pool",
    [
        {"op": "MaxPool", "kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]},
        {"op": "MaxPool", "kernel_shape": [2, 2], "pads": [1, 0, 0, 1]},
        {"op": "AveragePool", "kernel_shape": [3, 3], "pads": [1] * 4},
        {
            "op": "AveragePool",
            "kernel_shape": [3, 2],
            "strides": [2, 1],
            "count_include_pad": 1,
            "pads": [1, 0, 1, 1],
        },
    ],
)
def test_pools_before(pool: dict[str, Any]) -> None:
    net = Net(4)
    y = net.op(
        "Relu",
        net.op(x_op := pool["op"], net.op("Relu", "x"), **{k: v for k, v in pool.items() if k != "op"}),
    )
    model = net.model(strided(net, y, c_in=4))
    result = check(model, counts(model), largest=9)
    before = pool.get("strides", [1])[0]
    assert strides(result.model) == [(x_op, 2 * before), ("Conv", 1)]


def test_pools_that_round_up_stay() -> None:
    net = Net(4)
    y = net.op(
        "Relu", net.op("MaxPool", net.op("Relu", "x"), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    )
    check(net.model(strided(net, y, c_in=4)), None, largest=9)


def test_pools_whose_window_may_be_larger_than_their_input_stay() -> None:
    """Runtimes cut it there: of two positions they have one average of a 3x3 window, with stride 2, and none with 1."""
    net = Net(4)
    y = net.op("Relu", net.op("AveragePool", net.op("Relu", "x"), kernel_shape=[3, 3]))
    check(net.model(strided(net, y, c_in=4)), None, largest=9)


def residual(net: Net, *, shortcut_is_read: bool) -> tuple[str, ...]:
    """ResNet v1: the last block of a stage, and the strided 1x1 Convs that read it."""
    x = net.op("Relu", net.conv("x", 4, 8, 3))
    y = net.op("Relu", net.conv(x, 8, 8, 1) if shortcut_is_read else net.conv("x", 4, 8, 1))
    y = net.conv(net.op("Relu", net.conv(y, 8, 8, 3)), 8, 8, 1)
    y = net.op("Relu", net.add(y, x))
    return strided(net, y), strided(net, y, c_out=12)


@pytest.mark.parametrize("shape", ["symbolic", "static"])
def test_both_operands_of_a_sum(shape: str) -> None:
    net = Net(4, shape=sizes(shape))
    model = net.model(*residual(net, shortcut_is_read=False))
    result = check(model, counts(model), largest=9)
    assert len(result.report.folds) == 2
    assert [stride for _, stride in strides(result.model)] == [2, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("shape", ["symbolic", "static"])
def test_a_shortcut_that_is_read_whole_is_copied(shape: str) -> None:
    net = Net(4, shape=sizes(shape))
    model = net.model(*residual(net, shortcut_is_read=True))
    result = check(model, {**counts(model), "AveragePool": 1}, largest=9, more_nodes=1)
    assert sorted(strides(result.model)) == [
        ("AveragePool", 2), ("Conv", 1), ("Conv", 1), ("Conv", 1), ("Conv", 1), ("Conv", 1), ("Conv", 2),
    ]  # fmt: skip


def test_operands_that_broadcast() -> None:
    """A gate of one position per channel is that at every position."""
    net = Net(4)
    y = net.conv("x", 4, 8, 3)
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", "x"), 4, 8, 1))
    model = net.model(strided(net, net.op("Relu", net.op("Mul", y, gate))))
    result = check(model, counts(model), largest=9)
    assert ("Conv", 2) in strides(result.model)


def test_operands_that_may_broadcast() -> None:
    net = Net(4)
    net.more_inputs = [onnx.helper.make_tensor_value_info("y", 1, ["N", 8, "P", "Q"])]
    y = net.op("Relu", net.op("Mul", net.conv("x", 4, 8, 3), "y"))
    model = net.model(strided(net, y))
    check(model, {**counts(model), "AveragePool": 1}, largest=9, more_nodes=1)


@pytest.mark.parametrize("strides_read", [(2, 4), (4, 4), (6, 4)])
def test_the_common_part_of_several_strides(strides_read: tuple[int, int]) -> None:
    net = Net(4)
    y = net.op("Relu", net.conv("x", 4, 8, 3))
    model = net.model(*(strided(net, y, stride) for stride in strides_read))
    result = check(model, counts(model), largest=13)
    common = np.gcd(*strides_read)
    assert [s for _, s in strides(result.model)] == [common, *(s // common for s in strides_read)]


def test_through_strided_convolutions_one_after_the_other() -> None:
    net = Net(4)
    y = net.op("Relu", strided(net, net.op("Relu", net.conv("x", 4, 8, 3)), c_out=8))
    model = net.model(strided(net, y, 3))
    result = check(model, counts(model), largest=14)
    assert [s for _, s in strides(result.model)] == [6, 1, 1]


def test_slices_of_space() -> None:
    net = Net(4)
    y = net.op("Relu", net.conv("x", 4, 8, 3))
    arguments = [[0, 0], [2**31 - 1, 2**63 - 1], [2, -1], [2, 3]]
    y = net.op("Slice", y, *(net.const(np.array(a)) for a in arguments))
    result = check(net.model(y), {"Conv": 1, "Relu": 1}, largest=9)
    assert strides(result.model) == [("Conv", 2)]


def test_a_pool_of_one_position() -> None:
    """TensorFlow's ResNet v2 subsamples a shortcut so."""
    net = Net(4)
    y = net.op("MaxPool", net.op("Relu", net.conv("x", 4, 8, 3)), kernel_shape=[1, 1], strides=[2, 2])
    check(net.model(y), {"Conv": 1, "Relu": 1}, largest=9)


def test_an_lp_pool_of_one_position_gives_out_absolute_values() -> None:
    net = Net(4, shape=sizes("static"))
    y = net.op("LpPool", net.conv("x", 4, 8, 3), kernel_shape=[1, 1], strides=[2, 2])
    check(net.model(y), None)
    assert not plan(net.model(y)).folds  # without the proof, either


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    net = Net(4, shape=("N", 4, *"LMK"[:rank]))
    y = net.op("Relu", net.conv("x", 4, 8, (3,) * rank))
    model = net.model(net.conv(y, 8, 6, (1,) * rank, strides=[2] * rank))
    check(model, counts(model), largest=6)


def test_weights_that_are_not_constant() -> None:
    net = Net(4)
    net.more_inputs = [onnx.helper.make_tensor_value_info("w", 1, [8, 4, 3, 3])]
    y = net.op("Relu", net.op("Conv", "x", "w", pads=[1] * 4))
    model = net.model(strided(net, y))
    check(model, counts(model), largest=9)


def _read_by_another(net: Net, y: str) -> tuple[str, ...]:
    return strided(net, y), net.conv(y, 8, 4, 3)


def _is_an_output(net: Net, y: str) -> tuple[str, ...]:
    return strided(net, y), y


def _pooled(net: Net, y: str) -> tuple[str, ...]:
    return strided(net, y), net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])


def _has_pads(net: Net, y: str) -> tuple[str, ...]:
    return (strided(net, y, pad=1),)


def _has_odd_strides(net: Net, y: str) -> tuple[str, ...]:
    return strided(net, y, 2), strided(net, y, 3)


TRAPS = {
    "another consumer": (_read_by_another, Reason.CONSUMERS),
    "graph output": (_is_an_output, Reason.CONSUMERS),
    "pool": (_pooled, Reason.CONSUMERS),
    "pads": (_has_pads, Reason.BORDER),
    "strides without a common part": (_has_odd_strides, Reason.CONSUMERS),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap: str) -> None:
    build, reason = TRAPS[trap]
    net = Net(4)
    check(net.model(*build(net, net.op("Relu", net.conv("x", 4, 8, 3)))), None, reason, largest=9)


def test_a_slice_that_ends_before_the_end_or_begins_later_stays() -> None:
    for begin, end in ((1, 2**31 - 1), (0, -1)):
        net = Net(4)
        y = net.op("Sigmoid", net.conv("x", 4, 8, 3))
        arguments = [[begin] * 2, [end] * 2, [2, 3], [2, 2]]
        check(net.model(net.op("Slice", y, *(net.const(np.array(a)) for a in arguments))), None, largest=9)


def test_a_slice_of_no_axis() -> None:
    net = Net(4)
    none = [net.const(np.zeros(0, np.int64)) for _ in range(4)]
    check(net.model(net.op("Slice", net.op("Relu", net.conv("x", 4, 8, 3)), *none)), None)


def test_an_operator_that_mixes_positions_stays() -> None:
    net = Net(4)
    y = net.op("Softmax", net.conv("x", 4, 8, 3), axis=-1)
    check(net.model(strided(net, y)), None, largest=9)


def test_activations_alone_stay() -> None:
    """Their consumers can skip positions by themselves."""
    net = Net(4)
    check(net.model(strided(net, net.op("Relu", "x"), c_in=4)), None, largest=9)


def test_a_constant_over_space_stays() -> None:
    net = Net(4, shape=(1, 4, 6, 6))
    y = net.op("Mul", net.op("Relu", net.conv("x", 4, 8, 3)), net.random(6, 6))
    check(net.model(strided(net, y)), None)


def test_kept_nodes_keep_their_strides() -> None:
    net = Net(4)
    y = net.op("Relu", net.conv("x", 4, 8, 3))
    model = net.model(strided(net, y))
    kept = model.graph.node[-1].name
    check(model, None, options=Options(keep=(kept,)))
    check(model, None, options=Options(skip=frozenset({Kind.STRIDE})))


def test_together_with_other_folds() -> None:
    """BatchNormalization behind every Conv: the folds of both kinds meet in the same nodes."""
    net = Net(4, shape=(*MANY[:1], 4, *MANY[1:]))
    y = net.op("Relu", net.conv_bn("x", 4, 8, 3))
    y = net.op("Relu", net.conv_bn(y, 8, 8, 3))
    out = [net.bn(strided(net, y, bias=False), 6) for _ in range(2)]
    result = check(net.model(*out), {"Conv": 4, "Relu": 2}, largest=9)
    assert [s for _, s in strides(result.model)] == [1, 2, 1, 1]


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_transposed_convolution_reads_every_position(kernel: int) -> None:
    """Its stride is that of what it writes."""
    net = Net(4)
    first = net.op("Relu", net.conv("x", 4, 4, 3))
    shape = {"kernel_shape": [kernel] * 2, "strides": [2, 2]}
    model = net.model(net.op("ConvTranspose", first, net.random(4, 4, kernel, kernel), **shape))
    assert not plan(model).folds  # before a proof may undo them


def test_a_transposed_convolution_computes_every_position() -> None:
    net = Net(4)
    first = net.op("ConvTranspose", "x", net.random(4, 4, 3, 3), kernel_shape=[3, 3])
    assert not plan(net.model(net.conv(net.op("Relu", first), 4, 4, 1, strides=[2, 2]))).folds
