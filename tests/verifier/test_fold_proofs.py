"""Folds judged alone and in place, and bisection: unusual folds, and what cannot be judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_repfuse.pipeline.compare_models import bisect
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier import intermediates
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import EQUAL
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.intermediates import read_intermediates, shape_name
from onnx_repfuse.verifier.session import Session
from tests.verifier.folds_in_place import check_folds
from tests.versions import since_bfloat16

F = TensorProto.FLOAT
RNG = np.random.default_rng(7)
Arrays = dict[str, Any]


def rand(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def info(name: str, shape: Any, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def build(
    nodes: list[Any], inputs: list[Any], constants: Arrays, kind: int = F, opset: int = 17
) -> onnx.ModelProto:
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", None, kind)], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def fold(
    before: list[Any],
    after: list[Any],
    inputs: list[Any],
    first: Arrays,
    second: Arrays,
    kind: int = F,
    opset: int = 17,
) -> FoldCase:
    return FoldCase(build(before, inputs, first, kind, opset), build(after, inputs, second, kind, opset))


def kxk_and_1x1(rank: int, kind: int, wrong: float = 0.0, batch: Any = "n", space: Any = None) -> FoldCase:
    """kxk + 1x1 in `rank` dimensions."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    big, small = rand(6, 8, *(3,) * rank, dtype=dtype), rand(6, 8, *(1,) * rank, dtype=dtype)
    total = big.astype(np.float64)
    total[(slice(None), slice(None), *(1,) * rank)] += small[(slice(None), slice(None), *(0,) * rank)].astype(
        np.float64
    )
    total[(0, 1, *(0,) * rank)] += wrong
    pads = [1] * 2 * rank
    before = [node("Conv", "x big", "a", pads=pads), node("Conv", "x small", "b"), node("Add", "a b", "y")]
    after = [node("Conv", "x w", "y", pads=pads)]
    inputs = [info("x", [batch, 8, *(space or [f"d{i}" for i in range(rank)])], kind)]
    return fold(before, after, inputs, {"big": big, "small": small}, {"w": total.astype(dtype)}, kind, 22)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_folds_of_any_rank_are_judged(rank: int) -> None:
    assert probe(kxk_and_1x1(rank, F)).status is Status.PASSED
    assert probe(kxk_and_1x1(rank, F, 0.01)).status is Status.FAILED


@pytest.mark.parametrize(
    "kind", [TensorProto.DOUBLE, pytest.param(TensorProto.BFLOAT16, marks=since_bfloat16)]
)
def test_types_that_onnxruntime_has_no_kernel_for_are_judged_by_the_reference_evaluator(kind: int) -> None:
    good, bad = probe(kxk_and_1x1(2, kind)), probe(kxk_and_1x1(2, kind, 2.0))
    assert (good.status, good.judge) == (Status.PASSED, "reference"), good.message
    assert (bad.status, bad.judge) == (Status.FAILED, "reference"), bad.message


@pytest.mark.parametrize("batch", [1, 3])
def test_sources_may_have_a_fixed_batch_and_size(batch: int) -> None:
    for wrong, status in ((0, Status.PASSED), (0.01, Status.FAILED)):
        assert probe(kxk_and_1x1(2, F, wrong, batch)).status is status
        assert probe(kxk_and_1x1(2, F, wrong, batch, [14, 14])).status is status


def test_one_wrong_weight_of_a_matrix_product_is_seen_at_any_rank() -> None:
    a, b, w, scale = rand(48, 4), rand(4, 32), rand(48, 32), rand(32)
    folded = w.astype(np.float64) + a.astype(np.float64) @ b
    before = [
        node("MatMul", "x w", "p"),
        node("MatMul", "x a", "q"),
        node("MatMul", "q b", "r"),
        node("Add", "p r", "y"),
    ]
    constants = {"a": a, "b": b, "w": w}
    after = [node("MatMul", "x w", "y")]
    for inputs in ([info("x", ["n", "t", 48])], [info("x", ["n", 48])], [info("x", ["t", 48])]):
        case = fold(before, after, inputs, constants, {"w": folded.astype(np.float32)})
        assert probe(case).status is Status.PASSED
        wrong = folded.copy()
        wrong[5, 7] += 1e-3
        assert (
            probe(fold(before, after, inputs, constants, {"w": wrong.astype(np.float32)})).status
            is Status.FAILED
        )
    before = [node("Gemm", "x w", "p"), node("Mul", "p s", "y")]
    case = fold(
        before, [node("Gemm", "x w", "y")], [info("x", ["n", 48])], {"w": w, "s": scale}, {"w": w * scale}
    )
    assert probe(case).status is Status.PASSED


