"""Models and folds that take more memory at their smallest size than a proof may: said, and not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.session import NoImplementation, Session
from onnx_repfuse.verifier.unrunnable import refuse_unrunnable
from tests.build import Net


def padded(amount: int, *, as_attribute: bool = False) -> onnx.ModelProto:
    """Pad - Conv, which is one Conv of a padding that large."""
    net = Net(4, opset=10 if as_attribute else 17)
    pads = [0, 0, amount, amount] * 2
    x = net.op("Pad", "x", pads=pads) if as_attribute else net.op("Pad", "x", net.const(np.array(pads)))
    return net.model(net.op("Relu", net.conv(x, 4, 4, 3, pad=0)))


@pytest.mark.parametrize("as_attribute", [False, True])
def test_a_model_that_pads_to_gigabytes_is_not_run(
    as_attribute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(padded(10_000, as_attribute=as_attribute), tmp_path / "m.onnx")
    monkeypatch.setattr(Session, "run", None)
    result = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx")
    (refusal,) = [one for one in result.report.refusals if one.reason is Reason.VERIFICATION]
    assert "elements is more than is evaluated" in refusal.message
    assert not result.report.folds


def test_what_is_written_all_the_same_was_not_observed(tmp_path: Path) -> None:
    model = padded(10_000)
    model.graph.node[-1].output[0] = "r"
    model.graph.node.add(op_type="Identity", input=["r"], output=["i"])
    model.graph.node.add(op_type="Abs", input=["i"], output=[model.graph.output[0].name])
    onnx.save(model, tmp_path / "m.onnx")
    verification = fuse(tmp_path / "m.onnx", tmp_path / "o.onnx").report.verification
    assert verification is not None
    assert verification.status is Status.NOT_OBSERVED
    assert "more than is run" in verification.outputs[0].message


@pytest.mark.parametrize("amount", [1, 1100, 3000])
def test_a_large_padding_that_fits_is_run(amount: int) -> None:
    refuse_unrunnable(padded(amount))


def test_the_sizes_of_inputs_count() -> None:
    model = padded(3000)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64
    with pytest.raises(NoImplementation, match="at least"):
        refuse_unrunnable(model)
