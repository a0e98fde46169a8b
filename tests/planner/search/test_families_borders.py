"""Padding with the inner bias (diverse branch blocks), in the ways exporters decompose it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, check, counts, equal
from tests.versions import since, since_bfloat16

Array = NDArray[Any]
SIZE = (5, 6)
C = 4


def pads(net: Net, p: int, value: float = 0.0) -> list[str]:
    return [net.const(np.array([0, 0, p, p] * 2)), *([net.const(np.array(value))] if value else [])]


def column(net: Net, value: Array) -> str:
    return net.const(value.reshape(1, -1, 1, 1))


def rows_of(net: Net, y: str, axis: int, value: Array, index: Array) -> str:
    """torch's new exporter, sizes known: the axis to the front, ScatterND of rows, and back."""
    perm = [0, 1, 2, 3]
    perm[0], perm[axis] = axis, 0
    moved = net.op("Transpose", y, perm=perm)
    shape = [net.sizes[axis], C, net.sizes[2], net.sizes[3]]
    shape[axis], shape[0] = 1, len(index)
    updates = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy())
    moved = net.op("ScatterND", moved, net.const(index.reshape(-1, 1)), updates)
    return str(net.op("Transpose", moved, perm=perm))


def scattered(net: Net, y: str, value: Array, p: int) -> str:
    y = net.op("Pad", y, *pads(net, p))
    net.sizes = (1, C, *(n + 2 * p for n in SIZE))
    for axis in (2, 3):
        size = net.sizes[axis]
        y = rows_of(net, y, axis, value, np.arange(p))
        y = net.op("Identity", rows_of(net, y, axis, value, np.arange(size - p, size)))
    return y


def by_grid(net: Net, y: str, value: Array, p: int) -> str:
    """torch's legacy exporter: indices of every element."""
    shape = (1, C, *(n + 2 * p for n in SIZE))
    y = net.op("Pad", y, *pads(net, p))
    for axis in (2, 3):
        for positions in (np.arange(p), np.arange(shape[axis] - p, shape[axis])):
            grid = [np.arange(n) for n in shape]
            grid[axis] = positions
            indices = np.stack(np.meshgrid(*grid, indexing="ij"), -1)
            updates = np.broadcast_to(value.reshape(1, -1, 1, 1), indices.shape[:-1]).copy()
            y = net.op("ScatterND", y, net.const(indices), net.const(updates))
    return y


def sized_by_shape(net: Net, y: str, value: Array, p: int) -> str:
    """torch's new exporter, sizes not known: indices from Shape, Gather, Range and Slice."""
    y = net.op("Pad", y, *pads(net, p))
    zero, one = net.const(np.array(0)), net.const(np.array(1))
    first, far = net.const(np.array([0])), net.const(np.array([2**63 - 1]))
    for axis in (2, 3):
        perm = [0, 1, 2, 3]
        perm[0], perm[axis] = axis, 0
        for bounds in ((first, net.const(np.array([p]))), (net.const(np.array([-p])), far)):
            size = net.op("Gather", net.op("Shape", y), net.const(np.array(axis)))
            every = net.op("Range", zero, size, one)
            some = net.op("Slice", every, *bounds, first, net.const(np.array([1])))
            rows = net.op("Unsqueeze", some, net.const(np.array([-1])))
            dims = net.op("Shape", net.op("Transpose", y, perm=perm))
            rest = net.op("Slice", dims, net.const(np.array([1])), net.const(np.array([4])))
            updates = net.op(
                "Expand", column(net, value), net.op("Concat", net.const(np.array([p])), rest, axis=0)
            )
            moved = net.op("ScatterND", net.op("Transpose", y, perm=perm), rows, updates)
            y = net.op("Transpose", moved, perm=perm)
    return y


def around(net: Net, y: str, value: Array, p: int) -> str:
    """Rows above and below, columns at both sides."""
    for axis in (2, 3):
        shape = [1, C, SIZE[0] + 2 * p if axis == 3 else 1, SIZE[1]]
        shape[axis] = p
        side = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy())
        y = net.op("Concat", side, y, side, axis=axis)
    return y


