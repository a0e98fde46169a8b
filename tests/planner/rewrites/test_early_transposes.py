"""A Transpose to channels first goes before Pads, and before Slices that are stacked again, in front of a window."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, run

END = np.iinfo(np.int64).max


def image(rank: int, *, size: int | None = None, channels: int = 3, **settings: Any) -> Net:
    space = "DHW"[-rank:] if size is None else (size,) * rank
    return Net(shape=("N", *space, channels), **settings)


def integers(net: Net, *values: int) -> str:
    return net.const(np.array(values, np.int64))


def first(net: Net, x: str, rank: int) -> str:
    return str(net.op("Transpose", x, perm=[0, rank + 1, *range(1, rank + 1)]))


def every(net: Net, x: str, starts: tuple[int, ...], step: int, axes: list[int] | None = None) -> str:
    """Every step-th position of space from these on."""
    rank = len(starts)
    axes = axes or list(range(1, rank + 1))
    lists = [(*starts,), (END,) * rank, axes, (step,) * rank]
    return str(net.op("Slice", x, *(integers(net, *numbers) for numbers in lists)))


def focus(net: Net, rank: int, step: int = 2, axes: list[int] | None = None) -> str:
    parts = [every(net, "x", one[::-1], step, axes) for one in itertools.product(range(step), repeat=rank)]
    return first(net, str(net.op("Concat", *parts, axis=-1)), rank)


def check_even(model: onnx.ModelProto, rank: int) -> None:
    """At sizes that the original is made for: of an odd one, its Slices differ in size."""
    fused = fuse(model).model
    assert counts(fused) == {"Transpose": 1, "Conv": 1}
    assert fuse(fused).model.SerializeToString() == fused.SerializeToString()
    sizes = {
        (model.graph.input[0].type.tensor_type.shape.dim[1].dim_value or size,) * rank for size in (2, 4)
    }
    for space in sizes:
        x = np.random.default_rng(0).standard_normal((2, *space, 3)).astype(np.float32)
        np.testing.assert_allclose(run(fused, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("size", "opset"), [(None, 17), (8, 11), (8, 18)])
def test_focus_with_the_channels_last(rank: int, size: int | None, opset: int) -> None:
    # at sizes of 1, which are tried of (N, D, H, W, C), ONNX Runtime leaves what it does not write as it was
    net = image(rank, size=8 if rank == 3 else size, opset=opset)
    y = net.conv(focus(net, rank), 3 * 2**rank, 4, (3,) * rank)
    check_even(net.model(y), rank)


def test_focus_by_other_steps_axes_and_with_arithmetic_behind() -> None:
    net = image(2, size=6)
    check(net.model(net.conv(focus(net, 2, 3), 27, 4, 3)), {"Transpose": 1, "Conv": 1})
    net = image(2)
    y = net.op("Div", focus(net, 2, axes=[-3, -2]), net.const(255.0))
    check_even(net.model(net.conv(y, 12, 4, 3)), 2)


def test_focus_along_one_axis_after_the_other() -> None:
    net = image(2)
    rows = [every(net, "x", (start,), 2, [1]) for start in (0, 1)]
    parts = [every(net, row, (start,), 2, [2]) for start in (0, 1) for row in rows]
    y = first(net, net.op("Concat", *parts, axis=3), 2)
    check_even(net.model(net.conv(y, 12, 4, 3)), 2)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("style", ["attribute", "input", "axes"])
def test_pad_with_the_channels_last(rank: int, style: str) -> None:
    opset = {"attribute": 10, "input": 13, "axes": 18}[style]
    net = image(rank, opset=opset)
    begin, end = [1, 2, 0][:rank], [2, 1, 1][:rank]
    whole = [0, *begin, 0, 0, *end, 0]
    if style == "attribute":
        y = net.op("Pad", "x", pads=whole)
    elif style == "input":
        y = net.op("Pad", "x", integers(net, *whole))
    else:
        axes = integers(net, *(axis - rank - 2 for axis in range(1, rank + 1)))
        y = net.op("Pad", "x", integers(net, *begin, *end), "", axes)
    y = net.conv(first(net, y, rank), 3, 4, (3,) * rank, pad=0, strides=[2] * rank)
    check(net.model(y), {"Transpose": 1, "Conv": 1})


def test_pads_between_two_layouts() -> None:
    """The Transposes before and behind undo each other then."""
    net = Net(4)
    y = net.op("Transpose", net.op("Relu", net.conv("x", 4, 4, 3)), perm=[0, 2, 3, 1])
    y = net.op(
        "Pad", net.op("Pad", y, integers(net, 0, 1, 0, 0, 0, 0, 0, 0)), integers(net, 0, 0, 1, 0, 0, 1, 1, 0)
    )
    model = net.model(net.conv(first(net, y, 2), 4, 4, 3, pad=0))
    check(model, {"Conv": 2, "Relu": 1})


def test_a_pad_before_several_windows() -> None:
    net = image(2)
    y = first(net, net.op("Pad", net.op("Relu", "x"), integers(net, 0, 1, 1, 0, 0, 1, 1, 0)), 2)
    model = net.model(net.conv(y, 3, 4, 3, pad=0), net.conv(y, 3, 2, 5, pad=1))
    check(model, {"Relu": 1, "Transpose": 1, "Conv": 2})


@pytest.mark.parametrize(
    "why", ["reflect", "value", "channels", "negative", "read", "output", "crop", "no window"]
)
def test_what_stays(why: str) -> None:
    net = image(2, size=6)
    more: tuple[str, ...] = ()
    if why == "crop":  # the Transpose would have more to move
        y = every(net, "x", (1, 0), 2)
    else:
        amounts = {"channels": [0, 0, 0, 0, 0, 1, 1, 1], "negative": [0, -1, 0, 0, 0, 1, 1, 0]}
        pads = integers(net, *amounts.get(why, [0, 1, 1, 0, 0, 1, 1, 0]))
        value = [net.const(np.float32(0.5))] if why == "value" else []
        y = net.op("Pad", "x", pads, *value, mode="reflect" if why == "reflect" else "constant")
        more = (net.op("Relu", y),) if why == "read" else ()
    y = first(net, y, 2)
    if why == "no window":
        y = net.op("Relu", y)
    elif why != "output":
        y = net.conv(y, 4 if why == "channels" else 3, 4, 3, pad=0)
    check(net.model(y, *more), None)


def test_parts_of_two_tensors_and_odd_sizes_stay() -> None:
    net = image(2, size=6)
    other = net.op("Relu", "x")
    y = first(net, net.op("Concat", every(net, "x", (0, 0), 2), every(net, other, (0, 0), 2), axis=3), 2)
    check(net.model(net.conv(y, 6, 4, 3)), None)
    net = image(2, size=6)  # a Pad behind such a Concat passes alone
    y = net.op("Concat", every(net, "x", (0, 0), 2), every(net, net.op("Relu", "x"), (0, 0), 2), axis=3)
    y = first(net, net.op("Pad", y, integers(net, 0, 1, 1, 0, 0, 1, 1, 0)), 2)
    ops = {"Relu": 1, "Slice": 2, "Concat": 1, "Transpose": 1, "Conv": 1}
    check(net.model(net.conv(y, 6, 4, 3, pad=0)), ops)


def test_it_may_be_left_out_or_kept() -> None:
    for options in (Options(skip=frozenset({Kind.COMMUTE})), Options(keep=("pad*",))):
        net = image(2)
        y = net.op("Pad", "x", integers(net, 0, 1, 1, 0, 0, 1, 1, 0))
        model = net.model(net.conv(first(net, y, 2), 3, 4, 3, pad=0))
        assert not fuse(model, options=options).report.folds
