"""Folds whose sizes the file fixes: a few samples that see every channel, as each takes all positions there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_repfuse import fuse
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.verifier.folds import in_place
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.in_place import check_in_place
from onnx_repfuse.verifier.folds.isolated import probe
from onnx_repfuse.verifier.folds.position_weights import weighs_elements
from onnx_repfuse.verifier.folds.size_rules import candidate_rules
from onnx_repfuse.verifier.folds.stimuli import stimuli
from onnx_repfuse.verifier.session import open_session
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
        half, end = height * width // 2, height * width * 7 // 8
        assert live[:, :half].all()
        assert (live[:, half:end].sum(axis=1) == 1).all()
        assert live[:, end:].all()


@pytest.mark.parametrize("wrong", [None, (0, 0), (63, 63), (5, 37)])
def test_a_wrong_weight_is_seen(wrong: tuple[int, int] | None) -> None:
    verdict = probe(head(wrong))
    assert verdict.status is (Status.PASSED if wrong is None else Status.FAILED), verdict.message


@pytest.mark.parametrize("wrong", [None, (0, 0), (63, 63), (5, 37)])
def test_a_wrong_weight_is_seen_in_place(
    wrong: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bound of the replacement alone: at the last channel, too, and at the last position of one channel."""
    monkeypatch.setattr(in_place, "_judge", None)  # is called for what fails alone
    case = head(wrong)
    feed = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in MAPS.items()}
    with open_session(case.before) as session:
        seen = {**feed, **session.run(feed)}
    for at in (None, (0, 63, 63, 63), (0, 0, 0, 0)):
        changed = seen["y"].copy()
        if at is not None:
            changed[at] += 1e-3
        if wrong is None and at is None:
            assert check_in_place(case, {**seen, "y": changed}).status is Status.PASSED
        else:
            with pytest.raises(TypeError):
                check_in_place(case, {**seen, "y": changed})


@pytest.mark.parametrize("operator", ["Mul", "Div", "MatMul"])
@pytest.mark.parametrize("at", [None, 3, 300, 510])
def test_weights_of_single_positions_are_seen_everywhere(operator: str, at: int | None) -> None:
    """A map, or a product over positions: a weight that meets zeros alone would not show."""
    shape = (1, 512, 512) if operator == "MatMul" else (1, 16, 512, 32)
    first, second = (
        RNG.standard_normal((512, 512) if operator == "MatMul" else (512, 32)).astype(np.float32)
        for _ in range(2)
    )
    joined = (first @ second) if operator == "MatMul" else (first * second)
    if operator == "MatMul" and at is not None:
        joined[3, at] *= 1.5
    elif at is not None:
        joined[at, 3] *= 1.5

    def step(x: str, weight: str, y: str) -> onnx.NodeProto:
        return helper.make_node(operator, [weight, x] if operator == "MatMul" else [x, weight], [y])

    inputs, outputs = [info("x", shape)], [info("y", None)]
    before = build([step("x", "b", "t"), step("t", "a", "y")], inputs, outputs, {"a": first, "b": second})
    after = build([step("x", "c", "y")], inputs, outputs, {"c": joined})
    status = probe(FoldCase(before, after)).status
    assert status is (Status.PASSED if at is None else Status.FAILED)


@pytest.mark.parametrize("channels", [8, 200])
@pytest.mark.parametrize("operator", ["Mul", "MatMul", "both"])
def test_where_positions_have_weights_one_sample_sets_all_of_them(operator: str, channels: int) -> None:
    """Each position a block of channels as large as the noise is, so that a product over positions tells all apart."""
    case = weighing(operator, channels, None)
    (one,) = stimuli(case, next(candidate_rules(case)))
    assert one.kind == "halves"
    size = np.abs(one.feed["x"][0]).T  # channels, positions
    assert size.all()
    assert (size.max(axis=0) > 0.5).mean() > 0.9
    if channels > 64 and operator == "both":  # the others sum no channels
        between = size[:, 1024:1792]
        assert ((between > 0.1).sum(axis=0) <= 64).all()
        assert (between.max(axis=1) > 0.5).all()


