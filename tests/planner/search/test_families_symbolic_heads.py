"""Heads over maps of one image whose sizes are not known: each map has its own 1x1 at its own size."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.reasons import Reason
from tests.build import Net, counts, equal
from tests.heads import conv_head, mlp_head, multiply_adds, pyramid

BY_MACS = Options(cost="macs")
CHANNELS = (4, 6, 8)
MODES = [
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "cubic"},
]


HEADS = {"linear": mlp_head, "1x1": conv_head}


def head(kind: str, exporter: str, width: int, **resize: Any) -> onnx.ModelProto:
    net = Net(3)
    y = HEADS[kind](net, pyramid(net, CHANNELS), CHANNELS, width, exporter, **resize)
    return net.model(net.op("Relu", y))


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("exporter", ["legacy", "new"])
@pytest.mark.parametrize("kind", HEADS)
def test_each_map_has_one_product_at_its_own_size(kind: str, exporter: str, resize: dict[str, Any]) -> None:
    model = head(kind, exporter, 8, **resize)
    result = fuse(model, options=BY_MACS)
    assert equal(model, result.model, 9) > 0
    # of the four 1x1 of 8 channels per map, one per map is left
    kinds = counts(result.model)
    assert kinds["Conv"] + kinds.get("MatMul", 0) == len(CHANNELS) * 2
    assert "Concat" not in {node.op_type for node in result.model.graph.node if "resize" in node.input[0]}
    for size in (1, 2, 3, 5, 8, 33):
        dims = 2, 3, size, size + 1
        assert multiply_adds(result.model, x=dims) < multiply_adds(model, x=dims)
    again = fuse(result.model, options=BY_MACS)
    assert not again.report.folds


@pytest.mark.parametrize("exporter", ["legacy", "new"])
def test_the_lists_of_sizes_get_other_channels(exporter: str) -> None:
    """The head's 1x1 writes 3 channels, so the Reshapes and Resizes before it do, too."""
    net = Net(3)
    maps = pyramid(net, CHANNELS)
    y = mlp_head(net, maps, CHANNELS, 8, exporter)
    net.nodes[-1].input[1] = net.random(3, 8 * len(CHANNELS), 1, 1)
    net.nodes[-1].input[2] = net.random(3)
    model = net.model(net.op("Relu", y))
    result = fuse(model, options=BY_MACS)
    assert result.report.folds
    assert equal(model, result.model, 9) > 0
    assert multiply_adds(result.model, x=(1, 3, 40, 40)) < 0.75 * multiply_adds(model, x=(1, 3, 40, 40))


def two_images(width: int) -> onnx.ModelProto:
    net = Net(3)
    net.more_inputs.append(helper.make_tensor_value_info("z", 1, ("N", 3, "h", "w")))
    first = pyramid(net, (4,))
    net.nodes[0].input[0] = "z"
    second = pyramid(net, (6,))
    y = mlp_head(net, [*first, *second], (4, 6), width, "legacy")
    return net.model(net.op("Relu", y))


def test_maps_of_two_images_are_resized_first_where_either_may_be_the_larger_one() -> None:
    """The second image may be small. So its part of the head's kernel stays where it has the first one's size."""
    net = Net(3)
    net.more_inputs.append(helper.make_tensor_value_info("z", 1, ("N", 3, "h", "w")))
    (first,) = pyramid(net, (4,))
    net.nodes[0].input[0] = "z"
    _, second = pyramid(net, (16, 16))
    sizes = net.op(
        "Concat",
        net.op("Shape", second, start=0, end=2),
        net.op("Shape", first, start=2, end=4),
        axis=0,
    )
    resized = net.op("Resize", second, "", "", sizes, mode="linear")
    model = net.model(net.op("Relu", net.conv(net.op("Concat", first, resized, axis=1), 20, 8, 1)))
    result = fuse(model, options=BY_MACS)
    assert Reason.SHAPE in {refusal.reason for refusal in result.report.refusals}
    assert not result.report.folds


def test_of_two_images_a_product_that_every_order_of_sizes_allows_moves() -> None:
    model = two_images(8)
    result = fuse(model, options=BY_MACS)
    assert result.report.folds
    assert counts(result.model).get("MatMul", 0) == 0
    for sizes in ((4, 16), (16, 4), (8, 8), (1, 33)):
        shapes = {"z": (1, 3, sizes[0], sizes[0]), "x": (1, 3, sizes[1], sizes[1])}
        assert multiply_adds(result.model, **shapes) <= multiply_adds(model, **shapes)