def into_frame(net: Net, y: str, value: Array, p: int) -> str:
    """A tensor full of the value, its inside assigned."""
    shape = (1, C, *(n + 2 * p for n in SIZE))
    grid = [np.arange(1), np.arange(C), *(np.arange(p, n + p) for n in SIZE)]
    full = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy())
    return str(net.op("ScatterND", full, net.const(np.stack(np.meshgrid(*grid, indexing="ij"), -1)), y))


def chosen(net: Net, y: str, value: Array, p: int) -> str:
    """Where, with a mask made of the tensor's own size."""
    one, none = net.const(np.array([1])), net.const(np.array([0]))
    corner = net.op("Slice", y, none, one, none)
    corner = net.op("Slice", corner, none, one, one)
    ones = net.op("Expand", net.const(np.array(1.0)), net.op("Shape", corner))
    mask = net.op("Greater", net.op("Pad", ones, *pads(net, p)), net.const(np.array(0.0)))
    return str(net.op("Where", mask, net.op("Pad", y, *pads(net, p)), column(net, value)))


def masked(net: Net, y: str, value: Array, p: int) -> str:
    mask = np.pad(np.zeros((1, 1, *SIZE)), [(0, 0), (0, 0), (p, p), (p, p)], constant_values=1.0)
    return net.add(net.op("Pad", y, *pads(net, p)), net.const(mask * value.reshape(1, -1, 1, 1)))


def shifted(net: Net, y: str, value: Array, p: int) -> str:
    """Zeros around what differs from the value."""
    less = net.op("Sub", y, column(net, value))
    return str(net.op("Add", net.op("Pad", less, *pads(net, p)), column(net, value)))


Border = Callable[[Net, str, Array, int], str]
ALL = [scattered, by_grid, sized_by_shape, around, into_frame, chosen, masked, shifted]
FREE = [sized_by_shape, chosen, shifted]


def start(sized: bool = True, **options: Any) -> tuple[Net, str, Array]:
    net = Net(3, shape=(1, 3, *SIZE) if sized else ("N", 3, "H", "W"), **options)
    y = net.conv_bn("x", 3, C, 1)
    values = {t.name: numpy_helper.to_array(t) for t in net.tensors}
    scale, shift, mean, variance = (values[name] for name in net.nodes[-1].input[1:5])
    return net, y, shift - mean * scale / np.sqrt(variance + np.float32(1e-5))


@pytest.mark.parametrize("border", ALL)
@pytest.mark.parametrize("p", [1, 2])
def test_every_decomposition_becomes_one_conv(border: Border, p: int) -> None:
    net, y, value = start()
    y = border(net, y, value, p)
    out = net.add(net.conv(y, C, 5, 2 * p + 1, pad=0), net.conv("x", 3, 5, 2 * p + 1))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("border", FREE)
def test_sizes_need_not_be_known(border: Border) -> None:
    net, y, value = start(sized=False)
    y = border(net, y, value, 1)
    out = net.add(net.conv(y, C, 5, 3, pad=0, strides=[2, 2]), net.conv("x", 3, 5, 3, strides=[2, 2]))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("border", ALL)
def test_average_pool_behind_a_border(border: Border) -> None:
    net, y, value = start()
    pooled = net.op("AveragePool", border(net, y, value, 1), kernel_shape=[3, 3])
    out = net.add(net.bn(pooled, C), net.conv("x", 3, C, 3))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


def stays(net: Net, y: str, *reasons: Reason, pad: int = 0) -> None:
    """The two Convs around a border are not joined, and the numbers are the same."""
    out = net.add(net.conv(y, C, 5, 3, pad=pad), net.conv("x", 3, 5, 3))
    model = net.model(net.op("Relu", out))
    result = fuse(model)
    assert counts(result.model)["Conv"] == 3
    assert set(reasons) <= {r.reason for r in result.report.refusals}
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("border", ALL)
def test_a_border_of_another_value_stays(border: Border) -> None:
    """One channel off by a thousandth."""
    net, y, value = start()
    value = value.copy()
    value[2] *= 1.001
    stays(net, border(net, y, value, 1), Reason.BORDER)


