"""Sizes that onnx infers and ONNX Runtime computes otherwise prove nothing: one test for each case found."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from onnx_repfuse import Options, Reason, fuse
from tests.build import run
from tests.parts import Weights, agree, batch_norm, graph, info, model, node, norm, random, rarely
from tests.versions import since


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "opset",
    [11, pytest.param(22, marks=since("ONNX Runtime before 1.21 knows no opset 22", onnxruntime="1.21"))],
)
def test_the_size_of_a_pool_with_ceil_mode_proves_nothing(pool: str, size: int, opset: int) -> None:
    nodes = [
        node(pool, "x", "a", kernel_shape=[3, 2], strides=[3, 2], ceil_mode=1, pads=[1] * 4),
        node("Conv", "a w", "b", auto_pad="SAME_UPPER", strides=[2, 2]),
        batch_norm("b", "y"),
    ]
    weights = {"w": random(4, 3, 3, 3), **norm(4)}
    made = model(
        graph(nodes, [info("y", None)], weights, [info("x", [1, 3, size, size])]), opset=opset, ir=10
    )
    agree(made, {"x": random(1, 3, size, size)}, folds=None)


def test_a_pool_with_ceil_mode_proves_sizes_that_onnx_and_the_runtime_agree_on() -> None:
    nodes = [
        node("MaxPool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("Conv", "a w", "b", auto_pad="SAME_UPPER", strides=[2, 2]),
        batch_norm("b", "y"),
    ]
    weights = {"w": random(4, 3, 3, 3), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 112, 112])]))
    agree(made, {"x": random(1, 3, 112, 112)}, folds=1)


def test_the_size_of_the_indices_of_a_pool_with_ceil_mode_proves_nothing() -> None:
    nodes = [
        node("MaxPool", "x", "a i", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, pads=[1] * 4),
        node("Shape", "i", "sh"),
        node("Cast", "sh", "f", to=TensorProto.FLOAT),
        node("Add", "x f", "s"),
        node("Conv", "s w", "b"),
        batch_norm("b", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None), info("a", None)], weights, [info("x", [1, 3, 5, 4])]))
    agree(made, {"x": random(1, 3, 5, 4)}, folds=None)


@pytest.mark.parametrize(
    ("op", "scale"), [("Resize", 0.3), ("Resize", 0.7), ("Resize", 1.3), ("Upsample", 1.3), ("Upsample", 2.3)]
)
def test_a_resized_size_that_depends_on_precision_proves_nothing(op: str, scale: float) -> None:
    """10 * 0.7f is 6 or 7."""
    resize = node(op, "x  sc" if op == "Resize" else "x sc", "a", mode="nearest")
    nodes = [
        resize,
        node("Conv", "a w", "b", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Shape", "a", "sh"),
        node("Gather", "sh two", "h"),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Div", "b f", "c"),
        batch_norm("c", "y"),
    ]
    weights = {"sc": np.array([1, 1, scale, scale], np.float32), "w": random(4, 3, 3, 3), "two": 2, **norm(4)}
    opset = 17 if op == "Resize" else 9
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 10, 10])]), opset=opset)
    agree(made, {"x": random(1, 3, 10, 10)}, folds=None)


def test_squeeze_of_a_negative_axis_before_opset_11_is_not_misread() -> None:
    nodes = [node("Conv", "x w", "a"), node("Squeeze", "a", "b", axes=[-1]), batch_norm("b", "y")]
    weights = {"w": random(4, 3, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 3, 4, 1])]), opset=9, ir=5)
    agree(made, {"x": random(1, 3, 4, 1)})


def test_unsqueeze_of_a_negative_axis_before_opset_11_is_not_misread() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        batch_norm("a", "a1"),
        node("Unsqueeze", "a1", "b", axes=[-1]),
        node("Mul", "b k", "c"),
        node("Add", "c k", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), "k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 3, "h", "w_"])]), opset=9, ir=5)
    trusted = fuse(made, options=Options(check=False)).model
    assert trusted is not None
    feed = {"x": random(1, 3, 4, 4)}
    np.testing.assert_allclose(run(trusted, feed)[0], run(made, feed)[0], rtol=1e-3, atol=1e-3)


def _halved(nodes: list[NodeProto], weights: Weights, shape: list[int], **sizes: Any) -> onnx.ModelProto:
    """A Conv whose pads depend on the size of `a`, and a BatchNormalization behind it."""
    nodes = [*nodes, node("Conv", "a w", "b", auto_pad="SAME_UPPER", strides=[2, 2]), batch_norm("b", "y")]
    weights = {"w": random(4, 3, 3, 3), **norm(4), **weights}
    return model(graph(nodes, [info("y", None)], weights, [info("x", shape)]), **sizes)


@pytest.mark.parametrize(("op", "opset"), [("MaxPool", 17), ("LpPool", 18), ("AveragePool", 19)])
def test_the_size_of_a_dilated_pool_with_auto_pad_proves_nothing(op: str, opset: int) -> None:
    pool = node(op, "x", "a", kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_UPPER")
    agree(_halved([pool], {}, [1, 3, 10, 10], opset=opset), {"x": random(1, 3, 10, 10)}, folds=None)


def test_the_size_of_a_conv_transpose_with_auto_pad_and_output_padding_proves_nothing() -> None:
    wide = node("ConvTranspose", "x t", "a", strides=[3, 3], output_padding=[1, 1], auto_pad="SAME_UPPER")
    made = _halved([wide], {"t": random(3, 3, 4, 4)}, [1, 3, 9, 9])
    agree(made, {"x": random(1, 3, 9, 9)}, folds=None)


def test_an_output_shape_smaller_than_the_input_of_a_conv_transpose_proves_nothing() -> None:
    nodes = [node("ConvTranspose", "x t", "a", output_shape=[4, 4]), batch_norm("a", "s")]
    nodes += [node("Mul", "s k", "u"), node("Add", "u k", "y")]
    weights = {"t": random(3, 4, 3, 3), "k": random(4), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 5, 5])]))
    agree(made, {"x": random(1, 3, 5, 5)}, folds=None)


def test_squeeze_with_an_empty_list_of_axes_proves_nothing() -> None:
    nodes = [
        node("Squeeze", "x e", "a"),
        batch_norm("a", "b"),
        node("Mul", "b k", "c"),
        node("Relu", "c", "y"),
    ]
    weights = {"e": np.zeros(0, np.int64), "k": random(4, 1, 1), **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 4, 4, 1])]))
    agree(made, {"x": random(1, 4, 4, 1)}, folds=None)


def test_the_sizes_of_an_einsum_that_broadcasts_prove_nothing() -> None:
    nodes = [
        node("Einsum", "x z", "a", equation="abcd,abcd->abcd"),
        node("Add", "a u", "s"),
        node("Conv", "s w", "p", pads=[1] * 4),
        node("Conv", "u w2", "q", pads=[1] * 4),
        node("Add", "p q", "y"),
    ]
    shapes = {"x": [1, 3, 5, 1], "z": [1, 3, 5, 6], "u": [1, 3, 5, 1]}
    weights = {"w": random(4, 3, 3, 3), "w2": random(4, 3, 3, 3)}
    made = model(graph(nodes, [info("y", None)], weights, [info(k, v) for k, v in shapes.items()]))
    agree(made, {k: random(*v) for k, v in shapes.items()})


@pytest.mark.parametrize("narrow", ["BOOL", "UINT8", "INT8"])
def test_a_size_cast_to_a_type_that_cannot_hold_it_proves_nothing(narrow: str) -> None:
    nodes = [
        node("Shape", "x", "sh"),
        node("Gather", "sh two", "c0"),
        node("Cast", "c0", "d", to=TensorProto.DataType.Value(narrow)),
        node("Cast", "d", "e", to=TensorProto.INT64),
        node("Concat", "one three e e", "t", axis=0),
        node("Expand", "k t", "v0"),
        node("Relu", "v0", "v1"),
        node("Mul", "v1 rm", "v"),
        node("Add", "x v", "s"),
        node("Conv", "s w", "p", pads=[1] * 4),
        node("Conv", "x w2", "q", pads=[1] * 4),
        node("Add", "p q", "y"),
    ]
    size = 5 if narrow == "BOOL" else 257
    weights = {"one": [1], "two": [2], "three": [3], "k": np.abs(random(1, 3, 1, 1))}
    weights |= {"w": random(4, 3, 3, 3), "w2": random(4, 3, 3, 3)}
    inputs = [info("x", [1, 3, size, size]), info("rm", [1, 3, 1, 1])]
    made = model(graph(nodes, [info("y", None)], weights, inputs))
    agree(made, {"x": random(1, 3, size, size), "rm": random(1, 3, 1, 1)}, folds=None)


@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_a_size_computed_in_half_precision_proves_nothing(factor: float) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s ix", "c"),
        node("Cast", "c", "d", to=TensorProto.FLOAT16),
        node("Mul", "d factor", "e"),
        node("Ceil", "e", "g"),
        node("Cast", "g", "i", to=TensorProto.INT64),
        node("Concat", "one3 i", "t", axis=0),
        node("Expand", "k t", "a"),
    ]
    weights = {"ix": [2, 3], "factor": np.float16(factor), "one3": [1, 3], "k": random(1, 3, 1, 1)}
    agree(_halved(nodes, weights, [1, 3, 300, 300]), {"x": random(1, 3, 300, 300)}, folds=None)


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_a_slice_backwards_to_the_greatest_end_proves_nothing(end: int) -> None:
    weights = {"st": [-1], "en": [end], "ax": [2], "sp": [-1]}
    made = _halved([node("Slice", "x st en ax sp", "a")], weights, [1, 3, 5, 5])
    agree(made, {"x": random(1, 3, 5, 5)}, folds=None)


def test_a_shape_that_cannot_be_computed_does_not_stop_folds_elsewhere() -> None:
    """No run takes the branch that needs it."""
    nodes = [node("Conv", "x w", "a"), node("Gather", "t i", "s"), node("Reshape", "a s", "o")]
    then = graph(nodes, [info("o", None)])
    other = graph([node("Conv", "x u", "b"), batch_norm("b", "o2")], [info("o2", None)])
    weights = {"w": random(4, 3, 1, 1), "u": random(4, 3, 1, 1), "t": [0, 4, -1], "i": [0, 1, 9], **norm(4)}
    agree(rarely(then, other, weights), {"x": random(1, 3, 4, 4)}, folds=1)


def test_a_constant_with_another_shape_than_inferred_is_not_used() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "c"),
        node("Cast", "c", "d", to=TensorProto.BOOL),
        node("Cast", "d", "e", to=TensorProto.INT64),
        node("ConstantOfShape", "e", "k", value=helper.make_tensor("v", TensorProto.INT64, [1], [2])),
        node("Conv", "x w", "a"),
        batch_norm("a", "b"),
        node("Unsqueeze", "b k", "y"),
    ]
    weights = {"w": random(4, 3, 1, 1), "one": [1], **norm(4)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [1, 3, 4, 4])]))
    agree(made, {"x": random(1, 3, 4, 4)}, folds=1)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pads_beside_auto_pad_prove_nothing(op: str) -> None:
    """The standard forbids both. onnx infers sizes from pads, ONNX Runtime follows auto_pad."""
    nodes = [
        node(op, "x", "p", kernel_shape=[3, 3], pads=[1, 1, 0, 0], auto_pad="VALID"),
        node("Conv", "p w1", "a", strides=[3, 3]),
        node("Conv", "p w2", "b", strides=[3, 3]),
        node("Add", "a b", "o"),
    ]
    weights = {"w1": random(4, 3, 1, 1), "w2": random(4, 3, 2, 2)}
    then = graph(nodes, [info("o", None)], weights)
    other = graph([node("Conv", "x u", "o2")], [info("o2", None)], {"u": random(4, 3, 1, 1)})
    made = rarely(then, other, {})
    made.graph.input[0].CopyFrom(info("x", [1, 3, 6, 6]))
    agree(made, {"x": random(1, 3, 6, 6)}, {"x": 100 * random(1, 3, 6, 6) + 200}, folds=None)


def test_an_average_with_pads_and_auto_pad_is_refused() -> None:
    odd = node("AveragePool", "x", "p", kernel_shape=[3, 3], pads=[1] * 4, auto_pad="VALID")
    weights = {"w": random(4, 3, 1, 1)}
    made = model(
        graph([odd, node("Conv", "p w", "y")], [info("y", None)], weights, [info("x", [1, 3, 6, 6])])
    )
    report = agree(made, {"x": random(1, 3, 6, 6)})
    assert Reason.UNSUPPORTED in {refusal.reason for refusal in report.refusals}
