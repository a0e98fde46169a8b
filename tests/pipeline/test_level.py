"""-O2: converts where it pays, and gives whatever -O1 gives where it fails."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_repfuse import Options, UsageError, VerificationError, fuse, plan
from onnx_repfuse.cli.main import main
from onnx_repfuse.modelfile.opset import opset_of
from onnx_repfuse.pipeline import level
from tests.build import Net, counts, equal

FASTEST = Options(level=2)


@pytest.fixture(autouse=True)
def _nothing_else_simplifies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed here: tests/pipeline/test_simplify.py has simplifiers."""
    monkeypatch.setattr(level, "installed", lambda: ())


def _net(opset: int = 12, *, has_hard_swish: bool = True) -> tuple[Net, str]:
    net = Net(4, opset=opset, shape=("N", 4, 8, 8))
    y = net.conv_bn("x", 4, 4, 3)
    if not has_hard_swish:
        return net, str(net.op("Relu", y))
    clipped = net.op("Clip", net.op("Add", y, net.const(3.0)), net.const(0.0), net.const(6.0))
    return net, str(net.op("Div", net.op("Mul", y, clipped), net.const(6.0)))


def test_a_decomposed_hard_swish_is_converted_and_a_second_run_changes_nothing() -> None:
    net, y = _net()
    model = net.model(y)
    result = fuse(model, options=FASTEST)
    assert counts(result.model) == {"Conv": 1, "HardSwish": 1}
    assert opset_of(result.model) == 14
    assert equal(model, result.model) > 0
    assert any("converted from opset 12 to 14" in note for note in result.report.notes)
    again = fuse(result.model, options=FASTEST)
    assert again.report.verification.unchanged
    assert again.model == result.model
    assert plan(model, FASTEST).after.ops == result.report.after.ops


def test_where_it_gains_nothing_the_opset_stays() -> None:
    net, y = _net(has_hard_swish=False)
    model = net.model(y)
    assert fuse(model, options=FASTEST).model == fuse(model).model
    (note,) = fuse(model, options=FASTEST).report.notes
    assert "pip install onnxslim" in note


def test_an_opset_that_is_named_wins() -> None:
    net, y = _net()
    assert opset_of(fuse(net.model(y), options=Options(level=2, opset=13)).model) == 13
    assert opset_of(fuse(net.model(y), options=Options(level=2, opset=15)).model) == 15


def test_what_cannot_be_converted_is_kept_and_noted() -> None:
    net, y = _net()
    empty = [onnx.helper.make_empty_tensor_value_info("inner")]
    body = onnx.helper.make_graph([onnx.helper.make_node("Relu", [y], ["inner"])], "body", [], empty)
    model = net.model(net.op("If", net.default(True), then_branch=body, else_branch=body))
    for report in (fuse(model, options=FASTEST).report, plan(model, FASTEST)):
        assert sum("it has subgraphs" in note for note in report.notes) == 1
        assert report.folds
    assert opset_of(fuse(model, options=FASTEST).model) == 12


def test_a_conversion_that_is_not_proved_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import version_converter

    real = version_converter.convert_version

    def wrong(given: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        result = real(given, opset)
        result.graph.node[-1].attribute[0].f = 0.2
        return result

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    net, y = _net()
    model = net.model(net.op("LeakyRelu", y, alpha=0.1))
    with pytest.raises(VerificationError):
        fuse(model, options=Options(opset=14))
    result = fuse(model, options=FASTEST)
    assert opset_of(result.model) == 12
    assert result.report.verification
    words = "opset 14 would pay, but the model was not converted"
    assert sum(words in note for note in result.report.notes) == 1


def test_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, y = _net()
    source, output = str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")
    onnx.save(net.model(y), source)
    assert main([source, "-o", output, "-O2"]) == 0
    assert opset_of(onnx.load(output)) == 14
    assert main([source, "-o", output, "-O1"]) == 0
    assert opset_of(onnx.load(output)) == 12
    assert main([source, "-o", output, "-O3"]) == 2
    with pytest.raises(UsageError, match="level"):
        Options(level=3)  # type: ignore[arg-type]
    capsys.readouterr()
