"""Views between linear operators: pooled, flattened, reshaped, transposed, resized."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal


def pooled(net: Net, x: str, op: str = "GlobalAveragePool") -> str:
    if op == "GlobalAveragePool":
        return str(net.op(op, x))
    return str(net.op("ReduceMean", x, axes=[2, 3], keepdims=1))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceMean"])
def test_pointwise_conv_before_the_pool_joins_the_head(op: str) -> None:
    net = Net(4)
    y = net.op("Flatten", pooled(net, net.conv_bn(net.op("Relu", "x"), 4, 6, 1), op))
    out = net.op("Gemm", y, net.random(6, 3), net.random(3))
    result = check(net.model(out), {"Relu": 1, op: 1, "Flatten": 1, "Gemm": 1})
    assert Kind.COMMUTE in {kind for fold in result.report.folds for kind in fold.kinds}


def test_norm_behind_a_pool_goes_into_the_conv_before_it() -> None:
    net = Net(4)
    out = net.bn(net.op("GlobalAveragePool", net.conv("x", 4, 6, 3)), 6)
    check(net.model(out), {"Conv": 1, "GlobalAveragePool": 1})


def test_norm_behind_flatten_goes_into_the_gemm_behind_it() -> None:
    net = Net(4)
    y = net.bn(net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", "x"))), 4)
    out = net.op("Gemm", y, net.random(4, 3), net.random(3))
    check(net.model(out), {"Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1})


def test_norm_per_position_stays() -> None:
    net = Net(shape=("N", 4, 2, 3))
    out = net.bn(net.op("Flatten", net.conv("x", 4, 4, 1)), 24)
    check(net.model(out), None)


@pytest.mark.parametrize("k", [1, 3])
def test_conv_behind_nearest_resize(k: int) -> None:
    net = Net(4)
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    y = net.op("Resize", net.op("Relu", "x"), "", scales, mode="nearest")
    model = net.model(net.conv(y, 4, 6, k))
    if k == 1:
        result = check(model, {"Relu": 1, "Resize": 1, "Conv": 1})
        assert result.model.graph.node[1].op_type == "Conv"  # a quarter of the products
    else:
        check(model, None)


def test_conv_behind_resize_to_sizes() -> None:
    net = Net(shape=("N", 4, 3, 5))
    sizes = net.const(np.array([2, 4, 6, 10], np.int64))
    net.shape = (2, 4, 3, 5)
    y = net.op("Resize", net.op("Relu", "x"), "", "", sizes, mode="nearest")
    result = check(net.model(net.conv(y, 4, 6, 1)), {"Relu": 1, "Resize": 1, "Conv": 1})
    assert result.report.after.macs == result.report.before.macs // 4  # type: ignore[operator]


def test_resize_of_fewer_channels_first() -> None:
    """What a linear Resize costs is more than the multiply-adds."""
    net = Net(4)
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    y = net.op("Resize", net.op("Relu", "x"), "", scales, mode="linear")
    check(net.model(net.conv(y, 4, 6, 1)), None)


# LeViT's Linear_Norm: a matrix product, and a BatchNormalization over all tokens


def linear_norm(net: Net, x: str, c_in: int, c_out: int, *, target: str) -> str:
    y = net.op("MatMul", x, net.random(c_in, c_out))
    rows = net.op("Flatten", y, axis=2) if target == "shape" else net.op("Reshape", y, rows_of(net, c_out))
    normed = net.bn(rows, c_out)
    if target == "shape":
        return str(net.op("Reshape", normed, net.op("Shape", y)))
    return str(net.op("Reshape", normed, net.const(np.array([2, 5, c_out], np.int64))))


def rows_of(net: Net, channels: int) -> str:
    return net.const(np.array([10, channels], np.int64))


def test_linear_norm_with_known_sizes() -> None:
    net = Net(shape=(2, 5, 4))
    out = net.op("Relu", linear_norm(net, net.op("Relu", "x"), 4, 6, target="sizes"))
    check(net.model(out), {"Relu": 2, "MatMul": 1, "Add": 1})


@pytest.mark.parametrize("dims", [(2, 5, 4), ("N", "T", 4), ("N", 5, 4)])
def test_linear_norm_that_restores_its_shape(dims: tuple[int | str, ...]) -> None:
    net = Net(shape=dims)
    out = net.op("Relu", linear_norm(net, net.op("Relu", "x"), 4, 6, target="shape"))
    check(net.model(out), {"Relu": 2, "MatMul": 1, "Add": 1})


def test_linear_norm_whose_shape_somebody_else_reads() -> None:
    net = Net(shape=("N", "T", 4))
    y = net.op("MatMul", net.op("Relu", "x"), net.random(4, 6))
    shape = net.op("Shape", y)
    out = net.op("Reshape", net.bn(net.op("Flatten", y, axis=2), 6), shape)
    model = net.model(out)
    model.graph.output.add(name=shape).type.tensor_type.elem_type = 7
    result = check_numbers(model)
    assert any(node.op_type == "Shape" for node in result.graph.node)


def check_numbers(model):  # type: ignore[no-untyped-def]
    from onnx_repfuse import fuse
    from tests.build import equal

    fused = fuse(model).model
    assert equal(model, fused) > 0
    return fused


def test_chain_of_linear_norms_with_residuals_stays_provable() -> None:
    net = Net(shape=("N", "T", 4))
    x = net.op("Relu", "x")
    for _ in range(8):
        x = net.op("Add", x, linear_norm(net, net.op("Relu", x), 4, 4, target="shape"))
    model = net.model(net.op("Relu", x))
    from onnx_repfuse import fuse
    from tests.build import counts, equal

    result = fuse(model)
    assert "BatchNormalization" not in counts(result.model)
    assert equal(model, result.model) > 0
    assert max(len(fold.sources) for fold in result.report.folds) <= 5


# transposes


def test_norm_between_transposes() -> None:
    net = Net(4)
    y = net.op("Transpose", net.conv("x", 4, 6, 3), perm=[0, 2, 3, 1])
    y = net.op("Add", net.op("Mul", y, net.const(net.rng.uniform(0.5, 2, 6))), net.random(6))
    out = net.op("Transpose", y, perm=[0, 3, 1, 2])
    check(net.model(out), {"Conv": 1})


@pytest.mark.parametrize("ops", [("Add",), ("Mul", "Add"), ("Mul",)])
@pytest.mark.parametrize("plain", [False, True])
def test_an_affine_map_behind_a_concat_of_transposed_convs(ops: tuple[str, ...], plain: bool) -> None:
    """TensorFlow concatenates along the last axis; each Conv takes the shifts of its own channels."""
    net = Net(4)
    parts = [net.op("Transpose", net.conv("x", 4, c, k), perm=[0, 2, 3, 1]) for c, k in ((4, 3), (2, 5))]
    if plain:
        parts.insert(1, net.op("Transpose", net.op("Relu", "x"), perm=[0, 2, 3, 1]))
    y = net.op("Concat", *parts, axis=3)
    channels = 10 if plain else 6
    for op in ops:
        y = net.op(op, y, net.channel(channels, 0))
    left = dict.fromkeys(ops, 1) | {"Relu": 1} if plain else {}
    check(net.model(net.op("Tanh", y)), {"Conv": 2, "Transpose": len(parts), "Concat": 1, "Tanh": 1, **left})


def test_transpose_that_moves_channels_elsewhere() -> None:
    net = Net(shape=("N", 4, 4, 4))
    y = net.op("Transpose", net.conv("x", 4, 4, 3), perm=[0, 2, 1, 3])
    out = net.op("Mul", y, net.const(net.rng.uniform(0.5, 2, (4, 1, 1))))
    check(net.model(out), None)


def test_squeeze_and_unsqueeze_around_a_linear_layer() -> None:
    net = Net(4)
    y = net.op("GlobalAveragePool", net.op("Relu", "x"))
    y = net.op("Squeeze", net.conv_bn(y, 4, 3, 1), net.const(np.array([2, 3], np.int64)))
    y = net.op("Gemm", y, net.random(3, 4), net.random(4))
    out = net.op("Sigmoid", net.op("Unsqueeze", y, net.const(np.array([2, 3], np.int64))))
    check(net.model(out), {"Relu": 1, "GlobalAveragePool": 1, "Conv": 1, "Sigmoid": 1})


def test_views_that_are_skipped() -> None:
    net = Net(4)
    out = net.bn(net.op("GlobalAveragePool", net.conv("x", 4, 6, 3)), 6)
    check(net.model(out), None, options=Options(skip=(Kind.COMMUTE,)))


# an affine before a padded Conv


def affine(net: Net, x: str, channels: int) -> str:
    return str(net.op("Add", net.op("Mul", x, net.channel(channels)), net.channel(channels)))


@pytest.mark.parametrize("attrs", [{}, {"group": 4}, {"strides": [2, 2]}, {"auto_pad": "SAME_LOWER"}])
def test_affine_before_padded_conv_keeps_one_add(attrs: dict[str, object]) -> None:
    net = Net(4)
    check(net.model(net.conv(affine(net, "x", 4), 4, 4, 3, **attrs)), {"Add": 1, "Conv": 1})


def test_affine_before_conv_transpose_keeps_one_add() -> None:
    net = Net(4)
    out = net.op("ConvTranspose", affine(net, "x", 4), net.random(4, 3, 3, 3), strides=[2, 2])
    check(net.model(out), {"Add": 1, "ConvTranspose": 1})


def test_affine_read_by_padded_and_pointwise_convs() -> None:
    net = Net(4)
    y = affine(net, net.op("Relu", "x"), 4)
    one, three = net.conv(y, 4, 3, 1), net.conv(y, 4, 2, 3)
    check(
        net.model(net.op("Relu", one), net.op("Sigmoid", three)),
        {"Relu": 2, "Sigmoid": 1, "Add": 1, "Conv": 2},
    )


def test_affine_before_padded_branches_shifts_once() -> None:
    net = Net(4)
    y = affine(net, net.op("Relu", "x"), 4)
    out = net.add(net.conv(y, 4, 4, 3), net.conv(y, 4, 4, 1), net.bn(y, 4))
    check(net.model(out), {"Relu": 1, "Add": 1, "Conv": 1})


@pytest.mark.parametrize("bad", [0.0, 1e-9, 1e9])
def test_affine_that_cannot_be_divided_stays(bad: float) -> None:
    net = Net(4)
    scale = np.array([1.5, bad, -0.7, 1.0]).reshape(4, 1, 1)
    y = net.op("Add", net.op("Mul", "x", net.const(scale)), net.channel(4))
    check(net.model(net.conv(y, 4, 4, 3)), None, Reason.BORDER)


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("ops", [("Mul", "Sub"), ("Div", "Add"), ("Sub", "Mul"), ("Mul",)])
def test_scaled_images_with_the_channels_last(
    space: int, pad: int, scalar: bool, ops: tuple[str, ...]
) -> None:
    """A scalar does not say where the channels are; the Conv behind the Transpose does."""
    net = Net(shape=("N", *(9, 8, 7)[:space], 3))
    y = "x"
    for op in ops:
        y = net.op(op, y, net.const(1.7) if scalar else net.channel(3, 0))
    y = net.op("Transpose", y, perm=[0, space + 1, *range(1, space + 1)])
    y = net.conv(y, 3, 4, (3,) * space, pad=pad)
    # padding is zero where the shift would have been added to it: one Add stays
    left = {("Sub" if ops[0] == "Sub" else "Add"): 1} if pad and len(ops) > 1 else {}
    check(net.model(y), {"Transpose": 1, "Conv": 1, **left})


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze", "Reshape"])
def test_a_scalar_before_a_view_that_keeps_the_channels(op: str) -> None:
    net = Net(
        shape=("N", 6, 1, 4) if op == "Squeeze" else ("N", 6, 4) if op == "Unsqueeze" else ("N", 3, 2, 4)
    )
    argument = {"Squeeze": [2], "Unsqueeze": [2], "Reshape": [-1, 6, 4]}[op]
    y = net.op(op, net.op("Mul", "x", net.const(1.7)), net.const(np.array(argument)))
    check(net.model(net.op("MatMul", y, net.random(4, 5))), {op: 1, "MatMul": 1})


def test_a_shift_of_an_average_before_a_padded_conv() -> None:
    net = Net(4, shape=("N", 4, 6, 6))
    y = net.op("ReduceMean", net.op("Relu", "x"), axes=[3], keepdims=0)
    y = net.op("Add", net.op("Mul", y, net.channel(4, 1)), net.channel(4, 1))
    check(net.model(net.conv(y, 4, 4, (3,))), {"Relu": 1, "ReduceMean": 1, "Add": 1, "Conv": 1})


# several views, one behind another


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reshapes", [1, 2])
def test_a_factor_behind_several_views_goes_into_the_product(
    residual: bool, bias: bool, reshapes: int
) -> None:
    """LayerScale behind an attention's projection, which Transpose and Reshape make an image again."""
    net = Net(shape=(2, 6, 4))
    y = net.op("MatMul", "x", net.random(4, 4))
    y = net.op("Add", y, net.random(4)) if bias else y
    y = net.op("Transpose", y, perm=[0, 2, 1])
    for sizes in ([2, 4, 3, 2], [2, 4, 2, 3])[:reshapes]:
        y = net.op("Reshape", y, net.const(np.array(sizes)))
    y = net.op("Mul", y, net.channel(4))
    ops = {"MatMul": 1, "Transpose": 1, "Reshape": reshapes}
    if residual:
        net.more_inputs.append(helper.make_tensor_value_info("z", 1, sizes))
        y = net.op("Add", "z", y)
    check(net.model(y), {**ops, **({"Add": bias + residual} if bias or residual else {})})


