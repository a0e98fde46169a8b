"""Data files of an upload go where the model names them, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_repfuse.cli.uploads import move_data_files


def write_model(place, *locations):
    """A model file with one external weight for each location."""
    tensors = []
    for number, location in enumerate(locations):
        tensor = numpy_helper.from_array(np.ones(4, np.float32), f"w{number}")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        tensors.append(tensor)
    graph = helper.make_graph([], "g", [], [], tensors)
    place.write_bytes(helper.make_model(graph).SerializeToString())


def after(folder, *locations, uploads=("a.bin",)):
    """The files below the folder once the uploads have gone to their places."""
    folder.mkdir()
    write_model(folder / "m.onnx", *locations)
    for name in uploads:
        (folder / name).write_bytes(b"0" * 16)
    move_data_files(folder / "m.onnx")
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"m.onnx"}


def test_files_go_into_the_folders_that_the_model_names(tmp_path):
    assert after(tmp_path / "1", "w/a.bin") == {"w/a.bin"}
    assert after(tmp_path / "2", "w/x/a.bin", "w/x/a.bin", "b.bin", uploads=("a.bin", "b.bin")) == {
        "w/x/a.bin",
        "b.bin",
    }


@pytest.mark.parametrize("location", ["../a.bin", "w/../../a.bin", "/tmp/a.bin", "a.bin", "./a.bin", "", "."])
def test_nothing_leaves_the_folder(tmp_path, location):
    assert after(tmp_path / "up", location) == {"a.bin"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["up"]


def test_two_locations_of_one_name_are_not_guessed(tmp_path):
    assert after(tmp_path / "up", "x/a.bin", "y/a.bin") == {"a.bin"}


def test_the_model_itself_stays(tmp_path):
    assert after(tmp_path / "up", "w/m.onnx", uploads=()) == set()
    assert (tmp_path / "up" / "m.onnx").is_file()


def test_a_file_that_is_no_model_is_left_to_its_reader(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    move_data_files(tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
