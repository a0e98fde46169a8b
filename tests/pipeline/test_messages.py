"""No message names a temporary file: whoever reads it looks for what is gone."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.cli.main import main
from onnx_repfuse.errors import OutputError, RepfuseError, quoted
from onnx_repfuse.modelfile import save as save_module
from onnx_repfuse.modelfile.atomic_write import Staging
from onnx_repfuse.pipeline.spoken_paths import SpokenPaths
from tests.build import Net

TEMPORARY = re.compile(r"repfuse-[0-9a-f]|/tmp[a-z0-9_]{8}|original/")


def _model(place: Path, external: bool) -> Path:
    net = Net(4)
    onnx.save(net.model(net.op("Relu", net.conv_bn("x", 4, 4, 3))), place / "m.onnx",
              save_as_external_data=external, location="m.weights", size_threshold=8)  # fmt: skip
    return place / "m.onnx"


def _full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tempfile.gettempdir()}/tmpabcdefgh/x")


FAILURES = {
    "the result cannot be written": (Staging, "write", _full_disk),
    "nor made durable": (os, "fsync", _full_disk),
    "the work folder cannot be made": (Path, "mkdir", _full_disk),
    "the input cannot be copied": (save_module.Document, "check_unchanged", _full_disk),
}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_written_is_called_as_the_user_called_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_memory: bool, external: bool
) -> None:
    source = _model(tmp_path, external)
    output = None if in_memory else tmp_path / "o.onnx"
    place, attribute, failing = FAILURES[name]
    monkeypatch.setattr(place, attribute, failing)
    with pytest.raises((RepfuseError, OSError)) as caught:
        fuse(source, output)
    error = caught.value
    words = f"{error} {error.filename}" if isinstance(error, OSError) else str(error)
    assert isinstance(error, OutputError) or name == "the input cannot be copied"
    assert not TEMPORARY.search(words.replace("tmpabcdefgh", "").replace(str(tmp_path), "")), words


@pytest.mark.parametrize("external", [False, True])
def test_an_input_that_does_not_run_is_called_by_its_name(tmp_path: Path, external: bool) -> None:
    source = _model(tmp_path, external)
    model = onnx.load(source, load_external_data=False)
    model.graph.node[1].attribute.append(onnx.helper.make_attribute("epsilon", np.array([1.0]).tolist()))
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("group", 3))
    onnx.save(model, source)
    with pytest.raises(RepfuseError) as caught:
        fuse(source, tmp_path / "o.onnx")
    assert not TEMPORARY.search(str(caught.value).replace(str(tmp_path), ""))


def test_the_command_names_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _model(tmp_path, external=False)
    monkeypatch.setattr(Staging, "write", _full_disk)
    assert main([str(source), "-o", str(tmp_path / "o.onnx")]) == 1
    said = capsys.readouterr().err
    assert f"cannot write '{tmp_path / 'o.onnx'}'" in said
    assert not TEMPORARY.search(said.replace(str(tmp_path), ""))


def test_paths_are_found_in_quotes_also_where_they_are_shortened(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a folder of a long name"] * 8)
    folder = deep / ".repfuse-0123456789abcdef"
    spoken = SpokenPaths(str(deep / "in.onnx"), deep / "out.onnx", in_memory=False)
    spoken.add(folder)
    for path, name in [
        (folder / "out.onnx", deep / "out.onnx"),
        (folder / "original" / "in.onnx", deep / "in.onnx"),
    ]:
        assert spoken.text(f"cannot write {quoted(path)}: why") == f"cannot write {quoted(name)}: why"
        assert spoken.text(f"open file {path} failed") == f"open file {name} failed"
    assert spoken.text(f"{folder}/trial.onnx is bad") == "trial.onnx is bad"
