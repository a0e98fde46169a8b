"""Shapes of inputs that are written into the result, and compared at."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, UsageError, fuse, plan
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
