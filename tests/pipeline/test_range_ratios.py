"""How far the channels of Convs differ in range, before and after, against the weights in the two files."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_repfuse import Options, fuse, plan
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.pipeline import prove_folds
from onnx_repfuse.pipeline.bans import FailedFold
from onnx_repfuse.pipeline.range_ratios import range_ratio
from onnx_repfuse.pipeline.run import run
from onnx_repfuse.records.reasons import Reason
from tests.build import Net


def by_hand(model, weight):
    """Of the Conv weight of this name: the largest magnitudes of its channels, the widest over the median."""
    (tensor,) = (t for t in model.graph.initializer if t.name == weight)
    array = numpy_helper.to_array(tensor).astype(np.float64)
    ranges = sorted(r for r in (max(abs(v) for v in channel.ravel()) for channel in array) if r > 0)
    middle = len(ranges) // 2
    median = ranges[middle] if len(ranges) % 2 else (ranges[middle - 1] + ranges[middle]) / 2
    return ranges[-1] / median


def weights(model):
    """Node name, or output if it has none -> its weight's name, of the Convs."""
    return {n.name or n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "Conv"}


def block(channels=5, dtype=np.float32, **attrs):
    """RepVGG's: two Convs with BatchNormalization, of which one scale is large."""
    net = Net(channels, dtype=dtype)
    three = net.conv("x", channels, channels, 3, bias=False, **attrs)
    scale, *rest = net.statistics(channels)
    values = numpy_helper.to_array(net.tensors[-4]).copy()
    values[1] *= 20
    net.tensors[-4].CopyFrom(numpy_helper.from_array(values, scale))
    wide = net.op("BatchNormalization", three, scale, *rest)
    return net.model(net.op("Relu", net.add(wide, net.conv_bn("x", channels, channels, 1, **attrs))))


def check(model, fused, fold):
    """Compare all that a fold says with the files; how many Convs there were on the two sides."""
    found = []
    for side, file in ((fold.absorbed, model), (fold.created, fused)):
        convs = [node for node in side if node.op == "Conv"]
        for node in convs:
            assert node.range_ratio == pytest.approx(by_hand(file, weights(file)[node.name]), rel=1e-6)
        assert all(node.range_ratio is None for node in side if node.op != "Conv")
        found.append(len(convs))
    return tuple(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("group", [1, 5])
def test_ratios_are_those_of_the_weights_in_the_files(dtype, group):
    model = block(dtype=dtype, group=group)
    result = fuse(model)
    (fold,) = result.report.folds
    assert check(model, result.model, fold) == (2, 1)
    assert fold.created[0].range_ratio > 5


def test_the_result_may_replace_the_input(tmp_path):
    path = tmp_path / "m.onnx"
    model = block()
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="m.onnx.data")
    model = onnx.load(path)
    with Document.open(path) as document:
        (fold,) = run(document, path, Options()).folds
    assert check(model, onnx.load(path), fold) == (2, 1)


def test_a_conv_that_keeps_the_weight_of_the_file():
    net = Net(4)
    bias = net.channel(4)
    model = net.model(net.op("Relu", net.op("Add", net.conv("x", 4, 4, 3), bias)))
    result = fuse(model)
    (fold,) = result.report.folds
    assert check(model, result.model, fold) == (1, 1)
    assert fold.created[0].range_ratio == fold.absorbed[0].range_ratio


def test_a_dry_run_reads_no_weights():
    (fold,) = plan(block()).folds
    assert {node.range_ratio for node in (*fold.absorbed, *fold.created)} == {None}


def test_an_unproved_result_has_them_too():
    (fold,) = fuse(block(), options=Options(check=False)).report.folds
    assert fold.created[0].range_ratio > 5


def test_after_a_fold_is_given_up_they_are_those_of_the_last_plan(monkeypatch):
    net = Net(4)
    model = net.model(net.op("Relu", net.conv_bn(net.op("Relu", net.conv_bn("x", 4, 4, 3)), 4, 4, 3)))
    first, second = (fold.output for fold in plan(model).folds)
    real = prove_folds.prove_folds

    def failing(plan, *rest):
        failed, verdicts = real(plan, *rest)
        wrong = [
            FailedFold((), fold, Reason.VERIFICATION, "planted")
            for _, fold in plan.folds
            if fold.name == first
        ]
        return [*failed, *wrong], verdicts

    monkeypatch.setattr("onnx_repfuse.pipeline.run.prove_folds", failing)
    result = fuse(model)
    (fold,) = result.report.folds
    assert fold.output == second
    assert check(model, result.model, fold) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0], [-8.0], [2.0], [0.0]], 4.0),
        ([[3.0]], 1.0),
        ([[0.0], [0.0]], None),
        ([[1.0], [np.inf]], None),
        ([[1.0], [np.nan]], None),
        ([], None),
    ],
)
def test_channels_of_zeros_do_not_count(rows, expected):
    assert range_ratio(np.array(rows).reshape(len(rows), 1, 1)) == expected


def test_bfloat16():
    assert range_ratio(np.array([[[1]], [[4]], [[1]]], ml_dtypes.bfloat16)) == 4
