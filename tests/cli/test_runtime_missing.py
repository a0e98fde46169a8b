"""An ONNX Runtime that does not load: one line, exit code 1, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
NUMPY_2 = pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="of numpy 2")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        pytest.param("", "install onnxruntime>=1.19, or numpy<2", marks=NUMPY_2),  # as 1.18 does with numpy 2
        ("libgomp.so.1: no such file", "ONNX Runtime cannot be loaded: libgomp.so.1: no such file"),
    ],
)
@pytest.mark.parametrize("command", [["-o", "out.onnx"], ["--compare", "net.onnx"]])
def test_one_line_says_why(tmp_path: Path, raised: str, told: str, command: list[str]) -> None:
    package = tmp_path / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    noise = "import sys\nprint('A module that was compiled using NumPy 1.x', file=sys.stderr)\n"
    (package / "__init__.py").write_text(f"{noise}raise ImportError({raised!r})\n", encoding="utf-8")
    (tmp_path / "net.onnx").write_bytes((ROOT / "models" / "acnet.train.onnx").read_bytes())
    ran = subprocess.run(
        [sys.executable, "-m", "onnx_repfuse", "net.onnx", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("onnx-repfuse: error: ")
    assert told in ran.stderr
    assert not (tmp_path / "out.onnx").exists()
