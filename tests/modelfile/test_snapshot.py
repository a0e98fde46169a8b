"""The copy of external data that ONNX Runtime maps: only the parts that tensors refer to, each at its place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_repfuse import fuse
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.external_data import ExternalFiles
from onnx_repfuse.modelfile.snapshot import snapshot
from tests.build import Net

FAR = 3 << 30  # as the file of a model from which most weights were cut


def far(folder: Path) -> Path:
    """Conv and BatchNormalization, whose weight is 3 GB behind the start of its file, which is mostly a hole."""
    net = Net(4)
    model = net.model(net.conv_bn("x", 4, 4, 3))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", str(FAR)), ("length", str(len(data)))):
        weight.external_data.add(key=key, value=value)
    with open(folder / "w.bin", "wb") as file:
        file.truncate(FAR + len(data) + 4096)
        file.seek(FAR)
        file.write(data)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_what_no_tensor_means_is_not_copied(tmp_path: Path) -> None:
    path = far(tmp_path)
    with Document.open(path) as document:
        copy = snapshot(document, tmp_path / "copy")
    copied = os.stat(copy.parent / "w.bin")
    assert copied.st_size == os.stat(tmp_path / "w.bin").st_size
    if hasattr(copied, "st_blocks"):
        assert copied.st_blocks * 512 < 1 << 20
    assert onnx.load(copy) == onnx.load(path)


def test_a_model_with_far_data_is_proved(tmp_path: Path) -> None:
    result = fuse(far(tmp_path), tmp_path / "out.onnx")
    assert result.report.verification
    assert len(result.report.folds) == 1
    assert os.stat(tmp_path / "out.onnx").st_size < 1 << 20


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ([(0, 4), (8, 4)], [(0, 4), (8, 12)]),
        ([(8, 8), (0, 8)], [(0, 16)]),
        ([(0, 16), (4, 4), (12, 8)], [(0, 20)]),
        ([(4, 4), (4, 4)], [(4, 8)]),
        ([], []),
    ],
)
def test_parts_of_a_file_are_joined(
    asked: list[tuple[int, int]], parts: list[tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(64, dtype=np.uint8).tobytes())
    files = ExternalFiles(tmp_path / "m.onnx")
    for offset, length in asked:
        entries = {"location": "w.bin", "offset": str(offset), "length": str(length)}
        files.find("w", entries, length)
    source = files.by_location.get("w.bin") or Source("w", path=tmp_path / "w.bin")
    assert files.ranges_of(source) == parts
