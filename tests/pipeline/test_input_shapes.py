"""Shapes of inputs that are written into the result, and compared at."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, OutputError, UsageError, fuse, plan
from onnx_repfuse.cli.main import main
from tests.build import Net, run

SHAPE = {"x": (2, 4, 10, 12)}


def net(shape=("N", 4, "H", "W")):
    made = Net(4, shape=shape)
    model = made.model(made.op("Relu", made.conv_bn("x", 4, 6, 3)))
    stale = onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], 1, ["N", 6, 99, 99])
    model.graph.value_info.append(stale)
    return model


def dims(value):
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("shape", [("N", 4, "H", "W"), (1, 4, 7, 7)])
def test_input_and_output_get_the_shape_and_stale_ones_go(shape):
    original = net(shape)
    result = fuse(original, options=Options(overwrite_input_shapes=SHAPE))
    graph = result.model.graph
    assert dims(graph.input[0]) == [2, 4, 10, 12]
    assert dims(graph.output[0]) == [2, 6, 10, 12]
    assert not graph.value_info
    assert {node.op_type for node in graph.node} == {"Conv", "Relu"}
    assert result.report.verification
    assert [dict(each) for each in result.report.verification.shapes] == [SHAPE]
    feed = {"x": np.random.default_rng(0).standard_normal(SHAPE["x"]).astype(np.float32)}
    expected = run(net(), feed)[0]
    np.testing.assert_allclose(run(result.model, feed)[0], expected, atol=1e-4)


def test_a_model_without_folds_is_proved_at_the_shape_too():
    made = Net(4)
    result = fuse(made.model(made.op("Relu", "x")), options=Options(overwrite_input_shapes=SHAPE))
    assert dims(result.model.graph.output[0]) == [2, 4, 10, 12]
    assert result.report.verification
    assert not result.report.verification.unchanged
    again = fuse(result.model, options=Options())
    assert again.report.verification.unchanged


@pytest.mark.parametrize(
    ("shapes", "why"), [({"y": (1,)}, "no input 'y'; it has x"), ({"x": (1, 2)}, "4 dims, but 2")]
)
def test_a_wrong_input_or_rank_is_wrong_usage(shapes, why):
    for call in (fuse, plan):
        with pytest.raises(UsageError, match=why):
            call(net(), options=Options(overwrite_input_shapes=shapes))


def test_the_command_writes_it_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "m.onnx")
    assert main(["m.onnx", "--overwrite-input-shape", "x:1,4,9,9", "-o", "o.onnx"]) == 0
    assert "shapes of inputs were overwritten: 'x' to 1,4,9,9" in capsys.readouterr().out
    assert dims(onnx.load("o.onnx").graph.input[0]) == [1, 4, 9, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "o.onnx"]
    assert main(["m.onnx", "--overwrite-input-shape", "x:1,-4", "-o", "o.onnx"]) == 2
    assert "--overwrite-input-shape takes NAME" in capsys.readouterr().err


def test_what_a_subgraph_says_of_its_tensors_goes_too():
    made = Net(4)
    made.conv("x", 4, 4, 3)
    inner = onnx.parser.parse_graph("g () => (float[N,4,7,7] z) { a = Relu(x)  z = Neg(a) }")
    inner.value_info.append(onnx.helper.make_tensor_value_info("a", 1, ["N", 4, 7, 7]))
    yes = made.const(np.array(True))
    model = made.model(made.op("If", yes, then_branch=inner, else_branch=inner))
    result = fuse(model, options=Options(overwrite_input_shapes=SHAPE)).model
    graphs = [a.g for node in result.graph.node for a in node.attribute if a.HasField("g")]
    assert all(not graph.value_info for graph in graphs)


def test_no_conversion_is_told_where_only_shapes_changed():
    notes = plan(net(), Options(overwrite_input_shapes=SHAPE)).notes
    assert not any("converted" in note for note in notes)


def outside(model, folder):
    """The model as a file with all of its weights in weights.bin beside it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)