@pytest.mark.parametrize("border", ALL)
def test_zero_is_another_value(border: Border) -> None:
    net, y, value = start()
    stays(net, border(net, y, 0 * value, 1), Reason.BORDER)


@pytest.mark.parametrize("missing", [2, 3])
def test_three_sides_are_not_four(missing: int) -> None:
    net, y, value = start()
    y = net.op("Pad", y, *pads(net, 1))
    net.sizes = (1, C, *(n + 2 for n in SIZE))
    for axis in (2, 3):
        y = rows_of(net, y, axis, value, np.array([0]))
        if axis != missing:
            y = rows_of(net, y, axis, value, np.array([net.sizes[axis] - 1]))
    stays(net, y)


@pytest.mark.parametrize("row", [1, 3])
def test_a_row_inside_is_no_border(row: int) -> None:
    net, y, value = start()
    y = net.op("Pad", y, *pads(net, 1))
    net.sizes = (1, C, *(n + 2 for n in SIZE))
    for axis in (2, 3):
        y = rows_of(net, y, axis, value, np.array([0]))
        y = rows_of(net, y, axis, value, np.array([net.sizes[axis] - 1]))
    stays(net, rows_of(net, y, 2, value, np.array([row])))


def test_a_border_that_differs_at_one_position_stays() -> None:
    net, y, value = start()
    shape = (1, C, *(n + 2 for n in SIZE))
    full = np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy()
    full[0, 1, 0, 3] += 0.5
    grid = [np.arange(1), np.arange(C), *(np.arange(1, n + 1) for n in SIZE)]
    indices = net.const(np.stack(np.meshgrid(*grid, indexing="ij"), -1))
    stays(net, str(net.op("ScatterND", net.const(full), indices, y)))


@pytest.mark.parametrize("shift", [0, 2])
def test_off_the_middle(shift: int) -> None:
    """Two rows at one side and none at the other: a border all the same, of unlike widths."""
    net, y, value = start()
    shape = (1, C, *(n + 2 for n in SIZE))
    full = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy())
    grid = [np.arange(1), np.arange(C), np.arange(shift, SIZE[0] + shift), np.arange(1, SIZE[1] + 1)]
    y = net.op("ScatterND", full, net.const(np.stack(np.meshgrid(*grid, indexing="ij"), -1)), y)
    other = net.conv("x", 3, 5, 3, pad=[shift, 1, 2 - shift, 1])
    out = net.add(net.conv(y, C, 5, 3, pad=0), other)
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


def test_scattered_out_of_order_stays() -> None:
    """The rows of the tensor are put into the frame upside down."""
    net, y, value = start()
    shape = (1, C, *(n + 2 for n in SIZE))
    full = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), shape).copy())
    grid = [np.arange(1), np.arange(C), np.arange(SIZE[0], 0, -1), np.arange(1, SIZE[1] + 1)]
    stays(net, str(net.op("ScatterND", full, net.const(np.stack(np.meshgrid(*grid, indexing="ij"), -1)), y)))


def test_scatter_that_adds_stays() -> None:
    net, y, value = start(opset=18)
    y = scattered(net, y, value, 1)
    node = next(n for n in net.nodes if n.op_type == "ScatterND")
    node.attribute.append(onnx.helper.make_attribute("reduction", "add"))
    stays(net, y)


def test_a_mask_that_broadcasts_the_tensor_stays() -> None:
    """A column of one position chosen into a mask of three: the border is right, the middle is repeated."""
    net = Net(3, shape=(1, 3, 5, 1))
    y = net.conv("x", 3, C, 1)
    value = numpy_helper.to_array(net.tensors[-1])
    mask = np.zeros((1, 1, 5, 3), bool)
    mask[..., 1:2] = True
    y = net.op("Where", net.const(mask), y, column(net, value))
    model = net.model(net.conv(y, C, 5, (1, 3), pad=0))
    result = fuse(model)
    assert equal(model, result.model) > 0
    assert counts(result.model)["Conv"] == 2


