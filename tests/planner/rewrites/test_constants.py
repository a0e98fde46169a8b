"""What nodes compute from constants alone becomes an initializer: computed by a runtime, late, bounded, and proved."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_repfuse import Options, Reason, Result, fuse, plan
from onnx_repfuse.graph import constant_folding
from onnx_repfuse.records.report import Kind
from tests.build import counts, equal, run, weight
from tests.parts import Weights, agree, batch_norm, graph, info, model, node, norm, random, rarely
from tests.versions import since_bfloat16

W, G = random(4, 3, 3, 3), random(4, 1, 1, 1)
X = {"x": random(2, 3, 7, 6)}


def _convolving(
    nodes: list[NodeProto], weights: Weights, kernel: str = "k", **attributes: Any
) -> onnx.ModelProto:
    """A Conv by a kernel that nodes compute, and its BatchNormalization."""
    nodes = [*nodes, node("Conv", f"x {kernel}", "conv", **attributes), batch_norm("conv", "y")]
    weights = {**weights, **norm(4)}
    return model(graph(nodes, [info("y", ["n", 4, "p", "q"])], weights, [info("x", ["n", 3, "h", "w_"])]))


def _kernel(result: Result) -> np.ndarray[Any, Any]:
    """The kernel of the one Conv, without the BatchNormalization's factor."""
    assert result.model is not None
    return onnx.numpy_helper.to_array(weight(result))