def weighing(operator: str, channels: int, wrong: tuple[int, int] | None) -> FoldCase:
    """A map of 2048 positions, a product over them, or a product over channels and a map, in two steps against one.

    One weight of the positions is wrong by a hundredth.
    """
    rng = np.random.default_rng(channels)
    shape = (1, 2048, channels)
    of_positions = (8, 2048) if operator == "MatMul" else (2048, channels)
    weight = rng.uniform(0.5, 1.5, of_positions).astype(np.float32)
    joined = (weight * np.float32(0.5)).astype(np.float32)
    if wrong is not None:
        joined[wrong] *= 1.01

    def steps(constant: str, result: str) -> list[onnx.NodeProto]:
        if operator == "MatMul":
            return [helper.make_node("MatMul", [constant, "x"], [result])]
        if operator == "Mul":
            return [helper.make_node("Mul", ["x", constant], [result])]
        product = helper.make_node("MatMul", ["x", "w"], ["p"])
        return [product, helper.make_node("Mul", ["p", constant], [result])]

    inputs, outputs = [info("x", shape)], [info("y", None)]
    halved = helper.make_node("Mul", ["t", "half"], ["y"])
    half, mixing = np.array(0.5, np.float32), rng.standard_normal((channels, channels)).astype(np.float32)
    before = build([*steps("a", "t"), halved], inputs, outputs, {"a": weight, "half": half, "w": mixing})
    after = build(steps("b", "y"), inputs, outputs, {"b": joined, "w": mixing})
    return FoldCase(before, after)


