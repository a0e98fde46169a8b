"""Channel maps and space maps commute, term by term: each is written on the cheaper side."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse import Options
from onnx_repfuse.api import Result
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind
from tests.build import Net, check
from tests.versions import since

RESIZES_AXES = since(
    "ONNX Runtime before 1.27 refuses a Resize of some axes, or ends the process", onnxruntime="1.27"
)

BY_MACS = Options(cost="macs")  # of such small models, nodes are most of the cost in ONNX Runtime


def resized(net: Net, x: str, factor: float, **attrs: Any) -> str:
    """Height and width times `factor`."""
    scales = net.const(np.array([1, 1, factor, factor], np.float32), np.float32)
    return str(net.op("Resize", x, "", scales, **{"mode": "nearest", **attrs}))


def features(net: Net, channels: tuple[int, ...], size: int = 16) -> list[str]:
    """Feature maps of the image "x", each of half the size of the one before."""
    result, x, c_in = [], "x", net.shape[1]
    for number, c_out in enumerate(channels):
        stride = 2 if number else 1
        x = net.op("Relu", net.conv(x, int(c_in), c_out, 3, pad=1, strides=[stride, stride]))
        result.append(x)
        c_in = c_out
    return result


def macs(result: Result) -> tuple[int, int]:
    before, after = result.report.before.macs, result.report.after.macs
    assert before is not None
    assert after is not None
    return before, after


@pytest.mark.parametrize("norm", [False, True])
def test_head_over_resized_maps(norm: bool) -> None:
    """HRNet's: each map has its own 1x1 Conv at its own size."""
    net = Net(3, shape=(1, 3, 16, 16))
    first, second, third = features(net, (4, 8, 16))
    stacked = net.op("Concat", first, resized(net, second, 2), resized(net, third, 4), axis=1)
    y = net.conv(stacked, 28, 28, 1, bias=not norm)
    y = net.op("Relu", net.bn(y, 28) if norm else y)
    model = net.model(net.conv(y, 28, 5, 1))
    result = check(model, {"Conv": 7, "Relu": 4, "Resize": 2, "Add": 2}, options=BY_MACS)
    before, after = macs(result)
    assert before - after == 28 * 28 * 256 - 28 * (4 * 256 + 8 * 64 + 16 * 16)


def test_terms_of_one_map_and_of_unlike_maps() -> None:
    """A sum of 1x1 Convs of maps, some resized: what is shared by two terms is resized once."""
    net = Net(4, shape=(1, 4, 8, 8))
    first, second = features(net, (4, 6))
    up = resized(net, second, 2)
    y = net.add(net.conv(up, 6, 8, 1), net.conv(first, 4, 8, 1), net.conv(up, 6, 8, 1))
    check(net.model(net.op("Relu", y)), {"Conv": 4, "Relu": 3, "Resize": 1, "Add": 1})


def test_what_is_resized_takes_the_conv_behind_in() -> None:
    """W up(V a) for two maps, V a 3x3 Conv without an activation: W V is one kernel."""
    net = Net(4, shape=(1, 4, 8, 8))
    first, second, third = features(net, (4, 6, 6))
    parts = [resized(net, net.conv(second, 6, 8, 3), 2), resized(net, net.conv(third, 6, 8, 3), 4), first]
    y = net.conv(net.op("Concat", *parts, axis=1), 20, 5, 1)
    result = check(net.model(y), {"Conv": 6, "Relu": 3, "Resize": 2, "Add": 2}, options=BY_MACS)
    before, after = macs(result)
    assert after < before


def test_bias_goes_into_a_conv_before_the_resize() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    first, second = features(net, (4, 6))
    parts = [resized(net, second, 2), first]
    y = net.bn(net.op("Add", net.conv(parts[0], 6, 4, 1, bias=False), parts[1]), 4)
    check(
        net.model(net.op("Relu", y)), {"Conv": 3, "Relu": 3, "Resize": 1, "Add": 1, "BatchNormalization": 1}
    )


def test_resized_maps_that_shrink_are_resized_first() -> None:
    net = Net(4, shape=(1, 4, 8, 8))
    (x,) = features(net, (8,))
    y = net.conv(resized(net, x, 0.5), 8, 4, 1)
    check(net.model(net.op("Relu", y)), None)


def test_many_maps_are_planned_in_parts() -> None:
    """A Concat of more views than a form has terms."""
    net = Net(2, shape=(1, 2, 4, 4))
    maps = [resized(net, net.op("Relu", net.conv("x", 2, 2, 1)), 2) for _ in range(40)]
    y = net.conv(net.op("Concat", *maps, axis=1), 80, 2, 1)
    check(net.model(y), None)