def _standardized(w: np.ndarray[Any, Any], gain: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    flat = w.reshape(len(w), -1)
    mean, variance = flat.mean(1, keepdims=True), flat.var(1, keepdims=True)
    return np.asarray(((flat - mean) / np.sqrt(variance + 1e-5) * gain.reshape(-1, 1)).reshape(w.shape))


def _sums_around(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.asarray(sum(padded[:, :, i : i + 3, j : j + 3] for i in range(3) for j in range(3)))


def _softmax(x: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


STANDARDIZED = [
    node("Reshape", "w flat", "r"),
    node("BatchNormalization", "r gain zero m v", "b m2 v2", training_mode=1),
    node("Reshape", "b full", "k"),
]
STANDARDIZING = {
    "w": W, "flat": [1, 4, 27], "full": [4, 3, 3, 3], "gain": G.ravel(), "zero": np.zeros(4, np.float32),
    "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32),
}  # fmt: skip
# nodes that compute a kernel, what they read, and the kernel by hand
KERNELS: dict[str, tuple[list[NodeProto], Weights, np.ndarray[Any, Any]]] = {
    "weight norm": (
        [node("ReduceL2", "v", "n", axes=[1, 2, 3]), node("Div", "v n", "u"), node("Mul", "g u", "k")],
        {"v": W, "g": G},
        G * W / np.sqrt((W**2).sum((1, 2, 3), keepdims=True)),
    ),
    "weight norm, spelled out": (
        [node("Mul", "v v", "s"), node("ReduceSum", "s axes", "t"), node("Sqrt", "t", "n"),
         node("Reciprocal", "n", "i"), node("Mul", "v i", "u"), node("Mul", "g u", "k")],
        {"v": W, "g": G, "axes": [1, 2, 3]},
        G * W / np.sqrt((W**2).sum((1, 2, 3), keepdims=True)),
    ),
    "weight standardization": (STANDARDIZED, STANDARDIZING, _standardized(W, G)),
    "softmaxed kernel": ([node("Softmax", "w", "k", axis=1)], {"w": W}, _softmax(W, 1)),
    "a branch of two, by softmaxed weights": (
        [node("Softmax", "a", "s", axis=0), node("Split", "s", "p q", axis=0), node("Mul", "w p", "u"),
         node("Mul", "w q", "t"), node("Sub", "u t", "k")],
        {"w": W, "a": np.array([0.3, -1], np.float32)},
        W * (_softmax(np.array([0.3, -1]), 0) @ [1, -1]),
    ),
    "central difference": (
        [node("ReduceMean", "w", "m", axes=[2, 3]), node("Pad", "m pads", "p"), node("Sub", "w p", "k")],
        {"w": W, "pads": [0, 0, 1, 1, 0, 0, 1, 1]},
        W - np.pad(W.mean((2, 3), keepdims=True), ((0, 0), (0, 0), (1, 1), (1, 1))),
    ),
    "a blurred kernel": (
        [node("Conv", "w blur", "k", pads=[1, 1, 1, 1], group=3)],
        {"w": W, "blur": np.full((3, 1, 3, 3), 1 / 9, np.float32)},
        _sums_around(W) / 9,
    ),
    "positive and clipped": (
        [node("Relu", "w", "r"), node("Clip", "r low high", "k")],
        {"w": W, "low": np.float32(0.1), "high": np.float32(0.5)},
        np.clip(np.maximum(W, 0), 0.1, 0.5),
    ),
    "two halves": (
        [node("Split", "w sizes", "a b", axis=0), node("Concat", "b a", "k", axis=0)],
        {"w": W, "sizes": [1, 3]},
        np.concatenate([W[1:], W[:1]]),
    ),
    "chosen, ranged, cast": (
        [node("Range", "zero four one", "r"), node("Gather", "w r", "g"), node("Equal", "r two", "e"),
         node("Reshape", "e shape", "f"), node("Where", "f g h", "k0"), node("Cast", "k0", "k", to=1)],
        {"zero": 0, "four": 4, "one": 1, "two": 2, "w": W.astype(np.float64), "shape": [4, 1, 1, 1], "h": np.zeros(())},
        np.where(np.arange(4).reshape(4, 1, 1, 1) == 2, W, 0),
    ),
    "tiled and transposed": (
        [node("Tile", "t repeats", "u"), node("Transpose", "u", "k", perm=[3, 2, 0, 1])],
        {"t": np.ascontiguousarray(W[:, :1, :, :].transpose(2, 3, 1, 0)), "repeats": [1, 1, 3, 1]},
        np.repeat(W[:, :1], 3, 1),
    ),
    "of a shape": (
        [node("Shape", "w", "s"), node("ConstantOfShape", "s", "c", value=helper.make_tensor("v", 1, [1], [0.25])),
         node("Mul", "w c", "k")],
        {"w": W},
        W / 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_nodes_compute_folds(name: str) -> None:
    nodes, weights, kernel = KERNELS[name]
    made = _convolving(nodes, weights)
    report = agree(made, X, folds=1)
    # folded further: nothing shows
    assert [str(verdict.status) for verdict in report.verification.changes] == []
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == {"Conv": 1}
    values = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in made.graph.initializer}
    factor = values["ps"] / np.sqrt(values["pv"] + 1e-5)
    np.testing.assert_allclose(_kernel(result), kernel * factor.reshape(-1, 1, 1, 1), rtol=2e-5, atol=1e-6)
    assert equal(made, result.model) > 0
    again = fuse(result.model)
    assert again.model is not None
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_it_is_an_initializer_even_where_nothing_folds() -> None:
    nodes = [node("Mul", "w g", "k"), node("Conv", "x k", "c"), node("Sigmoid", "c", "y")]
    made = model(graph(nodes, [info("y", None)], {"w": W, "g": G}, [info("x", [1, 3, 7, 6])]))
    result = fuse(made)
    assert result.model is not None
    (tensor,) = result.model.graph.initializer
    assert tensor.name == "k"  # the name of the tensor stays
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), W * G)
    (change,) = result.report.changes
    assert (change.kind, change.nodes) == (Kind.CONSTANT, ("k",))
    assert change.claim == "Mul 'k' computes 'k' from constants alone: it is an initializer now"
    (verdict,) = result.report.verification.changes
    assert str(verdict.status) == "passed"
    assert not result.report.folds
    assert equal(made, result.model) > 0


def test_planning_computes_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*arguments: Any) -> None:
        raise AssertionError("a kernel was computed")

    monkeypatch.setattr(constant_folding, "evaluate", evaluate)
    for name in ("weight norm", "weight standardization", "softmaxed kernel", "central difference"):
        nodes, weights, _ = KERNELS[name]
        assert plan(_convolving(nodes, weights)).after.ops == {"Conv": 1}


def test_a_wrong_value_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = constant_folding.evaluate

    def evaluate(*arguments: Any) -> Any:
        return {name: value * np.asarray(1.001, value.dtype) for name, value in honest(*arguments).items()}

    monkeypatch.setattr(constant_folding, "evaluate", evaluate)
    nodes, weights, _ = KERNELS["weight norm"]
    made = _convolving(nodes, weights)
    result = fuse(made)
    assert Reason.VERIFICATION in [refusal.reason for refusal in result.report.refusals]
    assert not result.report.changes
    assert result.model is not None
    np.testing.assert_allclose(run(result.model, X)[0], run(made, X)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "weights", "why"),
    [
        ([helper.make_node("RandomNormal", [], ["k"], shape=[4, 3, 3, 3], seed=1.0)], {}, "it is random"),
        ([node("RandomNormalLike", "w", "k", seed=1.0)], {"w": W}, "it is random"),
        ([node("Bernoulli", "w", "k", seed=1.0)], {"w": np.abs(W).clip(0, 1)}, "it is random"),
        ([node("Dropout", "w r t", "k", seed=1)], {"w": W, "r": np.float32(0.5), "t": np.array(True)}, "it is random"),
        ([node("Loop", "n t w", "k", body=graph(
            [node("Identity", "go", "on"), node("Neg", "s", "r")],
            [info("on", [], TensorProto.BOOL), info("r", None)],
            {}, [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", None)]))],
         {"w": W, "n": np.array(3), "t": np.array(True)}, "it has subgraphs"),
    ],
)  # fmt: skip
def test_what_is_not_evaluated_says_why(nodes: list[NodeProto], weights: Weights, why: str) -> None:
    report = plan(_convolving(nodes, weights))
    assert report.before.ops == report.after.ops
    (refusal,) = [refusal for refusal in report.refusals if refusal.reason is Reason.UNSUPPORTED]
    op = nodes[0].op_type
    assert refusal.message == f"Conv 'conv' stays: its weight is computed by {op} 'k', and {why}."


def test_a_quantized_weight_stays_quantized() -> None:
    nodes = [node("QuantizeLinear", "w s", "q"), node("DequantizeLinear", "q s", "k")]
    report = plan(_convolving(nodes, {"w": W, "s": np.float32(0.02)}))
    assert report.before.ops == report.after.ops
    assert [refusal.reason for refusal in report.refusals] == [Reason.QUANTIZED]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Div", "a z", "s")],
        [node("Mod", "a z", "s")],
        [node("Div", "least m", "s")],
        [node("DepthToSpace", "w z2", "s", blocksize=0)],
        [node("Conv", "w w", "k2", group=0), node("Shape", "k2", "s")],
        [node("Conv", "w w", "k2", strides=[0, 0]), node("Shape", "k2", "s")],
        [node("ReduceMean", "none", "k2"), node("Shape", "k2", "s")],
        [node("Gather", "a far", "s")],
        [node("Reshape", "w a", "k2"), node("Shape", "k2", "s")],
        [node("StringNormalizer", "text", "t2"), node("Shape", "t2", "s")],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_what_has_no_value_neither_ends_the_process_nor_stops_other_folds(nodes: list[NodeProto]) -> None:
    weights = {
        "a": [4, 8], "z": [0, 2], "z2": [0], "m": [-1], "least": [np.iinfo(np.int64).min], "w": W, "far": [7],
        "none": np.zeros((0, 3), np.float32), "text": np.array(["a"], object),
    }  # fmt: skip
    then = graph([*nodes, node("Conv", "x w2", "c"), node("Expand", "c s", "o")], [info("o", None)])
    other = graph([node("Conv", "x w2", "d"), batch_norm("d", "o2")], [info("o2", None)])
    made = rarely(then, other, {"w2": random(4, 3, 1, 1), **norm(4), **weights})
    assert len(plan(made).folds) == 1


def _beside(nodes: list[NodeProto], weights: Weights, *more: str, op: str = "Add") -> onnx.ModelProto:
    """Nodes that compute a constant `k`, which stands beside the input; `more` are other outputs."""
    nodes = [*nodes, node(op, "x k", "y")]
    outputs = [info(name, None) for name in ("y", *more)]
    return model(graph(nodes, outputs, weights, [info("x", [2, 64, 64])]))


def _ops(made: onnx.ModelProto, **options: Any) -> dict[str, int]:
    result = fuse(made, options=Options(**options))
    assert result.model is not None
    feed = {"x": random(2, 64, 64)}
    for want, got in zip(run(made, feed), run(result.model, feed), strict=True):
        np.testing.assert_array_equal(got, want)
    again = fuse(result.model, options=Options(**options)).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()
    return counts(result.model)


BIG = random(64, 64)


@pytest.mark.parametrize(
    ("nodes", "weights", "left"),
    [
        # an initializer would be much larger than what it replaces
        ([node("Expand", "one s", "k")], {"one": np.float32(1), "s": [64, 64]}, {"Max": 1, "Expand": 1}),
        ([node("ConstantOfShape", "s", "k")], {"s": [64, 64]}, {"Max": 1, "ConstantOfShape": 1}),
        ([node("Tile", "row r", "k")], {"row": random(64), "r": [64]}, None),
        ([node("Cast", "h", "k", to=1)], {"h": BIG.astype(np.float16)}, {"Max": 1, "Cast": 1}),
        # but what it is made of is an initializer, or as large
        ([node("Neg", "one", "n"), node("Expand", "n s", "k")], {"one": np.float32(1), "s": [64, 64]},
         {"Max": 1, "Expand": 1}),
        ([node("Transpose", "b", "k")], {"b": BIG}, {"Max": 1}),
        ([node("Transpose", "b", "t"), node("Neg", "t", "k")], {"b": BIG}, {"Max": 1}),
        ([node("Cast", "d", "k", to=1)], {"d": BIG.astype(np.float64)}, {"Max": 1}),
        ([node("Expand", "one s", "k")], {"one": np.float32(1), "s": [64]}, {"Max": 1}),
    ],
)  # fmt: skip
def test_the_file_does_not_grow(
    nodes: list[NodeProto], weights: Weights, left: dict[str, int] | None
) -> None:
    """Arithmetic would read what is expanded as it was before."""
    if left is None:  # a Tile of another rank is not valid
        nodes, weights = [node("Tile", "row r", "k")], {"row": random(1, 64), "r": [64, 1]}
        left = {"Max": 1, "Tile": 1}
    assert _ops(_beside(nodes, weights, op="Max")) == left


def test_a_weight_that_another_node_reads_is_not_stored_twice() -> None:
    nodes = [node("Transpose", "b", "k"), node("Mul", "x b", "z")]
    assert _ops(_beside(nodes, {"b": BIG}, "z")) == {"Add": 1, "Mul": 1, "Transpose": 1}


def test_the_last_reader_of_a_weight_decides_after_the_others_are_gone() -> None:
    nodes = [node("Transpose", "b", "k"), node("ReduceMax", "b", "m", keepdims=0), node("Mul", "x m", "z")]
    assert _ops(_beside(nodes, {"b": BIG}, "z")) == {"Add": 1, "Mul": 1}


def test_an_output_of_the_graph_is_computed() -> None:
    nodes = [node("Neg", "b", "n"), node("Transpose", "n", "k")]
    assert _ops(_beside(nodes, {"b": BIG}, "k")) == {"Add": 1, "Transpose": 1}


@pytest.mark.parametrize("options", [{"skip": frozenset((Kind.CONSTANT,))}, {"keep": ("k",)}])
def test_it_may_be_left_out(options: dict[str, Any]) -> None:
    assert _ops(_beside([node("Transpose", "b", "k")], {"b": BIG}), **options) == {"Add": 1, "Transpose": 1}


def test_all_constants_of_a_scope_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_folding, "MAX_GROWN_BYTES", 3 * 4000)
    nodes = [node("Expand", "one s", f"k{n}") for n in range(5)] + [node("Sum", "x k0 k1 k2 k3 k4", "y")]
    made = model(graph(nodes, [info("y", None)], {"one": np.float32(1), "s": [1000]}, [info("x", [2, 1000])]))
    options = Options(skip=frozenset((Kind.EQUAL,)))
    assert plan(made, options=options).after.ops == {"Expand": 2, "Sum": 1}


@pytest.mark.parametrize("ir", [3, 8])
def test_in_a_branch(ir: int) -> None:
    nodes, weights, _ = KERNELS["weight norm"]
    then = graph([*nodes, node("Conv", "x k", "d"), batch_norm("d", "o")], [info("o", None)])
    other = graph([node("Conv", "x v", "o2")], [info("o2", None)])
    made = rarely(then, other, {**weights, **norm(4)})
    made.ir_version = ir
    if ir < 4:
        inputs = [info(t.name, t.dims, t.data_type) for t in made.graph.initializer]
        made.graph.input.extend(inputs)
    result = fuse(made)
    assert result.model is not None
    branch = result.model.graph.node[-1].attribute[0].g
    assert [n.op_type for n in branch.node if n.op_type != "Constant"] == ["Conv"]
    for x in (X["x"], X["x"] + 60):
        np.testing.assert_allclose(
            run(result.model, {"x": x})[0], run(made, {"x": x})[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(("first", "left"), [("ConstantOfShape", 0), ("Expand", 1)])
def test_at_level_2_a_file_grows_by_what_runtimes_compute_in_every_run(first: str, left: int) -> None:
    """ONNX Runtime folds no ConstantOfShape, so that it would scatter, and multiply by a weight that is no constant."""
    made_by = (
        node("ConstantOfShape", "s", "e") if first == "ConstantOfShape" else node("Expand", "one s", "e")
    )
    nodes = [made_by, node("ScatterElements", "e at u", "k"), node("MatMul", "x k", "y")]
    weights = {"s": [64, 64], "one": np.ones((1,), np.float32), "at": np.arange(64)[None], "u": random(1, 64)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 64])]))
    kept = fuse(made)
    assert kept.report.after.ops == kept.report.before.ops
    grown = fuse(made, options=Options(level=2))
    assert grown.report.after.ops == {"MatMul": 1, **({first: 1, "ScatterElements": 1} if left else {})}
    assert grown.model is not None
    x = {"x": random(3, 64)}
    np.testing.assert_array_equal(run(made, x)[0], run(grown.model, x)[0])
    assert not fuse(grown.model, options=Options(level=2)).report.changes


def test_a_weight_of_the_graph_around_stays_there() -> None:
    """Each branch would hold one of its own, and the other branch keeps the one outside."""
    branches = [
        graph([node("Transpose", "b", "k"), node("MatMul", "x k", out)], [info(out, None)]) for out in "pq"
    ]
    made = rarely(*branches, {"b": BIG})
    result = fuse(made, options=Options(check=False))
    assert result.report.after.bytes <= result.report.before.bytes
    assert [len(a.g.node) for a in result.model.graph.node[-1].attribute] == [2, 2]


@pytest.mark.parametrize("kind", [np.float16, pytest.param(ml_dtypes.bfloat16, marks=since_bfloat16)])
def test_half_precision_is_computed_as_the_runtime_does(kind: Any) -> None:
    """Not in the order, and with the roundings, of numpy."""
    w, g = W.astype(kind), G.astype(kind)
    nodes = [
        node("Mul", "w g", "u"),
        node("Exp", "u", "e"),
        node("GlobalAveragePool", "e", "m"),
        node("Mul", "e m", "k"),
    ]
    nodes += [node("Conv", "x k", "c"), node("Relu", "c", "y")]
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x, y = info("x", [1, 3, 7, 6], data_type), info("y", None, data_type)
    made = model(
        graph(nodes, [y, info("k", None, data_type)], {"w": w, "g": g}, [x]),
        opset=22 if kind is ml_dtypes.bfloat16 else 17,
        ir=10,
    )
    feed = {"x": random(1, 3, 7, 6).astype(kind)}
    expected = run(made, feed)[1] if kind == np.float16 else ReferenceEvaluator(made).run(["k"], feed)[0]
    del made.graph.output[1]
    result = fuse(made)
    assert result.model is not None
    assert counts(result.model) == {"Conv": 1, "Relu": 1}
    assert _kernel(result).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("op", ["Mul(two, one)", "Identity(two)"])
def test_a_vector_of_one_number_that_a_range_reads_stays_computed(op: str) -> None:
    """ONNX Runtime takes it where it is computed, and does not load a Range of an initializer that is no scalar."""
    made = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[N] x) => (int64[N] y) <int64[1] two = {{2}}, int64 zero = {{0}}, int64 one = {{1}}> {{
            end = {op}
            numbers = Range(zero, end, one)
            y = Add(x, numbers)
        }}""")
    feed = {"x": np.array([5, 5])}
    (expected,) = run(made, feed)
    (got,) = run(fuse(made, options=Options(check=False)).model, feed)
    np.testing.assert_array_equal(got, expected)
