"""Scalar factors of products of two tensors, and scalar factors beside views that know of no channels."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.pipeline.plan_model import make_plan
from onnx_repfuse.planner.rewrites.factor_patterns import pattern_above
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, equal, run

HEADS, WIDTH = 2, 3
CHANNELS = HEADS * WIDTH


def projected(
    net: Net, x: str, *, bias: bool = True, dynamic: bool = False, perm: tuple[int, ...] = (0, 2, 1, 3)
) -> str:
    """A projection, split into heads: (N, L, C) -> (N, heads, L, width)."""
    y = net.op("MatMul", x, net.random(CHANNELS, CHANNELS))
    y = net.op("Add", y, net.random(CHANNELS)) if bias else y
    sizes = net.const(np.array([0, 5, HEADS, WIDTH]))
    if dynamic:
        shape = net.op("Shape", y)
        zero = net.const(np.array([0]))
        rows = [
            net.op("Unsqueeze", net.op("Gather", shape, net.const(np.array(axis))), zero) for axis in (0, 1)
        ]
        sizes = net.op("Concat", *rows, net.const(np.array([HEADS, WIDTH])), axis=0)
    return str(net.op("Transpose", net.op("Reshape", y, sizes), perm=list(perm)))


def attention(net: Net, x: str, where: str, op: str = "Mul", *, dynamic: bool = False, mask: str = "") -> str:
    """Attention whose factor stands at `where`: "q", "k", "scores", or "" for none."""

    def scaled(y: str, place: str) -> str:
        return str(net.op(op, y, net.const(0.6))) if place in where else y

    q = scaled(projected(net, x, dynamic=dynamic), "q")
    k = scaled(projected(net, x, dynamic=dynamic, perm=(0, 2, 3, 1)), "k")
    scores = scaled(net.op("MatMul", q, k), "scores")
    if mask:
        scores = net.op("Add", scores, mask)
    v = projected(net, x, dynamic=dynamic)
    return str(net.op("MatMul", net.op("Softmax", scores, axis=-1), v))


def _sequences(**fields: object) -> Net:
    return Net(shape=("N", 5, CHANNELS))


def heads_of_any_length(net: Net, y: str, *sizes: int) -> str:
    """(N, L, C) -> (N, L, *sizes), with the sizes that both of torch's exporters compute of a tensor's shape."""
    shape = net.op("Shape", "x")
    rows = [net.op("Gather", shape, net.const(np.array(axis))) for axis in (0, 1)]
    listed = [net.op("Unsqueeze", row, net.const(np.array([0]))) for row in rows]
    return str(
        net.op("Reshape", y, net.op("Concat", *listed, *(net.const(np.array([s])) for s in sizes), axis=0))
    )


@pytest.mark.parametrize("parts", ["three projections", "Split", "Slice", "Gather"])
@pytest.mark.parametrize("where", ["q", "k", "scores"])
def test_the_factor_of_attention_at_any_batch_and_length(parts: str, where: str) -> None:
    net = Net(shape=("N", "L", CHANNELS))

    def scaled(y: str, place: str) -> str:
        return str(net.op("Mul", y, net.const(0.6))) if place == where else y

    if parts == "three projections":
        q, k, v = (
            net.op(
                "Transpose", heads_of_any_length(net, dense(net, CHANNELS), HEADS, WIDTH), perm=[0, 2, 1, 3]
            )
            for _ in range(3)
        )
    else:
        y = heads_of_any_length(net, dense(net, 3 * CHANNELS), 3, HEADS, WIDTH)
        y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        zero = net.const(np.array([0]))
        if parts == "Split":
            chosen = net.op("Split", y, outputs=3, axis=0)
        elif parts == "Slice":
            chosen = [
                net.op("Slice", y, *(net.const(np.array([n])) for n in (p, p + 1, 0))) for p in range(3)
            ]
        else:
            chosen = [net.op("Gather", y, net.const(np.array(p)), axis=0) for p in range(3)]
        q, k, v = chosen if parts == "Gather" else [net.op("Squeeze", part, zero) for part in chosen]
    keys = scaled(net.op("Transpose", k, perm=[0, 1, 3, 2]), "k")
    scores = scaled(net.op("MatMul", scaled(q, "q"), keys), "scores")
    model = net.model(net.op("MatMul", net.op("Softmax", scores, axis=-1), v))
    result = fuse(model)
    assert "Mul" not in counts(result.model)
    assert equal(model, result.model) > 0
    assert not fuse(result.model).report.folds


def dense(net: Net, width: int) -> str:
    """A projection of "x" with a bias."""
    return str(net.op("Add", net.op("MatMul", "x", net.random(CHANNELS, width)), net.random(width)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_factor_of_parts_that_share_an_axis_with_positions(dynamic: bool) -> None:
    """YOLO11's attention: (N, C, H, W) -> (N, heads, 3*width, H*W), split along the third axis."""
    net = Net(CHANNELS, shape=("N", CHANNELS, *(("H", "W") if dynamic else (3, 4))))
    y = net.conv("x", CHANNELS, 3 * CHANNELS, 1)
    shape = net.op("Shape", "x")
    sizes = [net.op("Gather", shape, net.const(np.array([axis]))) for axis in (0, 2, 3)]
    middle = net.const(np.array([HEADS, 3 * WIDTH]))
    flat = net.op("Concat", sizes[0], middle, net.op("Mul", *sizes[1:]), axis=0)
    split = net.const(np.array([WIDTH] * 3))
    q, k, v = net.op("Split", net.op("Reshape", y, flat), split, outputs=3, axis=2)
    scores = net.op("Mul", net.op("MatMul", net.op("Transpose", q, perm=[0, 1, 3, 2]), k), net.const(0.6))
    weights = net.op("Transpose", net.op("Softmax", scores, axis=-1), perm=[0, 1, 3, 2])
    model = net.model(net.op("MatMul", v, weights))
    result = fuse(model)
    assert [n.op_type for n in result.model.graph.node].count("Mul") == dynamic  # of H and W
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("where", ["q", "k", "scores"])
@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_factor_of_attention_goes_into_a_projection(where: str, op: str, dynamic: bool) -> None:
    net = _sequences()
    model = net.model(attention(net, net.op("Relu", "x"), where, op, dynamic=dynamic))
    result = fuse(model)
    assert op not in counts(result.model)
    without = _sequences()
    plain = fuse(without.model(attention(without, without.op("Relu", "x"), "", dynamic=dynamic)))
    assert counts(result.model) == counts(plain.model)
    (fold,) = result.report.folds
    assert (Kind.PRODUCT in fold.kinds) == (where == "scores")
    onnx.checker.check_model(result.model, full_check=True)
    assert equal(model, result.model) > 0
    again = fuse(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )


