"""`fuse`, `plan` and `verify`: what they accept, what they leave alone, what they raise."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

import onnx_repfuse
from onnx_repfuse import InputError, OutputError, RepfuseError, VerificationError, fuse, plan, verify
from onnx_repfuse.errors import UsageError

MODELS = Path(__file__).parent.parent / "models"
ACNET = MODELS / "acnet.train.onnx"


def snapshot(graph):
    """Everything a caller can see of a graphsurgeon Graph."""
    nodes = [
        (node.op, node.name, [t.name for t in node.inputs], [t.name for t in node.outputs], str(node.attrs))
        for node in graph.nodes
    ]
    tensors = {
        name: tensor.values.tobytes() if isinstance(tensor, gs.Constant) else (tensor.shape, tensor.dtype)
        for name, tensor in graph.tensors().items()
    }
    return nodes, tensors, [t.name for t in graph.inputs], [t.name for t in graph.outputs], graph.opset


@pytest.mark.parametrize("given", [ACNET, str(ACNET), onnx.load(ACNET), gs.import_onnx(onnx.load(ACNET))])
def test_accepts_paths_protos_and_graphs_and_changes_none(given):
    def seen():
        if isinstance(given, gs.Graph):
            return snapshot(given)
        return given.SerializeToString() if isinstance(given, onnx.ModelProto) else ACNET.read_bytes()

    before = seen()
    assert [str(fold.kind) for fold in plan(given).folds] == ["branches"] * 4
    result = fuse(given)
    assert result.path is None
    assert result.model is result.model
    assert [node.op_type for node in result.model.graph.node].count("Conv") == 4
    assert verify(given, result.model)
    assert seen() == before


@pytest.mark.parametrize("work", [fuse, plan, lambda model: verify(model, model)])
def test_refuses_anything_else(work):
    with pytest.raises(InputError, match="not int"):
        work(3)


@pytest.mark.parametrize(
    "words",
    [
        {"keep": "/head/*"},
        {"skip": "pool"},
        {"only": "pool"},
        {"cost": "foo"},
        {"rtol": -1.0},
        {"atol": np.nan},
    ],
)
def test_options_refuse_slips(words):
    with pytest.raises(UsageError, match=next(iter(words))):
        onnx_repfuse.Options(**words)


def test_writes_to_the_path_given(tmp_path):
    result = fuse(ACNET, tmp_path / "out.onnx")
    assert result.path == tmp_path / "out.onnx"
    assert result.model == onnx.load(result.path)
    assert result.report.model == str(ACNET)
    assert list(tmp_path.iterdir()) == [result.path]
    with pytest.raises(OutputError, match="no folder"):
        fuse(ACNET, tmp_path / "missing" / "out.onnx")


def test_every_error_is_a_repfuse_error(tmp_path):
    names = [name for name in onnx_repfuse.__all__ if name.endswith("Error")]
    assert len(names) == 7
    assert all(issubclass(getattr(onnx_repfuse, name), RepfuseError) for name in names)
    with pytest.raises(InputError):
        fuse(tmp_path / "nothing.onnx")


def test_nothing_compared_is_a_failure_with_figures(monkeypatch, tmp_path):
    failed = onnx_repfuse.Verification()  # no output was compared, although every fold passes its probes
    outputs = importlib.import_module("onnx_repfuse.verifier.outputs.compare")
    monkeypatch.setattr(outputs, "compare_with_baseline", lambda *_, **__: failed)
    with pytest.raises(VerificationError) as caught:
        fuse(ACNET, tmp_path / "out.onnx")
    assert len(caught.value.report.folds) == 4
    assert list(tmp_path.iterdir()) == []


def test_progress_reports_every_stage():
    calls = []
    fuse(ACNET, progress=lambda *call: calls.append(call))
    assert {stage for stage, _, _ in calls} == {"planning", "probing", "writing", "proving"}
    assert all(0 <= done <= total for _, done, total in calls)


def test_the_result_outlives_its_temporary_files():
    session = ort.InferenceSession(fuse(ACNET).model.SerializeToString())
    assert np.isfinite(session.run(None, {"input": np.ones((1, 3, 32, 32), np.float32)})[0]).all()


def test_planning_repeatedly_keeps_no_graph_in_memory():
    """No cache holds a graph: what a plan made is garbage afterwards."""

    def alive():
        gc.collect()
        return sum(isinstance(thing, gs.Node) for thing in gc.get_objects())

    plan(ACNET)
    plan(ACNET)
    once = alive()
    for _ in range(3):
        plan(ACNET)
    assert alive() <= once


def test_verify_raises_for_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    for bad in (tmp_path / "bad.onnx", tmp_path / "none.onnx"):
        for pair in ((ACNET, bad), (bad, ACNET)):
            with pytest.raises(InputError):
                verify(*pair)