@pytest.mark.parametrize("channels", [8, 200])
@pytest.mark.parametrize("at", [None, 0, 1023, 1024, 1500, 1791, 1792, 2047])
@pytest.mark.parametrize("operator", ["Mul", "MatMul", "both"])
def test_a_small_fault_at_a_single_position_is_seen(operator: str, at: int | None, channels: int) -> None:
    for other in (0, 3, 7):  # a channel, or a row of the product
        wrong = None if at is None else (other, at) if operator == "MatMul" else (at, other * channels // 8)
        status = probe(weighing(operator, channels, wrong)).status
        assert status is (Status.PASSED if at is None else Status.FAILED), wrong


@pytest.mark.parametrize("faulty", [False, True])
def test_padding_behind_a_large_image_meets_signal(faulty: bool) -> None:
    """Two windows joined, where only the last rows of an image show that the first one's output is padded."""
    rows = RNG.standard_normal((2, 16, 16, 2, 1)).astype(np.float32) * 0.1
    if not faulty:
        rows[0, :, :, 1] = 0  # the first window reads its own row alone, and so no row behind the image
        rows[1, :, :, 1] = 0
    joined = np.zeros((16, 16, 3, 1), np.float32)
    for i, j in np.ndindex(2, 2):
        joined[:, :, i + j, 0] += rows[1, :, :, i, 0] @ rows[0, :, :, j, 0]
    inputs, outputs = [info("x", (1, 16, 128, 128))], [info("y", None)]
    first = helper.make_node("Conv", ["x", "a"], ["t"], pads=[0, 0, 0, 0])
    second = helper.make_node("Conv", ["t", "b"], ["y"], pads=[0, 0, 1, 0])
    fused = helper.make_node("Conv", ["x", "c"], ["y"], pads=[0, 0, 1, 0])
    before = build([first, second], inputs, outputs, {"a": rows[0], "b": rows[1]})
    after = build([fused], inputs, outputs, {"c": joined})
    status = probe(FoldCase(before, after)).status
    assert status is (Status.FAILED if faulty else Status.PASSED)


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


def behind_a_view(view: str, gone: int | None) -> FoldCase:
    """A factor per channel, a view, and a product, against one product; one of its weights is gone.

    The view makes one row of an image's elements, or gives each position a matrix of its own.
    """
    rng = np.random.default_rng(5)
    shape, channels = (1, 256, 8, 8), 256
    factor = rng.uniform(0.5, 1.5, (channels, 1, 1)).astype(np.float32)
    to, columns = ((1, channels * 64), 64) if view == "one row" else ((1, channels, 64), 64)
    if view == "one row":
        weight = rng.standard_normal((channels * 64, columns)).astype(np.float32)
        joined = (weight.reshape(channels, 64, columns) * factor).reshape(weight.shape)
    else:
        weight = rng.standard_normal((64, channels, columns)).astype(np.float32)
        joined = weight * factor.reshape(1, channels, 1)
    if gone is not None:
        joined[np.unravel_index(gone, joined.shape)] = 0

    def nodes(x: str, weight_name: str) -> list[onnx.NodeProto]:
        reshape = helper.make_node("Reshape", [x, "to"], ["flat"])
        if view == "one row":
            return [reshape, helper.make_node("MatMul", ["flat", weight_name], ["y"])]
        turn = helper.make_node("Transpose", ["flat"], ["turned"], perm=[2, 0, 1])  # (positions, 1, channels)
        return [reshape, turn, helper.make_node("MatMul", ["turned", weight_name], ["y"])]

    inputs, outputs, target = [info("x", shape)], [info("y", None)], np.array(to, np.int64)
    scaled = [helper.make_node("Mul", ["x", "s"], ["t"]), *nodes("t", "w")]
    before = build(scaled, inputs, outputs, {"s": factor, "w": weight, "to": target})
    return FoldCase(before, build(nodes("x", "v"), inputs, outputs, {"v": joined, "to": target}))


@pytest.mark.parametrize("view", ["one row", "matrices"])
def test_where_each_element_has_weights_of_its_own_none_is_missed(view: str) -> None:
    """Beside signal, small values would hide what is wrong with them."""
    assert probe(behind_a_view(view, None)).status is Status.PASSED
    size = 256 * 64 * 64
    for gone in range(0, size, size // 11):
        assert probe(behind_a_view(view, gone)).status is Status.FAILED, gone


def whole_image(view: bool, gone: int | None) -> FoldCase:
    """A factor, and a convolution whose kernel is as large as the image, against one; one of its weights is gone."""
    rng = np.random.default_rng(6)
    factor = rng.uniform(0.5, 1.5, (128, 1, 1)).astype(np.float32)
    weight = (rng.uniform(1, 2, (40, 128, 12, 12)) * rng.choice([-1, 1], (40, 128, 12, 12))).astype(
        np.float32
    )
    joined = weight * factor
    if gone is not None:
        joined.flat[gone] = 0

    def nodes(x: str, weight_name: str) -> list[onnx.NodeProto]:
        if not view:
            return [helper.make_node("Conv", [x, weight_name], ["y"])]
        conv = helper.make_node("Conv", [x, weight_name], ["whole"])
        return [conv, helper.make_node("Flatten", ["whole"], ["y"])]

    shape = (1, 128, 12, 12) if view else ("n", 128, "h", "w")
    inputs, outputs = [info("x", shape)], [info("y", None)]
    scaled = [helper.make_node("Mul", ["x", "s"], ["t"]), *nodes("t", "w")]
    before = build(scaled, inputs, outputs, {"s": factor, "w": weight})
    return FoldCase(before, build(nodes("x", "v"), inputs, outputs, {"v": joined}))


@pytest.mark.parametrize("view", [False, True])
def test_no_tap_of_a_kernel_as_large_as_the_image_is_missed(view: bool) -> None:
    assert probe(whole_image(view, None)).status is Status.PASSED
    size = 40 * 128 * 144
    for gone in range(0, size, size // 7):
        assert probe(whole_image(view, gone)).status is Status.FAILED, gone


VIEWS = {  # name: (inputs, nodes, whether a sum may give each channel of each position a weight of its own)
    "tokens": (
        "float[1,6,4,5] x",
        "r = Reshape(x, to_tokens) t = Transpose<perm=[0,2,1]>(r) y = MatMul(t, w6)",
        False,
    ),
    "left product": ("float[1,6,4,5] x", "r = Reshape(x, to_tokens) y = MatMul(w6, r)", False),
    "image of tokens": (
        "float[1,20,6] x",
        "r = Reshape(x, to_image) t = Transpose<perm=[0,3,1,2]>(r) y = Conv(t, k6)",
        False,
    ),
    "heads": (
        "float[1,20,6] x, float[1,2,3,7] k",
        "q = MatMul(x, w6) b = Add(q, v6) r = Reshape(b, to_heads) t = Transpose<perm=[0,2,1,3]>(r) y = MatMul(t, k)",
        False,
    ),
    "resized": (
        "float[1,6,4,5] x, float[1,6,8,10] z",
        's = Resize<mode="linear">(x, , twice) c = Concat<axis=1>(s, z) a = Add(c, v12) f = Reshape(a, to_many)'
        " g = Reshape(f, back) y = Conv(g, k12)",
        False,
    ),
    "one row": ("float[1,6,4,5] x", "r = Flatten(x) y = Gemm(r, w120)", True),
    "patches": (
        "float[1,6,4,4] x",
        "r = Reshape(x, split) t = Transpose<perm=[0,2,4,3,5,1]>(r) f = Reshape(t, merged) y = MatMul(f, w24)",
        True,
    ),
    "read in another order": ("float[1,6,20] x", "r = Reshape(x, turned) y = MatMul(r, w6)", True),
    "a vector of elements": (
        "float[1,6,20] x, float[120,3] k",
        "r = Flatten(x) m = Mul(r, v120) y = MatMul(m, k)",
        True,
    ),
    "a map": ("float[1,20,6] x", "m = Mul(x, map) y = MatMul(m, w6)", True),
    "heads side by side": (
        "float[1,2,20,3] x",
        "t = Transpose<perm=[0,2,1,3]>(x) r = Reshape(t, flat_heads) y = MatMul(r, w6)",
        True,
    ),
    "a normalization of elements": (
        "float[1,6,20] x",
        "r = Flatten(x) b = BatchNormalization(r, v120, v120, v120, v120) y = MatMul(b, w120)",
        True,
    ),
}
SIZES = {
    "to_tokens": [1, 6, 20], "to_image": [1, 4, 5, 6], "to_heads": [1, 20, 2, 3], "split": [1, 6, 2, 2, 2, 2],
    "merged": [1, 4, 24], "turned": [1, 20, 6], "flat_heads": [1, 20, 6], "to_many": [1, 12, 80],
    "back": [1, 12, 8, 10],
}  # fmt: skip
WEIGHTS = {
    "w6": (6, 6), "w24": (24, 5), "w120": (120, 5), "v6": (6,), "v120": (120,), "map": (20, 6), "k6": (3, 6, 1, 1),
    "k12": (3, 12, 1, 1), "v12": (12, 1, 1), "twice": (4,),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_sums_over_an_axis_that_views_left_whole_give_no_element_a_weight_of_its_own(name: str) -> None:
    inputs, nodes, expected = VIEWS[name]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) {{ {nodes} }}'
    )
    read = {tensor for node in model.graph.node for tensor in node.input}
    values = {key: np.array(size, np.int64) for key, size in SIZES.items()}
    values |= {key: np.ones(shape, np.float32) for key, shape in WEIGHTS.items()}
    values["twice"] = np.array([1, 1, 2, 2], np.float32)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, key) for key, array in values.items() if key in read
    )
    assert weighs_elements(model) is expected