def test_a_factor_behind_a_resize_and_a_pool_goes_into_the_conv() -> None:
    net = Net(4)
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    y = net.op("Resize", net.conv("x", 4, 6, 3), "", scales, mode="nearest")
    y = net.op("AveragePool", y, kernel_shape=[3, 3])
    check(net.model(net.bn(y, 6)), {"Conv": 1, "Resize": 1, "AveragePool": 1})


def test_a_factor_behind_two_views_stays_where_the_product_has_another_consumer() -> None:
    net = Net(shape=(2, 6, 4))
    y = net.op("MatMul", "x", net.random(4, 4))
    z = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1]), net.const(np.array([2, 4, 3, 2])))
    check(net.model(net.op("Mul", z, net.channel(4)), net.op("Relu", y)), None)


def test_a_shift_before_a_product_between_transposes_goes_into_its_bias() -> None:
    """One Conv would be cheaper still, but a matrix product is not made one."""
    net = Net(4)
    y = net.op("Transpose", net.op("Add", "x", net.channel(4)), perm=[0, 2, 3, 1])
    y = net.op("Add", net.op("MatMul", y, net.random(4, 3)), net.random(3))
    model = net.model(net.op("Transpose", y, perm=[0, 3, 1, 2]))
    check(model, {"Transpose": 2, "MatMul": 1, "Add": 1})


