"""The float64 oracle reads every operator as ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.verifier.oracle import conv, evaluator, registry
from onnx_repfuse.verifier.oracle.evaluator import Oracle
from onnx_repfuse.verifier.oracle.tensor import StoredKernel, Unsupported
from onnx_repfuse.verifier.session import open_session

F = TensorProto.FLOAT
RNG = np.random.default_rng(1)


def rand(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op, [name.replace("-", "") for name in inputs.split()], outputs.split(), **attributes
    )


def build(nodes: list[onnx.NodeProto], constants: dict[str, Any], rank: int, opset: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, [None] * rank)],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


NORM = {"s": rand(4), "b": rand(4), "m": rand(4), "v": rand(4) ** 2 + np.float32(0.1)}
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, ...], int]] = {
    "conv": ([node("Conv", "x w b", pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2])],
        {"w": rand(6, 4, 3, 2), "b": rand(6)}, (2, 4, 9, 8), 17),
    "conv groups": ([node("Conv", "x w", group=2, pads=[1] * 4)], {"w": rand(6, 2, 3, 3)}, (2, 4, 5, 5), 17),
    "conv depthwise": ([node("Conv", "x w b", group=4, strides=[2, 2])], {"w": rand(8, 1, 3, 3), "b": rand(8)},
        (2, 4, 7, 6), 17),
    "conv 1d": ([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2])], {"w": rand(3, 4, 4)}, (1, 4, 11),
        17),
    "conv 3d": ([node("Conv", "x w", auto_pad="SAME_LOWER")], {"w": rand(3, 4, 2, 3, 2)}, (1, 4, 3, 4, 5), 17),
    "conv valid": ([node("Conv", "x w", auto_pad="VALID")], {"w": rand(3, 4, 3, 3)}, (1, 4, 5, 5), 17),
    "deconv": ([node("ConvTranspose", "x w b", strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 0],
        dilations=[2, 1])], {"w": rand(4, 3, 3, 3), "b": rand(3)}, (2, 4, 4, 3), 17),
    "deconv groups": ([node("ConvTranspose", "x w", group=2, strides=[2, 2])], {"w": rand(4, 3, 2, 2)},
        (1, 4, 4, 3), 17),
    "batch norm": ([node("BatchNormalization", "x s b m v", epsilon=1e-3)], NORM, (2, 4, 3, 3), 15),
    "batch norm by its own statistics": ([node("BatchNormalization", "x s b m v", "y p q", training_mode=1)], NORM,
        (2, 4, 3, 3), 15),
    "batch norm 2d": ([node("BatchNormalization", "x s b m v")], NORM, (5, 4), 15),
    "arithmetic": ([node("Add", "x c", "a"), node("Sub", "c a", "d"), node("Mul", "d c", "e"),
        node("Div", "e f", "g"), node("Neg", "g")], {"c": rand(4, 1, 1), "f": np.float32(3)}, (2, 4, 3, 3), 17),
    "sum mean": ([node("Sum", "x x c", "a"), node("Mean", "a x c")], {"c": rand(4, 1, 1)}, (2, 4, 3, 3), 13),
    "pad": ([node("Pad", "x p v")], {"p": ints(0, 0, 1, 2, 0, 1, -1, 3), "v": np.float32(1.5)}, (1, 2, 4, 4),
        13),
    "pad reflect": ([node("Pad", "x p", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 1, 1)}, (1, 2, 4, 4),
        13),
    "pad edge 2": ([node("Pad", "x", mode="edge", pads=[0, 0, 1, 2, 0, 0, 1, 1])], {}, (1, 2, 4, 4), 10),
    "pad axes": ([node("Pad", "x p - a")], {"p": ints(1, 2), "a": ints(-1)}, (1, 2, 4, 4), 18),
    "avgpool": ([node("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1])], {},
        (1, 4, 6, 7), 17),
    "avgpool include": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)], {},
        (1, 4, 6, 7), 17),
    "avgpool ceil": ([node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {},
        (1, 4, 6, 8), 17),
    "gap": ([node("GlobalAveragePool", "x")], {}, (2, 4, 3, 5), 17),
    "reduce": ([node("ReduceMean", "x", axes=[2, 3], keepdims=0)], {}, (2, 4, 3, 5), 17),
    "reduce 18": ([node("ReduceMean", "x a")], {"a": ints(-1, 2)}, (2, 4, 3, 5), 18),
    "reduce sum": ([node("ReduceSum", "x a", keepdims=0)], {"a": ints(1)}, (2, 4, 3, 5), 17),
    "slice": ([node("Slice", "x s e a t")],
        {"s": ints(-1, 1), "e": ints(-99, 3), "a": ints(1, 2), "t": ints(-1, 1)}, (2, 4, 5), 17),
    "slice 9": ([node("Slice", "x", starts=[1], ends=[100], axes=[1])], {}, (2, 4, 5), 9),
    "split concat": ([node("Split", "x s", "a b", axis=1), node("Concat", "b a", axis=1)], {"s": ints(1, 3)},
        (2, 4, 5), 17),
    "split 11": ([node("Split", "x", "a b", axis=1, split=[3, 1]), node("Concat", "b a", axis=-2)], {},
        (2, 4, 5), 11),
    "split 18": ([node("Split", "x", "a b", axis=2, num_outputs=2), node("Concat", "b a", axis=2)], {},
        (2, 4, 5), 18),
    "gemm": ([node("Gemm", "x w c", alpha=0.5, beta=2.0, transB=1)], {"w": rand(3, 5), "c": rand(3)}, (4, 5),
        17),
    "layer norm": ([node("LayerNormalization", "x s b", axis=1)], {"s": rand(4, 5), "b": rand(4, 5)}, (2, 4, 5), 17),
    "layer norm without bias": ([node("LayerNormalization", "x s")], {"s": rand(5)}, (2, 4, 5), 17),
    "instance norm": ([node("InstanceNormalization", "x s b", epsilon=0.1)], {"s": rand(4), "b": rand(4)},
        (2, 4, 5, 3), 17),
    "group norm": ([node("GroupNormalization", "x s b", num_groups=2)], {"s": rand(4), "b": rand(4)}, (2, 4, 5), 21),
    "einsum": ([node("Einsum", "x w", equation="...c,dc->...d")], {"w": rand(3, 5)}, (2, 4, 5), 17),
    "einsum that broadcasts": ([node("Einsum", "x w", equation="abc,bcd->adb")], {"w": rand(4, 1, 3)}, (2, 4, 5), 17),
    "gemm transposed": ([node("Gemm", "x w", transA=1)], {"w": rand(4, 3)}, (4, 5), 17),
    "matmul": ([node("MatMul", "x w", "a"), node("MatMul", "v a")], {"w": rand(5, 3), "v": rand(2, 4)},
        (2, 4, 5), 17),
    "moves": ([node("Identity", "x", "i"), node("Dropout", "i", "j"), node("Reshape", "j s", "a"),
        node("Transpose", "a", "b", perm=[1, 0, 2]), node("Unsqueeze", "b u", "c"), node("Squeeze", "c u", "d"),
        node("Expand", "d e", "f"), node("Flatten", "f", axis=2)],
        {"s": ints(0, 4, -1), "u": ints(1), "e": ints(4, 2, 6)}, (2, 4, 2, 3), 17),
    "shapes": ([node("Shape", "x", "s"), node("Gather", "s z", "n"), node("Concat", "n m", "t", axis=0),
        node("Reshape", "x t")], {"z": ints(0), "m": ints(-1)}, (2, 4, 3), 17),
    "constants": ([node("Constant", "", "c", value_float=2.5), node("ConstantOfShape", "s", "o"),
        node("Mul", "x c", "a"), node("Add", "a o")], {"s": ints(4, 1)}, (2, 4, 3), 17),
    "scatter": ([node("ScatterND", "x i u")], {"i": np.array([[0, 1], [1, 3]]), "u": rand(2, 3)}, (2, 4, 3),
        17),
    "gather nd": ([node("GatherND", "x i")], {"i": np.array([[1], [0], [1]])}, (2, 4, 3), 17),
    "space to depth": ([node("SpaceToDepth", "x", blocksize=3)], {}, (2, 2, 6, 3), 13),
    "depth to space": ([node("DepthToSpace", "x", blocksize=2)], {}, (2, 12, 3, 4), 9),
    "depth to space crd": ([node("DepthToSpace", "x", blocksize=2, mode="CRD")], {}, (2, 12, 3, 4), 13),
    "cast": ([node("Cast", "x", "h", to=TensorProto.DOUBLE), node("Cast", "h", to=F)], {}, (2, 4), 17),
    "cast like": ([node("CastLike", "x d", "h"), node("CastLike", "h f")], {"d": np.float64(1), "f": np.float32(1)},
        (2, 4), 17),
    "clip": ([node("Clip", "x a b")], {"a": np.float32(-0.5), "b": np.float32(0.7)}, (2, 4), 17),
    "clip 6": ([node("Clip", "x", min=-0.5, max=0.7)], {}, (2, 4), 10),
    "activations": ([node("Relu", "x", "r"), node("Sub", "x r", "q"), node("HardSigmoid", "q", "h", alpha=0.3),
        node("LeakyRelu", "x", "l"), node("HardSwish", "l", "w"), node("Add", "w h")], {}, (2, 40), 17),
    "smooth activations": ([node("Sigmoid", "x", "s"), node("Tanh", "x", "t"), node("Elu", "x", "e", alpha=1.5),
        node("Softplus", "x", "p"), node("Sum", "s t e p")], {}, (2, 40), 17),
    "other activations": ([node("Abs", "x", "a"), node("PRelu", "x w", "p"), node("Sub", "a p")],
        {"w": np.array([[0.3], [-2.0]], np.float32)}, (2, 40), 17),
    "maxpool": ([node("MaxPool", "x", kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1])], {},
        (1, 4, 6, 7), 17),
    "maxpool ceil": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[1, 2])], {},
        (1, 4, 6, 8), 17),
    "maxpool same": ([node("MaxPool", "x", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER")], {},
        (1, 4, 7, 8), 17),
    "scalars": ([node("Sqrt", "v", "s"), node("Reciprocal", "s", "r"), node("Pow", "r t", "p"),
        node("Mul", "x p")], {"v": np.float32(3), "t": np.float32(2)}, (2, 4), 17),
    "curves": ([node("Tanh", "x", "t"), node("Sigmoid", "t", "s"), node("Abs", "t", "a"), node("Add", "s a")], {},
        (2, 4), 17),
    "softmax": ([node("Softmax", "x", axis=1)], {}, (2, 4, 3), 13),
    "softmax 12": ([node("Softmax", "x")], {}, (2, 4, 3), 12),
    "normalized constants": ([node("ReduceL2", "v", "n", axes=[1]), node("Exp", "v", "e"), node("Mul", "e n", "p"),
        node("Mul", "x p")], {"v": rand(4, 3)}, (2, 4, 3), 17),
    "chosen": ([node("Range", "zero n d", "r"), node("Equal", "r one", "q"), node("Tile", "x t", "u"),
        node("Where", "q x u")], {"zero": ints(0)[0], "n": ints(4)[0], "d": ints(1)[0], "one": ints(1),
        "t": ints(2, 1)},
        (1, 4), 17),
    "resize": ([node("Resize", "x - s", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"s": np.array([1, 1, 2, 3], np.float32)}, (1, 4, 3, 5), 17),
    "resize half pixel": ([node("Resize", "x - - s")], {"s": ints(1, 4, 7, 4)}, (1, 4, 3, 5), 17),
    "upsample 9": ([node("Upsample", "x s")], {"s": np.array([1, 1, 2, 2], np.float32)}, (1, 4, 3, 5), 9),
}  # fmt: skip


def test_every_operator_of_the_table_is_tested() -> None:
    assert {node.op_type for nodes, *_ in CASES.values() for node in nodes} == set(registry.OPERATORS)


@pytest.mark.parametrize("name", CASES)
def test_operators_give_what_onnxruntime_gives_and_magnitudes_bound_it(name: str) -> None:
    nodes, constants, shape, opset = CASES[name]
    model = build(nodes, constants, len(shape), opset)
    feed = {"x": rand(*shape)}
    with open_session(model, fallback=False) as session:
        expected = session.run(feed)["y"]
    truth = Oracle(model)(feed)
    assert truth.value.shape == truth.magnitude.shape == expected.shape
    assert truth.value.dtype == np.float64
    magnitude = truth.magnitude.astype(np.float64)
    assert (np.abs(truth.value - expected) <= 2.0**-24 * 8 * (magnitude + 1e-6)).all()
    assert (np.abs(truth.value) <= magnitude * (1 + 1e-5) + 1e-6).all()
    squares = Oracle(model, 2)(feed)
    # HardSigmoid adds its beta, not the square of it, to squares, too.
    assert (squares.magnitude <= magnitude**2 * (1 + 1e-4) + 1e-5).all() or name == "activations"


def test_terms_are_counted_per_row_and_only_where_they_are_not_zero() -> None:
    model = build([node("Conv", "x w")], {"w": rand(2, 4, 3, 3)}, 4, 17)
    value = np.zeros((3, 4, 5, 5), np.float32)
    value[1, 0, 2, 2] = 1
    value[2] = 1
    terms = Oracle(model)({"x": value}).terms
    assert terms.shape == (3, 1, 1, 1)
    assert terms.ravel().tolist() == [1, 2, 37]


@pytest.mark.parametrize("power", [1, 2])
def test_magnitudes_alone_are_those_that_stand_beside_values(power: int) -> None:
    nodes = [
        node("Conv", "x w b", "t", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", "t s b m v", "u"),
        node("Add", "u c", "a"),
        node("MatMul", "a p"),
    ]
    constants = {
        "w": rand(6, 3, 3, 3), "b": rand(6), "s": rand(6), "m": rand(6), "v": np.abs(rand(6)), "c": rand(6, 1, 1),
        "p": rand(4, 5),
    }  # fmt: skip
    oracle = Oracle(build(nodes, constants, 4, 17), power)
    feed = {"x": rand(2, 3, 7, 7)}
    whole, alone = oracle(feed), oracle(feed, needs_values=False)
    assert np.array_equal(whole.magnitude, alone.magnitude)
    assert np.array_equal(whole.terms, alone.terms)
    assert alone.value.shape == whole.value.shape


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Erf", "x")],
        [node("Resize", "x r s", coordinate_transformation_mode="tf_crop_and_resize")],
        [helper.make_node("Relu", ["x"], ["y"], domain="com.example")],
    ],
)
def test_unknown_operators_and_modes_are_unsupported(nodes: list[onnx.NodeProto]) -> None:
    outside = np.array([0, 0, 0, 0, 1, 1, 1, 1.5], np.float32)
    model = build(nodes, {"s": np.array([1, 1, 2, 2], np.float32), "r": outside}, 4, 17)
    with pytest.raises(Unsupported):
        Oracle(model)({"x": rand(1, 1, 2, 2)})


def test_batch_normalization_in_the_training_mode_of_old_opsets_is_unsupported() -> None:
    model = build([node("BatchNormalization", "x s b m v", "y p q r t")], NORM, 4, 13)
    with pytest.raises(Unsupported, match="training"):
        Oracle(model)({"x": rand(2, 4, 3, 3)})


def test_shapes_that_do_not_fit_are_value_errors() -> None:
    model = build([node("Conv", "x w")], {"w": rand(2, 4, 3, 3)}, 4, 17)
    for shape in ((1, 4, 2, 5), (1, 3, 5, 5)):
        with pytest.raises(ValueError, match="fit"):
            Oracle(model)({"x": rand(*shape)})
    model = build([node("ConvTranspose", "x w", pads=[2, 0, 2, 0])], {"w": rand(4, 2, 3, 3)}, 4, 17)
    with pytest.raises(ValueError, match="crops everything"):
        Oracle(model)({"x": rand(1, 4, 2, 5)})


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("groups", "dtype"), [(1, np.float32), (4, np.float32), (1, np.float16)])
def test_large_kernels_are_evaluated_in_blocks(power, groups, dtype, monkeypatch) -> None:
    """Values and magnitudes are those of the whole kernel at once, but for the order of summation."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((24, 8 // groups, 3, 3)).astype(dtype), "w")
    kind = weight.data_type
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=groups, pads=[1] * 4)], "g",
        [helper.make_tensor_value_info("x", kind, [2, 8, 5, 6])],
        [helper.make_tensor_value_info("y", kind, None)], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feed = {"x": rng.standard_normal((2, 8, 5, 6)).astype(dtype)}
    whole = evaluator.Oracle(model, power)(feed)
    monkeypatch.setattr(evaluator, "LARGE_KERNEL", 100)
    monkeypatch.setattr(conv, "BLOCK_ELEMENTS", 5 * 8 * 9)
    blocks = evaluator.Oracle(model, power)
    assert isinstance(blocks.constants["w"], StoredKernel)
    truth = blocks(feed)
    np.testing.assert_allclose(truth.value, whole.value, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(truth.magnitude, whole.magnitude, rtol=1e-6)
    assert truth.magnitude.dtype == np.float32
    np.testing.assert_array_equal(truth.terms, whole.terms)


def test_what_a_leaky_relu_computes_is_stored_and_what_it_hands_on_was() -> None:
    x = np.array([[-4.0, 0.0, 3.0]], np.float32)
    half = build([node("LeakyRelu", "x", alpha=0.5)], {}, 2, 17)
    np.testing.assert_array_equal(Oracle(half, 2, storage=True)({"x": x}).magnitude, [[4.0, 0.0, 0.0]])
    third = build([node("LeakyRelu", "x", alpha=1 / 3)], {}, 2, 17)
    stored = Oracle(third, stored_as=np.dtype(np.float16))({"x": x}).value
    np.testing.assert_array_equal(stored, [[np.float16(np.float32(1 / 3) * -4), 0.0, 3.0]])
