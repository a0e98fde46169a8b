"""Steps of random graphs beyond convolutions: maps of space and of indices, strides, products, computed constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.random_builder import Builder
from tests.reference import InvalidError

MODES = (
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
)
AROUND = ("", "", "conv", "norm")  # what stands before and behind a map of space


def _around(b: Builder, name: str, what: str, out: int) -> str:
    """`name` behind a 1x1 Conv or a BatchNormalization."""
    rank = len(b.shape(name)) - 2
    if what == "conv":
        return b.conv(name, out, (1,) * rank, bias=out % 2 == 0)
    return b.norm(name) if what == "norm" else name


def resize(b: Builder, x: int, how: int, scale: int, out: int, before: str, after: str) -> None:
    """A Resize between pointwise operators."""
    if b.net.dtype != np.float32 or b.net.opset < 13:
        raise InvalidError("scales are float32; older opsets ask for a region of interest, too")
    name = _around(b, b.image(x), before, out)
    rank = len(b.shape(name)) - 2
    if how and rank > 2:
        raise InvalidError("ONNX Runtime has no linear Resize of five dims")
    scales = b.const(np.array([1, 1, *(scale,) * rank], np.float32))
    _around(b, b.op("Resize", name, "", scales, **MODES[how]), after, out)


def join_resized(b: Builder, x: int, how: int, out: int) -> None:
    """SegFormer's head: a 1x1 Conv of a Concat of tensors, one of them enlarged."""
    if b.net.dtype != np.float32 or b.net.opset < 13:
        raise InvalidError("scales are float32; older opsets ask for a region of interest, too")
    name = b.image(x)
    rank = len(b.shape(name)) - 2
    if rank > 2:
        raise InvalidError("ONNX Runtime has no linear Resize of five dims")
    small = b.op("Relu", b.conv(name, 4, (2,) * rank, strides=[2] * rank))
    scales = b.const(np.array([1, 1, *(2,) * rank], np.float32))
    large = b.op("Resize", small, "", scales, **MODES[how])
    fine = b.op("Relu", b.conv(large, 2, (1,) * rank))
    b.conv(b.op("Concat", large, fine, axis=1), out, (1,) * rank, bias=how % 2 == 0)


def choose(b: Builder, x: int, indices: list[int], how: int) -> None:
    """Channels in another order, some twice and some not at all."""
    name = b.image(x)
    channels = b.fixed(name, 1)
    chosen = [i % channels for i in indices] if how else list(range(channels))[::-1]
    if how == 1 and b.net.opset >= 10:
        minus = b.ints(-1)
        b.op("Slice", name, minus, b.ints(-channels - 1), b.ints(1), minus)
    else:
        b.op("Gather", name, b.ints(*chosen), axis=1)


