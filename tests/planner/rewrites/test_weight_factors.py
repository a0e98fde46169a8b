"""Factors beside products of batches of matrices, of weights that stand first, and of Gemms that read columns."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check

HEADS = (2, 3, 5, 4)  # batch, heads, rows, channels


def heads(net: Net, x: str, factor: tuple[int, ...] | None, *, first: bool, op: str = "Mul") -> str:
    """A matrix for each head, and a factor before or behind; `first`: the weight stands first."""
    weight = net.random(3, *((6, 5) if first else (4, 6)))
    y = net.op("MatMul", *((weight, x) if first else (x, weight)))
    return str(y if factor is None else net.op(op, y, net.const(net.rng.uniform(0.5, 2, factor))))


def scaled(net: Net, factor: tuple[int, ...]) -> str:
    return str(net.op("Mul", net.op("Relu", "x"), net.const(net.rng.uniform(0.5, 2, factor))))


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("factor", [(), (6,), (1, 6), (3, 1, 6), (3, 1, 1)])
def test_a_factor_behind_a_batch_of_matrices(op: str, factor: tuple[int, ...]) -> None:
    net = Net(shape=HEADS)
    check(net.model(heads(net, "x", factor, first=False, op=op)), {"MatMul": 1})


@pytest.mark.parametrize("factor", [(6, 1), (3, 6, 1), (3, 1, 1), ()])
def test_a_factor_behind_a_weight_that_stands_first(factor: tuple[int, ...]) -> None:
    net = Net(shape=HEADS)
    check(net.model(heads(net, "x", factor, first=True)), {"MatMul": 1})


@pytest.mark.parametrize("factor", [(4,), (3, 1, 4), (3, 1, 1), ()])
def test_a_factor_before_a_batch_of_matrices(factor: tuple[int, ...]) -> None:
    net = Net(shape=HEADS)
    check(net.model(heads(net, scaled(net, factor), None, first=False)), {"Relu": 1, "MatMul": 1})


@pytest.mark.parametrize("factor", [(5, 1), (3, 5, 1), (3, 1, 1)])
def test_a_factor_before_a_weight_that_stands_first(factor: tuple[int, ...]) -> None:
    net = Net(shape=HEADS)
    check(net.model(heads(net, scaled(net, factor), None, first=True)), {"Relu": 1, "MatMul": 1})


def test_factors_on_both_sides() -> None:
    net = Net(shape=HEADS)
    y = net.op("Mul", "x", net.const(net.rng.uniform(0.5, 2, 4)))
    check(net.model(heads(net, y, (3, 1, 6), first=False)), {"MatMul": 1})


@pytest.mark.parametrize(
    ("factor", "first"),
    [((5, 1), False), ((5, 6), False), ((4,), True), ((6, 4), True), ((2, 1, 1, 1), False)],
)
def test_a_value_for_each_row_or_image_stays(factor: tuple[int, ...], first: bool) -> None:
    """Of the product: rows of x, or columns of x where the weight stands first, are none of the weight."""
    net = Net(shape=HEADS)
    check(net.model(heads(net, "x", factor, first=first)), None)


@pytest.mark.parametrize("factor", [(5, 1), (2, 1, 1, 4)])
def test_a_value_for_each_row_or_image_before_a_product_stays(factor: tuple[int, ...]) -> None:
    net = Net(shape=HEADS)
    check(net.model(heads(net, scaled(net, factor), None, first=False)), None)


@pytest.mark.parametrize("size", [1, None])
@pytest.mark.parametrize(
    ("operands", "product", "factor", "weight", "place"),
    [
        ("zw", "MatMul", (3, 1, 4), (3, 4, 6), -1),
        ("wz", "MatMul", (4, 1), (3, 6, 4), -2),
        ("zw", "Gemm<transA=1>", (4, 1), (4, 6), -2),
        ("wz", "Gemm<transB=1>", (4,), (6, 4), -1),
        ("wz", "Gemm", (4, 1), (6, 4), -2),
    ],
)
def test_factors_that_make_several_positions_of_one_stay(
    operands: str,
    product: str,
    factor: tuple[int, ...],
    weight: tuple[int, ...],
    place: int,
    size: int | None,
) -> None:
    """(rows, 1) * (4,) is (rows, 4): without the factors, there is one position to sum over where W has 4."""
    dims: list[str] = ["N", "H", "R", "C"][: 4 if product == "MatMul" else 2]
    dims[place] = str(size or "K")
    first, second = operands
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[{",".join(dims)}] x) => (float[{",".join("abcd"[: len(dims)])}] y) {{
            r = Relu(x)
            z = Mul(r, s)
            y = {product}({first}, {second})
        }}"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("s", factor), ("w", weight)):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.uniform(0.5, 2, shape).astype(np.float32), name)
        )
    assert not fuse(model, options=Options(check=False)).report.folds


def test_what_has_other_consumers_is_kept_or_not_to_be_folded_stays() -> None:
    net = Net(shape=HEADS)
    y = heads(net, "x", None, first=False)
    check(net.model(net.op("Mul", y, net.random(6)), net.op("Relu", y)), None)
    model = _named()
    assert not fuse(model, options=Options(keep=("stays",))).report.folds
    assert not fuse(model, options=Options(skip=frozenset({Kind.MATMUL}))).report.folds
    assert fuse(model).report.folds


def _named() -> onnx.ModelProto:
    net = Net(shape=HEADS)
    model = net.model(heads(net, "x", (6,), first=False))
    model.graph.node[0].name = "stays"
    return model


def columns(net: Net, x: str, *, bias: bool = True, **attributes: float) -> str:
    """A Gemm that reads its first input by columns."""
    weight = net.random(*((6, 4) if attributes.get("transB") else (4, 6)))
    more = [net.random(6)] if bias else []
    return str(net.op("Gemm", x, weight, *more, transA=1, **attributes))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_a_norm_behind_a_gemm_that_reads_columns(bias: bool, attributes: dict[str, float]) -> None:
    net = Net(shape=(4, 5))
    check(net.model(net.bn(columns(net, "x", bias=bias, **attributes), 6)), {"Gemm": 1})


@pytest.mark.parametrize("bias", [False, True])
def test_arithmetic_behind_a_gemm_that_reads_columns(bias: bool) -> None:
    net = Net(shape=(4, 5))
    y = net.op("Mul", columns(net, "x", bias=bias), net.random(6))
    check(net.model(net.op("Relu", net.op("Add", y, net.random(6)))), {"Gemm": 1, "Relu": 1})


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5}])
def test_a_factor_before_a_gemm_that_reads_columns(attributes: dict[str, float]) -> None:
    net = Net(shape=(4, 5))
    check(net.model(columns(net, scaled(net, (4, 1)), **attributes)), {"Relu": 1, "Gemm": 1})


def test_a_factor_for_each_row_of_what_a_gemm_writes_stays() -> None:
    net = Net(shape=(4, 5))
    check(net.model(net.op("Mul", columns(net, "x"), net.random(5, 1))), None)
    net = Net(shape=(4, 5))
    check(net.model(columns(net, scaled(net, (5,)))), None)


@pytest.mark.parametrize("trans", [0, 1])
def test_a_gemm_whose_weight_stands_first(trans: int) -> None:
    net = Net(shape=(4, 5))
    weight = net.random(*((4, 6) if trans else (6, 4)))
    check(net.model(net.op("Gemm", weight, scaled(net, (4, 1)), transA=trans)), {"Relu": 1, "Gemm": 1})


@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("small", [slice(None), slice(2, 3)])
def test_weights_that_half_precision_would_lose_take_no_factor(is_before: bool, small: slice) -> None:
    """In float16, 1e-4 times 1e-4 is a subnormal of one digit, or zero, in every column or in one."""
    net = Net(shape=HEADS, dtype=np.float16)
    weight = np.ones((3, 4, 6), np.float16)
    weight[..., small] = 1e-4
    factor, w = net.const(np.full((4,) if is_before else (6,), 1e-4, np.float16)), net.const(weight)
    y = (
        net.op("MatMul", net.op("Mul", net.op("Relu", "x"), factor), w)
        if is_before
        else net.op("Mul", net.op("MatMul", "x", w), factor)
    )
    result = fuse(net.model(y), options=Options(check=False))
    assert "Mul" in result.report.after.ops


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("add", ["Add", "Sub"])
@pytest.mark.parametrize(("bias", "factor"), [((6,), ()), ((3, 1, 6), (6,)), ((1,), (3, 1, 1)), ((), ())])
def test_a_factor_behind_a_constant_that_is_added(
    add: str, op: str, bias: tuple[int, ...], factor: tuple[int, ...]
) -> None:
    net = Net(shape=HEADS)
    y = net.op(add, heads(net, "x", None, first=False), net.const(net.rng.uniform(0.5, 2, bias)))
    check(net.model(net.op(op, y, net.const(net.rng.uniform(0.5, 2, factor)))), {"MatMul": 1, "Add": 1})


def test_the_queries_of_attention_in_keras() -> None:
    """It computes heads by an Einsum, adds a bias and divides the queries by the root of their length."""
    net = Net(shape=(2, 5, 8))
    y = net.op("Einsum", "x", net.random(8, 2, 4), equation="abc,cde->abde")
    y = net.op("Mul", net.op("Add", y, net.random(2, 4)), net.const(0.5))
    check(net.model(net.op("Softmax", y, axis=-1)), {"Einsum": 1, "Add": 1, "Softmax": 1})


@pytest.mark.parametrize(
    "trap", ["per row", "widens", "read twice", "half", "no constant", "rounds", "overflows"]
)
def test_constants_and_factors_behind_a_product_that_stay(trap: str) -> None:
    net = Net(shape=HEADS, dtype=np.float16 if trap == "half" else np.float32)
    y = heads(net, "x", None, first=False)
    shapes = {"per row": (5, 1), "widens": (2, 2, 3, 1, 1)}
    values = net.rng.uniform(0.5, 2, shapes.get(trap, (6,)))
    bias = y if trap == "no constant" else net.const(values + 2.0**23 * (trap == "rounds"))
    y = net.op("Add", y, bias)
    z = net.op("Mul", y, net.const(3e38 if trap == "overflows" else 1.5))
    model = net.model(z, net.op("Tanh", y)) if trap == "read twice" else net.model(z)
    assert Kind.MATMUL not in {fold.kind for fold in fuse(model).report.folds}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_factors_beside_a_vector(first: bool, before: bool) -> None:
    """The mean of a distribution, as detectors with a distribution for each side of a box have it, times a stride."""
    net = Net(shape=(2, 5, 4))
    y = scaled(net, (4, 1) if before and first else (4,)) if before else net.op("Relu", "x")
    if before and first:
        net.shape = (2, 4, 5)
    vector = net.random(5 if first and not before else 4)
    y = net.op("MatMul", *((vector, y) if first else (y, vector)))
    check(net.model(y if before else net.op("Mul", y, net.const(8.0))), {"Relu": 1, "MatMul": 1})


@pytest.mark.parametrize("first", [False, True])
def test_a_value_for_each_result_beside_a_vector_stays(first: bool) -> None:
    net = Net(shape=(2, 4, 4))
    y = net.op("MatMul", *((net.random(4), "x") if first else ("x", net.random(4))))
    assert not fuse(net.model(net.op("Mul", y, net.random(4)))).report.folds