def test_several_sources_get_sizes_that_fit_each_other() -> None:
    w, s = rand(8, 8, 3, 3), rand(8, 1, 1)
    inputs = [info("x", ["n", 8, "h", "w"]), info("z", ["n", 8, "p", "q"])]
    strided = {"pads": [1] * 4, "strides": [2, 2]}
    before = [node("Conv", "x w", "a", **strided), node("Mul", "a s", "b"), node("Add", "b z", "y")]
    after = [node("Conv", "x w", "a", **strided), node("Add", "a z", "y")]
    good = fold(before, after, inputs, {"w": w, "s": s}, {"w": w * s[:, :, :, None]})
    assert probe(good).status is Status.PASSED
    bad = fold(before, after, inputs, {"w": w, "s": s}, {"w": w})
    assert probe(bad).status is Status.FAILED
    lost = fold(
        before, [node("Conv", "x w", "y", **strided)], inputs, {"w": w, "s": s}, {"w": w * s[:, :, :, None]}
    )
    assert probe(lost).status is Status.FAILED


def test_a_source_may_have_a_larger_batch_than_there_are_impulses() -> None:
    w, s = rand(4, 4, 3, 3), rand(4, 1, 1)
    inputs = [info("x", [1, 4, 16, 16]), info("z", [40, 4, 16, 16])]
    before = [node("Conv", "x w", "a", pads=[1] * 4), node("Mul", "a s", "b"), node("Add", "b z", "y")]
    after = [node("Conv", "x w", "a", pads=[1] * 4), node("Add", "a z", "y")]
    assert (
        probe(fold(before, after, inputs, {"w": w, "s": s}, {"w": w * s[:, :, :, None]})).status
        is Status.PASSED
    )
    assert probe(fold(before, after, inputs, {"w": w, "s": s}, {"w": w})).status is Status.FAILED


def test_a_transposed_convolution_is_judged() -> None:
    w, s = rand(8, 6, 3, 3), rand(6)
    how = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    before = [node("ConvTranspose", "x w", "a", **how), node("Mul", "a s", "y")]
    constants = {"w": w, "s": s[:, None, None]}
    inputs = [info("x", ["n", 8, "h", "w"])]
    for weight, status in ((w * s[None, :, None, None], Status.PASSED), (w * s.mean(), Status.FAILED)):
        case = fold(before, [node("ConvTranspose", "x w", "y", **how)], inputs, constants, {"w": weight})
        assert probe(case).status is status


def test_a_fold_to_an_identity_and_one_without_declared_channels_are_judged() -> None:
    inputs = [info("x", ["n", 8, "h", "w"])]
    ones = np.ones((1, 8, 1, 1), np.float32)
    assert (
        probe(fold([node("Mul", "x o", "y")], [node("Identity", "x", "y")], inputs, {"o": ones}, {})).status
        is Status.PASSED
    )
    ones[0, 3] = np.nextafter(np.float32(1), np.float32(2)) + np.float32(1e-5)
    assert (
        probe(fold([node("Mul", "x o", "y")], [node("Identity", "x", "y")], inputs, {"o": ones}, {})).status
        is Status.FAILED
    )
    loose = [info("x", ["n", "c", "h", "w"])]
    assert (
        probe(
            fold([node("Mul", "x o", "y")], [node("Add", "x x", "y")], loose, {"o": np.float32(2)}, {})
        ).status
        is Status.PASSED
    )


def test_activations_between_the_nodes_are_judged() -> None:
    clip = {"low": np.float32(0), "high": np.float32(6)}
    inputs = [info("x", ["n", 8, "h", "w"])]
    before = [node("Clip", "x low high", "a"), node("Div", "a s", "y")]
    after = [node("HardSigmoid", "x", "y", alpha=1 / 6, beta=0.0)]
    assert probe(fold(before, after, inputs, {**clip, "s": np.float32(6)}, {})).status is Status.PASSED
    assert probe(fold(before, after, inputs, {**clip, "s": np.float32(6.01)}, {})).status is Status.FAILED


def test_unknown_operators_are_judged_by_the_runtime_alone() -> None:
    inputs = [info("x", ["n", 8, "h", "w"])]
    before = [node("Erf", "x", "e"), node("Mul", "e s", "f"), node("Mul", "f s", "y")]
    after = [node("Erf", "x", "e"), node("Mul", "e s", "y")]
    for scale, status in ((1.69, Status.PASSED), (1.691, Status.FAILED)):
        verdict = probe(fold(before, after, inputs, {"s": np.float32(1.3)}, {"s": np.float32(scale)}))
        assert verdict.status is status
        assert "does not know Erf" in verdict.message


