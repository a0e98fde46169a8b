"""ConvTranspose, Gemm and MatMul, pooling and padding, channels, scopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, weight
from tests.versions import since


def transpose(net: Net, x: str, c_in: int, c_out: int, k: int = 3, *, bias: bool = True, **attrs: Any) -> str:
    inputs = [x, net.random(c_in, c_out // attrs.get("group", 1), k, k)]
    return str(net.op("ConvTranspose", *inputs, *([net.random(c_out)] if bias else []), **attrs))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_norm_after_conv_transpose(group: int, bias: bool) -> None:
    net = Net(4)
    y = transpose(net, "x", 4, 6, bias=bias, group=group, strides=[2, 2], output_padding=[1, 1], pads=[1] * 4)
    y = net.op("Add", net.op("Mul", net.bn(y, 6), net.channel(6)), net.channel(6))
    check(net.model(y), {"ConvTranspose": 1})


def test_parallel_conv_transposes() -> None:
    net = Net(4)
    check(
        net.model(net.add(*(transpose(net, "x", 4, 6, strides=[2, 2]) for _ in range(2)))),
        {"ConvTranspose": 1},
    )
    net = Net(4)
    stays = net.add(
        transpose(net, "x", 4, 6, strides=[2, 2]),
        transpose(net, "x", 4, 6, 2, strides=[2, 2], output_padding=[1, 1]),
    )
    check(net.model(stays), {"ConvTranspose": 1})


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transposes_of_unlike_kernels_are_aligned(group: int) -> None:
    net = Net(4)
    one = transpose(net, "x", 4, 6, 4, strides=[2, 2], pads=[1] * 4, group=group)
    other = transpose(net, "x", 4, 6, 2, strides=[2, 2], group=group)
    result = check(net.model(net.bn(net.add(one, other), 6)), {"ConvTranspose": 1})
    assert weight(result).dims[2:] == [4, 4]


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2, 2]},  # one row and column less
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [0, 0, 0, 1]},
        {"strides": [3, 3]},
    ],
)
def test_conv_transposes_of_other_sizes_or_strides_stay(attrs: dict[str, Any]) -> None:
    net = Net(4)
    one, other = transpose(net, "x", 4, 6, 4, strides=[2, 2]), transpose(net, "x", 4, 6, **attrs)
    result = fuse(net.model(net.add(one, other)))  # which does not run
    assert not result.report.folds
    assert Reason.GRID in {refusal.reason for refusal in result.report.refusals}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_pointwise_behind_a_conv_transpose(bias: bool, group: int) -> None:
    net = Net(4)
    up = transpose(
        net, "x", 4, 8, bias=bias, group=group, strides=[2, 2], output_padding=[1, 1], pads=[1] * 4
    )
    check(net.model(net.conv(up, 8, 4, 1)), {"ConvTranspose": 1})


def test_pointwise_before_a_conv_transpose() -> None:
    net = Net(4)
    up = transpose(net, net.conv("x", 4, 8, 1, bias=False), 8, 4, strides=[2, 2], pads=[1] * 4)
    check(net.model(up), {"ConvTranspose": 1})
    net = Net(4)  # how often the bias is added depends on the phase, and on the border
    up = transpose(net, net.conv("x", 4, 8, 1), 8, 4, strides=[2, 2], pads=[1] * 4)
    check(net.model(up), None, Reason.BORDER)
    net = Net(4)  # also where kernel and stride are equal: the taps differ
    up = transpose(net, net.conv("x", 4, 8, 1), 8, 4, 2, strides=[2, 2])
    check(net.model(up), None, Reason.BORDER)


def test_a_convolution_behind_a_conv_transpose_stays() -> None:
    net = Net(4)
    up = transpose(net, "x", 4, 4, bias=False, strides=[2, 2])
    check(net.model(net.conv(up, 4, 4, 3)), None, Reason.UNSUPPORTED)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_conv_transpose_of_stride_1_is_a_convolution(dilation: int) -> None:
    net = Net(4)
    options = {"dilations": [dilation] * 2, "pads": [dilation] * 4}
    same = transpose(net, "x", 4, 4, bias=False, group=2, **options)
    check(net.model(net.add(same, net.conv("x", 4, 4, 1, group=2))), {"Conv": 1})
    net = Net(4)
    point = transpose(net, net.conv("x", 4, 8, 1), 8, 4, 1)
    check(net.model(point), {"Conv": 1})
    net = Net(4)  # without pads it writes more positions than it reads
    check(net.model(transpose(net, net.conv("x", 4, 8, 1), 8, 4, 3)), None, Reason.BORDER)


def test_scale_before_conv_transpose() -> None:
    net = Net(4)
    check(
        net.model(transpose(net, net.op("Mul", "x", net.channel(4)), 4, 6, strides=[2, 2])),
        {"ConvTranspose": 1},
    )


# matrices


def matrix(*dims: int | str, **more: Any) -> Net:
    return Net(shape=dims, **more)


def test_gemm_then_norm() -> None:
    net = matrix("N", 6)
    y = net.op("Gemm", "x", net.random(6, 5), net.random(5))
    check(net.model(net.bn(y, 5)), {"Gemm": 1})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("c", [(5,), (1, 5), (), (1,)])
def test_gemm_attributes(transposed: int, alpha: float, beta: float, c: tuple[int, ...]) -> None:
    net = matrix("N", 6)
    weight = net.random(5, 6) if transposed else net.random(6, 5)
    y = net.op("Gemm", "x", weight, net.random(*c), alpha=alpha, beta=beta, transB=transposed)
    scaled = net.op("Mul", y, net.const(net.rng.standard_normal(5)))
    check(net.model(scaled), {"Gemm": 1} if beta else {"MatMul": 1})


def test_gemm_with_full_size_c() -> None:
    net = matrix(3, 6)
    y = net.op("Gemm", "x", net.random(6, 5), net.random(3, 5))
    check(net.model(net.bn(y, 5)), None, Reason.BROADCAST)
    net = matrix(6, 3)
    y = net.op("Gemm", "x", net.random(6, 5), net.random(3, 5), transA=1)
    check(net.model(net.bn(y, 5)), None, Reason.UNSUPPORTED)


def test_norm_then_gemm() -> None:
    net = matrix("N", 6)
    check(net.model(net.op("Gemm", net.bn("x", 6), net.random(6, 5))), {"Gemm": 1})


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_matmul_add(rank: int) -> None:
    net = matrix("N", *(3, "T")[: rank - 2], 6)
    y = net.op("Add", net.op("MatMul", "x", net.random(6, 5)), net.random(5))
    y = net.op("Mul", y, net.const(net.rng.standard_normal(5)))
    check(net.model(y), {"Gemm": 1} if rank == 2 else {"MatMul": 1, "Add": 1})


def test_matmul_chains_when_cheaper() -> None:
    net = matrix("N", "T", 8)
    check(
        net.model(net.op("MatMul", net.op("MatMul", "x", net.random(8, 32)), net.random(32, 8))),
        {"MatMul": 1},
    )
    net = matrix("N", "T", 32)
    y = net.op("MatMul", net.op("MatMul", "x", net.random(32, 4)), net.random(4, 32))
    check(net.model(y), None, Reason.COST)


def test_lora_matmul() -> None:
    net = matrix("N", "T", 16)
    low = net.op("MatMul", net.op("MatMul", "x", net.random(16, 2)), net.random(2, 12))
    y = net.add(net.op("MatMul", "x", net.random(16, 12)), net.op("Mul", low, net.const(0.5)))
    check(net.model(net.op("Add", y, net.random(12))), {"MatMul": 1, "Add": 1})


def test_lora_gemm() -> None:
    net = matrix("N", 16)
    low = net.op("Gemm", net.op("Gemm", "x", net.random(2, 16), transB=1), net.random(12, 2), transB=1)
    y = net.op("Gemm", "x", net.random(12, 16), net.random(12), transB=1)
    check(net.model(net.add(y, net.op("Mul", net.const(2.0), low))), {"Gemm": 1})


def test_lora_pointwise_conv() -> None:
    net = Net(16)
    low = net.conv(net.conv("x", 16, 2, 1, bias=False), 2, 12, 1, bias=False)
    check(net.model(net.add(net.conv("x", 16, 12, 1), net.op("Mul", low, net.const(0.5)))), {"Conv": 1})


def test_averaged_heads() -> None:
    net = matrix("N", 16)
    heads = [net.op("Gemm", net.bn("x", 16), net.random(16, 10), net.random(10)) for _ in range(2)]
    check(net.model(net.op("Div", net.add(*heads), net.const(2.0))), {"Gemm": 1})


# pools and pads


@pytest.mark.parametrize("pads", [[0] * 4, [1] * 4])
def test_average_pool_branch(pads: list[int]) -> None:
    net = Net(4)
    branch = net.op(
        "AveragePool", net.conv("x", 4, 4, 1, bias=False), kernel_shape=[3, 3], pads=pads, count_include_pad=1
    )
    check(net.model(net.add(net.conv("x", 4, 4, 3, pad=pads), net.bn(branch, 4))), {"Conv": 1})


def test_average_pool_that_divides_by_fewer() -> None:
    net = Net(4)
    pool = net.op("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4)
    check(net.model(net.add(net.conv("x", 4, 4, 3), pool)), None, Reason.POOLING)
    net = Net(4)
    pool = net.op("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    check(net.model(net.conv(pool, 4, 4, 1)), None, Reason.POOLING)


def test_ceil_mode_that_adds_no_window() -> None:
    net = Net(shape=("N", 4, 6, 6))
    pool = net.op("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    check(net.model(net.add(net.conv("x", 4, 4, 2, strides=[2, 2], pad=0), net.bn(pool, 4))), {"Conv": 1})


def test_resnet_d_shortcut_stays_where_it_does_not_pay() -> None:
    net = Net(8)
    pool = net.op("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])
    check(net.model(net.conv_bn(pool, 8, 16, 1)), {"AveragePool": 1, "Conv": 1}, Reason.COST)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_pad_then_conv(opset: int) -> None:
    net = Net(4, opset=opset)
    pads = [0, 0, 1, 2, 0, 0, 0, 1]
    if opset < 11:
        y = net.op("Pad", "x", pads=pads, mode="constant")
    elif opset < 18:
        y = net.op("Pad", "x", net.const(np.array(pads, np.int64)), net.const(0.0))
    else:
        amount = net.const(np.array([1, 2, 0, 1], np.int64))
        y = net.op("Pad", "x", amount, net.const(0.0), net.const(np.array([-2, 3], np.int64)))
    check(net.model(net.conv(y, 4, 4, 3, pad=0)), {"Conv": 1})


@pytest.mark.parametrize(
    ("pads", "value", "reason"),
    [
        ([0, 0, -1, 0, 0, 0, 1, 0], 0.0, Reason.PADDING),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0.0, Reason.PADDING),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.5, Reason.BORDER),
        ([0, 0, 1, 1, 0, 0, 1, 1], np.inf, Reason.PADDING),
    ],
)
def test_pads_that_are_refused(pads: list[int], value: float, reason: Reason) -> None:
    net = Net(4)
    y = net.op("Pad", "x", net.const(np.array(pads, np.int64)), net.const(value))
    check(net.model(net.conv(y, 4 + pads[1], 4, 3, pad=0)), None, reason, largest=6)


@since("ONNX Runtime before 1.24 reads beyond what is too small to be reflected", onnxruntime="1.24")
def test_reflecting_pad_is_no_conv() -> None:
    net = Net(4)
    y = net.op("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)), mode="reflect")
    check(net.model(net.conv(y, 4, 4, 3, pad=0)), None)


def test_pad_shared_by_two_convs() -> None:
    net = Net(4)
    y = net.op("Pad", "x", net.const(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    check(net.model(net.conv(y, 4, 4, 3, pad=0), net.conv(y, 4, 4, 3, pad=0)), {"Conv": 2})


# channels


def test_concat_of_pointwise_convs() -> None:
    net = Net(4)
    out = net.op("Concat", net.conv("x", 4, 3, 1), net.conv_bn("x", 4, 5, 1), axis=1)
    check(net.model(out), {"Conv": 1})


def test_norm_over_a_concat_goes_into_its_producers() -> None:
    net = Net(4)
    a, b = net.op("Relu", "x"), net.op("Sigmoid", "x")
    y = net.op("Concat", net.conv(a, 4, 3, 3), net.conv(b, 4, 5, 1), axis=1)
    check(net.model(net.bn(y, 8)), {"Relu": 1, "Sigmoid": 1, "Conv": 2, "Concat": 1})


def test_concat_over_space_is_no_concat_of_channels() -> None:
    net = Net(shape=(1, 4, 4, 4))
    y = net.op("Concat", net.conv("x", 4, 4, 3), net.conv("x", 4, 4, 1), axis=2)
    check(net.model(net.op("Relu", y)), None)


def test_slice_and_split_of_unused_channels() -> None:
    net = Net(4)
    bounds = [net.const(np.array([v], np.int64)) for v in (2, 5, 1)]
    check(net.model(net.op("Slice", net.conv("x", 4, 8, 3), *bounds)), {"Conv": 1})
    net = Net(4)
    parts = net.op("Split", net.conv("x", 4, 8, 3), net.const(np.array([3, 5], np.int64)), outputs=2, axis=1)
    check(net.model(parts[1]), {"Conv": 1})


# who else reads


def test_conv_output_that_is_a_graph_output() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    check(net.model(y, net.bn(y, 4)), None, Reason.CONSUMERS)


def test_conv_output_with_another_consumer() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    check(net.model(net.bn(y, 4), net.op("Relu", y)), None, Reason.CONSUMERS)


def _branches(net: Net, y: str) -> str:
    """An If both of whose branches read `y` from outside."""
    graphs = []
    for op in ("Relu", "Sigmoid"):
        out = helper.make_tensor_value_info(net.fresh("inner"), TensorProto.FLOAT, None)
        graphs.append(helper.make_graph([helper.make_node(op, [y], [out.name])], op, [], [out]))
    net.more_inputs.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    return str(net.op("If", "choice", then_branch=graphs[0], else_branch=graphs[1]))


def test_conv_output_captured_by_a_subgraph() -> None:
    net = Net(4)
    y = net.conv("x", 4, 4, 3)
    check(net.model(net.bn(y, 4), _branches(net, y)), None, Reason.CONSUMERS)


def test_folds_inside_a_branch_and_captures_weights() -> None:
    net = Net(4)
    graphs = []
    for _ in range(2):
        inner = Net(4, seed=3)
        inner.count = net.count + 100
        weight = net.random(4, 4, 3, 3)
        y = inner.op("Conv", "x", weight, pads=[1] * 4)
        y = inner.op("BatchNormalization", y, *net.statistics(4))
        net.count = inner.count
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graphs.append(helper.make_graph(inner.nodes, y, [], [out]))
    net.more_inputs.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    y = net.op("If", "choice", then_branch=graphs[0], else_branch=graphs[1])
    result = check(net.model(y), {"If": 1})
    for attribute in result.model.graph.node[0].attribute:
        assert [n.op_type for n in attribute.g.node] == ["Conv"]


def test_folds_inside_a_function() -> None:
    net = Net(4)
    body = [
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4),
        helper.make_node("Identity", ["b"], ["c"]),
    ]
    net.functions.append(
        helper.make_function("own", "F", ["a", "w"], ["c"], body, [helper.make_opsetid("", 17)])
    )
    y = net.fresh("call")
    net.nodes.append(helper.make_node("F", ["x", net.random(4, 4, 3, 3)], [y], domain="own"))
    check(net.model(net.op("Relu", y)), {"F": 1, "Relu": 1})


# interfaces of weights


def test_ir3_initializers_are_inputs() -> None:
    net = Net(4, ir=3, opset=8)
    result = check(net.model(net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))), {"Conv": 1})
    names = {i.name for i in result.model.graph.input}
    assert {t.name for t in result.model.graph.initializer} <= names


def test_overridable_initializers() -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    check(model, None, Reason.OVERRIDABLE)
    check(model, {"Conv": 1}, options=Options(freeze_initializers=True))


def test_an_overridable_initializer_that_is_convolved() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    image = net.random(1, 4, 8, 8)
    net.more_inputs.append(helper.make_tensor_value_info(image, TensorProto.FLOAT, [1, 4, 8, 8]))
    joined = net.op("Concat", net.conv(image, 4, 4, 1), image, axis=1)
    check(net.model(net.conv(joined, 8, 4, 1)), {"Conv": 1})


def test_weights_that_are_graph_inputs() -> None:
    net = Net(4)
    net.more_inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    check(net.model(net.bn(net.op("Conv", "x", "w", pads=[1] * 4), 4)), None)


def test_quantized_weights() -> None:
    net = Net(4)
    quantized = net.const(net.rng.integers(-128, 127, (4, 4, 3, 3)).astype(np.int8))
    weight = net.op("DequantizeLinear", quantized, net.const(0.01), net.const(np.int8(0)))
    model = net.model(net.bn(net.op("Conv", "x", weight, pads=[1] * 4), 4))
    check(model, None, Reason.QUANTIZED)


def test_custom_domains_are_left_alone() -> None:
    net = Net(4)
    y = net.fresh("call")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    net.functions.append(
        helper.make_function("own", "Conv", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    net.nodes.append(helper.make_node("Conv", ["x"], [y], domain="own"))
    model = net.model(net.bn(y, 4))
    check(model, None)
    assert counts(model)["Conv"] == 1


def test_names_do_not_collide() -> None:
    net = Net(4)
    first, second = (net.conv_bn("x", 4, 4, 3) for _ in range(2))
    for node in net.nodes:
        node.name = ""
    out = net.op("Mul", net.op("Relu", first), net.op("Sigmoid", second))
    result = check(net.model(out), {"Conv": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1})
    names = [t.name for t in result.model.graph.initializer]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_matrix_with_axes_of_one_before_it(axes: int) -> None:
    """A MatMul weight of shape (1, K, N) is the matrix (K, N), where the data has as many axes."""
    net = Net(shape=("N", 5, 4) if axes == 1 else ("N", 5, 2, 4))
    weight = net.random(*(1,) * axes, 4, 6)
    scaled = net.op("Mul", net.op("MatMul", "x", weight), net.random(6))
    check(net.model(net.op("Add", scaled, net.random(6))), {"MatMul": 1, "Add": 1})


def test_a_matrix_that_adds_an_axis_to_the_data() -> None:
    net = Net(shape=("N", 4))
    product = net.op("MatMul", "x", net.random(1, 4, 6))
    check(net.model(net.op("Mul", product, net.random(6))), {"MatMul": 1})
    net = Net(shape=("N", 4))
    product = net.op("MatMul", "x", net.random(1, 4, 6))
    check(net.model(net.op("Add", product, net.random(6))), None)


def test_matrices_for_each_batch_are_not_multiplied() -> None:
    net = Net(shape=(3, 5, 4))
    product = net.op("MatMul", "x", net.random(3, 4, 6))
    check(net.model(net.op("MatMul", product, net.random(6, 6))), None)