@pytest.mark.parametrize("border", ALL)
def test_an_inner_tensor_with_another_consumer_stays(border: Border) -> None:
    net, y, value = start()
    first = len(net.nodes)
    y = border(net, y, value, 1)
    inner = next(n.output[0] for n in net.nodes[first:] if n.op_type in ("Pad", "ScatterND", "Concat"))
    if inner == y:
        return
    out = net.add(net.conv(y, C, 5, 3, pad=0), net.conv("x", 3, 5, 3))
    model = net.model(out, net.op("Abs", inner))
    result = fuse(model)
    is_constant = border is chosen  # a mask, which is written as an initializer
    assert counts(result.model)["Conv"] == (1 if is_constant else 3)
    assert equal(model, result.model) > 0


def test_the_inner_tensor_is_kept_for_its_other_consumer() -> None:
    net, y, value = start()
    out = net.add(net.conv(scattered(net, y, value, 1), C, 5, 3, pad=0), net.conv("x", 3, 5, 3))
    model = net.model(net.op("Relu", out), net.op("Abs", y))
    result = fuse(model)
    assert equal(model, result.model) > 0
    assert counts(result.model)["Conv"] == 3


EXACT = since("ONNX Runtime before 1.20 computes such constants otherwise in float16", onnxruntime="1.20")


@pytest.mark.parametrize("dtype", [pytest.param(np.float16, marks=EXACT), np.float64])
def test_other_data_types(dtype: Any) -> None:
    """The value is rounded as the model's data type rounds it."""
    net, y, value = start(dtype=dtype)
    out = net.add(net.conv(scattered(net, y, value, 1), C, 5, 3, pad=0), net.conv("x", 3, 5, 3))
    tolerance = 2e-2 if dtype == np.float16 else 1e-12
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1}, tolerance=tolerance)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank: int) -> None:
    space = (5, 4, 6)[:rank]
    net = Net(3, shape=(1, 3, *space))
    y = net.conv_bn("x", 3, C, (1,) * rank)
    values = {t.name: numpy_helper.to_array(t) for t in net.tensors}
    scale, shift, mean, variance = (values[name] for name in net.nodes[-1].input[1:5])
    value = (shift - mean * scale / np.sqrt(variance + np.float32(1e-5))).reshape(1, -1, *(1,) * rank)
    shape = [1, C, *space]
    for axis in range(2, rank + 2):
        shape[axis] = 1
        side = net.const(np.broadcast_to(value, shape).copy())
        y = net.op("Concat", side, y, side, axis=axis)
        shape[axis] = space[axis - 2] + 2
    out = net.add(net.conv(y, C, 5, (3,) * rank, pad=0), net.conv("x", 3, 5, (3,) * rank))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


def test_inside_a_subgraph() -> None:
    """The group is found in an If branch, too."""
    net, y, value = start()
    first, made = list(net.nodes), len(net.nodes)
    out = net.conv(scattered(net, y, value, 1), C, 5, 3, pad=0)
    inner = net.nodes[made:]
    net.nodes = first
    flag = net.const(np.array(True))
    info = onnx.helper.make_tensor_value_info(out, 1, None)
    branch = onnx.helper.make_graph(inner, "then", [], [info])
    plain = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", [y, net.random(5, C, 1, 1)], ["other"])],
        "else",
        [],
        [onnx.helper.make_tensor_value_info("other", 1, None)],
    )
    result = net.op("If", flag, then_branch=branch, else_branch=plain)
    model = net.model(net.op("Relu", result))
    fused = fuse(model)
    assert equal(model, fused.model) > 0