def test_factors_of_both_operands() -> None:
    """torch scales q and k by the root of the factor each."""
    net = _sequences()
    model = net.model(attention(net, net.op("Relu", "x"), "q k"))
    result = fuse(model)
    assert "Mul" not in counts(result.model)
    assert len(result.report.folds) == 2
    assert equal(model, result.model) > 0


def test_a_factor_of_an_operand_that_nothing_computes_goes_to_the_other_one() -> None:
    net = _sequences()
    x = net.op("Relu", "x")
    scores = net.op(
        "MatMul",
        net.op("Mul", x, net.const(0.6)),
        net.op("Transpose", net.op("Sigmoid", "x"), perm=[0, 2, 1]),
    )
    check(net.model(scores), None)  # nothing absorbs it
    net = _sequences()
    x = net.op("Relu", "x")
    other = net.op("Transpose", net.op("MatMul", x, net.random(CHANNELS, CHANNELS)), perm=[0, 2, 1])
    scores = net.op("MatMul", net.op("Mul", x, net.const(0.6)), other)
    check(net.model(net.op("Softmax", scores)), {"Relu": 1, "MatMul": 2, "Transpose": 1, "Softmax": 1})
    net = Net(shape=("N", CHANNELS, CHANNELS))
    x = net.op("Relu", "x")
    scores = net.op(
        "MatMul", net.op("Mul", x, net.const(0.6)), net.op("MatMul", "x", net.random(CHANNELS, 5))
    )
    check(net.model(net.op("Softmax", scores)), {"Relu": 1, "MatMul": 2, "Softmax": 1})


