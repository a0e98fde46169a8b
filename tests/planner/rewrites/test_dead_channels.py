"""Channels that are zero behind their activation, or that nobody reads, leave both convolutions; no others do."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from onnx_repfuse import Options, fuse
from onnx_repfuse.records.report import Kind
from tests.build import Net, check, counts, run
from tests.parts import Weights, graph, info, model, node, random, rarely

C, ZERO = 8, [1, 4, 5]
X = {"x": random(2, 3, 7, 6)}


def _zeroed(shape: tuple[int, ...], axis: int = 0, channels: Any = ZERO) -> np.ndarray[Any, Any]:
    w = random(*shape)
    np.moveaxis(w, axis, 0)[channels] = 0
    return w


def _bias(value: float, channels: Any = ZERO, count: int = C) -> np.ndarray[Any, Any]:
    b = random(count)
    b[channels] = value
    return b


def _chain(
    middle: list[NodeProto], weights: Weights | None = None, *, last: str = "r", **options: Any
) -> onnx.ModelProto:
    """Conv `a` with three zero kernels, the nodes, and a Conv that sums over them."""
    given = {"w": _zeroed((C, 3, 3, 3)), "b": _bias(-0.5), "u": random(5, C, 3, 3), **(weights or {})}
    nodes = [node("Conv", "x w b", "a", pads=[1] * 4), *middle, node("Conv", f"{last} u", "y", pads=[1] * 4)]
    return model(graph(nodes, [info("y", None)], given, [info("x", [2, 3, 7, 6])]), **options)


def _channels(made: onnx.ModelProto, **options: Any) -> int:
    """How many channels the last Conv of the result reads; it computes the same, and a second run finds nothing."""
    result = fuse(made, options=Options(**options))
    assert result.model is not None
    for want, got in zip(run(made, X), run(result.model, X), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)
    again = fuse(result.model, options=Options(**options)).model
    assert again is not None
    assert again.SerializeToString() == result.model.SerializeToString()
    dims = {tensor.name: tensor.dims for tensor in result.model.graph.initializer}
    last = next(n for n in result.model.graph.node if n.output[0] == "y")
    return int(dims[last.input[1]][1])


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.1}, "Elu": {}, "Selu": {}, "Celu": {}, "Sigmoid": {}, "Tanh": {},
    "Softplus": {}, "HardSwish": {}, "HardSigmoid": {}, "ThresholdedRelu": {"alpha": 0.7}, "Abs": {}, "Erf": {},
    "Softsign": {}, "Mish": {},
}  # fmt: skip


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("made", ["Identity w0", "Transpose w0", "Mul w0 mask"])
def test_weights_that_nodes_compute_of_constants_are_looked_at_in_the_first_run(
    made: str, is_scaled: bool
) -> None:
    """Also where a factor was folded into them: the last normalization of a block begins with zeros."""
    op, inputs = made.split(" ", 1)
    first = _zeroed((C, 3, 3, 3))
    stored = {"Identity": first, "Transpose": first.transpose(), "Mul": random(C, 3, 3, 3)}[op]
    weights: Weights = {"w0": stored, "mask": (first != 0).astype(np.float32)}
    scaled = [node("Mul", "a k", "m"), node("Relu", "m", "r")]
    weights["k"] = np.full((C, 1, 1), 2, np.float32)
    chain = _chain(scaled if is_scaled else [node("Relu", "a", "r")], weights)
    del chain.graph.initializer[[tensor.name for tensor in chain.graph.initializer].index("w")]
    chain.graph.node.insert(0, node(op, inputs, "w"))
    assert _channels(chain) == C - len(ZERO)


@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("value", [-4.0, -0.5, -0.0, 0.0, 0.5])
def test_a_constant_channel_goes_iff_the_activation_makes_it_zero(op: str, value: float) -> None:
    """What the activation makes of it is asked of ONNX Runtime, here and there."""
    opset = 18 if op == "Mish" else 17
    alone = model(
        graph([node(op, "x", "y", **ACTIVATIONS[op])], [info("y", None)], {}, [info("x", [1])]), opset=opset
    )
    (made_of_it,) = run(alone, {"x": np.array([value], np.float32)})
    made = _chain([node(op, "a", "r", **ACTIVATIONS[op])], {"b": _bias(value)}, opset=opset)
    assert _channels(made) == (C - 3 if made_of_it[0] == 0 else C)


@pytest.mark.parametrize(("low", "left"), [(0.0, 5), (0.1, 8), (-1.0, 8)])
def test_clip(low: float, left: int) -> None:
    bounds = {"low": np.float32(low), "high": np.float32(6)}
    assert _channels(_chain([node("Clip", "a low high", "r")], bounds)) == left


RELU = [node("Relu", "a", "r")]
BEHIND: dict[str, tuple[list[NodeProto], Weights, int]] = {
    "max pool": ([node("MaxPool", "r", "s", kernel_shape=[3, 3], pads=[1] * 4)], {}, 5),
    "average pool": ([node("AveragePool", "r", "s", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])], {}, 5),
    "global pool": ([node("GlobalAveragePool", "r", "s")], {}, 5),
    "reduce mean": ([node("ReduceMean", "r", "s", axes=[2, 3])], {}, 5),
    "reduce over channels": ([node("ReduceMean", "r", "s0", axes=[1]), node("Add", "r s0", "s")], {}, 8),
    "pad": ([node("Pad", "r p", "s")], {"p": [0, 0, 1, 1, 0, 0, 1, 1]}, 5),
    "pad by a value": ([node("Pad", "r p v", "s")], {"p": [0, 0, 1, 1, 0, 0, 1, 1], "v": np.float32(1)}, 8),
    "pad of channels": ([node("Pad", "r p", "s0"), node("Slice", "s0 one nine one", "s")],
                        {"p": [0, 1, 0, 0, 0, 0, 0, 0], "one": [1], "nine": [9]}, 8),
    "resize": ([node("Resize", "r  f", "s", mode="linear")], {"f": np.array([1, 1, 2, 2], np.float32)}, 5),
    "depthwise, its bias not positive": ([node("Conv", "r d e", "s0", group=C, pads=[1] * 4), node("Relu", "s0", "s")],
                                         {"d": random(C, 1, 3, 3), "e": _bias(-0.1)}, 5),
    "depthwise, its bias positive": ([node("Conv", "r d e", "s0", group=C, pads=[1] * 4), node("Relu", "s0", "s")],
                                     {"d": random(C, 1, 3, 3), "e": _bias(0.1)}, 8),
    "a scale and a slope for each channel": ([node("Mul", "r m", "s0"), node("PRelu", "s0 m", "s")],
                                             {"m": random(C, 1, 1)}, 5),
    "a shift for each channel": ([node("Sub", "r m", "s0"), node("Relu", "s0", "s")],
                                 {"m": np.abs(random(C, 1, 1))}, 5),
    "a shift for each position": ([node("Add", "r m", "s0"), node("Relu", "s0", "s")], {"m": random(C, 7, 6)}, 8),
    "a gate": ([node("Conv", "x g", "g0"), node("Sigmoid", "g0", "g1"), node("Mul", "r g1", "s")],
               {"g": random(C, 3, 1, 1)}, 5),
    "a factor that may be infinite": ([node("Conv", "x g", "g0"), node("Exp", "g0", "g1"), node("Mul", "r g1", "s")],
                                      {"g": random(C, 3, 1, 1)}, 8),
    "one factor for all channels": ([node("Conv", "x g", "g0"), node("Sigmoid", "g0", "g1"), node("Mul", "r g1", "s")],
                                    {"g": random(1, 3, 1, 1)}, 5),
    "softmax": ([node("Softmax", "r", "s", axis=1)], {}, 8),
    "lrn": ([node("LRN", "r", "s", size=3)], {}, 8),
    "layer norm": ([node("LayerNormalization", "r m", "s", axis=1)], {"m": random(C, 7, 6)}, 8),
    "group norm": ([node("InstanceNormalization", "r m m", "s")], {"m": random(C)}, 8),
    "grouped": ([node("Conv", "r d", "s0", group=2, pads=[1] * 4), node("Relu", "s0", "s")],
                {"d": random(C, 4, 3, 3)}, 8),
    "concat": ([node("Concat", "r x", "s", axis=1)], {"u": random(5, C + 3, 3, 3)}, C + 3),
    "a sum with a live tensor": ([node("Conv", "x g", "g0"), node("Relu", "g0", "g1"), node("Add", "r g1", "s")],
                                 {"g": random(C, 3, 1, 1)}, 8),
    "a sum of two dead ones": ([node("Conv", "x g h", "g0"), node("Relu", "g0", "g1"), node("Add", "r g1", "s")],
                               {"g": _zeroed((C, 3, 1, 1), 0, [0, 4, 5]), "h": _bias(-1, [0, 4, 5])}, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_between(name: str) -> None:
    nodes, weights, left = BEHIND[name]
    assert _channels(_chain([*RELU, *nodes], weights, last="s")) == left


def test_a_decomposed_gelu() -> None:
    nodes = [
        node("Div", "a q", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "f"),
        node("Mul", "a f", "g"),
    ]
    nodes.append(node("Mul", "g half", "r"))
    weights = {"q": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    assert _channels(_chain(nodes, {**weights, "b": _bias(0.0)})) == 5
    assert _channels(_chain(nodes, {**weights, "b": _bias(-0.1)})) == 8


def test_channels_that_nobody_reads() -> None:
    made = _chain(RELU, {"w": random(C, 3, 3, 3), "u": _zeroed((5, C, 3, 3), 1, [0, 7])})
    assert _channels(made) == 6
    nodes = [node("Conv", "r v", "z")]
    both = _chain(
        [*RELU, *nodes], {"u": _zeroed((5, C, 3, 3), 1, [0, 7]), "v": _zeroed((4, C, 1, 1), 1, [7])}
    )
    both.graph.output.append(info("z", None))
    assert _channels(both) == 8 - 3 - 1  # 7 is read by neither, and three are zero


def test_a_transposed_convolution_on_both_sides() -> None:
    nodes = [node("ConvTranspose", "x w b", "a", strides=[2, 2]), *RELU, node("ConvTranspose", "r u", "y")]
    weights = {"w": _zeroed((3, C, 2, 2), 1), "b": _bias(-0.5), "u": random(C, 5, 3, 3)}
    made = model(graph(nodes, [info("y", None)], weights, [info("x", [2, 3, 7, 6])]))
    result = fuse(made)
    assert result.model is not None
    dims = {tuple(tensor.dims) for tensor in result.model.graph.initializer}
    assert {(3, 5, 2, 2), (5, 5, 3, 3)} <= dims
    np.testing.assert_allclose(run(result.model, X)[0], run(made, X)[0], rtol=1e-5, atol=1e-5)


def test_a_residual_block_inside_the_region() -> None:
    nodes = [*RELU, node("Conv", "r v h", "c", pads=[1] * 4), node("Relu", "c", "d"), node("Add", "r d", "s")]
    weights = {"v": _zeroed((C, C, 3, 3)), "h": _bias(-1)}
    made = _chain(nodes, weights, last="s")
    assert _channels(made) == 5
    (fold,) = fuse(made).report.folds
    assert fold.kind is Kind.DEAD
    assert [ref.op for ref in fold.absorbed] == ["Conv", "Relu", "Conv", "Relu", "Add", "Conv"]


def test_several_convolutions_that_read_a_tensor() -> None:
    weights = {"v": random(4, C, 1, 1), "v2": random(2, C, 3, 3)}
    made = _chain([*RELU, node("Conv", "r v", "z"), node("Conv", "r v2", "z2")], weights)
    made.graph.output.extend([info("z", None), info("z2", None)])
    assert _channels(made) == 5
    verdicts = fuse(made).report.verification.folds
    found = {(verdict.output, str(verdict.status)) for verdict in verdicts}
    assert found == {(name, "passed") for name in ("z", "z2", "y")}


@pytest.mark.parametrize("seen", ["a", "r"])
def test_an_output_of_the_graph_keeps_its_channels(seen: str) -> None:
    made = _chain(RELU)
    made.graph.output.append(info(seen, None))
    assert _channels(made) == 8


def test_where_all_are_dead_one_stays() -> None:
    made = _chain(RELU, {"w": np.zeros((C, 3, 3, 3), np.float32), "b": -np.ones(C, np.float32)})
    assert _channels(made) == 1


@pytest.mark.parametrize(
    ("count", "dead", "left"), [(32, 3, 32), (32, 5, 28), (34, 3, 32), (33, 3, 30), (12, 1, 11)]
)
def test_blocks_of_four_stay_whole(count: int, dead: int, left: int) -> None:
    """A few channels less would be slower for runtimes."""
    zero = list(range(dead))
    weights = {
        "w": _zeroed((count, 3, 3, 3), 0, zero),
        "b": _bias(-1, zero, count),
        "u": random(5, count, 3, 3),
    }
    assert _channels(_chain(RELU, weights)) == left


@pytest.mark.parametrize(("dead", "left"), [(9, 24), (7, 32)])
def test_depthwise_blocks_of_eight_stay_whole(dead: int, left: int) -> None:
    zero = list(range(dead))
    weights = {"w": _zeroed((32, 3, 3, 3), 0, zero), "b": _bias(-1, zero, 32), "u": random(5, 32, 3, 3)}
    nodes = [*RELU, node("Conv", "r d", "t", group=32, pads=[1] * 4), node("Relu", "t", "s")]
    assert _channels(_chain(nodes, {**weights, "d": random(32, 1, 3, 3)}, last="s")) == left


@pytest.mark.parametrize("options", [{"skip": frozenset((Kind.DEAD,))}, {"keep": ("r",)}, {"keep": ("y",)}])
def test_it_may_be_left_out(options: dict[str, Any]) -> None:
    assert _channels(_chain(RELU), **options) == 8


def test_zeros_that_only_folding_shows() -> None:
    """A BatchNormalization with a factor of zero, as training leaves it, makes the kernel zero."""
    gamma, beta = random(C), _bias(-0.2)
    gamma[ZERO] = 0
    weights = {"w": random(C, 3, 3, 3), "g": gamma, "h": beta, "m": random(C), "v": np.abs(random(C)) + 1}
    made = _chain([node("BatchNormalization", "a g h m v", "n"), node("Relu", "n", "r")], weights)
    assert _channels(made) == 5


def test_where_no_rank_is_known() -> None:
    """Behind an If, of which nothing is inferred, the convolutions alone say where the channels are."""
    then, other = (
        graph([node(op, "x", name)], [info(name, None)]) for op, name in (("Abs", "p"), ("Neg", "q"))
    )
    nodes = [node("ReduceMax", "x", "most", keepdims=0), node("Greater", "most zero", "c")]
    nodes.append(node("If", "c", "i", then_branch=then, else_branch=other))
    nodes += [
        node("Conv", "i w b", "a", pads=[1] * 4),
        node("Mul", "a m", "s"),
        *RELU,
        node("Conv", "r u", "y"),
    ]
    nodes[-2] = node("Relu", "s", "r")
    weights = {"w": _zeroed((C, 3, 3, 3)), "b": _bias(-0.5), "u": random(5, C, 3, 3), "zero": np.float32(0)}
    weights["m"] = np.abs(random(C, 1, 1))
    made = model(graph(nodes, [info("y", None)], weights, [info("x", ["n", 3, "h", "w_"])]))
    assert _channels(made) == 5


def test_in_a_branch() -> None:
    nodes = [node("Conv", "x w b", "a"), *RELU, node("Conv", "r u", "o")]
    other = graph([node("Conv", "x k", "o2", pads=[1] * 4)], [info("o2", None)])
    weights = {"w": _zeroed((C, 3, 1, 1)), "b": _bias(-1), "u": random(4, C, 1, 1), "k": random(4, 3, 3, 3)}
    made = rarely(graph(nodes, [info("o", None)]), other, weights)
    result = fuse(made)
    assert result.model is not None
    assert [fold.kind for fold in result.report.folds] == [Kind.DEAD]
    for x in (X["x"], X["x"] + 60):
        np.testing.assert_allclose(
            run(result.model, {"x": x})[0], run(made, {"x": x})[0], rtol=1e-4, atol=1e-4
        )


def test_counts_fall() -> None:
    report = fuse(_chain(RELU)).report
    assert report.after.macs is not None
    assert report.before.macs is not None
    assert report.after.macs * 8 == report.before.macs * 5
    assert counts(fuse(_chain(RELU)).model) == {"Conv": 2, "Relu": 1}


def test_zero_rows_are_seen_behind_a_choice_of_channels_that_the_weight_takes_in() -> None:
    w, u = random(5, C, 3, 3), np.where(np.arange(C)[:, None, None, None] % 4 == 1, 0, random(C, 3, 3, 3))
    nodes = [
        node("Gather", "x order", "g", axis=1),
        node("Conv", "g u b", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r w", "y", pads=[1] * 4),
    ]
    given = {"order": np.array([2, 1, 0]), "u": u, "b": _bias(-0.5, [1, 5]), "w": w}
    made = model(graph(nodes, [info("y", None)], given, [info("x", [2, 3, 7, 6])]))
    assert _channels(made) == C - 2


def test_a_bias_that_needs_a_kernel_tells_of_dead_channels() -> None:
    """Three of the second Conv's kernels are zero: the first one's bias does not reach these channels."""
    middle = [node("Conv", "a v c", "s"), node("Relu", "s", "r")]
    weights = {"w": random(C, 3, 3, 3), "v": _zeroed((C, C, 1, 1)), "c": _bias(-0.5)}
    assert _channels(_chain(middle, weights)) == C - 3


def test_folds_of_two_regions_with_no_ops_between() -> None:
    """`Mean(n, n)` is n, once an Identity is gone, and another one reads it: two no-ops were noted in that order."""
    middle = [
        node("Relu", "a", "r"),
        node("Conv", "r v", "n"),
        node("Identity", "n", "i"),
        node("Mean", "n i", "m"),
        node("Identity", "m", "j"),
        node("Conv", "j s", "d"),
        node("Relu", "d", "e"),
    ]
    weights = {"v": random(4, C, 1, 1), "s": _zeroed((C, 4, 1, 1))}
    assert _channels(_chain(middle, weights, last="e")) == C - 3
    assert _channels(_chain(middle, weights, last="e"), check=False) == C - 3


def test_a_factor_passes_an_activation_once_its_negative_channels_are_gone() -> None:
    """That is a part of the fold that dropped them, and proved with it."""
    factors = np.abs(random(C, 1, 1)) + 0.1
    factors[ZERO] *= -1
    made = _chain(
        [node("Relu", "a", "r"), node("Mul", "r m", "p"), node("PRelu", "p m", "s")], {"m": factors}, last="s"
    )
    assert _channels(made) == C - 3
    (fold,) = fuse(made).report.folds
    assert fold.output == "y"


def test_a_weight_of_other_channels_than_its_input_is_left_alone() -> None:
    """ONNX Runtime loads such a model, and does not run it: the second Conv reads two channels of one."""
    net = Net(1, shape=(1, 1, "H", "W"))
    gate = net.op("Sigmoid", net.conv(net.op("GlobalAveragePool", "x"), 2, 1, 1))
    model = net.model(net.conv(net.op("Mul", "x", gate), 2, 3, 1))
    assert not fuse(model, options=Options(check=False)).report.folds


def test_what_is_left_of_a_tensor_minus_itself_goes_in_the_first_run() -> None:
    """Its kernel is a sum of one kernel with opposite factors, which no fold computes before it is written."""
    net = Net(4, seed=1)
    inner = net.conv(net.conv("x", 4, 4, 1, bias=False), 4, 2, 3, strides=[2, 2], bias=False)
    branch = net.bn(inner, 2)
    mean = net.op("Mean", net.conv("x", 4, 2, 3, strides=[2, 2], bias=False), branch)
    nothing = net.op("Sub", branch, branch)
    last = net.op("Relu", net.conv(nothing, 2, 4, 2, pad=0, strides=[2, 2]))
    check(net.model(mean, last), {"Conv": 3, "Relu": 1})
