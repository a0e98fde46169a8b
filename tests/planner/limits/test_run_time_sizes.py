"""No fold takes more multiply-adds at any size that is known only at run time; else it is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_repfuse import fuse
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Report
from tests.build import Net, counts, equal
from tests.random_properties import macs

SIZES = (1, 2, 3, 5, 8, 16)


def never_rises(model: onnx.ModelProto, channels: int) -> Report:
    """Fold a model and count both sides' multiply-adds at several sizes."""
    result = fuse(model)
    for size in SIZES:
        feed = {"x": np.zeros((1, channels, size, size), np.float32)}
        assert macs(result.model, feed) <= macs(model, feed), size
    return result.report


@pytest.mark.parametrize("size", ["known", "behind a Reshape"])
def test_a_conv_does_not_move_before_a_pool(size: str) -> None:
    """Behind the Reshape no size is known, and both sides of the pool are assumed to have equally many positions."""
    net = Net(shape=("N", 8, "L"))
    net.more_inputs.append(helper.make_tensor_value_info("s", TensorProto.INT64, [4]))
    x = net.op("Reshape", "x", "s")
    first = net.op("Relu", net.op("Conv", x, net.random(32, 8, 3, 3), pads=[1] * 4))
    if size == "known":
        net = Net(shape=("N", 8, "H", "W"))
        first = net.op("Relu", net.conv("x", 8, 32, 3))
    pooled = net.op("GlobalAveragePool", first)
    model = net.model(net.op("Conv", pooled, net.random(4, 32, 1, 1)))
    result = fuse(model)
    assert not result.report.folds
    assert counts(result.model) == counts(model)
    if size != "known":
        assert Reason.SHAPE in {refusal.reason for refusal in result.report.refusals}


@pytest.mark.parametrize("middle", [6, 8, 64])
def test_a_strided_conv_takes_in_what_is_before_it_only_if_that_pays_at_every_size(middle: int) -> None:
    """A 3x3 of stride 2 has a fourth of the positions of the 1x1 before it, but where there is one it has one, too."""
    net = Net(shape=("N", 8, "H", "W"))
    first = net.op("Conv", "x", net.random(middle, 8, 1, 1))
    model = net.model(net.op("Conv", first, net.random(4, middle, 3, 3), strides=[2, 2], pads=[1] * 4))
    report = never_rises(model, 8)
    assert bool(report.folds) == (middle > 6)
    assert (Reason.SHAPE in {refusal.reason for refusal in report.refusals}) == (middle == 6)


def test_pads_that_enlarge_are_not_composed_where_they_are_most_of_the_output() -> None:
    net = Net(shape=("N", 2, "H", "W"))
    for _ in range(2):
        weight = net.random(1 if net.nodes else 2, 2, 1, 1)
        net.op("Conv", net.nodes[-1].output[0] if net.nodes else "x", weight, pads=[0, 1, 1, 0])
    never_rises(net.model(net.nodes[-1].output[0]), 2)


def test_a_loop_body_is_no_exception() -> None:
    net = Net(shape=("N", 8, "H", "W"))
    weights = [net.random(8, 8, 3, 3), net.random(4, 8, 1, 1)]
    nodes = [
        helper.make_node("Conv", ["carried", weights[0]], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["next"]),
        helper.make_node("GlobalAveragePool", ["next"], ["pooled"]),
        helper.make_node("Conv", ["pooled", weights[1]], ["scanned"]),
        helper.make_node("Identity", ["cond"], ["again"]),
    ]
    inputs = [
        ("i", TensorProto.INT64, []),
        ("cond", TensorProto.BOOL, []),
        ("carried", TensorProto.FLOAT, None),
    ]
    outputs = [
        ("again", TensorProto.BOOL, []),
        ("next", TensorProto.FLOAT, None),
        ("scanned", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    _, scanned = net.op("Loop", net.const(np.array(2)), net.const(np.array(True)), "x", outputs=2, body=body)
    result = fuse(net.model(scanned))
    assert not result.report.folds


@pytest.mark.parametrize("perm", [(2, 1, 0), (2, 1, 0, 3), (3, 1, 2, 0), (2, 1, 3, 0)])
def test_images_that_become_positions_are_no_internal_error(perm: tuple[int, ...]) -> None:
    """How many images there are is known as little as how large they are."""
    ones = (1,) * (len(perm) - 2)
    net = Net(shape=("N", 4, *"HW"[: len(perm) - 2]))
    turned = net.op("Transpose", net.op("Conv", "x", net.random(4, 4, *ones)), perm=perm)
    model = net.model(net.op("Conv", turned, net.random(4, 4, *ones)))
    result = fuse(model)
    assert counts(result.model)["Conv"] in (1, 2)
    assert equal(model, result.model) > 0
    for images, size in ((1, 5), (5, 1), (3, 3)):
        feed = {"x": np.zeros((images, 4, *(size,) * len(ones)), np.float32)}
        assert macs(result.model, feed) <= macs(model, feed)
