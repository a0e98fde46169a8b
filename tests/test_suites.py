"""The script that runs a folder of models tells the kinds of results apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from tests.build import Net
from tests.suites import compare, judge_model


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def _with_scaled_weight(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    weight = copy.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return copy


def test_a_model_that_folds_is_fine_and_one_that_is_no_model_is_told(tmp_path: Path) -> None:
    net = Net(4)
    assert judge_model(_saved(net.model(net.conv_bn("x", 4, 4, 3)), tmp_path / "a.onnx")) == "fine: folded"
    damaged = tmp_path / "b.onnx"
    damaged.write_bytes(b"no model")
    assert judge_model(damaged).startswith("exit 1: ")


def test_a_wrong_weight_and_another_interface_are_seen(tmp_path: Path) -> None:
    net = Net(4)
    model = net.model(net.conv("x", 4, 4, 3))
    good = _saved(model, tmp_path / "good.onnx")
    assert compare(good, good) == ""
    wrong = _saved(_with_scaled_weight(model, 1.01), tmp_path / "wrong.onnx")
    assert compare(good, wrong).startswith("wrong: output ")
    model.graph.output[0].name = model.graph.node[0].output[0] = "renamed"
    assert compare(good, _saved(model, tmp_path / "other.onnx")) == "broken: another output"