def hard_swish():
    """Two ThresholdedRelus, and a decomposed HardSwish, which opset 11 has no operator for, between two Convs."""
    made = Net(4, opset=11)
    wide = made.conv_bn(made.op("ThresholdedRelu", made.op("ThresholdedRelu", "x")), 4, 64, 3)
    three, zero, six = (made.const(np.array(number)) for number in (3.0, 0.0, 6.0))
    gate = made.op("Div", made.op("Clip", made.op("Add", wide, three), zero, six), six)
    return made.model(made.conv_bn(made.op("Mul", wide, gate), 64, 6, 3))


@pytest.mark.parametrize("external", [None, False])
@pytest.mark.parametrize(
    ("more", "nodes", "opset"),
    [
        ({}, 8, 11),
        ({"opset": 14}, 5, 14),
        ({"simplify": "onnxslim"}, 7, 11),
        ({"simplify": "onnxslim", "opset": 14}, 4, 14),
        ({"level": 2}, 4, 14),
    ],
)
def test_external_data_conversion_and_simplifiers_go_with_it(external, more, nodes, opset, tmp_path, install):
    install(onnxslim="return join_relus(model)")
    given, place = tmp_path / "in", tmp_path / "out"
    given.mkdir()
    place.mkdir()
    outside(hard_swish(), given)
    options = Options(overwrite_input_shapes=SHAPE, external=external, **more)
    report = fuse(given / "m.onnx", place / "o.onnx", options).report
    result = onnx.load(place / "o.onnx")
    assert (len(result.graph.node), result.opset_import[0].version) == (nodes, opset)
    assert dims(result.graph.input[0]) == [2, 4, 10, 12]
    assert dims(result.graph.output[0]) == [2, 6, 10, 12]
    feed = {"x": np.random.default_rng(0).standard_normal(SHAPE["x"]).astype(np.float32)}
    np.testing.assert_allclose(run(result, feed)[0], run(hard_swish(), feed)[0], atol=1e-4)
    assert str(report.verification.status) == "passed"
    assert len(list(place.iterdir())) == (2 if external is None else 1)
    assert report.before.bytes == sum(file.stat().st_size for file in given.iterdir())
    assert report.after.bytes == sum(file.stat().st_size for file in place.iterdir())
    planned = plan(given / "m.onnx", options)
    assert (planned.before, planned.after.ops) == (report.before, report.after.ops)


@pytest.mark.parametrize("check", [True, False])
def test_the_input_itself_can_be_replaced(check, tmp_path):
    path = tmp_path / "m.onnx"
    outside(net(), tmp_path)
    options = Options(overwrite_input_shapes=SHAPE, check=check)
    assert fuse(path, path, options, in_place=True).report.folds
    assert dims(onnx.load(path).graph.input[0]) == [2, 4, 10, 12]


def test_the_weights_of_the_input_stay_though_an_older_output_used_them_too(tmp_path):
    """Else the replaced output's data file, which it may have named itself, would be removed as stale."""
    (tmp_path / "sub").mkdir()
    copy = net()
    onnx.save(
        copy, tmp_path / "m.onnx", save_as_external_data=True, location="sub/o.onnx.data", size_threshold=0
    )
    older = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for tensor in older.graph.initializer:
        tensor.external_data[0].value = "o.onnx.data"
    onnx.save(older, tmp_path / "sub" / "o.onnx")
    before = (tmp_path / "sub" / "o.onnx.data").read_bytes()
    fuse(tmp_path / "m.onnx", tmp_path / "sub" / "o.onnx", Options(overwrite_input_shapes=SHAPE))
    assert (tmp_path / "sub" / "o.onnx.data").read_bytes() == before
    onnx.load(tmp_path / "m.onnx")


def test_an_output_that_is_the_weights_of_the_input_is_refused(tmp_path):
    outside(net(), tmp_path)
    (tmp_path / "m.onnx").rename(tmp_path / "m.pb")
    for shapes in ({}, SHAPE):
        with pytest.raises(OutputError, match="the input keeps its weights there"):
            fuse(tmp_path / "m.pb", tmp_path / "weights.bin", Options(overwrite_input_shapes=shapes))