def focus(b: Builder, x: int, how: int, out: int, k: int) -> None:
    """Every second row and column apart, and a Conv that reads all four."""
    name = b.image(x)
    shape = b.shape(name)
    if len(shape) != 4 or b.net.opset < 10 or any(d % 2 for i in b.alive for d in b.shape(name, i)[2:]):
        raise InvalidError("no even image")
    if how == 0:
        made = b.op("SpaceToDepth", name, blocksize=2)
    else:
        axes, steps, ends = b.ints(2, 3), b.ints(2, 2), b.ints(1 << 40, 1 << 40)
        order = ((0, 0), (1, 0), (0, 1), (1, 1)) if how == 1 else ((0, 0), (0, 1), (1, 1))
        parts = [b.op("Slice", name, b.ints(*start), ends, axes, steps) for start in order]
        made = b.op("Concat", *parts, axis=1)
    b.conv(made, out, (k, k), pads=[k // 2] * 4)


def depth_to_space(b: Builder, x: int, mode: str, after: str, out: int) -> None:
    """A Conv, then its channels as space, then a pointwise operator."""
    name = b.image(x)
    if len(b.shape(name)) != 4 or b.net.opset < 11:
        raise InvalidError("no image")
    made = b.op("DepthToSpace", b.conv(name, 8, (1, 1)), blocksize=2, mode=mode)
    _around(b, made, after, out)


def strided_readers(b: Builder, x: int, norm: bool, relu: bool, add: bool, strides: tuple[int, int]) -> None:
    """Strided 1x1 Convs that read what was computed at every position."""
    name = b.image(x)
    rank, channels = len(b.shape(name)) - 2, b.fixed(name, 1)
    made = b.conv(name, channels, (3,) * rank, pads=[1] * 2 * rank)
    made = b.norm(made) if norm else made
    made = b.op("Add", made, b.conv(name, channels, (1,) * rank)) if add else made
    made = b.op("Relu", made) if relu else made
    for stride in strides:
        if stride:
            b.conv(made, 2, (1,) * rank, strides=[stride] * rank)


def computed_weight(b: Builder, x: int, how: int, out: int) -> None:
    """A Conv whose kernel other nodes compute from constants."""
    name = b.image(x)
    rank, channels = len(b.shape(name)) - 2, b.fixed(name, 1)
    shape = (out, channels, *(3,) * rank)
    axes = list(range(1, rank + 2))
    w = b.const(b.rng.standard_normal(shape))
    if how == 0:
        w = b.op("Sub", w, b.mean(w, axes, 1))
    elif how == 1:
        w = b.op("Div", w, b.op("Sqrt", b.mean(b.op("Mul", w, w), axes, 1)))
    elif how == 2:
        w = b.op("Softmax", w, axis=-1)
    else:
        w = b.op("Concat", b.slice(w, 1, 0, 1), b.slice(w, 1, 0, channels), axis=1)
        w = b.slice(w, 1, 0, channels)
    if b.net.opset < 13:
        raise InvalidError("Softmax of two dims, and no Sqrt of its kind")
    b.op("Conv", name, w, pads=[1] * 2 * rank)


def dead_channels(b: Builder, x: int, op: str, bias: float, share: float) -> None:
    """A Conv that makes some channels from nothing, an activation, and a Conv that reads them."""
    name = b.image(x)
    rank, channels = len(b.shape(name)) - 2, b.fixed(name, 1)
    w = b.rng.standard_normal((4, channels, *(1,) * rank))
    alive = b.rng.random(4) >= share
    shift = np.where(alive, b.rng.standard_normal(4), bias)
    made = b.op("Conv", name, b.const(w * alive.reshape(4, *(1,) * (rank + 1))), b.const(shift))
    b.conv(b.op(op, made), 2, (3,) * rank, pads=[1] * 2 * rank)


def scores(b: Builder, x: int, factor: float, where: int) -> None:
    """Attention's product of two activations, scaled before or behind."""
    name = b.image(x)
    rank = len(b.shape(name))
    rows = b.op("Transpose", name, perm=[0, *range(2, rank), 1])
    c_in = b.fixed(name, 1)
    scale = b.const(np.array(factor))
    q = b.op("MatMul", rows, b.const(b.rng.standard_normal((c_in, 4))))
    k = b.op("MatMul", rows, b.const(b.rng.standard_normal((c_in, 4))))
    q = b.op("Mul", q, scale) if where == 0 else q
    made = b.op("MatMul", q, b.op("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2]))
    if where == 1:
        b.op("Mul", made, scale)
    elif where == 2:
        b.op("Div", made, scale)


def elements(b: Builder, x: int, ops: list[str]) -> None:
    """Arithmetic with one constant for each element of the last axes."""
    name = b.pick(x)
    shape = tuple(b.fixed(name, axis) for axis in range(1, len(b.shape(name))))
    if b.net.opset < 7:
        raise InvalidError("old broadcasting")
    for op in ops:
        name = b.op(op, name, b.const(b.rng.uniform(0.5, 2, shape)))


def equal(b: Builder, x: int, op: str) -> None:
    """Two nodes that compute the same, and their sum."""
    name = b.pick(x)
    b.op("Add", b.op(op, name), b.op(op, name))


BACK = st.integers(0, 5)
FEW = st.integers(1, 4)
FLAG = st.booleans()
HOW = st.integers(0, 3)

Step = tuple[Any, dict[str, st.SearchStrategy[Any]]]
STEPS: dict[str, Step] = {
    "resize": (
        resize,
        {
            "x": BACK,
            "how": HOW,
            "scale": st.integers(2, 3),
            "out": FEW,
            "before": st.sampled_from(AROUND),
            "after": st.sampled_from(AROUND),
        },
    ),
    "join_resized": (join_resized, {"x": BACK, "how": HOW, "out": FEW}),
    "choose": (
        choose,
        {"x": BACK, "indices": st.lists(st.integers(0, 3), min_size=1, max_size=5), "how": HOW},
    ),
    "focus": (focus, {"x": BACK, "how": st.integers(0, 2), "out": FEW, "k": st.sampled_from([1, 3])}),
    "depth_to_space": (
        depth_to_space,
        {"x": BACK, "mode": st.sampled_from(["DCR", "CRD"]), "after": st.sampled_from(AROUND), "out": FEW},
    ),
    "strided_readers": (
        strided_readers,
        {
            "x": BACK,
            "norm": FLAG,
            "relu": FLAG,
            "add": FLAG,
            "strides": st.tuples(st.integers(1, 4), st.sampled_from([0, 0, 2, 4])),
        },
    ),
    "computed_weight": (computed_weight, {"x": BACK, "how": HOW, "out": FEW}),
    "dead_channels": (
        dead_channels,
        {
            "x": BACK,
            "op": st.sampled_from(["Relu", "Relu", "Sigmoid", "Identity", "Tanh"]),
            "bias": st.sampled_from([0.0, -1.0, 0.5]),
            "share": st.sampled_from([0.3, 0.7]),
        },
    ),
    "scores": (scores, {"x": BACK, "factor": st.sampled_from([0.25, 0.5, 3.0]), "where": st.integers(0, 2)}),
    "elements": (
        elements,
        {
            "x": BACK,
            "ops": st.lists(st.sampled_from(["Mul", "Add", "Sub", "Div"]), min_size=1, max_size=3),
        },
    ),
    "equal": (equal, {"x": BACK, "op": st.sampled_from(["Relu", "Neg", "Identity", "Sigmoid"])}),
}
