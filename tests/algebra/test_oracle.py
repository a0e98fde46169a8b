"""The oracle itself against independent truths: ONNX Runtime, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.algebra.affine_conv import AffineConv
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Total

FIXED = [
    ((1, 2), (3,), {}),
    ((2, 4), (3,), {"groups": 2, "strides": (2,), "pads": (1, 1)}),
    ((4, 4), (2,), {"groups": 4, "dilations": (3,), "pads": (2, 0)}),
    ((3, 2), (3, 3), {"pads": (1, 1, 1, 1)}),
    ((4, 6), (2, 3), {"groups": 2, "strides": (2, 1), "dilations": (1, 2), "pads": (0, 2, 1, 3)}),
    ((2, 2), (4, 1), {"groups": 2, "strides": (3, 2), "pads": (3, 0, 1, 0)}),
    ((2, 3), (2, 1, 3), {"strides": (1, 2, 2), "pads": (0, 0, 1, 1, 0, 2)}),
]
TRANSPOSED = [
    ((2, 3), (3,), {"strides": (2,), "pads": (1, 1)}),
    ((2, 3), (3,), {"strides": (2,), "pads": (1, 0), "output_padding": (1,)}),
    ((4, 6), (2, 3), {"groups": 2, "strides": (2, 3), "dilations": (2, 1), "pads": (0, 1, 1, 2)}),
    ((4, 4), (2, 2), {"groups": 4, "strides": (2, 2)}),
]


def run(conv: AffineConv, x: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of it in float32."""
    g = conv.geometry
    weight = conv.weight.astype(np.float32)
    extra = {}
    if g.transposed:  # ONNX stores (c_in, c_out / groups, *kernel)
        rows, columns = g.c_out // g.groups, g.c_in // g.groups
        weight = weight.reshape(g.groups, rows, columns, *g.kernel).swapaxes(1, 2)
        weight = weight.reshape(g.c_in, rows, *g.kernel)
        # pads_end is pad_end - output_padding: write it as both, which must not be negative
        extra = {"output_padding": [max(-p, 0) for p in g.pads_end]}
    node = helper.make_node(
        "ConvTranspose" if g.transposed else "Conv",
        ["x", "w", "b"],
        ["y"],
        group=g.groups,
        kernel_shape=g.kernel,
        strides=g.strides,
        dilations=g.dilations,
        pads=[*g.pads_begin, *(max(p, 0) for p in g.pads_end)],
        **extra,
    )
    graph = helper.make_graph(
        [node],
        "oracle",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight), "w"),
            numpy_helper.from_array(conv.bias.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})[0]


def sample(geometry: Geometry, size: tuple[int, ...], seed: int) -> tuple[AffineConv, np.ndarray]:
    rng = np.random.default_rng(seed)
    conv = AffineConv(geometry, rng.normal(size=geometry.weight_shape), rng.normal(size=geometry.c_out))
    return conv, rng.normal(size=(2, geometry.c_in, *size))


@pytest.mark.parametrize(("channels", "kernel", "options"), FIXED)
def test_convolution_is_onnx_conv(channels, kernel, options) -> None:
    geometry = Geometry.conv(*channels, kernel, **options)
    tested = 0
    for n in range(1, 9):
        size = tuple(n + axis for axis in range(len(kernel)))
        if min(geometry.output(size)) < 1:
            continue
        conv, x = sample(geometry, size, n)
        expected = run(conv, x)
        assert expected.shape[2:] == geometry.output(size)
        np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-4)
        tested += 1
    assert tested >= 4


@pytest.mark.parametrize(("channels", "kernel", "options"), TRANSPOSED)
def test_transposed_convolution_is_onnx_conv_transpose(channels, kernel, options) -> None:
    geometry = Geometry.conv_transpose(*channels, kernel, **options)
    for n in range(2, 6):
        size = tuple(n + axis for axis in range(len(kernel)))
        conv, x = sample(geometry, size, n)
        expected = run(conv, x)
        assert expected.shape[2:] == geometry.output(size)
        np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("begin", [-3, -1, 0, 2])
@pytest.mark.parametrize("end", [-2, 0, 1])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_grown_keeps_the_function_and_is_what_onnx_conv_accepts(dilation, begin, end, kernel) -> None:
    geometry = Geometry.conv(2, 2, (kernel,), strides=(2,), dilations=(dilation,), pads=(begin, end))
    grown = geometry.grown()
    assert min(grown.pads_begin + grown.pads_end) >= 0
    assert (grown.slack, grown.strides) == (geometry.slack, geometry.strides)
    conv, x = sample(geometry, (12,), 5)
    same = AffineConv(grown, Total(grown, (conv.kernel,)).rows(0, 2), conv.bias)
    np.testing.assert_allclose(same(x), conv(x), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(run(same, x), conv(x), rtol=1e-4, atol=1e-4)
    if min(begin, end) >= 0:
        assert grown is geometry


def test_taps_pads_strides_and_dilations_by_hand() -> None:
    x = np.array([[[1.0, 2.0, 4.0]]])
    taps = np.array([[[1.0, 10.0]]])
    padded = AffineConv(Geometry.conv(1, 1, (2,), pads=(1, 0)), taps, np.array([0.5]))
    assert padded(x).tolist() == [[[10.5, 21.5, 42.5]]]
    dilated = AffineConv(Geometry.conv(1, 1, (2,), dilations=(2,)), taps, np.zeros(1))
    assert dilated(x).tolist() == [[[41.0]]]
    strided = AffineConv(Geometry.conv(1, 1, (2,), strides=(2,), pads=(0, 1)), taps, np.zeros(1))
    assert strided(x).tolist() == [[[21.0, 4.0]]]
    up = AffineConv(Geometry.conv_transpose(1, 1, (2,), strides=(2,)), taps, np.array([0.5]))
    assert up(x).tolist() == [[[1.5, 10.5, 2.5, 20.5, 4.5, 40.5]]]


def test_groups_by_hand() -> None:
    x = np.array([[[1.0], [2.0], [3.0], [4.0]]])
    weight = np.array([[1.0, 10.0], [100.0, 0.0]])[:, :, None]
    paired = AffineConv(Geometry.conv(4, 2, (1,), groups=2), weight, np.zeros(2))
    assert paired(x).tolist() == [[[21.0], [300.0]]]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((2, 2, (3,)), {"strides": (1, 1)}),
        ((2, 2, (3,)), {"pads": (1,)}),
        ((2, 2, (0,)), {}),
        ((3, 2, (1,)), {"groups": 2}),
        ((0, 2, (1,)), {}),
    ],
)
def test_impossible_geometries(arguments, options) -> None:
    with pytest.raises(ValueError, match=r"differ in rank|positive|do not divide"):
        Geometry.conv(*arguments, **options)


def test_numbers_that_do_not_fit_their_geometry() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        AffineConv(Geometry.conv(1, 1, (3,)), np.zeros((1, 1, 2)), np.zeros(1))