def test_a_node_of_the_group_that_the_user_keeps() -> None:
    net, y, value = start()
    y = scattered(net, y, value, 1)
    kept = next(n.name for n in net.nodes if n.op_type == "ScatterND")
    model = net.model(net.op("Relu", net.add(net.conv(y, C, 5, 3, pad=0), net.conv("x", 3, 5, 3))))
    result = fuse(model, options=Options(keep=(kept,)))
    assert kept in [n.name for n in result.model.graph.node]
    assert equal(model, result.model) > 0


def test_kinds_that_are_skipped() -> None:
    net, y, value = start()
    y = scattered(net, y, value, 1)
    model = net.model(net.op("Relu", net.add(net.conv(y, C, 5, 3, pad=0), net.conv("x", 3, 5, 3))))
    result = fuse(model, options=Options(skip=frozenset(("pad",))))
    assert counts(result.model)["Conv"] == 3
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_empty_rows_are_no_border(axis: int) -> None:
    """ONNX Runtime leaves out of a Concat what has no element, whatever its other sizes."""
    net, y, value = start()
    shape = [1, C, 1, SIZE[1]]
    shape[axis] = 0
    side = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1)[:, : shape[1]], shape).copy())
    model = net.model(net.conv(net.op("Concat", side, y, side, axis=2), C, 5, 3, pad=0))
    result = fuse(model, options=Options(check=False))
    assert counts(result.model)["Conv"] == 2


@since_bfloat16
def test_bfloat16() -> None:
    """No runtime takes it: nothing is compared but the counts."""
    net, y, value = start(dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    out = net.add(net.conv(chosen(net, y, value, 1), C, 5, 3, pad=0), net.conv("x", 3, 5, 3))
    result = fuse(net.model(net.op("Relu", out)), options=Options(check=False))
    assert counts(result.model) == {"Conv": 1, "Relu": 1}


def test_strings_are_no_values() -> None:
    """Placed and compared, they are none of ours; and nothing breaks."""
    net = Net(3)
    one = net.fresh("w")
    net.tensors.append(onnx.helper.make_tensor(one, onnx.TensorProto.STRING, [1], [b"a"]))
    mask = net.op("Equal", one, one)
    y = net.op("Where", mask, net.conv("x", 3, C, 1), net.const(np.array(0.0)))
    result = fuse(net.model(net.conv(y, C, 5, 3)), options=Options(check=False))
    assert counts(result.model)["Conv"] == 2


def behind_a_large_mean(dtype: Any, mean: float, left: float, *, conv_bias: float = 0.0) -> onnx.ModelProto:
    """A padded 3x3 behind a 1x1 and a BatchNormalization whose bias almost cancels: `left` remains of the mean."""
    net = Net(3, dtype=dtype)
    scale, ones = np.full(C, 0.5), np.ones(C)
    shift = (mean - conv_bias) * scale + left
    parameters = [net.const(v) for v in (scale, shift, mean * ones, ones)]
    bias = [net.const(np.full(C, conv_bias))] if conv_bias else []
    y = net.op("Conv", "x", net.random(C, 3, 1, 1), *bias, kernel_shape=[1, 1])
    y = net.op("BatchNormalization", y, *parameters)
    return net.model(net.op("Relu", net.conv(y, C, 5, 3)))


@pytest.mark.parametrize(
    ("dtype", "mean", "left"), [(np.float16, 512.0, 0.75), (np.float16, 64.0, 0.06), (np.float32, 1e5, 0.01)]
)
def test_a_bias_far_below_its_terms_is_not_zero(dtype: Any, mean: float, left: float) -> None:
    """It is what its constants say. The padding holds zeros, so the border would differ by it."""
    result = fuse(behind_a_large_mean(dtype, mean, left))
    assert counts(result.model) == {"Conv": 2, "Relu": 1}
    assert Reason.BORDER in {refusal.reason for refusal in result.report.refusals}


def test_what_two_large_biases_leave_is_not_zero_in_half_precision() -> None:
    """A bias of 512 before, a mean of 514 behind: several ulps of float16 at 512 are more than what remains."""
    result = fuse(behind_a_large_mean(np.float16, 514.0, 0.4, conv_bias=512.0))
    assert counts(result.model) == {"Conv": 2, "Relu": 1}
    assert Reason.BORDER in {refusal.reason for refusal in result.report.refusals}


def test_a_border_of_a_rounded_value_folds_in_half_precision() -> None:
    """An exporter computed the value in float32 and stored it in float16."""
    net, y, value = start(dtype=np.float16)
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in net.tensors}
    scale, shift, mean, variance = (values[name] for name in net.nodes[-1].input[1:5])
    value = (shift - mean * scale / np.sqrt(variance + 1e-5)).astype(np.float16)
    y = shifted(net, y, value, 1)
    model = net.model(net.op("Relu", net.conv(y, C, 5, 3, pad=0)))
    assert counts(fuse(model).model) == {"Conv": 1, "Relu": 1}