def test_a_factor_behind_the_mask_scales_the_mask() -> None:
    net = _sequences()
    x = net.op("Relu", "x")
    mask = net.op("Sub", net.op("Sigmoid", "x"), net.const(1.0))
    scores = net.op("MatMul", projected(net, x), projected(net, x, perm=(0, 2, 3, 1)))
    mask = net.op("Unsqueeze", net.op("ReduceMean", mask, axes=[2]), net.const(np.array([1])))
    scaled = net.op("Mul", net.op("Add", scores, mask), net.const(0.6))
    check(net.model(net.op("Softmax", scaled)), None, Reason.COST)


def test_a_factor_before_the_mask_moves() -> None:
    net = _sequences()
    x = net.op("Relu", "x")
    mask = net.op(
        "Unsqueeze", net.op("ReduceMean", net.op("Sigmoid", "x"), axes=[2]), net.const(np.array([1]))
    )
    model = net.model(attention(net, x, "scores", "Div", mask=mask))
    assert "Div" not in counts(fuse(model).model)


def test_scores_with_another_consumer() -> None:
    net = _sequences()
    x = net.op("Relu", "x")
    scores = net.op("MatMul", projected(net, x), projected(net, x, perm=(0, 2, 3, 1)))
    scaled = net.op("Mul", scores, net.const(0.6))
    check(net.model(net.op("Softmax", scaled), net.op("Sigmoid", scores)), None)
    net = _sequences()
    x = net.op("Relu", "x")
    q = projected(net, x)
    scores = net.op("MatMul", net.op("Mul", q, net.const(0.6)), projected(net, x, perm=(0, 2, 3, 1)))
    check(
        net.model(scores, net.op("Sigmoid", q)),
        {"Relu": 1, "MatMul": 3, "Add": 2, "Reshape": 2, "Transpose": 2, "Sigmoid": 1},
    )


def test_a_square_of_one_tensor() -> None:
    """x @ x has the factor twice if x has it once: nothing is moved up."""
    net = Net(shape=("N", CHANNELS, CHANNELS))
    y = net.op("MatMul", "x", net.random(CHANNELS, CHANNELS))
    check(net.model(net.op("Mul", net.op("MatMul", y, y), net.const(0.6))), None)


def test_a_factor_that_widens_or_is_no_number_stays() -> None:
    for constant in (np.ones((1, 1, 1, 1, 1)) * 0.6, np.zeros(()), np.full((), np.inf)):
        net = _sequences()
        x = net.op("Relu", "x")
        scores = net.op("MatMul", projected(net, x), projected(net, x, perm=(0, 2, 3, 1)))
        model = net.model(net.op("Mul", scores, net.const(constant)))
        assert fuse(model).model.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scalars_beside_views_without_channels(opset: int, shape: tuple[int, ...]) -> None:
    """A Reshape that splits the channels, and one that makes the only channel."""
    net = Net(shape=(14, 8), opset=opset, ir=8)
    y = net.op(
        "Reshape", net.op("Gemm", "x", net.random(8, 6), net.random(6)), net.const(np.array([2, 7, 3, 2]))
    )
    check(net.model(net.op("Mul", y, net.const(np.full(shape, 0.5)))), {"Gemm": 1, "Reshape": 1})
    net = Net(shape=("N", 6, 5), opset=opset, ir=8)
    y = net.op("Div", "x", net.const(np.full(shape, 2.3)))
    axes = net.const(np.array([3]))
    y = net.op("Unsqueeze", y, axes) if opset >= 13 else net.op("Unsqueeze", y, axes=[3])
    y = net.conv(net.op("Transpose", y, perm=[0, 3, 1, 2]), 1, 4, 3)
    check(net.model(y), {"Unsqueeze": 1, "Transpose": 1, "Conv": 1})


def test_half_precision_moves_no_factor_above_one_in_front_of_a_product() -> None:
    """What is small after the product may be large before it."""
    for value, moves in ((0.5, True), (3.0, False)):
        net = Net(shape=("N", 5, CHANNELS), dtype=np.float16)
        x = net.op("Relu", "x")
        scores = net.op("MatMul", projected(net, x), projected(net, x, perm=(0, 2, 3, 1)))
        result = fuse(net.model(net.op("Mul", scores, net.const(value))))
        assert ("Mul" in counts(result.model)) != moves


def test_options() -> None:
    for options in (
        Options(skip=frozenset((Kind.PRODUCT,))),
        Options(skip=frozenset((Kind.MATMUL,))),
        Options(keep=("mul_*",)),
    ):
        net = _sequences()
        model = net.model(attention(net, net.op("Relu", "x"), "scores"))
        assert fuse(model, options=options).model.SerializeToString() == model.SerializeToString()


