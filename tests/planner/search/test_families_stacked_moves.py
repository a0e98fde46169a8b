"""A Concat of what several moves take of one tensor is one choice of channels and positions, and goes into the Conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_repfuse import fuse
from tests.build import Net, check, counts, equal


def ints(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def places(net: Net, y: str, axis: int, count: int, how: str) -> list[str]:
    """Each place of an axis, which is gone then."""
    if how == "gather":
        return [net.op("Gather", y, net.const(np.int64(place)), axis=axis) for place in range(count)]
    if how == "split":
        parts = net.op("Split", y, ints(net, *(1,) * count), outputs=count, axis=axis)
    else:
        cuts = [([place], [place + 1], [axis]) for place in range(count)]
        parts = [net.op("Slice", y, *(ints(net, *numbers) for numbers in cut)) for cut in cuts]
    return [net.op("Squeeze", part, ints(net, axis)) for part in parts]


@pytest.mark.parametrize("how", ["split", "slice", "gather"])
@pytest.mark.parametrize(
    ("blocks", "axis", "stride"),
    [
        ((3, 4, 2, 9), 3, (2, 1)),  # rows
        ((3, 8, 3, 3), 4, (1, 3)),  # columns
    ],
)
def test_a_focus_of_rows_or_columns(
    how: str, blocks: tuple[int, ...], axis: int, stride: tuple[int, int]
) -> None:
    net = Net(shape=("N", 3, 8, 9))
    y = net.op("Reshape", "x", ints(net, -1, *blocks))
    count = max(stride)
    y = net.op("Concat", *places(net, y, axis, count, how), axis=1)
    result = check(net.model(net.conv(y, 3 * count, 4, 3)), {"Conv": 1})
    assert result.report.after.macs == result.report.before.macs
    assert list(result.model.graph.node[0].attribute[-1].ints) == list(stride)


@pytest.mark.parametrize("height", ["H", 8])
def test_a_height_that_is_left_to_be_computed(height: Any) -> None:
    """A Reshape keeps the number of elements: it is the half of the image's, which is even."""
    net = Net(shape=("N", 3, height, 6))
    y = net.op("Reshape", "x", ints(net, 0, 3, -1, 2, 6))
    y = net.op("Concat", *places(net, y, 3, 2, "split")[::-1], axis=1)
    model = net.model(net.conv(y, 6, 4, 3))
    result = fuse(model)
    assert counts(result.model) == {"Conv": 1}
    assert equal(model, result.model) > 0


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
def test_a_focus_of_both_axes(order: tuple[int, ...]) -> None:
    """As Swin's patches are merged by views."""
    net = Net(shape=("N", 3, 8, 6))
    y = net.op("Reshape", "x", ints(net, -1, 3, 4, 2, 3, 2))
    corners = [
        corner for rows in places(net, y, 3, 2, "split") for corner in places(net, rows, 4, 2, "gather")
    ]
    y = net.op("Concat", *(corners[number] for number in order), axis=1)
    check(net.model(net.conv(y, 12, 4, 3)), {"Conv": 1})


@pytest.mark.parametrize("shape", [("N", 4, 6), (2, 4, 2, 4, 6)])
def test_other_ranks(shape: tuple[int | str, ...]) -> None:
    net = Net(shape=shape)
    space = [int(size) for size in shape[2:]]
    y = net.op("Reshape", "x", ints(net, -1, 4, *space[:-1], space[-1] // 2, 2))
    parts = places(net, y, len(shape), 2, "split")
    y = net.conv(net.op("Concat", *parts, axis=1), 8, 4, (3,) * len(space))
    check(net.model(y), {"Conv": 1})


def test_channels_that_are_stacked_otherwise() -> None:
    """Groups of channels, swapped: no position moves."""
    net = Net(6)
    net.shape = ("N", 6, 4, 5)
    y = net.op("Reshape", "x", ints(net, -1, 3, 2, 4, 5))
    y = net.op("Concat", *places(net, y, 2, 2, "split")[::-1], axis=1)
    check(net.model(net.conv(y, 6, 4, 3)), {"Conv": 1})


@pytest.mark.parametrize("why", ["halves", "batch", "read", "output", "unequal", "two sources"])
def test_what_stays(why: str) -> None:
    net = Net(shape=(4, 3, 8, 6))
    sizes = {"halves": (4, 3, 2, 4, 6), "batch": (2, 2, 3, 8, 6)}.get(why, (4, 3, 4, 2, 6))
    axis = {"halves": 2, "batch": 0}.get(why, 3)
    y = net.op("Reshape", "x", ints(net, *sizes))
    more: tuple[str, ...] = ()
    if why == "unequal":
        y = net.op("Reshape", "x", ints(net, 4, 3, 2, 4, 6))
        first, second = net.op("Split", y, ints(net, 1, 3), outputs=2, axis=3)
        parts = [
            net.op("Reshape", first, ints(net, 4, 3, 2, 6)),
            net.op("Squeeze", places(net, second, 3, 3, "slice")[2]),
        ]
    else:
        parts = places(net, y, axis, 2, "split")
    if why == "read":
        more = (net.op("Relu", parts[0]),)
    if why == "output":
        more = (parts[1],)
    if why == "two sources":
        other = net.op("Reshape", net.op("Relu", "x"), ints(net, *sizes))
        parts = [parts[0], places(net, other, axis, 2, "split")[1]]
    model = net.model(net.conv(net.op("Concat", *parts, axis=1), 6, 4, 3), *more)
    result = fuse(model)
    assert "Concat" in counts(result.model)
    assert equal(model, result.model) > 0