# Modes: each of them maps a constant to the same constant

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("factor", [2, 2.6])
def test_classifier_behind_a_resize(mode: str, coordinates: str, factor: float) -> None:
    opset = 19 if coordinates == "half_pixel_symmetric" else 17
    net = Net(6, opset=opset, shape=(2, 6, 5, 7))
    up = resized(net, net.op("Relu", "x"), factor, mode=mode, coordinate_transformation_mode=coordinates)
    result = check(net.model(net.conv(up, 6, 3, 1)), {"Relu": 1, "Conv": 1, "Resize": 1})
    assert [node.op_type for node in result.model.graph.node] == ["Relu", "Conv", "Resize"]


@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "cubic", "exclude_outside": 1},
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "antialias": 0},
    ],
)
def test_norm_behind_a_resize_of_every_kind_goes_into_the_conv_before_it(attrs: dict[str, Any]) -> None:
    for factor in (0.5, 2):
        net = Net(4, opset=18, shape=(1, 4, 6, 8))
        y = net.bn(resized(net, net.conv("x", 4, 4, 3), factor, **attrs), 4)
        check(net.model(y), {"Conv": 1, "Resize": 1})


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_resizes(opset: int, mode: str) -> None:
    net = Net(4, opset=opset, ir=4, shape=(1, 4, 5, 6))
    y, factors = net.conv("x", 4, 4, 3), np.array([1, 1, 2, 2], np.float32)
    if opset == 7:
        y = net.op("Upsample", y, mode=mode, scales=factors.tolist())
    elif opset < 11:
        y = net.op("Upsample" if opset == 9 else "Resize", y, net.const(factors), mode=mode)
    else:
        y = net.op("Resize", y, net.const(np.zeros(0, np.float32)), net.const(factors), mode=mode)
    check(net.model(net.bn(y, 4)), {"Conv": 1, "Upsample" if opset < 10 else "Resize": 1})


@pytest.mark.parametrize("dims", [(1, 4, 5), (1, 4, 3, 4, 5)])
def test_other_ranks(dims: tuple[int, ...]) -> None:
    net = Net(4, shape=dims)
    rank = len(dims) - 2
    scales = net.const(np.array([1, 1, *(2,) * rank], np.float32))
    y = net.op("Resize", net.conv("x", 4, 4, (3,) * rank), "", scales, mode="nearest")
    check(net.model(net.bn(y, 4)), {"Conv": 1, "Resize": 1})


@RESIZES_AXES
def test_sizes_of_some_axes() -> None:
    net = Net(4, opset=18, shape=("N", 6, 5, 7))
    sizes = net.const(np.array([9, 14], np.int64))
    up = net.op("Resize", net.op("Relu", "x"), "", "", sizes, mode="linear", axes=[-2, 3])
    check(net.model(net.conv(up, 6, 3, 1)), {"Relu": 1, "Conv": 1, "Resize": 1})


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_policies(policy: str) -> None:
    net = Net(4, opset=18, shape=(1, 4, 5, 7))
    sizes = net.const(np.array([9, 14], np.int64))
    y = net.conv("x", 4, 4, 3)
    y = net.op("Resize", y, "", "", sizes, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)
    check(net.model(net.bn(y, 4)), {"Conv": 1, "Resize": 1})


def test_a_resize_that_resizes_nothing_goes() -> None:
    net = Net(4, shape=(1, 4, 5, 7))
    sizes = net.const(np.array([1, 4, 5, 7], np.int64))
    y = net.op("Resize", net.op("Relu", "x"), "", "", sizes, mode="linear")
    check(net.model(net.conv(y, 4, 4, 3)), {"Relu": 1, "Conv": 1})


# Traps


@pytest.mark.parametrize("scales", [(1, 2, 1, 1), (1, 1.2, 2, 2), (2, 1, 2, 2)])
def test_resized_channels_or_batches_stay(scales: tuple[float, ...]) -> None:
    net = Net(4, shape=(1, 4, 5, 6))
    y = net.op("Resize", net.conv("x", 4, 4, 3), "", net.const(np.array(scales, np.float32)), mode="nearest")
    net.bn(y, int(4 * scales[1]))
    check(net.model(f"batchnormalization_{net.count}"), None)


@pytest.mark.parametrize(
    ("roi", "folds"),
    [
        ((0.0, 0.0, 0.1, 0.2, 1.0, 1.0, 0.8, 0.9), True),
        ((0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0), True),
        ((0.0, 0.0, 0.1, 0.2, 1.0, 1.0, 1.0, 1.0), False),
        ((0.0, 0.0, -0.1, 0.2, 1.0, 1.0, 0.8, 0.9), False),
        ((0.0, 0.0, 0.1, 0.2, 1.0, 1.0, 1.2, 0.9), False),
    ],
)
def test_crops_that_extrapolate_stay(roi: tuple[float, ...], folds: bool) -> None:
    net = Net(4, shape=(1, 4, 5, 6))
    scales = net.const(np.array([1, 1, 2, 2], np.float32))
    mode = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    corners = net.const(np.array(roi, np.float32))
    y = net.op("Resize", net.conv("x", 4, 4, 3), corners, scales, extrapolation_value=3.0, **mode)
    check(net.model(net.bn(y, 4)), {"Conv": 1, "Resize": 1} if folds else None)


