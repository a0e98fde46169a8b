"""The onnx_ir pass: it folds, leaves its argument alone, says whether it did anything, and fits into pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnx_ir.passes.common
import onnxruntime as ort
import pytest

from onnx_repfuse import InputError, Kind, Options, verify
from onnx_repfuse.integrations.onnx_ir import FusePass

MODELS = Path(__file__).parents[2] / "models"


def ops(model):
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("form", ["train", "train_dynamo"])
def test_folds_and_leaves_its_argument_alone(form):
    path = MODELS / f"repvgg.{form}.onnx"
    model = onnx_ir.load(path)
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    fusing = FusePass()
    result = fusing(model)
    assert result.modified
    assert ops(result.model).count("Conv") == 7
    assert not {"Add", "BatchNormalization"} & {*ops(result.model)}
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert fusing.report.verification
    assert verify(path, onnx_ir.to_proto(result.model))


def test_the_result_needs_no_file():
    result = FusePass()(onnx_ir.load(MODELS / "acnet.train.onnx"))
    session = ort.InferenceSession(onnx_ir.to_proto(result.model).SerializeToString())
    assert np.isfinite(session.run(None, {"input": np.ones((1, 3, 32, 32), np.float32)})[0]).all()


def test_nothing_to_fold_is_not_modified():
    path = MODELS / "repvgg.deploy.onnx"
    result = FusePass()(onnx_ir.load(path))
    assert not result.modified
    assert ops(result.model) == ops(onnx_ir.load(path))


def test_options_reach_the_planner():
    result = FusePass(Options(skip=frozenset({Kind.BRANCHES})))(onnx_ir.load(MODELS / "acnet.train.onnx"))
    assert ops(result.model).count("Add") == 8


def test_in_a_pipeline_until_nothing_changes():
    fusing = FusePass()
    pipeline = onnx_ir.passes.PassManager(
        [onnx_ir.passes.common.RemoveUnusedNodesPass(), fusing], steps=4, early_stop=True
    )
    result = pipeline(onnx_ir.load(MODELS / "repvgg.train.onnx"))
    assert result.modified
    assert fusing.report.folds == ()  # the second step found nothing left
    assert ops(result.model).count("Conv") == 7


def test_failure_names_its_cause():
    fusing = FusePass(Options(input_data=((None, Path("missing.npy")),)))
    model = onnx_ir.load(MODELS / "acnet.train.onnx")
    with pytest.raises(InputError):
        fusing(model)
    with pytest.raises(onnx_ir.passes.PassError) as caught:
        onnx_ir.passes.Sequential(fusing)(model)
    assert isinstance(caught.value.__cause__, InputError)
