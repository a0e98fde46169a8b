"""Whose fault an internal error is: the file's, where it is not valid, or ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from onnx_repfuse import InputError, fuse
from onnx_repfuse.pipeline import run
from tests.build import Net


def _stumble(*_: Any, **__: Any) -> Any:
    raise KeyError("ours")


def _model() -> onnx.ModelProto:
    net = Net(4)
    return net.model(net.op("Relu", net.conv_bn("x", 4, 4, 3)))


UNDECLARED: dict[str, Callable[[onnx.ValueInfoProto], None]] = {
    "no type": lambda output: output.ClearField("type"),
    "no shape": lambda output: output.type.tensor_type.ClearField("shape"),
}


@pytest.mark.parametrize("missing", UNDECLARED)
def test_undeclared_types_of_outputs_which_runtimes_infer_are_not_to_blame(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    UNDECLARED[missing](model.graph.output[0])
    assert fuse(model).report.folds
    monkeypatch.setattr(run, "make_plan", _stumble)
    with pytest.raises(KeyError, match="ours"):
        fuse(model)


def test_what_is_not_valid_is_to_blame_also_where_types_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    model.graph.output[0].ClearField("type")
    model.graph.node[0].op_type = "Convolution"
    monkeypatch.setattr(run, "make_plan", _stumble)
    with pytest.raises(InputError, match="the model is not valid"):
        fuse(model)
