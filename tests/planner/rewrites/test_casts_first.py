"""Channels of an image of integers that are swapped before it is cast to floats."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Array, Net, counts, run

END = np.iinfo(np.int64).min


def of_integers(model: onnx.ModelProto, data_type: int = TensorProto.UINT8) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.elem_type = data_type
    return model


def ints(net: Net, *values: int) -> str:
    return str(net.const(np.array(values, np.int64)))


def swapped(net: Net, how: str, axis: int) -> str:
    if how == "Gather":
        return str(net.op("Gather", "x", ints(net, 2, 1, 0), axis=axis))
    return str(net.op("Slice", "x", ints(net, -1), ints(net, END + 1), ints(net, axis), ints(net, -1)))


def same(first: onnx.ModelProto, second: onnx.ModelProto, shape: tuple[int, ...], dtype: type) -> bool:
    image: Array = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    pairs = zip(run(first, {"x": image}), run(second, {"x": image}), strict=True)
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("how", ["Gather", "Slice"])
@pytest.mark.parametrize("last", ["", "cast, transpose", "transpose, cast"])
def test_before_the_first_convolution(how: str, last: str, dtype: type) -> None:
    net = Net(shape=("N", "H", "W", 3) if last else ("N", 3, "H", "W"))
    y = swapped(net, how, 3 if last else 1)
    for op in (last or "cast").split(", "):
        y = (
            net.op("Cast", y, to=TensorProto.FLOAT)
            if op == "cast"
            else net.op("Transpose", y, perm=[0, 3, 1, 2])
        )
    y = net.conv(net.op("Div", y, net.const(255.0)), 3, 4, 3)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = of_integers(net.model(y), data_type)
    result = fuse(model)
    assert counts(result.model) == {"Cast": 1, "Conv": 1, **({"Transpose": 1} if last else {})}
    assert same(model, result.model, (2, 5, 6, 3) if last else (2, 3, 5, 6), dtype)
    assert not fuse(result.model).report.folds


@pytest.mark.parametrize(
    "behind", ["nothing linear", "another consumer", "fewer channels", "unknown size", "kept"]
)
def test_where_it_would_gain_nothing_it_stays(behind: str) -> None:
    net = Net(shape=("N", "C" if behind == "unknown size" else 3, "H", "W"))
    chosen = net.op("Gather", "x", ints(net, *((2, 1) if behind == "fewer channels" else (2, 1, 0))), axis=1)
    y = net.op("Cast", chosen, to=TensorProto.FLOAT)
    outputs = [
        net.op("Relu", y)
        if behind == "nothing linear"
        else net.conv(y, 2 if behind == "fewer channels" else 3, 4, 3)
    ]
    if behind == "another consumer":
        outputs.append(net.op("Relu", y))
    options = Options(keep=("cast*",)) if behind == "kept" else Options()
    assert not fuse(of_integers(net.model(*outputs)), options=options).report.folds


@pytest.mark.parametrize("how", ["Gather", "Slice"])
@pytest.mark.parametrize("last", ["", "transpose, cast", "cast, transpose", "unsqueeze, cast"])
def test_an_image_that_is_turned_is_turned_as_integers(how: str, last: str) -> None:
    """The Conv takes in an order of channels, none of rows."""
    shapes = {"": (2, 3, 3, 6), "unsqueeze, cast": (3, 3, 6)}
    net = Net(shape=shapes.get(last, (2, 3, 6, 3)))
    y = swapped(net, how, {"": 2, "unsqueeze, cast": 1}.get(last, 1))
    for op in (last or "cast").split(", "):
        if op == "cast":
            y = net.op("Cast", y, to=TensorProto.FLOAT)
        else:
            y = (
                net.op("Unsqueeze", y, ints(net, 0))
                if op == "unsqueeze"
                else net.op("Transpose", y, perm=[0, 3, 1, 2])
            )
    assert not fuse(of_integers(net.model(net.conv(y, 3, 4, 3)))).report.folds


def test_channels_behind_a_new_axis_of_images() -> None:
    net = Net(shape=(5, 6, 3))
    y = net.op("Cast", net.op("Unsqueeze", swapped(net, "Gather", 2), ints(net, 0)), to=TensorProto.FLOAT)
    model = of_integers(net.model(net.conv(net.op("Transpose", y, perm=[0, 3, 1, 2]), 3, 4, 3)))
    result = fuse(model)
    assert counts(result.model) == {"Cast": 1, "Unsqueeze": 1, "Transpose": 1, "Conv": 1}
    assert same(model, result.model, (5, 6, 3), np.uint8)


def test_an_unwanted_kind() -> None:
    net = Net(shape=("N", 3, "H", "W"))
    y = net.conv(net.op("Cast", swapped(net, "Gather", 1), to=TensorProto.FLOAT), 3, 4, 3)
    assert not fuse(of_integers(net.model(y)), options=Options(skip=frozenset({Kind.COMMUTE}))).report.folds
