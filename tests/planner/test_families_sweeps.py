"""The same blocks at every rank, opset and data type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts
from tests.versions import since_bfloat16

SPACES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
OPSETS = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]


def net_of(rank: int, channels: int = 4, **options: Any) -> Net:
    return Net(channels, shape=("N", channels, *SPACES[rank]), **options)


def pads(net: Net, rank: int, *amounts: int) -> list[str]:
    return [net.const(np.array([0, 0, *amounts[:rank], 0, 0, *amounts[rank:]]))]


# --- ranks -------------------------------------------------------------------------------------------


def branches(net: Net, rank: int) -> str:
    k = (3,) * rank
    small = net.conv_bn("x", 4, 4, (1,) * rank)
    return net.add(net.conv_bn("x", 4, 4, k), small, net.bn("x", 4))


def strided(net: Net, rank: int) -> str:
    stride = {"strides": [2] * rank}
    return net.add(
        net.conv_bn("x", 4, 6, (3,) * rank, **stride), net.conv_bn("x", 4, 6, (1,) * rank, **stride)
    )


def asymmetric(net: Net, rank: int) -> str:
    """3x1 + 1x3, on the first and the last axis."""
    tall, wide = [1] * rank, [1] * rank
    tall[0], wide[-1] = 3, 3
    return net.add(net.conv("x", 4, 4, (3,) * rank), net.conv("x", 4, 4, tall), net.conv("x", 4, 4, wide))


def dilated(net: Net, rank: int) -> str:
    one = net.conv("x", 4, 4, (5,) * rank, group=4)
    return net.add(one, net.conv("x", 4, 4, (3,) * rank, group=4, dilations=[2] * rank))


def sequence(net: Net, rank: int) -> str:
    return net.conv(net.conv("x", 4, 8, (3,) * rank, group=4), 8, 2, (1,) * rank)


def inverted(net: Net, rank: int) -> str:
    return net.conv(net.conv("x", 4, 8, (1,) * rank, bias=False), 8, 2, (3,) * rank)


def pooled(net: Net, rank: int) -> str:
    inner = net.conv("x", 4, 4, (1,) * rank, bias=False)
    pool = net.op("AveragePool", inner, kernel_shape=[3] * rank, pads=[1] * (2 * rank), count_include_pad=1)
    return net.add(net.bn(pool, 4), net.conv("x", 4, 4, (3,) * rank))


def padded(net: Net, rank: int) -> str:
    inner = net.op("Pad", "x", *pads(net, rank, *[1] * rank, *[2] * rank))
    return net.conv(inner, 4, 4, (3,) * rank, pad=0)


def layer_scale(net: Net, rank: int) -> str:
    return net.add("x", net.op("Mul", net.channel(4, rank), net.conv("x", 4, 4, (3,) * rank)))


def before(net: Net, rank: int) -> str:
    return net.conv(net.bn("x", 4), 4, 4, (3,) * rank, pad=0)


def mixed_groups(net: Net, rank: int) -> str:
    return net.add(net.conv("x", 4, 8, (3,) * rank, group=4), net.conv("x", 4, 8, (3,) * rank, group=2))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    "block",
    [
        branches,
        strided,
        asymmetric,
        dilated,
        sequence,
        inverted,
        pooled,
        padded,
        layer_scale,
        before,
        mixed_groups,
    ],
)
def test_block_of_every_rank(block: Callable[[Net, int], str], rank: int) -> None:
    net = net_of(rank)
    check(net.model(net.op("Relu", block(net, rank))), {"Conv": 1, "Relu": 1}, largest=4 if rank < 3 else 3)


@pytest.mark.parametrize(("rank", "group"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4), (3, 2)])
def test_conv_transpose_of_every_rank(rank: int, group: int) -> None:
    net = net_of(rank)
    shape = {"strides": [2] * rank, "pads": [1] * (2 * rank), "output_padding": [1] * rank}
    branches = [net.op("ConvTranspose", "x", net.random(4, 6 // 2, *(3,) * rank), group=2, **shape)]
    if group == 2:
        branches.append(net.op("ConvTranspose", "x", net.random(4, 3, *(3,) * rank), group=2, **shape))
    y = net.bn(net.add(*branches), 6)
    y = net.op("Add", net.op("Mul", y, net.channel(6, rank)), net.channel(6, rank))
    check(net.model(y), {"ConvTranspose": 1}, largest=4 if rank < 3 else 3)


@pytest.mark.parametrize("rank", [1, 3])
def test_border_of_every_rank(rank: int) -> None:
    net = net_of(rank)
    y = net.conv(net.conv("x", 4, 8, (1,) * rank), 8, 2, (3,) * rank)
    check(net.model(y), None, Reason.BORDER, largest=3)


@pytest.mark.parametrize("rank", [1, 3])
def test_concat_of_every_rank(rank: int) -> None:
    net = net_of(rank)
    parts = [net.conv("x", 4, n, (1,) * rank) for n in (3, 5)]
    y = net.bn(net.op("Concat", *parts, axis=1), 8)
    check(net.model(y), {"Conv": 1}, largest=3)


# --- opsets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
def test_repvgg_of_every_opset(opset: int) -> None:
    """IR 3, whose initializers are inputs, as long as the opset allows it."""
    if opset > onnx.defs.onnx_opset_version():
        return
    ir = 3 if opset < 9 else 4 if opset < 10 else 8 if opset < 19 else 10
    net = net_of(2, opset=opset, ir=ir)
    attrs = {"spatial": 1} if opset < 9 else {}
    inner = net.bn("x", 4, **attrs)
    y = net.add(net.bn(net.conv("x", 4, 4, 3), 4), net.bn(net.conv("x", 4, 4, 1), 4), inner)
    result = check(net.model(net.op("Relu", y)), {"Conv": 1, "Relu": 1})
    assert result.model.ir_version == ir


@pytest.mark.parametrize("opset", [7, 8, 10, 11, 13, 18, 21])
def test_pad_of_every_opset(opset: int) -> None:
    net = net_of(2, opset=opset)
    if opset < 11:
        y = net.op("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 2, 1])
    elif opset < 18:
        y = net.op("Pad", "x", net.const(np.array([0, 0, 1, 2, 0, 0, 2, 1])))
    else:
        y = net.op("Pad", "x", net.const(np.array([2, 1, 1, 2])), "", net.const(np.array([3, 2])))
    check(net.model(net.conv(y, 4, 4, 3, pad=0)), {"Conv": 1})


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 18])
def test_split_and_slice_of_every_opset(opset: int) -> None:
    net = net_of(2, opset=opset)
    y = net.conv("x", 4, 8, 3)
    if opset < 10:
        part = net.op("Slice", y, axes=[1], starts=[2], ends=[7])
    else:
        part = net.op("Slice", y, *(net.const(np.array([v])) for v in (2, 7, 1)))
    check(net.model(part), {"Conv": 1})
    net = net_of(2, opset=opset)
    y = net.conv("x", 4, 8, 3)
    sizes = {"split": [3, 5]} if opset < 13 else {}
    given = [] if opset < 13 else [net.const(np.array([3, 5]))]
    check(net.model(net.op("Split", y, *given, outputs=2, axis=1, **sizes)[1]), {"Conv": 1})


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_of_every_opset(opset: int) -> None:
    net = net_of(2, opset=opset)
    y = net.op("Dropout", net.conv("x", 4, 4, 3))
    check(net.model(net.bn(y, 4)), {"Conv": 1})


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_gemm_and_matmul_of_every_opset(opset: int) -> None:
    net = Net(shape=("N", 4), opset=opset)
    y = net.bn(net.op("Gemm", "x", net.random(4, 6), net.random(6)), 6)
    check(net.model(net.op("Mul", y, net.const(np.float32(0.5)))), {"Gemm": 1})
    net = Net(shape=("N", 5, 4), opset=opset)
    y = net.op("Add", net.op("MatMul", "x", net.random(4, 6)), net.random(6))
    check(net.model(net.op("Mul", y, net.random(6))), {"MatMul": 1, "Add": 1})


# --- data types --------------------------------------------------------------------------------------

TOLERANCE = {np.float16: 5e-3, np.float32: 2e-5, np.float64: 1e-13}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize(
    "block", [branches, strided, sequence, inverted, pooled, padded, layer_scale, before]
)
def test_block_of_every_type(block: Callable[[Net, int], str], dtype: Any) -> None:
    net = net_of(2, dtype=dtype)
    model = net.model(net.op("Relu", block(net, 2)))
    result = check(model, {"Conv": 1, "Relu": 1}, tolerance=TOLERANCE[dtype])
    kinds = {t.data_type for t in result.model.graph.initializer}
    assert kinds == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


@pytest.mark.parametrize("block", [branches, sequence, padded, layer_scale])
@since_bfloat16
def test_block_of_bfloat16(block: Callable[[Net, int], str]) -> None:
    """ONNX Runtime has no kernels for it: nothing is compared, but the weights are those of float64, rounded once."""
    wide = net_of(2, dtype=np.float64, seed=4)
    block(wide, 2)
    net = net_of(2, dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16), seed=4)
    y = block(net, 2)
    result = fuse(net.model(net.op("Relu", y)), options=Options(check=False))
    assert counts(result.model) == {"Conv": 1, "Relu": 1}
    assert {t.data_type for t in result.model.graph.initializer} == {onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_matrix_products_of_every_type(dtype: Any) -> None:
    net = Net(shape=("N", 4), dtype=dtype)
    y = net.bn(net.op("Gemm", "x", net.random(4, 6), net.random(6)), 6)
    check(net.model(y), {"Gemm": 1}, tolerance=TOLERANCE[dtype])


# --- super resolution --------------------------------------------------------------------------------


def test_sesr_collapsible_block() -> None:
    """SESR: kxk without bias into many channels, 1x1 back, and a short residual; PReLU between blocks."""
    net = net_of(2, 8)
    y = "x"
    for _ in range(2):
        wide = net.conv(y, 8, 32, 3, bias=False)
        y = net.add(net.conv(wide, 32, 8, 1), y)
        y = net.op("PRelu", y, net.channel(8))
    check(net.model(y), {"Conv": 2, "PRelu": 2})


def test_sesr_head_and_tail_with_a_long_residual() -> None:
    """The sum of the long residual is the last block's input: three Convs and one Add are left."""
    net = net_of(2, 1)
    head = net.conv(net.conv("x", 1, 32, 5, bias=False), 32, 8, 1)
    body = net.op("PRelu", head, net.channel(8))
    body = net.conv(net.conv(body, 8, 32, 3, bias=False), 32, 8, 1)
    tail = net.conv(net.conv(net.add(body, head), 8, 32, 5, bias=False), 32, 4, 1)
    out = net.op("DepthToSpace", tail, blocksize=2)
    check(net.model(out), {"Conv": 3, "PRelu": 1, "Add": 1, "DepthToSpace": 1})
