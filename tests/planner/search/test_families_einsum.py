"""Einsum: products by a matrix along one axis, factors beside other products, and scalar factors of two tensors."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.graph.operators.einsum import equation_of
from onnx_repfuse.quiet_runtime import ort
from tests.build import Net, check, counts


def product(net: Net, x: str, equation: str, *shape: int, first: bool = False) -> str:
    weight = net.random(*shape)
    return str(net.op("Einsum", *((weight, x) if first else (x, weight)), equation=equation))


@pytest.mark.parametrize(
    ("equation", "shape", "first"),
    [("bchw,dc->bdhw", (6, 4), False), ("bchw,cd->bdhw", (4, 6), False), ("oi,bi...->bo...", (6, 4), True)],
)
def test_a_matrix_along_axis_1_is_a_pointwise_convolution(
    equation: str, shape: tuple[int, int], first: bool
) -> None:
    net = Net(4)
    check(net.model(net.bn(product(net, "x", equation, *shape, first=first), 6)), {"Conv": 1})


def test_runtimes_have_no_convolution_of_doubles() -> None:
    """Nor may an Einsum become one: a factor goes into its matrix."""
    net = Net(shape=("N", 4, "H", "W"), dtype=np.float64)
    y = net.op("Mul", product(net, "x", "bchw,dc->bdhw", 6, 4), net.channel(6))
    model = net.model(y)
    result = fuse(model, options=Options(check=False))
    assert counts(result.model) == {"Einsum": 1}
    image = net.rng.standard_normal((2, 4, 3, 2))
    outputs = [
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": image}
        )[0]
        for one in (model, result.model)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_before_and_behind_a_convolution(rank: int) -> None:
    space = "hwd"[:rank]
    net = Net(shape=("N", 4, *"HWD"[:rank]))
    y = net.conv(product(net, "x", f"nc{space},co->no{space}", 4, 5), 5, 4, (3,) * rank)
    check(net.model(product(net, y, f"nc{space},oc->no{space}", 3, 4)), {"Conv": 1})


@pytest.mark.parametrize(
    ("equation", "shape", "first"),
    [("nlc,cd->nld", (8, 6), False), ("...c,dc->...d", (6, 8), False), ("dc,nlc -> nld", (6, 8), True)],
)
def test_a_matrix_along_the_last_axis_is_a_matrix_product(
    equation: str, shape: tuple[int, int], first: bool
) -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op("Mul", product(net, "x", equation, *shape, first=first), net.random(6))
    check(net.model(net.op("MatMul", y, net.random(6, 3))), {"MatMul": 1})


def test_without_an_arrow_the_letters_that_occur_once_are_in_the_order_of_the_alphabet() -> None:
    net = Net(shape=("N", 8))
    check(net.model(net.op("Add", product(net, "x", "ab,bc", 8, 6), net.random(6))), {"Gemm": 1})
    turned = Net(shape=("N", 8))  # "ba,ac" -> "bc", but "zb,ba" -> "az"
    assert not fuse(turned.model(turned.bn(product(turned, "x", "zb,ba", 8, 6), 3))).report.folds


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize(
    ("equation", "shape", "factor"),
    [
        ("nlc,chd->nhld", (8, 2, 3), (2, 1, 3)),
        ("nlc,chd->nlhd", (8, 2, 3), (2, 3)),
        ("nlc,chd->nlhd", (8, 2, 3), (3,)),
        ("nlc,chd->nhdl", (8, 2, 3), (2, 3, 1)),
        ("nlc,cd->ndl", (8, 6), (6, 1)),
        ("nlc,cd->dnl", (8, 6), (6, 1, 1)),
        ("nlc,cd->ldn", (8, 6), ()),
        ("nlc,lc->nl", (5, 8), (5,)),
        ("nlc,lc->nlc", (5, 8), (5, 8)),
        ("nlc,cd->nd", (8, 6), (6,)),
    ],
)
def test_a_factor_behind(equation: str, shape: tuple[int, ...], factor: tuple[int, ...], op: str) -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op(op, product(net, "x", equation, *shape), net.const(net.rng.uniform(0.5, 2, factor)))
    check(net.model(y), {"Einsum": 1})


@pytest.mark.parametrize(
    ("equation", "shape", "factor"),
    [
        ("nlc,chd->nhld", (8, 2, 3), (8,)),
        ("nlc,lc->nl", (5, 8), (5, 1)),
        ("nlc,cd->dnl", (8, 6), ()),
        ("nlc,lc->nlc", (5, 8), (5, 8)),
    ],
)
def test_a_factor_before(equation: str, shape: tuple[int, ...], factor: tuple[int, ...]) -> None:
    net = Net(shape=("N", 5, 8))
    y = net.op("Mul", net.op("Relu", "x"), net.const(net.rng.uniform(0.5, 2, factor)))
    check(net.model(product(net, y, equation, *shape)), {"Einsum": 1, "Relu": 1})


@pytest.mark.parametrize(
    ("equation", "shape", "factor"),
    [
        ("nlc,chd->nlhd", (8, 2, 3), (5, 1, 1)),  # rows of the tensor
        ("nlc,cd->ndl", (8, 6), (5,)),
        ("nlc,cd->nld", (8, 6), (2, 1, 6)),  # one of the images each
        ("nlc,kc->nlc", (1, 8), (5, 1)),
    ],
)
def test_a_factor_that_the_weight_has_no_axis_for_stays(
    equation: str, shape: tuple[int, ...], factor: tuple[int, ...]
) -> None:
    net = Net(shape=(2, 5, 8))
    y = net.op("Mul", product(net, "x", equation, *shape), net.const(net.rng.uniform(0.5, 2, factor)))
    check(net.model(y), None)


@pytest.mark.parametrize(
    ("shape", "weight"), [(("N", "L", "C"), (8, 6)), (("N", "L", 1), (8, 6)), (("N", "L", 8), (1, 6))]
)
def test_sizes_of_1_broadcast_where_a_matmul_would_not_run(
    shape: tuple[int | str, ...], weight: tuple[int, int]
) -> None:
    net = Net(shape=shape)
    y = net.op("Add", product(net, "x", "nlc,cd->nld", *weight), net.random(6))
    assert counts(fuse(net.model(net.op("MatMul", y, net.random(6, 3)))).model)["Einsum"] == 1


def test_several_positions_made_of_one_are_summed_by_the_einsum_alone() -> None:
    net = Net(shape=("N", 5, 1))
    y = net.op("Mul", net.op("Relu", "x"), net.const(net.rng.uniform(0.5, 2, 8)))
    assert not fuse(net.model(product(net, y, "nlc,chd->nlhd", 8, 2, 3))).report.folds


def attention(net: Net, where: str, op: str = "Mul") -> str:
    """Attention by Einsums over (N, L, heads, width)."""

    def projected() -> str:
        y = net.op("Add", net.op("MatMul", "x", net.random(8, 8)), net.random(8))
        return str(net.op("Reshape", y, net.const(np.array([0, 5, 2, 4]))))

    def scaled(y: str, place: str) -> str:
        return str(net.op(op, y, net.const(0.6))) if place == where else y

    q, k, v = scaled(projected(), "q"), scaled(projected(), "k"), scaled(projected(), "v")
    scores = scaled(net.op("Einsum", q, k, equation="bihd,bjhd->bhij"), "scores")
    return str(net.op("Einsum", net.op("Softmax", scores, axis=-1), v, equation="bhij,bjhd->bihd"))


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("where", ["q", "k", "scores", "v"])
def test_the_factor_of_attention(where: str, op: str) -> None:
    net = Net(shape=("N", 5, 8))
    ops = {"MatMul": 3, "Add": 3, "Reshape": 3, "Einsum": 2, "Softmax": 1}
    check(net.model(attention(net, where, op)), ops)


def test_a_factor_of_a_tensor_by_itself_stays() -> None:
    """It is a factor of both operands, so its square is the product's."""
    net = Net(shape=("N", 5, 8))
    y = net.op(
        "Reshape",
        net.op("Mul", net.op("MatMul", "x", net.random(8, 8)), net.const(0.5)),
        net.const([0, 5, 8]),
    )
    scores = net.op("Einsum", y, y, equation="nic,njc->nij")
    result = check(net.model(net.op("Mul", scores, net.const(0.3))), {"MatMul": 1, "Einsum": 1, "Mul": 1})
    assert len(result.report.folds) == 1


