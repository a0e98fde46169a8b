"""--simplify: another simplifier runs first, nothing it does is believed, and nothing it breaks is written."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnx_repfuse import Options, UsageError, fuse, plan
from onnx_repfuse.cli.main import main
from onnx_repfuse.modelfile import peers
from onnx_repfuse.pipeline import level
from onnx_repfuse.records.report import Report, Simplified
from tests.build import Net, counts, equal
from tests.pipeline.conftest import Install

SLIM = Options(simplify="onnxslim")
AUTO = Options(simplify="auto")
_GOOD = "return join_relus(model)"


def _model(*, ir_version: int | None = None) -> onnx.ModelProto:
    """ThresholdedRelu, ThresholdedRelu, Conv, BatchNormalization."""
    net = Net(4, shape=("N", 4, 16, 16))
    model = net.model(net.conv_bn(net.op("ThresholdedRelu", net.op("ThresholdedRelu", "x")), 4, 4, 3))
    model.producer_name = "somebody"
    model.metadata_props.add(key="author", value="somebody")
    if ir_version is not None:
        model.ir_version = ir_version
    return model


def _only(report: Report) -> Simplified:
    (one,) = report.simplified
    return one


def test_both_gains_are_reported_and_all_is_proved_against_the_original(install: Install) -> None:
    install(onnxslim=_GOOD)
    model = _model()
    result = fuse(model, options=SLIM)
    assert counts(result.model) == {"ThresholdedRelu": 1, "Conv": 1}
    assert equal(model, result.model) > 0
    used = _only(result.report)
    assert (used.peer, used.version, used.used, used.message) == ("onnxslim", "1.2.3", True, "")
    assert used.counts is not None
    assert [result.report.before.nodes, used.counts.nodes, result.report.after.nodes] == [4, 3, 2]
    assert result.report.verification
    assert result.model.producer_name == "somebody"
    assert result.model.metadata_props == model.metadata_props
    assert result.model.graph.input == model.graph.input
    (gone,) = result.report.vanished
    assert model.graph.node[0].output[0] in gone.tensors
    again = fuse(result.model, options=SLIM)
    assert again.report.verification.unchanged
    assert again.model == result.model
    assert plan(model, SLIM).after.ops == result.report.after.ops


def test_it_sends_nothing_either(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simplifiers import ONNX Runtime, which sends events unless it is told otherwise before."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    install(onnxslim=f"assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'\n{_GOOD}")
    assert _only(fuse(_model(), options=SLIM).report).used


_FAULTS = {
    "crash": ("os.abort()", "ended by signal 6"),
    "error": ("raise ValueError('no idea')", "it failed: ValueError: no idea"),
    "leaves": ("sys.exit(7)", "it failed: exit code 7"),
    "garbage": ("return 'text'", "returned no model"),
    "hang": ("time.sleep(600)", "did not end within"),
    "invalid": (
        "node = join_relus(model).graph.node[0]\n"
        "node.attribute.append(onnx.helper.make_attribute('size', 1))\nreturn model",
        "Unrecognized attribute",
    ),
    "unequal": (
        "join_relus(model).graph.node[0].op_type = 'Softplus'\nreturn model",
        "not proved equal to the original",
    ),
    "opset": (
        "model.opset_import[0].version = 18\nreturn join_relus(model)",
        "changed the opset from 17 to 18",
    ),
    "no gain": ("return model", "predicted to take 1.000 of the time"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_where_it_fails_the_result_is_as_without_it(
    fault: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, words = _FAULTS[fault]
    install(onnxslim=body)
    monkeypatch.setattr(peers, "SECONDS", 3.0 if fault == "hang" else 300.0)
    model = _model()
    result = fuse(model, options=SLIM)
    assert result.model == fuse(model).model
    assert result.report.verification
    one = _only(result.report)
    assert not one.used
    assert words in one.message
    assert one.version == "1.2.3"


def test_what_could_not_be_proved_is_not_tried(install: Install) -> None:
    install(onnxslim=_GOOD)
    inputs = _model()
    for tensor in inputs.graph.initializer:
        inputs.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    assert "graph inputs" in _only(plan(inputs, SLIM)).message
    looping = _model()
    body = onnx.parser.parse_graph(
        "body (int64 i, bool c) => (bool d, float e) { d = Identity(c) e = Cast<to=1>(i) }"
    )
    looping.graph.node.append(onnx.helper.make_node("Loop", ["", "go"], ["es"], body=body))
    looping.graph.initializer.append(onnx.helper.make_tensor("go", onnx.TensorProto.BOOL, [], [False]))
    looping.graph.output.append(onnx.helper.make_empty_tensor_value_info("es"))
    assert "loop" in _only(plan(looping, SLIM)).message


def test_what_it_does_in_a_branch_that_no_input_reaches_is_compared(install: Install) -> None:
    net = Net(4, shape=("N", 4, 8, 8))
    y = net.op("ThresholdedRelu", net.op("ThresholdedRelu", "x"))
    empty = [onnx.helper.make_empty_tensor_value_info("inner")]
    left, right = (
        onnx.helper.make_graph([onnx.helper.make_node(op, [y], ["inner"])], "body", [], empty)
        for op in ("Sin", "Cos")
    )
    flag = net.op("Greater", net.op("ReduceMax", "x", keepdims=0), net.const(-1e9))
    model = net.model(net.op("If", flag, then_branch=left, else_branch=right))
    harm = "for node in join_relus(model).graph.node:\n    for a in node.attribute:\n        if a.name == '{}':\n"
    harm += "            a.g.node[0].op_type = 'Tanh'\nreturn model"
    install(onnxslim=harm.format("nothing"))
    assert _only(fuse(model, options=SLIM).report).used
    for branch in ("then_branch", "else_branch"):
        install(onnxslim=harm.format(branch))
        result = fuse(model, options=SLIM)
        assert "not proved equal" in _only(result.report).message
        assert equal(model, result.model) > 0


def test_auto_takes_the_one_that_is_predicted_to_be_faster(install: Install) -> None:
    install(onnxslim="return model", onnxsim="return join_relus(model), True")
    model = _model()
    report = fuse(model, options=AUTO).report
    assert {one.peer: one.used for one in report.simplified} == {"onnxslim": False, "onnxsim": True}
    install(onnxslim=_GOOD, onnxsim="return join_relus(model), True")
    report = fuse(model, options=AUTO).report
    assert {one.peer: one.used for one in report.simplified} == {"onnxslim": True, "onnxsim": False}
    install(onnxslim=_FAULTS["unequal"][0], onnxsim="return join_relus(model), True")
    report = fuse(model, options=AUTO).report
    assert {one.peer: one.used for one in report.simplified} == {"onnxslim": False, "onnxsim": True}


def test_level_2_simplifies_and_what_is_named_wins(install: Install) -> None:
    install(onnxslim=_GOOD, onnxsim="return join_relus(model), True")
    model = _model()
    result = fuse(model, options=Options(level=2))
    assert counts(result.model) == {"ThresholdedRelu": 1, "Conv": 1}
    again = fuse(result.model, options=Options(level=2))
    assert again.report.verification.unchanged
    assert again.model == result.model
    named = fuse(model, options=Options(level=2, simplify="onnxsim")).report
    assert [(one.peer, one.used) for one in named.simplified] == [("onnxsim", True)]
    assert not fuse(model).report.simplified


# What simplifiers return; some gain something only behind another one, or behind us.
_LATER = {
    "all at once": "join_relus(model)",
    "one a time": "join_relus(model, most=1)",
    "once folded": "model if any(n.op_type == 'BatchNormalization' for n in model.graph.node) else join_relus(model)",
    "nothing": "model",
}


@pytest.mark.parametrize(
    ("slim", "sim"), [("all at once", "nothing"), ("nothing", "once folded"), ("one a time", "once folded")]
)
def test_a_second_run_finds_nothing(install: Install, slim: str, sim: str) -> None:
    install(onnxslim=f"return {_LATER[slim]}", onnxsim=f"return ({_LATER[sim]}), True")
    net = Net(4, shape=("N", 4, 16, 16))
    y = net.op("ThresholdedRelu", net.op("ThresholdedRelu", net.op("ThresholdedRelu", "x")))
    model = net.model(net.conv_bn(y, 4, 4, 3))
    first = fuse(model, options=Options(level=2))
    assert counts(first.model) == {"ThresholdedRelu": 1, "Conv": 1}
    assert equal(model, first.model) > 0
    assert len(first.report.verification.folds) == len(first.report.folds) == 1
    if slim == "one a time":
        assert plan(model, Options(level=2)).after.ops == first.report.after.ops
    again = fuse(first.model, options=Options(level=2))
    assert again.report.verification.unchanged
    assert again.model == first.model


def test_rounds_are_bounded_and_one_that_is_not_proved_is_left_out(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = Net(4, shape=("N", 4, 16, 16))
    y = "x"
    for _ in range(8):
        y = net.op("ThresholdedRelu", y)
    model = net.model(net.conv_bn(y, 4, 4, 3))
    install(onnxslim="return join_relus(model, most=1)")
    first = fuse(model, options=SLIM)
    assert [one.used for one in first.report.simplified] == [True] * level.MAX_ROUNDS
    assert counts(first.model) == {"ThresholdedRelu": 8 - level.MAX_ROUNDS, "Conv": 1}
    onnx.save(model, tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--simplify"]) == 0
    text = capsys.readouterr().out
    assert text.count("onnxslim 1.2.3 ran first: 10 -> 9 nodes") == 1
    assert "then onnx-repfuse, and onnxslim 1.2.3: 9 -> 7 nodes" in text
    wrong = "if not any(n.op_type == 'BatchNormalization' for n in model.graph.node):\n"
    wrong += "    join_relus(model).graph.node[0].op_type = 'Softplus'\n    return model\n"
    install(onnxslim=wrong + "return join_relus(model, most=1)")
    kept = fuse(model, options=SLIM)
    assert [one.used for one in kept.report.simplified] == [True]
    assert counts(kept.model) == {"ThresholdedRelu": 7, "Conv": 1}


_NEGATED = """
for node in model.graph.node:
    if node.op_type == "Add":
        node.op_type = "Sub"
        node.input[1] = "minus one"