def test_a_replacement_that_does_not_run_fails() -> None:
    inputs = [info("x", ["n", 8, "h", "w"])]
    before, scale = [node("Mul", "x s", "y")], {"s": np.float32(2)}
    for after in ([node("NoSuchOp", "x", "y")], [node("Conv", "x s", "y")], [node("Flatten", "x", "y")]):
        verdict = probe(fold(before, after, inputs, scale, scale))
        assert verdict.status is Status.FAILED
        assert "\n" not in verdict.message


def test_nan_weights_fail() -> None:
    case = kxk_and_1x1(2, F)
    weight = numpy_helper.to_array(case.after.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    case.after.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert probe(case).status is Status.FAILED


def test_a_fold_that_no_size_fits_has_failed() -> None:
    inputs = [info("x", ["n", 8, 2, 2])]
    before = [node("Reshape", "x s", "y")]
    case = fold(before, before, inputs, {"s": np.array([7, 7])}, {"s": np.array([7, 7])})
    verdict = probe(case)
    assert verdict.status is Status.FAILED
    assert "nothing could be compared" in verdict.message


def test_stimuli_stay_small_and_reach_every_channel() -> None:
    case = kxk_and_1x1(2, F)
    kinds: dict[str, int] = {}
    for stimulus in stimuli(case, (EQUAL,)):
        array = stimulus.feed["x"]
        kinds[stimulus.kind] = kinds.get(stimulus.kind, 0) + int(np.prod(array.shape[2:])) * array.shape[0]
        assert array.dtype == np.float32
        if stimulus.kind == "impulse":
            assert (array != 0).any((0, 2, 3)).all()
    assert set(kinds) == {"border", "impulse", "noise"}
    assert sum(kinds.values()) < 6000


def two_blocks() -> tuple[onnx.ModelProto, FoldCase, FoldCase]:
    """img -> Conv -> x -> [scale, shift] -> y -> Relu, and a body of an If."""
    w, s = rand(4, 3, 1, 1), rand(4, 1, 1)
    then = helper.make_graph([node("Mul", "y s", "inner")], "then", [], [info("inner", None)])
    other = helper.make_graph([node("Identity", "y", "outer")], "else", [], [info("outer", None)])
    nodes = [
        node("Conv", "img w", "x"),
        node("Mul", "x s", "a"),
        node("Mul", "a s", "y"),
        helper.make_node("If", ["c"], ["out"], then_branch=then, else_branch=other),
    ]
    constants = {"w": w, "s": s, "c": np.array(True)}
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [info("img", [1, 3, 5, 5])], [info("out", None)], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    inputs = [info("x", ["n", 4, "h", "w"])]
    good = fold(nodes[1:3], [node("Mul", "x t", "y")], inputs, {"s": s}, {"t": s * s})
    before = build([node("Mul", "y s", "inner")], [info("y", ["n", 4, "h", "w"])], {"s": s})
    before.graph.output[0].name = "inner"
    inner = FoldCase(before, good.after)
    return model, good, inner


def test_folds_in_subgraphs_are_not_observed_in_place() -> None:
    model, good, inner = two_blocks()
    first, second = check_folds(model, [good, inner])
    assert first.status is Status.PASSED
    assert second.status is Status.NOT_OBSERVED
    assert "not in the main graph" in second.message


def test_intermediates_of_zeros_are_not_observed() -> None:
    model, good, _ = two_blocks()
    zeros = {"img": np.zeros((1, 3, 5, 5), np.float32)}
    (verdict,) = check_folds(model, [good], zeros)
    assert verdict.status is Status.NOT_OBSERVED


def test_folds_are_judged_in_batches_where_memory_is_short() -> None:
    model, good, _ = two_blocks()
    assert check_folds(model, [good] * 5, max_bytes=1) == check_folds(model, [good] * 5)


def test_intermediates_are_read_from_files_with_external_data(tmp_path: Any) -> None:
    model, good, _ = two_blocks()
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0, location="a.bin")
    (verdict,) = check_folds(tmp_path / "a.onnx", [good])
    assert verdict.status is Status.PASSED


