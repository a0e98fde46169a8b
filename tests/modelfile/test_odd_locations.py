"""External data whose path is odd, or that nobody reads: what a runtime takes is taken, and means the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnx_repfuse import Options, fuse
from onnx_repfuse.errors import UnsafePathError

WEIGHT = np.arange(300, dtype=np.float32)


def _model(folder: Path, location: str) -> Path:
    """x times an external weight, twice; its file is where `location` leads."""
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> m (float[n, 300] x) => (float[n, 300] y) {
            two = Constant<value = float {2}>() t = Mul(x, w) y = Mul(t, two) }"""
    )
    tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[300])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / location).write_bytes(WEIGHT.tobytes())
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("check", [True, False])
def test_a_path_may_go_into_a_folder_and_out_again(tmp_path: Path, check: bool) -> None:
    (tmp_path / "sub").mkdir()
    report = fuse(_model(tmp_path, "sub/../w.bin"), tmp_path / "o.onnx", options=Options(check=check)).report
    assert len(report.folds) == 1
    (weight,) = onnx.load(tmp_path / "o.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(weight), 2 * WEIGHT)


def test_a_path_out_of_a_linked_folder_is_refused(tmp_path: Path) -> None:
    """The system goes to the folder above the link's target, where another file of that name may be."""
    inside = tmp_path / "model"
    (inside / "real" / "deep").mkdir(parents=True)
    (inside / "sub").symlink_to("real/deep", target_is_directory=True)
    model = _model(inside, "sub/../w.bin")
    assert (inside / "real" / "w.bin").exists()
    (inside / "w.bin").write_bytes((0 * WEIGHT).tobytes())
    with pytest.raises(UnsafePathError, match="behind a link"):
        fuse(model, tmp_path / "o.onnx")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "entries",
    [
        {"location": "gone.bin"},
        {"location": "w.bin", "offset": "1000"},
        {"location": "w.bin", "offset": "x"},
        {},
    ],
)
def test_data_that_nobody_reads_need_not_be_there(
    tmp_path: Path, entries: dict[str, str], check: bool
) -> None:
    path = _model(tmp_path, "w.bin")
    made = onnx.load(path, load_external_data=False)
    unread = made.graph.initializer.add(name="unread", data_type=TensorProto.FLOAT, dims=[300])
    unread.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        unread.external_data.add(key=key, value=value)
    path.write_bytes(made.SerializeToString())
    report = fuse(path, tmp_path / "out.onnx", options=Options(check=check)).report
    assert len(report.folds) == 1
    kept = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert unread in kept
