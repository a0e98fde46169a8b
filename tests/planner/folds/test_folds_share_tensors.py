"""Folds that rename or share the tensors of other folds: each is still judged by what it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_repfuse import fuse
from onnx_repfuse.records.verdict import Status
from tests.build import Net, check, counts


@pytest.mark.parametrize("op", ["Div", "Mul"])
def test_an_activation_takes_the_name_of_its_copy(op: str) -> None:
    """Clip(x + 3, 0, 6) / 6 is a HardSigmoid. What it computes is called by the output, as a factor of 1 vanishes."""
    net = Net(4)
    three, low, high, one = (net.const(np.array(v)) for v in (3.0, 0.0, 6.0, 6.0))
    clipped = net.op("Clip", net.op("Add", net.conv("x", 4, 4, 1), three), low, high)
    sixth = net.op("Div", clipped, one)
    result = check(net.model(net.op(op, sixth, net.const(np.array(1.0)))), {"Conv": 1, "HardSigmoid": 1})
    assert {fold.output for fold in result.report.folds} == {net.nodes[-1].output[0]}


def test_a_clip_between_a_shift_and_a_factor_of_one_folds() -> None:
    net = Net(4)
    three, low, high, one = (net.const(np.array(v)) for v in (3.0, 0.0, 1.0, 1.0))
    clipped = net.op("Clip", net.op("Add", net.conv("x", 4, 4, 1), three), low, high)
    result = fuse(net.model(net.op("Div", clipped, one)))
    assert {fold.status for fold in result.report.verification.folds} == {Status.PASSED}


@pytest.mark.parametrize("seed", range(3))
def test_two_consumers_of_a_normalized_concat_are_each_proved(seed: int) -> None:
    """Both absorb the BatchNormalization, and then read new tensors that the file does not have."""
    net = Net(4, shape=("N", 4, 1), seed=seed)
    kind = onnx.TensorProto.FLOAT
    net.more_inputs = [onnx.helper.make_tensor_value_info("z", kind, ["N", 4, 2])]
    left = net.op("Conv", "x", net.random(1, 4, 3), kernel_shape=[3], pads=[1, 2])
    right = net.op("Conv", "z", net.random(1, 4, 1), kernel_shape=[1])
    normal = net.bn(net.op("Concat", left, right, axis=1), 2)
    half = net.op("Slice", normal, *(net.const(np.array([n])) for n in (1, 2, 1)))
    scaled = net.op("Mul", normal, net.const(np.array(1.7)))
    first = net.op("MatMul", half, net.random(2, 2))
    for _ in range(4):
        first = net.op("Transpose", first, perm=[0, 2, 1])
    total = net.op("Add", first, net.op("MatMul", half, net.random(2, 2)))
    result = fuse(net.model(net.op("Mul", total, net.const(np.array(0.3))), net.op("Relu", scaled)))
    # the Slice goes, too, when both consumers absorb the Concat but no convolution
    assert counts(result.model) == {"Conv": 2, "Mul": 1, "Concat": 1, "MatMul": 1, "Relu": 1}
    assert not [r for r in result.report.refusals if r.reason.value == "verification"]
    assert {fold.status for fold in result.report.verification.folds} == {Status.PASSED}