@pytest.mark.parametrize("bad", [set(), {0}, {9}, {3, 4}, {0, 5, 9}, set(range(10))])
def test_bisection_finds_every_culprit(bad: set[int]) -> None:
    calls = 0

    def passes(kept: Sequence[int]) -> bool:
        nonlocal calls
        calls += 1
        return not bad & set(kept)

    found, unsearched = bisect(range(10), passes)
    assert (set(found), unsearched) == (bad, [])
    assert calls <= 5 * len(bad) + 1


@pytest.mark.parametrize(
    "bad", [{0}, {40}, {99}, {3, 50}, {10, 20, 90}, set(range(60, 100)), set(range(100))]
)
@pytest.mark.parametrize("most", [0, 1, 5, 12, 24])
def test_bisection_is_bounded_and_what_it_leaves_passes(bad: set[int], most: int) -> None:
    calls = 0

    def passes(kept: Sequence[int]) -> bool:
        nonlocal calls
        calls += 1
        return not bad & set(kept)

    found, unsearched = bisect(range(100), passes, most)
    assert calls <= most
    assert bad.issuperset(found)
    assert bad <= {*found, *unsearched}
    if min(bad) > 50 and most > 1:  # what was seen to pass is kept
        assert min([*found, *unsearched]) >= 50


@pytest.mark.parametrize("scale", [1.5, 1.6])
def test_in_place_a_fold_takes_the_rank_of_its_intermediates(scale: float) -> None:
    """A product on the last axis of a tensor whose rank the file does not prove."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3)).astype(np.float32)

    def model(nodes: list[onnx.NodeProto], **tensors: Any) -> onnx.ModelProto:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "fold",
            [value("x", TensorProto.FLOAT, ["batch", 4])],
            [value("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in tensors.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    product = helper.make_node("MatMul", ["x", "w"], ["t"])
    before = model([product, helper.make_node("Mul", ["t", "s"], ["y"])], w=weight, s=1.5)
    after = model([helper.make_node("MatMul", ["x", "w"], ["y"])], w=weight * scale)
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    verdict = check_in_place(FoldCase(before, after), {"x": x, "y": (x @ weight) * np.float32(1.5)})
    assert verdict.status is (Status.PASSED if scale == 1.5 else Status.FAILED)


def test_sizes_that_the_runtime_does_not_infer_take_one_more_run() -> None:
    """A guess at the sizes of dynamic tensors would be so large that the original ran once for every two of them."""
    names = [f"t{index}" for index in range(12)]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in zip(["x", *names], names, strict=False)]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
    runs: list[int] = []
    size = feed["x"].nbytes

    def read(memory: int, **known: Any) -> list[list[int]]:
        runs.clear()
        wanted = [[name] for name in names]
        return [
            b
            for b, _ in read_intermediates(
                model, wanted, feed, max_bytes=memory, on_run=lambda: runs.append(1), **known
            )
        ]

    assert read(12 * size) == [list(range(12))]
    assert len(runs) == 2
    assert read(5 * size) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert len(runs) == 4
    assert read(1000 * size) == [list(range(12))]
    assert len(runs) == 1
    of_file = dict.fromkeys(names, feed["x"].size)
    assert read(12 * size, elements=of_file) == [list(range(12))]
    assert len(runs) == 1
    assert read(5 * size, elements=of_file) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert len(runs) == 3


def test_what_was_read_before_is_not_read_again() -> None:
    model, names, feed = _chain_of_twelve()
    wanted = [[names[0]], ["", "x"], [names[1], names[2]]]
    known = {name: np.zeros(1) for name in names}
    given = [
        (batch, isinstance(values, str))
        for batch, values in read_intermediates(model, wanted, feed, known=known)
    ]
    assert given == [([1], True), ([0, 2], False)]
    assert not known
    known = {names[0]: np.zeros(1)}
    assert [batch for batch, _ in read_intermediates(model, wanted, feed, known=known)] == [[1], [0, 2]]


def _sizes_of_an_image(constant: list[int], reader: str = "Shape") -> FoldCase:
    """The sizes of an image, against a constant; the image itself is not read."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 24])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, None)]
    opset, sizes = [helper.make_opsetid("", 17)], np.array(constant, np.int64)

    def model(nodes: list[Any], constants: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=opset, ir_version=9)

    before = [helper.make_node(reader, ["x"], ["s"]), helper.make_node("Identity", ["s"], ["y"])]
    return FoldCase(model(before, []), model([], [numpy_helper.from_array(sizes, "y")]))