def test_factors_on_both_sides_of_a_product_between_transposes() -> None:
    net = Net(4)
    y = net.op("Transpose", net.op("Mul", "x", net.channel(4)), perm=[0, 2, 3, 1])
    y = net.op("Transpose", net.op("MatMul", y, net.random(4, 3)), perm=[0, 3, 1, 2])
    check(net.model(net.op("Mul", y, net.channel(3))), {"Transpose": 2, "MatMul": 1})


@pytest.mark.parametrize("source", ["conv", "x"])
def test_a_product_behind_patches_whose_list_has_the_size_of_the_convolution(source: str) -> None:
    """`conv(x).flatten(2).mT` and Linear, by the legacy exporter, which asks the Conv for its channels."""
    net = Net(8)
    y = net.conv("x", 8, 16, 4, strides=[4, 4], pad=0)
    if source == "conv":
        kept = net.op("Slice", net.op("Shape", y), *(net.const(np.array([end])) for end in (0, 2, 0)))
        sizes = net.op("Concat", kept, net.const(np.array([-1])), axis=0)
    else:
        batch = net.op("Slice", net.op("Shape", "x"), *(net.const(np.array([end])) for end in (0, 1, 0)))
        sizes = net.op("Concat", batch, net.const(np.array([16, -1])), axis=0)
    tokens = net.op("Transpose", net.op("Reshape", y, sizes), perm=[0, 2, 1])
    model = net.model(net.op("Add", net.random(12), net.op("MatMul", tokens, net.random(16, 12))))
    result = fuse(model)
    found = counts(result.model)
    assert found["Conv"] == 1
    assert "MatMul" not in found
    assert result.report.after.macs == 12 * 8 * 16 * 56 * 56
    assert equal(model, result.model, 9) > 0
    assert not fuse(result.model).report.folds