def test_every_number_of_views_at_border_sizes() -> None:
    """Up and down through chains of views, against the runtime."""
    for below, behind in itertools.product(range(3), repeat=2):
        net = Net(shape=("N", 4, 6))
        y = net.op("MatMul", net.op("Relu", "x"), net.random(6, 4))
        for number in range(below):
            y = (
                net.op("Transpose", y, perm=[0, 2, 1])
                if number % 2 == 0
                else net.op("Unsqueeze", y, net.const(np.array([1])))
            )
        y = net.op("Neg", y)
        for _ in range(behind):
            y = net.op("Unsqueeze", y, net.const(np.array([0])))
        model = net.model(net.op("Relu", y))
        result = fuse(model)
        assert "Neg" not in counts(result.model)
        assert equal(model, result.model) > 0


def together(net: Net, x: str, where: str, style: str) -> str:
    """Attention whose q, k and v come from one projection, as parts of it; the factors stand at `where`."""
    y = net.op("Add", net.op("MatMul", x, net.random(CHANNELS, 3 * CHANNELS)), net.random(3 * CHANNELS))
    axes = net.const(np.array([0]))
    if style == "stacked":  # timm: (N, L, 3, heads, width) -> (3, N, heads, L, width)
        y = net.op("Reshape", y, net.const(np.array([0, 5, 3, HEADS, WIDTH])))
        y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        parts = net.op("Split", y, net.const(np.array([1, 1, 1])), outputs=3, axis=0)
        parts = [net.op("Squeeze", part, axes) for part in parts]
    elif style == "gathered":  # torchvision
        y = net.op("Reshape", y, net.const(np.array([0, 5, 3, HEADS, WIDTH])))
        y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        parts = [net.op("Gather", y, net.const(np.array(place)), axis=0) for place in (0, 1, -1)]
    elif style == "sliced":  # the new exporter
        y = net.op("Reshape", y, net.const(np.array([0, 5, 3, HEADS, WIDTH])))
        y = net.op("Transpose", y, perm=[2, 0, 3, 1, 4])
        ends = [[net.const(np.array([k])) for k in (place, place + 1, 0)] for place in range(3)]
        parts = [net.op("Squeeze", net.op("Slice", y, *end), axes) for end in ends]
    else:  # torch.chunk, then the heads
        parts = net.op("Split", y, net.const(np.array([CHANNELS] * 3)), outputs=3, axis=-1)
        sizes = net.const(np.array([0, 5, HEADS, WIDTH]))
        parts = [net.op("Transpose", net.op("Reshape", part, sizes), perm=[0, 2, 1, 3]) for part in parts]
    q, k, v = parts
    q = net.op("Mul", q, net.const(0.6)) if "q" in where else q
    k = net.op("Div", k, net.const(1.7)) if "k" in where else k
    k = net.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = net.op("MatMul", q, k)
    scores = net.op("Mul", scores, net.const(0.6)) if "scores" in where else scores
    return str(net.op("MatMul", net.op("Softmax", scores, axis=-1), net.op("Neg", v) if "v" in where else v))


@pytest.mark.parametrize("where", ["q", "k", "v", "scores", "q k"])
@pytest.mark.parametrize("style", ["stacked", "chunks", "gathered", "sliced"])
def test_parts_of_one_projection(where: str, style: str) -> None:
    net = _sequences()
    model = net.model(net.op("Relu", together(net, net.op("Relu", "x"), where, style)))
    result = fuse(model)
    assert not {"Mul", "Div", "Neg"} & counts(result.model).keys()
    assert len(result.model.graph.node) == len(model.graph.node) - len(where.split())
    onnx.checker.check_model(result.model, full_check=True)
    assert equal(model, result.model) > 0
    assert all(verdict.status.value == "passed" for verdict in result.report.verification.folds)
    again = fuse(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )


def test_a_projection_that_somebody_else_reads() -> None:
    net = _sequences()
    y = net.op("MatMul", net.op("Relu", "x"), net.random(CHANNELS, 2 * CHANNELS))
    q, k = net.op("Split", y, net.const(np.array([CHANNELS] * 2)), outputs=2, axis=-1)
    scores = net.op("MatMul", net.op("Mul", q, net.const(0.6)), net.op("Transpose", k, perm=[0, 2, 1]))
    model = net.model(scores, net.op("Sigmoid", y))
    assert fuse(model).model.SerializeToString() == model.SerializeToString()


