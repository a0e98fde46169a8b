"""--avoid: no fold writes what the target cannot run, and a BatchNormalization becomes Mul and Add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, UsageError, fuse
from onnx_repfuse.cli.main import main
from onnx_repfuse.records.report import Kind
from tests.build import Net, counts, equal

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
