"""--avoid: no fold writes what the target cannot run, and a BatchNormalization becomes Mul and Add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from onnx_repfuse import Options, UsageError, fuse, plan
from onnx_repfuse.cli.main import main
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, counts, equal
from tests.random_graphs import Recipe, build, recipes
from tests.versions import since

NO_NORM = Options(avoid=frozenset(["BatchNormalization"]))


def _lone_norm(rank: int = 2) -> onnx.ModelProto:
    net = Net(4, shape=("N", 4, *(8,) * rank))
    return net.model(net.op("Relu", net.bn(net.op("Relu", "x"), 4)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_norm_that_stays_becomes_a_factor_and_a_shift(rank: int) -> None:
    model = _lone_norm(rank)
    assert counts(fuse(model).model)["BatchNormalization"] == 1
    result = fuse(model, options=NO_NORM)
    assert counts(result.model) == {"Relu": 2, "Mul": 1, "Add": 1}
    assert [fold.kind for fold in result.report.folds] == [Kind.AFFINE if rank else Kind.MATMUL]
    assert equal(model, result.model) > 0
    assert fuse(result.model, options=NO_NORM).report.verification.unchanged
    assert fuse(result.model).report.verification.unchanged  # nor is it written again without the option


def test_a_norm_before_a_padded_conv_leaves_a_shift() -> None:
    net = Net(4)
    model = net.model(net.conv(net.bn(net.op("Relu", "x"), 4), 4, 4, 3))
    assert counts(fuse(model).model) == {"Relu": 1, "BatchNormalization": 1, "Conv": 1}
    result = fuse(model, options=NO_NORM)
    assert counts(result.model) == {"Relu": 1, "Add": 1, "Conv": 1}
    assert equal(model, result.model) > 0


def test_norms_that_fold_are_folded() -> None:
    net = Net(4)
    model = net.model(net.add(net.conv_bn("x", 4, 4, 3), net.bn("x", 4)))
    assert counts(fuse(model, options=NO_NORM).model) == {"Conv": 1}


def test_two_norms_in_a_row_and_one_that_is_kept() -> None:
    net = Net(4)
    model = net.model(net.op("Relu", net.bn(net.bn(net.op("Relu", "x"), 4), 4)))
    result = fuse(model, options=NO_NORM)
    assert counts(result.model) == {"Relu": 2, "Mul": 1, "Add": 1}
    kept = Options(avoid=NO_NORM.avoid, keep=(model.graph.node[1].name,))
    assert counts(fuse(model, options=kept).model)["BatchNormalization"] == 1


@pytest.mark.parametrize("avoided", [True, False])
def test_no_fold_writes_a_gemm(avoided: bool) -> None:
    net = Net(shape=("N", 4))
    first = net.op("MatMul", "x", net.random(4, 4))
    model = net.model(net.op("Add", net.op("MatMul", first, net.random(4, 4)), net.random(4)))
    result = fuse(model, options=Options(avoid=frozenset(["Gemm"]) if avoided else frozenset()))
    assert ("Gemm" in counts(result.model)) is not avoided
    assert equal(model, result.model) > 0


def test_no_fold_writes_a_hard_swish() -> None:
    net = Net(4)
    y = net.op("Relu", "x")
    clipped = net.op("Clip", net.op("Add", y, net.const(3.0)), net.const(0.0), net.const(6.0))
    model = net.model(net.op("Div", net.op("Mul", y, clipped), net.const(6.0)))
    assert "HardSwish" in counts(fuse(model).model)
    result = fuse(model, options=Options(avoid=frozenset(["HardSwish", "HardSigmoid"])))
    assert not {"HardSwish", "HardSigmoid"} & counts(result.model).keys()


def test_an_operator_that_is_there_may_stay() -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    assert counts(fuse(model, options=Options(avoid=frozenset(["Conv"]))).model) == {"Conv": 1}


def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")
    onnx.save(_lone_norm(), source)
    gate = ["--fail-on-remaining", "BatchNormalization"]
    assert main([source, "-o", output, *gate]) == 4
    assert main([source, "-o", output, "--avoid", "BatchNormalization,Gemm", *gate]) == 0
    assert main([source, "-o", output, "--avoid", "BatchNorm"]) == 2
    assert "--avoid: there is no operator 'BatchNorm'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="avoid"):
        Options(avoid="Gemm")  # type: ignore[arg-type]
    assert np.isfinite(onnx.numpy_helper.to_array(onnx.load(output).graph.initializer[0])).all()


LAYER_NORM = {"ReduceMean": 2, "Sub": 1, "Pow": 1, "Sqrt": 1, "Div": 1}


def _between(op: str, *more: str, opset: int = 17, **attributes: object) -> onnx.ModelProto:
    """One operator between two Relus; `more` are its other inputs: "c" a constant, "y" another tensor."""
    net = Net(4, shape=("N", 4, 6, 5), opset=opset)
    kinds = {
        "c": lambda: net.const(np.linspace(0.5, 2, 4).reshape(4, 1, 1)),
        "y": lambda: net.op("Sigmoid", "x"),
        "g": lambda: net.const(
            np.linspace(0.5, 2, 30).reshape(6, 5)[:: 1 if attributes.get("axis", -1) in (2, -2) else 6]
        ),
    }
    others = [kinds[kind]() for kind in more]
    return net.model(net.op("Relu", net.op(op, net.op("Softplus", "x"), *others, **attributes)))


EXACT = since("ONNX Runtime before 1.22 rounds LayerNormalization of short axes more", onnxruntime="1.22")


@pytest.mark.parametrize(
    ("model", "avoided", "instead"),
    [
        (_between("Sum", "y", "y"), "Sum", {"Add": 2}),
        (_between("Sub", "y"), "Sub", {"Mul": 1, "Add": 1}),
        (_between("Sub", "c"), "Sub", {"Add": 1}),
        (_between("Div", "c"), "Div", {"Mul": 1}),
        (_between("Neg"), "Neg", {"Mul": 1}),
        (_between("HardSwish"), "HardSwish", {"HardSigmoid": 1, "Mul": 1}),
        (_between("HardSwish"), "HardSwish,HardSigmoid", {"Mul": 2, "Add": 1, "Clip": 1}),
        (
            _between("HardSigmoid", alpha=0.3, beta=0.4),
            "HardSigmoid",
            {"Mul": 1, "Add": 1, "Clip": 1, "Relu": 0},
        ),
        (_between("HardSigmoid", opset=11), "HardSigmoid", {"Mul": 1, "Add": 1, "Clip": 1, "Relu": 0}),
        (_between("PRelu", "c"), "PRelu", {"Relu": 2, "Mul": 2, "Add": 1}),
        (_between("LeakyRelu", alpha=0.2), "LeakyRelu", {"Relu": 2, "Mul": 2, "Add": 1}),
        (_between("GlobalAveragePool"), "GlobalAveragePool", {"ReduceMean": 1}),
        (_between("GlobalAveragePool", opset=18), "GlobalAveragePool", {"ReduceMean": 1}),
        (_between("Gelu", opset=20), "Gelu", {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}),
        (_between("Gelu", opset=20), "Gelu,Div", {"Mul": 3, "Erf": 1, "Add": 1}),
        (_between("Gelu", opset=20, approximate="tanh"), "Gelu", {"Mul": 6, "Tanh": 1, "Add": 2}),
        pytest.param(
            _between("LayerNormalization", "g", "g"),
            "LayerNormalization",
            {**LAYER_NORM, "Mul": 1, "Add": 2},
            marks=EXACT,
        ),
        pytest.param(
            _between("LayerNormalization", "g", axis=-1),
            "LayerNormalization",
            {**LAYER_NORM, "Mul": 1, "Add": 1},
            marks=EXACT,
        ),
        (
            _between("LayerNormalization", "g", "g", axis=2),
            "LayerNormalization",
            {**LAYER_NORM, "Mul": 1, "Add": 2},
        ),
        (
            _between("LayerNormalization", "g", opset=18, axis=-2),
            "LayerNormalization",
            {**LAYER_NORM, "Mul": 1, "Add": 1},
        ),
    ],
)
def test_an_operator_that_is_there_becomes_others(
    model: onnx.ModelProto, avoided: str, instead: dict[str, int]
) -> None:
    options = Options(avoid=frozenset(avoided.split(",")))
    result = fuse(model, options=options)
    around = {"Relu": 1, "Softplus": 1, **({"Sigmoid": 1} if "Sigmoid" in counts(model) else {})}
    if model.graph.node[0].op_type == "Sigmoid" and counts(model)["Sigmoid"] == 2:
        around["Sigmoid"] = 1  # two equal ones are merged
    expected = {**around, **instead}  # a Relu behind the Clip from 0 to 1 goes
    assert counts(result.model) == {op: count for op, count in expected.items() if count}
    assert equal(model, result.model) > 0
    again = fuse(result.model, options=options)
    assert again.report.verification.unchanged


@pytest.mark.parametrize(
    ("model", "avoided"),
    [
        (_between("Div", "y"), "Div"),  # x * Reciprocal(y) would round otherwise
        (_between("Sub", "y"), "Sub,Mul"),
        (_between("HardSigmoid", opset=9), "HardSigmoid"),  # Clip has no inputs there
        (_lone_norm(0), "BatchNormalization,Add"),
        (_lone_norm(), "BatchNormalization,Add,Conv"),
        (_between("Erf"), "Erf"),
        (_between("LayerNormalization", "g"), "LayerNormalization,ReduceMean"),
        (_between("LayerNormalization", "g", stash_type=10), "LayerNormalization"),  # statistics in float16
    ],
)
def test_where_there_is_no_way_it_stays(model: onnx.ModelProto, avoided: str) -> None:
    options = Options(avoid=frozenset(avoided.split(",")))
    op = avoided.split(",")[0]
    result = fuse(model, options=options)
    assert counts(result.model)[op] == 1
    told = [one.message for one in result.report.refusals if one.reason is Reason.AVOIDED]
    assert len(told) == 1
    assert f"{op} '" in told[0]
    assert ("no rule" in told[0]) == (op == "Erf")


def test_results_of_a_layer_normalization_that_are_read_stay() -> None:
    net = Net(4, shape=("N", 4, 6, 5))
    y, mean, _ = net.op("LayerNormalization", "x", net.random(5), outputs=3)
    model = net.model(net.op("Relu", y), net.op("Relu", mean))
    result = fuse(model, options=Options(avoid=frozenset(["LayerNormalization"])))
    assert counts(result.model)["LayerNormalization"] == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("more", ["Mul", "Add", "Mul,Add"])
def test_a_norm_becomes_a_depthwise_conv_where_the_target_has_no_arithmetic(rank: int, more: str) -> None:
    options = Options(avoid=frozenset(["BatchNormalization", *more.split(",")]))
    model = _lone_norm(rank)
    result = fuse(model, options=options)
    assert counts(result.model) == {"Relu": 2, "Conv": 1}
    assert next(n for n in result.model.graph.node if n.op_type == "Conv").attribute[0].i == 4
    assert equal(model, result.model) > 0
    again = fuse(result.model, options=options)
    assert again.report.verification.unchanged
    net = Net(4)
    padded = net.model(net.conv(net.bn(net.op("Relu", "x"), 4), 4, 4, 3))
    folded = fuse(padded, options=options)
    assert counts(folded.model) == {"Relu": 1, **({"Add": 1, "Conv": 1} if more == "Mul" else {"Conv": 2})}
    assert equal(padded, folded.model) > 0
    assert fuse(folded.model, options=options).report.verification.unchanged


def test_what_is_kept_or_in_half_precision_stays() -> None:
    model = _between("Sub", "c")
    name = next(node.name for node in model.graph.node if node.op_type == "Sub")
    assert counts(fuse(model, options=Options(avoid=frozenset(["Sub"]), keep=(name,))).model)["Sub"] == 1
    net = Net(4, shape=(1, 4, 6, 5), dtype=np.float16)
    half = net.model(net.op("Relu", net.op("HardSwish", net.op("Relu", "x"))))
    result = fuse(half, options=Options(avoid=frozenset(["HardSwish"])))
    assert counts(result.model)["HardSwish"] == 1
    assert "half precision" in next(
        one.message for one in result.report.refusals if one.reason is Reason.AVOIDED
    )


def test_a_gemm_becomes_a_matmul_and_an_add() -> None:
    net = Net(shape=("N", 4))
    model = net.model(
        net.op("Relu", net.op("Gemm", net.op("Relu", "x"), net.random(5, 4), net.random(5), transB=1))
    )
    result = fuse(model, options=Options(avoid=frozenset(["Gemm"])))
    assert counts(result.model) == {"Relu": 2, "MatMul": 1, "Add": 1}
    assert equal(model, result.model) > 0
    assert fuse(result.model, options=Options(avoid=frozenset(["Gemm"]))).report.verification.unchanged


def test_a_chain_of_constants_is_not_merged_into_what_is_avoided() -> None:
    """No other writer asks before it writes; such a fold is given up afterwards."""
    net = Net(4, shape=("N", 4, 6, 5))
    y = net.op("Sub", net.op("Relu", "x"), net.random(4, 6, 5))
    y = net.op("Div", y, net.const(np.linspace(1, 2, 30).reshape(6, 5)))
    model = net.model(net.op("Relu", net.op("Sub", y, net.random(4, 6, 5))))
    assert counts(fuse(model).model) == {"Relu": 2, "Mul": 1, "Add": 1}
    result = fuse(model, options=Options(avoid=frozenset(["Mul"])))
    assert counts(result.model) == counts(model)


@settings(
    max_examples=60,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
    phases=[Phase.generate],
)
@given(recipes)
def _nothing_avoided_is_created(recipe: Recipe) -> None:
    _check(build(recipe)[0])


def _check(model: onnx.ModelProto) -> None:
    """Whatever folds create, alone and all together: none of it is there when it is to be avoided."""
    created = tuple(sorted({node.op for fold in plan(model).folds for node in fold.created}))
    for avoided in {created, created[:1], created[-1:]} - {()}:
        report = plan(model, Options(avoid=frozenset(avoided)))
        for op in avoided:
            assert report.after.ops.get(op, 0) <= report.before.ops.get(op, 0), op


def test_nothing_avoided_is_created_in_random_graphs() -> None:
    _nothing_avoided_is_created()


@pytest.mark.parametrize("path", sorted(Path("models").glob("*.train.onnx")), ids=lambda path: path.stem)
def test_nothing_avoided_is_created_in_the_bundled_models(path: Path) -> None:
    _check(onnx.load(path))


@pytest.mark.parametrize("operands", ["difference", "sum", "scaled"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_computed_of_a_smaller_operand_has_its_shape(operands: str, kernel: int) -> None:
    """A 3x3 Conv of the mean alone is another one than of the mean beside an image."""
    net = Net(4, shape=(2, 4, 16, 16))
    mean = net.conv(net.op("GlobalAveragePool", "x"), 4, 16, 1, bias=False)
    image = net.conv("x", 4, 16, 1, bias=False)
    if operands == "sum":
        total = net.op("Sum", mean, mean, image)
    else:
        total = net.op(
            "Sub", image, mean if operands == "difference" else net.op("Mul", mean, net.channel(16))
        )
    model = net.model(net.conv(total, 16, 1, kernel))
    result = fuse(model, options=Options(check=False, avoid=frozenset(["Sub", "Sum"])))
    assert not {"Sub", "Sum"} & counts(result.model).keys()
    assert equal(model, result.model) > 0