def test_choices_that_overlap() -> None:
    """What is read twice cannot be scaled for one of the two."""
    net = _sequences()
    y = net.op("MatMul", net.op("Relu", "x"), net.random(CHANNELS, 9))
    ends = [[net.const(np.array([k])) for k in (lo, hi, 2)] for lo, hi in ((0, 6), (5, 9))]
    q, k = (net.op("Slice", y, *end) for end in ends)
    model = net.model(
        net.op("Softmax", net.op("Reshape", net.op("Mul", q, net.const(0.6)), net.const(np.array([0, -1])))),
        k,
    )
    assert "Mul" in counts(fuse(model).model)
    assert equal(model, fuse(model).model) > 0


def test_patterns_against_numpy() -> None:
    """What `pattern_above` says is what a view makes of it, where it says anything."""
    rng = np.random.default_rng(3)
    sizes = (2, 3, 4, 5)
    told = 0
    for number in range(200):
        order = list(rng.permutation(4))
        net = Net(shape=sizes)
        if number % 2:
            out = net.op("Transpose", "x", perm=order)
        else:
            targets = [(6, 20), (2, 12, 5), (24, 5), (2, 3, 20), (1, 2, 3, 4, 5), (2, 3, 2, 2, 5), (3, 2, 20)]
            target = targets[number % 7]
            out = net.op("Reshape", "x", net.const(np.array(target)))
        model = net.model(out)
        with Document.from_model(model) as document:
            (scope,) = read_scopes(document)
        (node,) = scope.nodes
        shape = scope.shape(out)
        pattern = rng.random([size if rng.random() < 0.4 else 1 for size in shape]) < 0.5
        above = pattern_above(scope, node, pattern)
        if above is None:
            continue
        told += 1
        x = rng.standard_normal(sizes).astype(np.float32)
        scaled = run(model, {"x": np.where(np.broadcast_to(above, sizes), 3 * x, x)})[0]
        plain = run(model, {"x": x})[0]
        np.testing.assert_array_equal(scaled, np.where(np.broadcast_to(pattern, shape), 3 * plain, plain))
    assert told > 100


@pytest.mark.parametrize("end", [-9, np.iinfo(np.int32).max, np.iinfo(np.int64).max])
def test_a_choice_backwards_to_the_greatest_number_overlaps(end: int) -> None:
    """ONNX Runtime takes it to the front, where numpy takes nothing: so it reads what the factor scales."""
    net = Net(4, shape=(2, 4))
    rows = net.op("MatMul", "x", net.random(4, 4))
    cuts = [
        net.op("Slice", rows, *(net.const(np.array([number])) for number in (start, stop, 1, step)))
        for start, stop, step in ((0, 2, 1), (-1, end, -1))
    ]
    model = net.model(net.op("Mul", cuts[0], net.const(3.0)), net.op("Relu", cuts[1]))
    check(model, None, options=Options(check=False))


# Shifts


@pytest.mark.parametrize("op", ["Add", "Sub", "Sum", "from the left"])
@pytest.mark.parametrize("view", ["Unsqueeze", "Reshape", "Transpose and Reshape"])
def test_a_shift_before_a_view_that_adds_the_channel(op: str, view: str) -> None:
    """A sound or a grey image: `conv(((x - mean) / std)[:, None])`."""
    net = Net(shape=("N", 6, 6))
    mean = net.const(0.4)
    y = net.op("Sub", mean, "x") if op == "from the left" else net.op(op, "x", mean)
    y = net.op("Div", y, net.const(2.0))
    expected = {"Conv": 1, "Reshape": 1}
    if view == "Unsqueeze":
        y, expected = net.op("Unsqueeze", y, net.const(np.array([1]))), {"Conv": 1, "Unsqueeze": 1}
    else:
        if view != "Reshape":
            y, expected["Transpose"] = net.op("Transpose", y, perm=[0, 2, 1]), 1
        y = net.op("Reshape", y, net.const(np.array([-1, 1, 6, 6])))
    check(net.model(net.conv(y, 1, 4, 3, pad=0)), expected)


