"""The callback of ultralytics' exporter, called as that does. `python -m recipes ultralytics` runs the real one."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import onnx
import pytest

from onnx_repfuse import InputError, Options
from onnx_repfuse.integrations.ultralytics import on_export_end
from tests.build import Net


def exporter(path, word="onnx"):
    """An exporter knows the file of the weights, or the description, that it exports."""
    return SimpleNamespace(file=path.with_suffix(".yaml"), args=SimpleNamespace(format=word))


@pytest.fixture
def path(tmp_path):
    net = Net(4)
    model = net.model(net.op("Relu", net.add(net.conv_bn("x", 4, 4, 3), net.conv_bn("x", 4, 4, 1))))
    model.metadata_props.add(key="names", value="{0: 'person'}")
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_exported_file_is_fused_where_it_stands(path):
    report = on_export_end(exporter(path))
    assert report.verification
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert model.metadata_props[0].value == "{0: 'person'}"
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]


def test_a_second_run_changes_nothing(path):
    on_export_end(exporter(path))
    before = path.read_bytes()
    assert not on_export_end(exporter(path)).folds
    assert path.read_bytes() == before


def test_options_come_with_partial(path):
    keep = partial(on_export_end, options=Options(keep=("*",), external=True))
    assert not keep(exporter(path)).folds
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]


def test_other_formats_are_left_alone(path):
    before = path.read_bytes()
    assert on_export_end(exporter(path, "engine")) is None
    assert on_export_end(exporter(path.with_name("other.onnx"))) is None
    assert path.read_bytes() == before


def test_what_fails_leaves_the_exported_file(path):
    path.write_bytes(b"no model")
    with pytest.raises(InputError):
        on_export_end(exporter(path))
    assert path.read_bytes() == b"no model"
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]
