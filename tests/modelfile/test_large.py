"""Models larger than memory should need: external data in several files and folders, most of it left alone.

The files are sparse, so they take no room on the disk; `python -m tests.large` does the same beyond 2 GB.
"""

from __future__ import annotations

import onnx
import pytest

from tests.large import build, measure
from tests.versions import since

MB = 1 << 20


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("large") / "m.onnx", 400 * MB)


OLDER = since("ONNX Runtime before 1.22 needs all weights of such a model in memory", onnxruntime="1.22")


@pytest.mark.parametrize(("check", "limit"), [(False, 0.5), pytest.param(True, 1.5, marks=OLDER)])
def test_memory_against_the_size_of_the_model(path, tmp_path, check, limit):
    found = measure(path, tmp_path / "o.onnx", check=check)
    assert found["folds"] == 1
    assert found["above"] < limit * found["size"]
    assert found["status"] == ("passed" if check else "None")
    data = {e.value for t in onnx.load(tmp_path / "o.onnx", load_external_data=False).graph.initializer
            for e in t.external_data if e.key == "location"}  # fmt: skip
    assert data == {"o.onnx.data"}