model.graph.initializer.append(onnx.helper.make_tensor("minus one", 1, [], [-1.0]))
return join_relus(model)
"""
# What onnxsim does to PP-OCRv6: the half goes into the next Conv.
_HALVED = """
nodes, graph = {node.output[0]: node for node in model.graph.node}, model.graph
conv = [node for node in graph.node if node.op_type == "Conv"][-1]
half = nodes[conv.input[0]]
for tensor in graph.initializer:
    if tensor.name == conv.input[1]:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 2, tensor.name))
conv.input[0] = half.input[0]
graph.node.remove(half)
return join_relus(model)
"""


@pytest.mark.parametrize("breaking", [_NEGATED, _HALVED])
def test_a_fused_pattern_is_not_broken(install: Install, breaking: str) -> None:
    """The runtime no longer finds GELU: the result without it is faster, though it has more nodes."""
    net = Net(4, shape=("N", 4, "H", "W"))
    y = net.conv(net.op("ThresholdedRelu", net.op("ThresholdedRelu", "x")), 4, 4, 1)
    erf = net.op("Erf", net.op("Div", y, net.const(2.0**0.5)))
    gelu = net.op("Mul", net.op("Mul", y, net.op("Add", erf, net.const(1.0))), net.const(0.5))
    model = net.model(net.conv(gelu, 4, 4, 3))
    install(onnxslim=breaking.strip())
    assert "broke a pattern" in _only(plan(model, SLIM)).message
    install(onnxslim=_GOOD)
    assert _only(plan(model, SLIM)).used


def test_what_is_to_be_kept_or_avoided_holds_for_it_too(install: Install) -> None:
    install(onnxslim=_GOOD)
    model = _model()
    first, second = (node.name for node in model.graph.node[:2])
    for name, is_used in ((first, True), (second, False)):
        result = fuse(model, options=Options(simplify="onnxslim", keep=(name,)))
        assert _only(result.report).used is is_used
        assert name in {node.name for node in result.model.graph.node}
    install(onnxslim="join_relus(model).graph.node[0].op_type = 'Elu'\nreturn model")
    report = plan(model, Options(simplify="onnxslim", avoid=frozenset(["Elu"])))
    assert _only(report).message == "it wrote Elu, which is to be avoided"


def test_large_models_go_by_path_and_external_data_stays_external(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(onnxslim="assert isinstance(model, str)\nreturn join_relus(onnx.load(model))")
    monkeypatch.setattr(peers, "IN_MEMORY_BYTES", 0)
    model = _model()
    source, target = tmp_path / "m.onnx", tmp_path / "out" / "o.onnx"
    target.parent.mkdir()
    onnx.save(model, source, save_as_external_data=True, location="m.data", size_threshold=0)
    result = fuse(source, target, SLIM)
    assert _only(result.report).used
    assert equal(onnx.load(source), onnx.load(target)) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fakes", "m.data", "m.onnx", "out"]
    monkeypatch.undo()


def test_old_files_stay_valid(install: Install) -> None:
    """Below IR version 4, every initializer is a graph input, too; such files have weights that are inputs."""
    install(onnxslim=_GOOD)
    net = Net(4)
    model = net.model(
        net.op("MaxPool", net.op("ThresholdedRelu", net.op("ThresholdedRelu", "x")), kernel_shape=[2, 2])
    )
    model.ir_version = 3
    result = fuse(model, options=SLIM)
    assert _only(result.report).used
    assert result.model.ir_version == 3
    onnx.checker.check_model(result.model)


def test_one_that_is_missing_is_wrong_usage_and_auto_goes_on(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    model = _model()
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="pip install onnxsim"):
        fuse(model, options=Options(simplify="onnxsim"))
    with pytest.raises(UsageError, match="simplify"):
        Options(simplify="sometimes")  # type: ignore[arg-type]
    words = [str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")]
    assert main([*words, "--simplify", "onnxslim"]) == 2
    assert "pip install onnxslim" in capsys.readouterr().err
    assert main([*words, "--simplify"]) == 0
    assert "pip install onnxslim" in capsys.readouterr().out
    assert fuse(model, options=AUTO).model == fuse(model).model


def test_the_flag_with_and_without_a_value(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(onnxslim=_GOOD)
    source, output, data = (str(tmp_path / name) for name in ("m.onnx", "o.onnx", "r.json"))
    onnx.save(_model(), source)
    for words in (["--simplify", source], ["--simplify", "onnxslim", source], [source, "--simplify=auto"]):
        assert main([*words, "-o", output, "--json", data]) == 0
        text = capsys.readouterr().out
        assert "onnxslim 1.2.3 ran first: 4 -> 3 nodes" in text
        assert "then onnx-repfuse: 3 -> 2 nodes" in text
        (entry,) = json.loads(Path(data).read_text())["simplified"]
        assert (entry["peer"], entry["version"], entry["used"]) == ("onnxslim", "1.2.3", True)
        assert entry["counts"]["nodes"] == 3
    assert main([source, "--simplify=nobody", "-o", output]) == 2
    assert main(["--compare", source, output, "--simplify"]) == 2
    capsys.readouterr()
