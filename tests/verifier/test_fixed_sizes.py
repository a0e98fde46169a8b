"""Folds whose sizes the file fixes: a few samples that see every channel, as each takes all positions there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse import fuse
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.size_rules import candidate_rules
from onnx_repfuse.verifier.folds.stimuli import stimuli
from tests.verifier.small_models import build, info

RNG = np.random.default_rng(0)
MAPS = {"a": (1, 64, 64, 64), "b": (1, 64, 16, 16)}


def head(wrong: tuple[int, int] | None) -> FoldCase:
    """A 1x1 Conv of two maps, of which one is resized, against one Conv for each; one weight of a may be wrong."""
    weight = (RNG.standard_normal((64, 128, 1, 1)) * 0.1).astype(np.float32)
    sizes = np.array([1, 64, 64, 64], np.int64)
    inputs = [info(name, shape) for name, shape in MAPS.items()]
    outputs = [info("y", None)]
    resize = {"mode": "linear"}
    before = build(
        [
            helper.make_node("Resize", ["b", "", "", "s"], ["u"], **resize),
            helper.make_node("Concat", ["a", "u"], ["c"], axis=1),
            helper.make_node("Conv", ["c", "w"], ["y"]),
        ],
        inputs,
        outputs,
        {"w": weight, "s": sizes},
    )
    first = weight[:, :64].copy()
    if wrong is not None:
        first[wrong] *= 1.01
    after = build(
        [
            helper.make_node("Conv", ["a", "v"], ["p"]),
            helper.make_node("Conv", ["b", "w"], ["q"]),
            helper.make_node("Resize", ["q", "", "", "s"], ["u"], **resize),
            helper.make_node("Add", ["p", "u"], ["y"]),
        ],
        inputs,
        outputs,
        {"v": first, "w": weight[:, 64:].copy(), "s": sizes},
    )
    return FoldCase(before, after)


def test_one_sample_holds_noise_and_impulses_of_all_channels() -> None:
    case = head(None)
    (one,) = stimuli(case, next(candidate_rules(case)))
    assert one.kind == "halves"
    for name, (_, channels, height, width) in MAPS.items():
        live = one.feed[name].reshape(channels, height * width) != 0
        half = height * width // 2
        assert live[:, :half].all()
        assert (live[:, half:].sum(axis=1) == 1).all()


@pytest.mark.parametrize("wrong", [None, (0, 0), (63, 63), (5, 37)])
def test_a_wrong_weight_is_seen(wrong: tuple[int, int] | None) -> None:
    verdict = probe(head(wrong))
    assert verdict.status is (Status.PASSED if wrong is None else Status.FAILED), verdict.message


def test_large_products_of_two_sources_have_one_sample_that_sets_both() -> None:
    sizes = {"a": (1, 8192, 32), "b": (1, 32, 16)}
    inputs = [info(name, shape) for name, shape in sizes.items()]
    product = helper.make_node("MatMul", ["a", "b"], ["p"])
    scaled = helper.make_node("Mul", ["p", "s"], ["y"])
    model = build([product, scaled], inputs, [info("y", None)], {"s": np.float32(0.5)})
    case = FoldCase(model, model)
    (one,) = stimuli(case, next(candidate_rules(case)))
    assert one.kind == "halves"
    for array in one.feed.values():
        first, second = np.array_split(array.reshape(-1, array.shape[-1]), 2)
        assert first.any()
        assert second.any()
        assert np.count_nonzero(second) < np.count_nonzero(first)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ([1, 8, 5, 4], True),
        ([-1, 8, 5, 4], True),
        ([0, 2, 4, 5, 4], True),
        ([0, 8, 1, 1], False),
        ([0, 8, -1, 4], False),
        ([0, 0, 2, 4], False),
        ([-1, 20, 8], False),
    ],
)
def test_images_of_a_size_that_a_reshape_names(target: list[int], names: bool) -> None:
    node = helper.make_node("Reshape", ["x", "t"], ["y"])
    model = build([node], [info("x", (1, 8, 20))], [info("y", None)], {"t": np.array(target, np.int64)})
    assert FoldCase(model, model).names_its_sizes is names


def test_the_oracle_keeps_what_is_still_read_alone() -> None:
    nodes = [helper.make_node("Neg", [f"x{i}"], [f"x{i + 1}"]) for i in range(20)]
    nodes.append(helper.make_node("Add", ["x20", "x0"], ["y"]))
    model = build(nodes, [info("x0", (1 << 16,))], [info("y", None)], {})
    case = FoldCase(model, model)
    feed = {"x0": np.ones(1 << 16, np.float32)}
    tracemalloc.start()
    try:
        truth = case.oracle(model)(feed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not np.abs(truth.value - 2).any()
    assert peak < 6 * 12 * (1 << 16)  # of 12 bytes for each element of a tensor; 22 tensors were held


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_in_place_a_constant_of_the_sizes_of_several_tensors_is_compared_at_those(batch: int) -> None:
    """One row of the batch would have another size than the constant holds."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        padded (float[{batch},4,8] x, float[4,1,4] w) => (float[{batch},4,M] y) <int64[1] one = {{1}}> {{
            head = Shape<start=0, end=2>(x)
            width = Shape<start=2, end=3>(w)
            less = Sub(width, one)
            sizes = Concat<axis=0>(head, less)
            zeros = ConstantOfShape(sizes)
            long = Concat<axis=2>(zeros, x)
            y = Conv<group=4>(long, w)
        }}"""
    report = fuse(onnx.parser.parse_model(text)).report
    assert report.verification
    (verdict,) = report.verification.changes
    assert [(stage.stage, str(stage.status)) for stage in verdict.stages] == [
        ("isolated", "passed"),
        ("in-place", "passed"),
    ]
    assert not any("the oracle does not know" in stage.message for stage in verdict.stages)
