"""The maps have every node of the model and of the result, and say which fold each belongs to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx.parser
import pytest

from onnx_repfuse.api import plan
from onnx_repfuse.options import Options
from onnx_repfuse.records.report import Kind
from onnx_repfuse.report.html_map import graph_maps
from tests.build import Net

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("name", ["acnet.train", "fastvit.train", "efficientvit.train", "mobileone.deploy"])
def test_they_have_every_node_and_every_fold(name):
    report = plan(MODELS / f"{name}.onnx")
    assert report.maps is not None
    for nodes, counts in ((report.maps.before, report.before), (report.maps.after, report.after)):
        assert Counter(node.op for node in nodes) == counts.ops
        assert all(0 <= other < len(nodes) for node in nodes for other in node.above)
    absorbed = {node.name for node in report.maps.before if node.folds}
    assert absorbed == {node.name for fold in report.folds for node in fold.absorbed}
    for node in report.maps.before:
        for fold in node.folds:
            assert node.name in {other.name for other in report.folds[fold].absorbed}
    after = {(node.scope, node.name) for node in report.maps.after}
    untouched = [node for node in report.maps.before if not node.folds and not node.is_changed]
    assert {(node.scope, node.name) for node in untouched} <= after
    created = {node.name for fold in report.folds for node in fold.created}
    assert {node.name for node in report.maps.after if node.folds} <= created


def test_what_no_fold_removed_is_changed():
    report = plan(MODELS / "efficientvit.train.onnx")
    assert report.maps is not None
    removed = {node.name for node in report.maps.before if node.is_changed}
    assert removed >= {name for change in report.changes for name in change.nodes}
    # What is not listed computed constants that went into others.
    assert not removed & {node.name for node in report.maps.after}
    assert not any(node.is_changed for node in report.maps.after)


def test_what_computes_from_constants_alone_is_told():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,4] x) => (float[M,K] y) <int64[2] sizes = {2, -1}> {
            two = Constant <value = int64[2] {1, 2}> ()
            product = Mul(sizes, two)
            reshaped = Reshape(x, product)
            y = Relu(reshaped)
        }""")
    maps = plan(model, Options(only=frozenset({Kind.POOL}))).maps
    assert maps is not None
    assert [node.is_constant for node in maps.before] == [True, True, False, False]


def test_a_node_that_two_folds_absorb_is_of_both():
    net = Net(4)
    scaled = net.op("Mul", "x", net.channel(4))
    report = plan(net.model(net.conv(scaled, 4, 4, 3), net.conv(scaled, 4, 4, 1)))
    assert report.maps is not None
    holders = {
        node.name: [number for number, fold in enumerate(report.folds) if node.name in _names(fold.absorbed)]
        for node in report.maps.before
    }
    assert max(map(len, holders.values())) == 2
    assert {node.name: sorted(node.folds) for node in report.maps.before} == holders
    page = graph_maps(report, 0)
    for number, fold in enumerate(report.folds):
        assert f'<a href="#fold-0-{number}"' in page
        other = report.folds[1 - number].output
        assert f"{fold.output}: Mul, Conv; 1 node shared with {other}" in page


def _names(nodes):
    return {node.name for node in nodes}
