"""Joint steps: a tensor that several nodes read is absorbed by all of them, now or in a later round."""

from __future__ import annotations

import pytest

from onnx_repfuse.planner import cover_scope
from onnx_repfuse.planner.search import shared_consumers
from tests.build import Net, check


def wide_tensor_between_convolutions(net: Net) -> list[str]:
    """Four channels become sixteen, which two convolutions read: from the four, both take fewer multiply-adds."""
    wide = net.bn(net.conv("x", 4, 16, 1), 16)
    return [net.op("Relu", net.conv(wide, 16, 16, 1)) for _ in range(2)]


def test_what_becomes_one_convolution_is_absorbed_while_it_is_none() -> None:
    net = Net(4)
    check(net.model(*wide_tensor_between_convolutions(net)), {"Conv": 2, "Relu": 2})


def test_a_joint_step_waits_while_anything_else_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []

    def absorb(cover: object, changed: object, *, only_now: bool) -> None:
        waited.append(only_now)
        shared_consumers.absorb_shared_tensors(cover, changed, only_now=only_now)

    monkeypatch.setattr(cover_scope, "absorb_shared_tensors", absorb)
    net = Net(8)
    relu = net.op("Relu", "x")
    shared = net.bn(relu, 8)
    outputs = [net.op("Relu", net.conv(shared, 8, 8, 1)) for _ in range(2)]
    outputs.append(net.op("Relu", net.bn(net.conv(relu, 8, 8, 3), 8)))
    check(net.model(*outputs), {"Relu": 4, "Conv": 3})
    assert waited[:2] == [True, False]