def test_a_shift_behind_a_view_goes_into_the_bias_before() -> None:
    net = Net(shape=("N", 4))
    y = net.op("Gemm", "x", net.random(4, 12), net.random(12))
    y = net.op("Reshape", y, net.const(np.array([-1, 3, 4])))
    y = net.op("Sub", net.op("Div", y, net.const(2.0)), net.const([0.5]))
    check(net.model(net.op("Relu", y)), {"Gemm": 1, "Reshape": 1, "Relu": 1})


def test_a_shift_that_padding_would_show_or_that_no_bias_takes_stays() -> None:
    net = Net(shape=("N", 6, 6))
    y = net.op("Unsqueeze", net.op("Sub", "x", net.const(0.4)), net.const(np.array([1])))
    check(net.model(net.conv(y, 1, 4, 3)), None)
    net = Net(shape=("N", 6, 6))
    y = net.op("Unsqueeze", net.op("Sub", "x", net.const(0.4)), net.const(np.array([1])))
    check(net.model(net.op("ConvTranspose", y, net.random(1, 4, 3, 3), strides=[2, 2])), None)
    net = Net(shape=("N", 3, 4))
    y = net.op("Reshape", net.op("MatMul", "x", net.random(4, 6)), net.const(np.array([0, 0, 2, 3])))
    check(net.model(net.op("Relu", net.op("Add", y, net.const(0.5)))), None)
    net = Net(shape=("N", 4))
    y = net.op(
        "Reshape", net.op("Gemm", "x", net.random(4, 6), net.random(6)), net.const(np.array([-1, 2, 3]))
    )
    others = net.op("Tanh", y)
    check(net.model(net.op("Relu", net.op("Add", y, net.const(0.5))), others), None)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("inner", [0, 1])
def test_a_factor_behind_a_part_of_a_part(number: int, inner: int) -> None:
    """What the other parts of both Splits are computed by is proved of each."""
    net = Net(4)

    def parts(x: str, *sizes: int) -> list[str]:
        return list(net.op("Split", x, net.const(np.array(sizes)), outputs=2, axis=1))

    outer = parts(net.conv("x", 4, 8, 3), 4, 4)
    inner_parts = parts(outer[number], 1, 3)
    others = [inner_parts[1 - inner], outer[1 - number]]
    scaled = net.op("Mul", inner_parts[inner], net.const(0.7))
    outputs = [net.op("Relu", name) for name in (scaled, *others)]
    result = check(net.model(*outputs), {"Conv": 1, "Split": 2, "Relu": 3})
    verification = result.report.verification
    assert verification is not None
    assert {fold.output for fold in verification.folds} == {scaled, *others}


@pytest.mark.parametrize("style", ["Split", "Slice"])
def test_parts_that_are_outputs_of_the_model_are_compared_too(style: str) -> None:
    """They are computed from what was scaled for another part."""
    net = _sequences()
    y = net.op("MatMul", net.op("Relu", "x"), net.random(CHANNELS, 2 * CHANNELS))
    if style == "Split":
        q, k = net.op("Split", y, net.const(np.array([CHANNELS] * 2)), outputs=2, axis=-1)
    else:
        ends = [[net.const(np.array([at])) for at in (lo, lo + CHANNELS, 2)] for lo in (0, CHANNELS)]
        q, k = (net.op("Slice", y, *end) for end in ends)
    scores = net.op(
        "MatMul", net.op("Mul", q, net.const(0.6)), net.op("Transpose", net.op("Relu", "x"), perm=[0, 2, 1])
    )
    result = fuse(net.model(scores, k))
    assert "Mul" not in counts(result.model)
    assert k in {verdict.output for verdict in result.report.verification.folds}


@pytest.mark.parametrize("style", ["stacked", "chunks", "gathered", "sliced"])
def test_the_part_without_a_factor_beside_two_with_one_is_compared(style: str) -> None:
    """The second factor reads what the first one wrote."""
    net = _sequences()
    model = net.model(net.op("Relu", together(net, net.op("Relu", "x"), "q k", style)))
    with Document.from_model(model) as document:
        plan = make_plan(document, Options())
    (scope,) = plan.scopes
    judged = {name for fold in scope.folds if scope.can_be_judged(fold) for name in fold.outputs}
    new = [node for node in scope.scope.nodes if id(node) not in scope.scope.original]
    of_file = {name for node in model.graph.node for name in node.output}
    assert {tensor.name for node in new for tensor in node.outputs} & of_file <= judged
