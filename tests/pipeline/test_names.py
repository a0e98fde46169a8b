"""What a run says about names is so: which stay, which vanish, and what was read before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnx_repfuse import Kind, Options, fuse
from tests.build import Net, equal

MODELS = Path(__file__).parents[2] / "models"
NAMES = [
    "mobileone.train",
    "mobileone_s1.train",
    "efficientvit.train",
    "ghostnetv3.train",
    "repvgg.train_dynamo",
]


def run_all(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    """Every tensor that the main graph computes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    seen = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in seen)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(copy.SerializeToString(), options)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_stays_has_the_values_it_had_and_the_others_are_listed(name: str) -> None:
    original = onnx.load(MODELS / f"{name}.onnx")
    result = fuse(original, options=Options(check=False))
    shape = [dim.dim_value or 1 for dim in original.graph.input[0].type.tensor_type.shape.dim]
    feed = {original.graph.input[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    before, after = run_all(original, feed), run_all(result.model, feed)
    for tensor in before.keys() & after.keys():
        old, new = np.asarray(before[tensor]), np.asarray(after[tensor])
        assert old.shape == new.shape, tensor
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4, err_msg=tensor)
    # of what nodes computed from constants
    written = {tensor.name for tensor in result.model.graph.initializer}
    gone = [tensor for part in result.report.vanished for tensor in part.tensors]
    assert sorted(gone) == sorted(before.keys() - after.keys() - written)
    for fold in result.report.folds:
        assert fold.output in after or not fold.created
    nodes = {node.name: node for node in original.graph.node}
    for ref in (ref for fold in result.report.folds for ref in fold.absorbed):
        assert ref.outputs == tuple(nodes[ref.name].output)
        assert set(ref.inputs) <= set(nodes[ref.name].input)


def test_the_root_behind_an_add_of_zero_keeps_its_name() -> None:
    net = Net(4)
    zero = net.const(np.zeros((4, 1, 1)))
    last = net.op("Add", net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1)), zero)
    model = net.model(net.op("Relu", last))
    result = fuse(model)
    (fold,) = result.report.folds
    assert fold.output == last
    assert [node.output[0] for node in result.model.graph.node if node.op_type == "Conv"] == [last]
    assert result.report.changes == ()


def test_a_no_op_behind_a_node_that_stays_is_listed_as_vanished() -> None:
    net = Net(4)
    relu = net.op("Relu", net.conv("x", 4, 4, 3))
    copy = net.op("Identity", relu)
    result = fuse(net.model(net.op("Sigmoid", copy)))
    (change,) = result.report.changes
    assert (change.kind, change.nodes) == (Kind.NO_OP, (copy,))
    assert f"'{copy}' equals '{relu}'" in change.claim
    assert [part.tensors for part in result.report.vanished] == [(copy,)]


def test_a_result_in_memory_has_no_name_and_its_true_size(tmp_path: Path) -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    report = fuse(model).report
    assert (report.model, report.output) == ("", "")
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    written = fuse(path, tmp_path / "o.onnx").report
    assert written.output == str(tmp_path / "o.onnx")
    size = {suffix: sum(f.stat().st_size for f in tmp_path.glob(f"{suffix}.*")) for suffix in "mo"}
    data = sum(f.stat().st_size for f in tmp_path.iterdir() if f.stem.startswith("o") and f.suffix != ".onnx")
    assert written.before.bytes == size["m"]
    assert written.after.bytes == (tmp_path / "o.onnx").stat().st_size + data


def test_a_frozen_input_is_a_change() -> None:
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    assert fuse(model).report.changes == ()
    report = fuse(model, options=Options(freeze_initializers=True)).report
    assert {change.kind for change in report.changes} == {Kind.FROZEN}
    named = {name for change in report.changes for name in change.nodes}
    assert named == {ref.name for fold in report.folds for ref in fold.absorbed}
    assert len(report.changes) == len(model.graph.initializer)
    assert all("is no graph input any more" in change.claim for change in report.changes)
    options = Options(freeze_initializers=True, skip=frozenset((Kind.FROZEN,)))
    assert fuse(model, options=options).report.verification.unchanged
    options = Options(freeze_initializers=True, only=frozenset((Kind.AFFINE,)))
    assert fuse(model, options=options).report.folds


def _with_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each initializer as a graph input, too."""
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    return model


@pytest.mark.parametrize("ir", [3, 4, 10])
@pytest.mark.parametrize("folds", [False, True])
def test_frozen_weights_leave_the_inputs(ir: int, folds: bool) -> None:
    net = Net(4, opset=8, ir=10)
    y = net.conv_bn("x", 4, 4, 3) if folds else net.conv("x", 4, 4, 3)
    model = _with_inputs(net.model(net.op("Relu", y)))
    model.ir_version = ir
    original = model.SerializeToString()
    result = fuse(model, options=Options(freeze_initializers=True))
    assert model.SerializeToString() == original
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert result.model.ir_version == max(ir, 4)
    assert any("the IR version is 4 now" in note for note in result.report.notes) is (ir == 3)
    assert result.report.verification
    assert bool(result.report.folds) is folds
    onnx.checker.check_model(result.model, full_check=True)
    assert equal(model, result.model) > 0
    again = fuse(result.model, options=Options(freeze_initializers=True))
    assert again.report.verification.unchanged
    kept = fuse(model)
    assert len(kept.model.graph.input) > 1


def test_weights_of_subgraphs_are_frozen_too() -> None:
    net = Net(4, opset=11)
    weight = net.random(4, 4, 1, 1)
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", weight], ["inner"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)],
    )
    condition = net.op("Cast", net.op("ReduceMax", "x", keepdims=0), to=onnx.TensorProto.BOOL)
    model = net.model(net.op("If", condition, then_branch=body, else_branch=body))
    model = _with_inputs(model)
    result = fuse(model, options=Options(freeze_initializers=True))
    assert [value.name for value in result.model.graph.input] == ["x"]
    (change,) = (change for change in result.report.changes if f"'{weight}'" in change.claim)
    assert len(change.nodes) == 2
    assert equal(model, result.model) > 0