@pytest.mark.parametrize(("constant", "is_right"), [([1, 3, 32, 24], True), ([1, 3, 24, 32], False)])
def test_of_what_only_sizes_are_read_no_values_are(constant: list[int], is_right: bool) -> None:
    case = _sizes_of_an_image(constant)
    assert case.measured == {"x"}
    expected = Status.PASSED if is_right else Status.FAILED
    assert probe(case).status is expected
    graph = helper.make_graph(
        [
            helper.make_node("Sin", ["a"], ["x"]),
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Identity", ["s"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for zeros in (False, True):  # what an image of zeros would not show, its sizes do
        feed = {"a": np.full((1, 3, 32, 24), 0.0 if zeros else 1.0, np.float32)}
        wanted = [[shape_name("x"), "y"]]
        batch, seen = next(read_intermediates(model, wanted, feed))
        assert batch == [0]
        assert not isinstance(seen, str)
        assert seen[shape_name("x")].tolist() == [1, 3, 32, 24]
        assert "x" not in seen
        assert check_in_place(case, seen).status is expected


def test_values_of_a_tensor_are_compared_beside_its_sizes_that_another_fold_reads() -> None:
    twice = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,3] y) { t = Neg(x) y = Neg(t) }""")
    once = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,3] y) { y = Identity(x) }""")
    x = np.array([[1, 2, 3]], np.float32)
    seen = {"x": x, shape_name("x"): np.array(x.shape), "y": x.copy()}
    verdict = check_in_place(FoldCase(twice, once), seen)
    assert verdict.status is Status.PASSED, verdict.message


def test_a_tensor_that_is_not_there_has_no_sizes() -> None:
    model, _, feed = _chain_of_twelve()
    ((_, seen),) = read_intermediates(model, [[shape_name("nowhere")]], feed)
    assert isinstance(seen, str)


def test_values_that_a_replacement_reads_are_tried() -> None:
    """The nodes before read the sizes alone."""
    case = _sizes_of_an_image([1, 3, 32, 24])
    wrong = onnx.ModelProto()
    wrong.CopyFrom(case.before)
    del wrong.graph.node[:]
    wrong.graph.node.append(helper.make_node("Cast", ["x"], ["c"], to=TensorProto.INT64))
    wrong.graph.node.append(helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0))
    wrong.graph.node.append(helper.make_node("Shape", ["x"], ["s"]))
    wrong.graph.node.append(helper.make_node("Add", ["s", "m"], ["y"]))
    case = FoldCase(case.before, wrong)
    assert not case.measured
    assert probe(case).status is Status.FAILED


def _chain_of_twelve() -> tuple[onnx.ModelProto, list[str], dict[str, Any]]:
    names = [f"t{index}" for index in range(12)]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in zip(["x", *names], names, strict=False)]
    shape = [1, 3, 32, 32]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model, names, {"x": np.ones(shape, np.float32)}


def test_few_tensors_are_held_at_once_where_that_takes_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, names, feed = _chain_of_twelve()
    size = feed["x"].nbytes
    for few, runs in ((4 * size, 3), (12 * size, 1), (0, 12)):
        monkeypatch.setattr(intermediates, "_FEW_BYTES", few)
        monkeypatch.setattr(intermediates, "_FEW_RUNS", 12)
        assert len(list(read_intermediates(model, [[name] for name in names], feed))) == runs
    monkeypatch.setattr(intermediates, "_FEW_RUNS", 4)
    assert len(list(read_intermediates(model, [[name] for name in names], feed))) == 4


def test_a_session_has_the_tensors_of_one_batch_as_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime keeps every graph output until the run ends, whether it was asked for or not."""
    model, names, feed = _chain_of_twelve()
    outputs: list[int] = []
    real = Session.run
    monkeypatch.setattr(
        Session, "run", lambda self, *args: (outputs.append(len(self.outputs)), real(self, *args))[1]
    )
    wanted = [[name] for name in names]
    assert len(list(read_intermediates(model, wanted, feed, max_bytes=3 * feed["x"].nbytes))) == 4
    assert outputs == [4, 4, 4, 3]  # three tensors, and the graph's own output, which is the last of them


def test_what_was_read_is_given_back_before_the_next_run() -> None:
    model, names, feed = _chain_of_twelve()
    held: list[int] = []
    seen: list[Any] = [{}]
    for _, values in read_intermediates(
        model,
        [[name] for name in names],
        feed,
        max_bytes=feed["x"].nbytes,
        on_run=lambda: held.append(len(seen[-1])),
    ):
        seen.append(values)
        assert len(values) == 2, "the feed, and one tensor"
    assert held[1:] == [0] * 11