def test_multiply_adds_are_counted_with_the_sizes_of_the_constant() -> None:
    """A size of the input that is not known is assumed, and may be no size that the constant fits."""
    counted = []
    for size in (8, "C"):
        net = Net(shape=("N", size))
        counted.append(fuse(net.model(product(net, "x", "nc,cd->dn", 8, 6))).report.before.macs)
    assert counted[0] == counted[1] == 8 * 6


def test_an_einsum_to_be_kept_stays() -> None:
    net = Net(4)
    model = net.model(net.bn(product(net, "x", "bchw,dc->bdhw", 6, 4), 6))
    assert not fuse(model, options=Options(keep=("einsum*",))).report.folds


@pytest.mark.parametrize(
    ("equation", "ranks", "terms"),
    [
        ("ij, jk -> ik", (2, 2), "ij jk ik"),
        ("ij,jk", (2, 2), "ij jk ik"),
        ("ba", (2,), "ba ab"),
        ("...i,ij->...j", (3, 2), ".2.1i ij .2.1j"),
        ("...i,...i", (2, 3), ".1i .2.1i .2.1"),
    ],
)
def test_equations(equation: str, ranks: tuple[int, ...], terms: str) -> None:
    found = equation_of({"equation": equation}, ranks)
    assert found is not None
    assert " ".join("".join(term) for term in (*found.terms, found.result)) == terms


@pytest.mark.parametrize(
    ("equation", "ranks"),
    [
        ("ii->i", (2,)),
        ("ij->i", (3,)),
        ("ij->k", (2,)),
        ("i,j->ij", (1,)),
        ("...i->i", (3,)),
        ("i1->i", (2,)),
        ("", (2,)),
        ("Ba", (2,)),  # without an arrow, of which some say that capitals come first
    ],
)
def test_what_is_no_equation_of_these_operands(equation: str, ranks: tuple[int, ...]) -> None:
    assert equation_of({"equation": equation}, ranks) is None