def test_a_padded_conv_behind_a_resize_stays() -> None:
    net = Net(6, shape=(1, 6, 5, 7))
    check(net.model(net.conv(resized(net, net.op("Relu", "x"), 2, mode="linear"), 6, 3, 3)), None)


def test_a_factor_above_one_stays_behind_a_resize_in_half_precision() -> None:
    net = Net(4, shape=(1, 4, 5, 6), dtype=np.float16)
    y = resized(net, net.conv("x", 4, 4, 3), 2, mode="linear")
    parameters = [net.const(np.full(4, v)) for v in (1264.0, 0.25, 0.0, 1.0)]
    model = net.model(net.op("BatchNormalization", y, *parameters))
    check(model, None, Reason.PRECISION, tolerance=2e-3)


# Sizes that the graph computes

ALONE = Options(cost="macs", skip=frozenset({Kind.EQUAL}))  # the lists of sizes have nodes in common


def resized_to(net: Net, x: str, other: str, axes: tuple[int, ...] = (), **attrs: Any) -> str:
    """x with the height and width of another tensor, as exporters write it."""
    shape, wanted = net.op("Shape", x), net.op("Shape", other)
    zero, one = net.const(np.array([0])), net.const(np.array([2]))
    height, width = (
        net.op("Unsqueeze", net.op("Gather", wanted, net.const(np.array(axis))), zero) for axis in (2, 3)
    )
    space = net.op("Concat", height, width, axis=0)
    if axes:
        return str(net.op("Resize", x, "", "", space, mode="linear", axes=axes, **attrs))
    sizes = net.op("Concat", net.op("Slice", shape, zero, one, zero), space, axis=0)
    return str(net.op("Resize", x, "", "", sizes, mode="linear", **attrs))


REUSES = since(
    "ONNX Runtime before 1.20 writes over what a Resize of some axes still needs", onnxruntime="1.20"
)


@pytest.mark.parametrize(
    "axes", [(), pytest.param((2, 3), marks=REUSES), pytest.param((-2, -1), marks=RESIZES_AXES)]
)
def test_head_over_maps_resized_to_each_other(axes: tuple[int, ...]) -> None:
    net = Net(3, opset=18)
    first, second, third = features(net, (4, 16, 16))
    stacked = net.op("Concat", *(resized_to(net, x, first, axes) for x in (second, third)), first, axis=1)
    model = net.model(net.op("Relu", net.conv(stacked, 36, 8, 1)))
    result = check(model, counts_of(model, axes), options=ALONE, largest=9)
    before, after = macs(result)
    assert after < before


def counts_of(model: onnx.ModelProto, axes: tuple[int, ...]) -> dict[str, int]:
    ops = Counter(node.op_type for node in model.graph.node)
    ops += Counter({"Conv": 2, "Add": 2})
    ops -= Counter({"Concat": 1})
    if not axes:  # each list of sizes gets its channels
        ops += Counter({"Mul": 2, "Add": 2})
    return dict(ops)


def test_a_map_that_may_shrink_is_resized_first() -> None:
    """Of unrelated images, either may be the larger one."""
    net = Net(3)
    _, x = features(net, (16, 16))
    net.more_inputs.append(helper.make_tensor_value_info("z", 1, ("N", 3, "h", "w")))
    model = net.model(net.op("Relu", net.conv(resized_to(net, x, "z"), 16, 4, 1)))
    check(model, None, Reason.SHAPE, options=ALONE)


def test_a_map_that_shrinks_at_every_size_is_resized_first() -> None:
    net = Net(3)
    first, _, third = features(net, (16, 16, 16))
    model = net.model(net.op("Relu", net.conv(resized_to(net, first, third), 16, 4, 1)))
    check(model, None, options=ALONE)


@pytest.mark.parametrize("batch", [2, "N"])
def test_a_resize_of_the_batch_alone_is_no_copy(batch: int | str) -> None:
    net = Net(3, shape=(batch, 3, 4, 4))
    y = net.op("Resize", net.op("Relu", "x"), "", "", net.const(np.array([4, 3, 4, 4])), mode="nearest")
    check(
        net.model(net.conv(y, 3, 3, 1)),
        {"Relu": 1, "Resize": 1, "Conv": 1},
        options=Options(cost="macs", check=False),
    )
