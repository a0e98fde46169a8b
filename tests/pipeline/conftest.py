"""Simplifiers for tests, in place of those that are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_repfuse.modelfile import peers
from onnx_repfuse.pipeline import level

# What we do not do, so that it must have been the other: of two ThresholdedRelus in a row, one.
_HEAD = """
import os, sys, time
import onnx
__version__ = "v1.2.3"

def join_relus(model, most=100):
    print("a line on standard output")
    relus = [node for node in model.graph.node if node.op_type == "ThresholdedRelu"]
    for first, second in list(zip(relus, relus[1:]))[::-1][:most]:
        if list(second.input) == list(first.output):
            first.output[0] = second.output[0]
            model.graph.node.remove(second)
    return model
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put simplifiers in place whose body is given; no other is there."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def put(**bodies: str) -> None:
        for name, body in bodies.items():
            given = "model, **rest" if name == "onnxsim" else "model"
            function = "simplify" if name == "onnxsim" else "slim"
            lines = "\n    ".join(body.splitlines())
            (folder / f"{name}.py").write_text(f"{_HEAD}\ndef {function}({given}):\n    {lines}\n")
        monkeypatch.setattr(level, "installed", lambda: tuple(name for name in peers.PEERS if name in bodies))

    return put