def block_by_shape(net: Net, y: str, value: Array, p: int, fault: str = "") -> str:
    """torch's legacy exporter, only the batch unknown: an index for each axis, by Range, Reshape, Expand and Concat."""
    y = net.op("Pad", y, *pads(net, p))
    last, first, one = net.const(np.array([-1])), net.const(np.array([0])), net.const(np.array([1]))
    for axis in (2, 3):
        for bounds in ((0, p), (-p, 2**63 - 1)):
            limits = [net.const(np.array([bound])) for bound in bounds]
            leaves = []
            for place in range(4):
                entry = 5 - place if fault == "another axis" and place > 1 else place
                size = net.op("Gather", net.op("Shape", y), net.const(np.array(entry)))
                leaf = net.op("Range", net.const(np.array(0)), size, net.const(np.array(1)))
                if place == axis:
                    leaf = net.op("Slice", leaf, *limits, first, one)
                if place < 3:
                    leaf = net.op("Reshape", leaf, net.const(np.array([-1, *(1,) * (3 - place)])))
                leaves.append(leaf)
            summed = [leaf for place, leaf in enumerate(leaves) if place != axis or fault != "no summand"]
            target = net.op("Shape", net.add(*summed))
            minus = net.op("Equal", target, net.const(np.full(4, -1)))
            target = net.op("Where", minus, net.const(np.ones(4, np.int64)), target)
            columns = [net.op("Unsqueeze", net.op("Expand", leaf, target), last) for leaf in leaves]
            if fault == "exchanged":
                columns[2:] = columns[:1:-1]
            side = [1, C, *(n + 2 * p for n in SQUARE)]
            side[axis] = p
            values = net.const(np.broadcast_to(value.reshape(1, -1, 1, 1), side).copy())
            there = net.op("Slice", y, *limits, net.const(np.array([axis])), one)
            updates = net.op("Reshape", net.op("Expand", values, net.op("Shape", there)), target)
            y = net.op("ScatterND", y, net.op("Concat", *columns, axis=-1), updates)
    return y


SQUARE = (6, 6)


def of_unknown_batch() -> tuple[Net, str, Array]:
    net, y, value = start()
    net.shape = ("N", 3, *SQUARE)
    return net, y, value


@pytest.mark.parametrize("p", [1, 2])
def test_an_index_for_each_axis(p: int) -> None:
    net, y, value = of_unknown_batch()
    y = block_by_shape(net, y, value, p)
    out = net.add(net.conv(y, C, 5, 2 * p + 1, pad=0), net.conv("x", 3, 5, 2 * p + 1))
    check(net.model(net.op("Relu", out)), {"Conv": 1, "Relu": 1})


@pytest.mark.parametrize("fault", ["another axis", "no summand", "exchanged"])
def test_indices_that_are_no_block_are_left_alone(fault: str) -> None:
    net, y, value = of_unknown_batch()
    y = block_by_shape(net, y, value if fault != "exchanged" else value * 2, 1, fault)
    model = net.model(net.op("Relu", net.conv(y, C, 5, 3, pad=0)))
    fused = fuse(model).model
    assert counts(fused)["ScatterND"] == 4
    assert equal(model, fused)
