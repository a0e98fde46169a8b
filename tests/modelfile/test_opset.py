"""Models converted to a newer opset: what changes, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse import ConversionError, Options, UsageError, VerificationError, fuse, plan
from onnx_repfuse.cli.main import main
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.opset import at_opset, opset_of
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.report.advice import advice
from tests.build import Net, counts, equal

AT_14 = Options(opset=14)


def _hard_swish(opset: int) -> tuple[Net, str]:
    net = Net(16, opset=opset, shape=("N", 16, 8, 8))
    y = net.conv_bn("x", 16, 32, 3)
    ends = [net.const(0.0), net.const(6.0)] if opset >= 11 else []
    clipped = net.op(
        "Clip", net.op("Add", y, net.const(3.0)), *ends, **({} if ends else {"min": 0.0, "max": 6.0})
    )
    return net, str(net.op("Div", net.op("Mul", y, clipped), net.const(6.0)))


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13])
def test_hard_swish_becomes_one_operator(opset: int) -> None:
    net, y = _hard_swish(opset)
    model = net.model(y)
    original = model.SerializeToString()
    result = fuse(model, options=AT_14)
    assert model.SerializeToString() == original
    assert counts(result.model) == {"Conv": 1, "HardSwish": 1}
    assert opset_of(result.model) == 14
    assert [value.name for value in result.model.graph.output] == [y]
    assert result.report.verification
    assert any(f"converted from opset {opset} to 14" in note for note in result.report.notes)
    assert result.report.before.ops["Clip"] == 1
    assert equal(model, result.model) > 0
    again = fuse(result.model, options=AT_14)
    assert again.report.verification.unchanged
    assert not again.report.notes


def test_the_default_changes_no_opset_and_says_what_another_would_gain() -> None:
    net, y = _hard_swish(13)
    model = net.model(y)
    result = fuse(model)
    assert opset_of(result.model) == 13
    assert Reason.OPSET in {refusal.reason for refusal in result.report.refusals}
    assert ["--opset 14" in sentence for sentence in advice(result.report)] == [True]
    assert not advice(plan(model, AT_14))


@pytest.mark.parametrize("opset", [9, 13])
def test_nothing_is_done_where_the_opset_is_new_enough(opset: int) -> None:
    net, y = _hard_swish(13)
    model = net.model(y)
    assert fuse(model, options=Options(opset=opset)).model == fuse(model).model


def test_a_conversion_alone_is_a_change_that_is_proved() -> None:
    net = Net(4, opset=11, shape=(1, 4, 6, 6))
    model = net.model(
        net.op("Relu", net.op("Squeeze", net.op("Unsqueeze", net.op("Relu", "x"), axes=[0]), axes=[0]))
    )
    result = fuse(model, options=Options(opset=13, skip=frozenset()))
    assert opset_of(result.model) == 13
    assert result.report.verification
    assert not result.report.verification.unchanged
    assert equal(model, result.model) > 0


def test_no_weight_is_read_and_all_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, y = _hard_swish(12)
    large = numpy_helper.from_array(net.rng.standard_normal((32, 32, 3, 3)).astype(np.float32), "inner")
    y = net.op("Conv", y, net.op("Constant", value=large), name="last")
    model = net.model(y)
    model.graph.node[-1].doc_string = "a note"
    model.graph.doc_string, model.producer_name = "of the graph", "somebody"
    model.metadata_props.add(key="author", value="somebody")
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=2000)

    with Document.open(path) as document:
        monkeypatch.setattr(Document, "_elements", lambda *given: pytest.fail("a weight was read"))
        converted = at_opset(document, 14).model
        assert at_opset(document, 14).model is converted
    assert opset_of(converted) == 14
    assert converted.producer_name == "somebody"
    assert converted.metadata_props == model.metadata_props
    assert converted.graph.doc_string == "of the graph"
    assert next(node for node in converted.graph.node if node.name == "last").doc_string == "a note"
    assert [t.name for t in converted.graph.initializer][: len(net.tensors)] == [t.name for t in net.tensors]
    monkeypatch.undo()
    result = fuse(path, tmp_path / "out.onnx", AT_14)
    assert counts(result.model) == {"Conv": 2, "HardSwish": 1}
    assert equal(onnx.load(path), result.model) > 0


def test_weights_that_are_inputs_stay_inputs() -> None:
    net, y = _hard_swish(12)
    model = net.model(y)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = fuse(model, options=AT_14)
    assert [value.name for value in result.model.graph.input] == [value.name for value in model.graph.input]
    frozen = fuse(model, options=Options(opset=14, freeze_initializers=True))
    assert counts(frozen.model) == {"Conv": 1, "HardSwish": 1}


def _with_subgraph() -> onnx.ModelProto:
    net = Net(4, opset=12)
    return net.model(net.op("Relu", net.behind_an_if()))


def _with_sparse_initializer() -> onnx.ModelProto:
    net = Net(4, opset=12)
    model = net.model(net.op("Add", "x", "s"))
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [1])
    )
    return model


@pytest.mark.parametrize(
    ("model", "words"), [(_with_subgraph(), "subgraphs"), (_with_sparse_initializer(), "sparse initializers")]
)
def test_what_the_converter_would_pass_over_is_refused(
    model: onnx.ModelProto, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConversionError, match=f"cannot be converted to opset 14: it has {words}"):
        fuse(model, options=AT_14)
    onnx.save(model, tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--opset", "14"]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


def test_what_the_converter_does_not_know_is_said_in_its_words() -> None:
    with pytest.raises(ConversionError, match="cannot be converted to opset 99"):
        fuse(_hard_swish(13)[0].model("x"), options=Options(opset=99))
    with pytest.raises(UsageError, match="opset"):
        Options(opset=0)


def test_a_wrong_conversion_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import version_converter

    net, y = _hard_swish(12)
    model = net.model(net.op("LeakyRelu", y, alpha=0.1))
    real = version_converter.convert_version

    def wrong(given: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        result = real(given, opset)
        result.graph.node[-1].attribute[0].f = 0.2
        return result

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    with pytest.raises(VerificationError):
        fuse(model, tmp_path / "o.onnx", AT_14)
    assert not list(tmp_path.iterdir())


def _resized(opset: int, mode: str, scales: list[float], *, as_node: bool = False) -> onnx.ModelProto:
    net = Net(3, opset=opset)
    op = "Upsample" if opset < 10 else "Resize"
    if opset < 9:
        return net.model(net.op(op, "x", mode=mode, scales=list(map(float, scales))))
    value = np.array(scales, np.float32)
    factors = net.op("Constant", value=numpy_helper.from_array(value)) if as_node else net.const(value)
    return net.model(net.op(op, "x", factors, mode=mode))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("opset", "factor"), [(7, 2), (7, 1.5), (9, 2), (9, 1.5), (10, 2), (10, 1.5), (10, 0.5), (10, 0.7)]
)
def test_a_resize_reads_the_positions_that_it_read(opset: int, mode: str, factor: float) -> None:
    """Until opset 10, position i is i / scale of the input, rounded up where that has more."""
    model = _resized(opset, mode, [1, 1, factor, factor], as_node=factor == 1.5 and opset > 8)
    for newer in (11, 13, 18):
        result = fuse(model, options=Options(opset=newer, check=False))
        assert opset_of(result.model) == newer
        assert equal(model, result.model, largest=7) > 0


def test_a_resize_that_no_newer_one_is_is_refused() -> None:
    with pytest.raises(ConversionError, match="not known whether it enlarges"):
        fuse(_resized(10, "nearest", [1, 1, 0.5, 2]), options=AT_14)
    net = Net(3, opset=10)
    net.more_inputs.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, [4]))
    with pytest.raises(ConversionError, match="not known whether it enlarges"):
        fuse(net.model(net.op("Resize", "x", "scales", mode="nearest")), options=AT_14)


@pytest.mark.parametrize("axis", [None, 1, 2, -1])
def test_a_hardmax_of_several_axes_is_refused(axis: int | None) -> None:
    """The converter makes one of a single axis."""
    net = Net(3, opset=11)
    model = net.model(net.op("Hardmax", "x", **({} if axis is None else {"axis": axis})))
    if axis == -1:
        assert equal(model, fuse(model, options=Options(opset=13, check=False)).model) > 0
        return
    with pytest.raises(ConversionError, match="a Hardmax of several axes"):
        fuse(model, options=AT_14)
