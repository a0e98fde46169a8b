"""The steps that random graphs are made of: each takes a `Builder` and plain numbers, and adds a few nodes.

A step that cannot run on the present shapes raises `InvalidError` and adds nothing. So every list of steps is a
graph, and a shorter list is a smaller graph.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests import random_linear_maps
from tests.random_builder import Builder
from tests.random_scopes import branches, call, capture, hidden, loop, rank_behind_if
from tests.reference import InvalidError


def conv(
    b: Builder,
    x: int,
    out: int,
    k: int,
    s: int,
    d: int,
    pads: list[int],
    same: bool,
    group: int,
    bias: bool,
    style: int,
) -> None:
    name = b.image(x)
    rank = len(b.shape(name)) - 2
    kernel = tuple(1 + (k >> (2 * a)) % 4 for a in range(rank))
    dilations, strides = [d] * rank, [s] + [1 + (s > 2)] * (rank - 1)
    chosen = pads[: 2 * rank]
    if same:
        half = [d * (n - 1) // 2 for n in kernel]
        rest = [d * (n - 1) - h for n, h in zip(kernel, half, strict=True)]
        chosen = [*half, *rest] if pads[0] != 1 else [*rest, *half]
    groups = (1, 1, 2, b.fixed(name, 1))[group]
    c_out = groups * max(1, out // groups)
    b.conv(
        name,
        c_out,
        kernel,
        bias=bias,
        style=style,
        group=groups,
        strides=strides,
        dilations=dilations,
        pads=chosen,
    )


def auto_conv(b: Builder, x: int, k: int, s: int, auto: str, out: int) -> None:
    name = b.image(x)
    rank = len(b.shape(name)) - 2
    b.conv(name, out or b.fixed(name, 1), (k,) * rank, auto_pad=auto, strides=[s] * rank)


def affine(b: Builder, x: int, op: str, form: int, first: bool, style: int) -> None:
    name = b.pick(x)
    if op == "BatchNormalization":
        b.norm(name, style)
        return
    if op == "Neg":
        b.op(op, name)
        return
    rank = len(b.shape(name))
    axis = 1 if form < 3 or rank == 2 else rank - 1
    value = b.vector(b.fixed(name, axis), style)
    shapes = [
        (*value.shape, *(1,) * (rank - 2)),
        (1, *value.shape, *(1,) * (rank - 2)),
        (),
        value.shape,
        (1,) * rank,
        (1,),
    ]
    shape = shapes[form]
    if b.net.opset < 7:
        size = (1,) if shape in ((), (1,)) else value.shape
        const = b.const(value[: size[0]])
        b.op(op, name, const, broadcast=1, axis=axis)
        return
    const = b.const((value if prod(shape) > 1 else value[:1]).reshape(shape))
    b.op(op, *((const, name) if first else (name, const)))


def combine(b: Builder, x: int, y: int, op: str, many: bool) -> None:
    first = b.pick(x)
    names = [first, b.like(first, y)]
    if op in ("Sum", "Mean") and many:
        names.append(b.like(first, y + 1))
    b.op(op, *names)


def loose(b: Builder, x: int, y: int, op: str) -> None:
    """Arithmetic with any constant that broadcasts."""
    b.op(op, b.pick(x), b.pick(y))


def concat(b: Builder, x: int, y: int, axis: int) -> None:
    name = b.pick(x)
    b.op("Concat", name, b.pick(y), axis=axis % len(b.shape(name)))


def cut(b: Builder, x: int, lo: int, width: int, axis: int) -> None:
    name = b.pick(x)
    b.slice(name, axis % len(b.shape(name)), lo, lo + width)


def split(b: Builder, x: int, at: int, swap: bool, join: bool) -> None:
    name = b.pick(x)
    channels = b.fixed(name, 1)
    if not 0 < at < channels:
        raise InvalidError("nothing to split")
    parts = b.split(name, 1, [at, channels - at])
    if join:
        b.op("Concat", *(parts[::-1] if swap else parts), axis=1)


def pool(b: Builder, x: int, op: str, k: int, s: int, p: int, include: int, ceil: int, auto: str) -> None:
    name = b.image(x)
    rank = len(b.shape(name)) - 2
    attrs: dict[str, Any] = {
        "kernel_shape": [k] * rank,
        "strides": [s] * rank,
        "pads": [min(p, k - 1)] * rank * 2,
    }
    if op == "AveragePool" and b.net.opset >= 7:
        attrs["count_include_pad"] = include
    if b.net.opset >= 10:
        # ONNX and ONNX Runtime disagree on the size where a last window may begin beyond the end.
        attrs["ceil_mode"] = ceil if k >= s and attrs["pads"][0] == 0 else 0
    if auto:  # beside it, pads have no say
        attrs.update(auto_pad=auto, ceil_mode=0)
        if b.net.opset < 10:
            del attrs["ceil_mode"]
    b.op(op, name, **attrs)


def pad(b: Builder, x: int, begin: list[int], end: list[int], value: int, mode: str) -> None:
    name = b.image(x)
    rank = len(b.shape(name)) - 2
    b.pad(name, begin[:rank], end[:rank], value * 0.5, mode)


def activation(b: Builder, x: int, op: str) -> None:
    name = b.pick(x)
    if op == "hardswish":
        inner = b.clip(b.op("Add", name, b.const(np.float32(3))), 0.0, 6.0)
        b.op("Div", b.op("Mul", name, inner), b.const(np.float32(6)))
    elif op == "hardsigmoid":
        inner = b.clip(b.op("Add", name, b.const(np.float32(3))), 0.0, 6.0)
        b.op("Mul", name, b.op("Div", inner, b.const(np.float32(6))))
    elif op == "silu":
        b.op("Mul", name, b.op("Sigmoid", name))
    elif op == "Clip":
        b.clip(name, -0.5, 1.0)
    else:
        b.op(op, name)


def tail(b: Builder, x: int, how: int, out: int, beta: bool, norm: bool) -> None:
    """From an image to a matrix, then a matrix product."""
    name = b.image(x)
    space = list(range(2, len(b.shape(name))))
    if how == 0:
        name = b.op("Flatten", b.op("GlobalAveragePool", name), axis=1)
    elif how == 1:
        name = b.mean(name, space, 0)
    elif how == 2:
        name = b.op("Reshape", b.op("GlobalAveragePool", name), b.ints(0, -1))
    else:
        name = b.op("Flatten", name, axis=1)
    b.fixed(name, 1)
    if norm:
        name = b.norm(name)
    product(b, 0, out, int(beta))


def product(b: Builder, x: int, out: int, how: int) -> None:
    """MatMul or Gemm on the last axis."""
    name = b.pick(x)
    rank = len(b.shape(name))
    c_in = b.fixed(name, rank - 1)
    if how < 2 and rank == 2:
        more = [b.const(b.rng.standard_normal(out) * how)] if how or b.net.opset < 11 else []
        transposed = out % 2
        shape = (out, c_in) if transposed else (c_in, out)
        b.op(
            "Gemm",
            name,
            b.const(b.rng.standard_normal(shape) * c_in**-0.5),
            *more,
            transB=transposed,
            alpha=0.5 + 0.5 * how,
            **({"broadcast": 1} if b.net.opset < 7 else {}),
        )
        return
    name = b.op("MatMul", name, b.const(b.rng.standard_normal((c_in, out)) * c_in**-0.5))
    if how % 2:
        b.op("Add", name, b.const(b.rng.standard_normal(out)))


def last(b: Builder, x: int, out: int, how: int, back: bool) -> None:
    """Channels last, a matrix product, and back."""
    name = b.image(x)
    rank = len(b.shape(name))
    b.op("Transpose", name, perm=[0, *range(2, rank), 1])
    product(b, 0, out, how)
    if back:
        b.op("Transpose", b.pick(0), perm=[0, rank - 1, *range(1, rank - 1)])


def transpose_conv(
    b: Builder, x: int, out: int, k: int, s: int, p: int, extra: int, group: int, bias: bool
) -> None:
    name = b.image(x)
    rank, c_in = len(b.shape(name)) - 2, b.fixed(name, 1)
    groups = (1, 1, 2, c_in)[group]
    if c_in % groups:
        raise InvalidError("groups")
    rows = max(1, out // groups)
    more = [b.const(b.rng.standard_normal(rows * groups))] if bias else []
    b.op(
        "ConvTranspose",
        name,
        b.weight(c_in, rows, *(k,) * rank),
        *more,
        group=groups,
        strides=[s] * rank,
        pads=[min(p, k - 1)] * rank * 2,
        output_padding=[min(extra, s - 1)] * rank,
    )


def view(b: Builder, x: int, how: int) -> None:
    """Reshape, Transpose, Resize and their like, which move elements."""
    name = b.image(x)
    shape = b.shape(name)
    if how == 0:
        b.op("Reshape", name, b.ints(0, shape[1], -1))
    elif how == 1:
        b.op("Transpose", name, perm=[0, 1, *reversed(range(2, len(shape)))])
    elif how == 2 and shape[1] % 2 == 0:
        made = b.op("Reshape", name, b.ints(0, 2, shape[1] // 2, -1))
        b.op("Reshape", b.op("Transpose", made, perm=[0, 2, 1, 3]), b.ints(0, shape[1], -1))
    elif how == 3:
        scales = b.const(np.array([1, 1, *(2,) * (len(shape) - 2)], np.float32))
        if b.net.dtype != np.float32 or b.net.opset == 11:
            raise InvalidError("scales are float32; opset 11 asks for a region of interest, too")
        if b.net.opset < 9:
            raise InvalidError("below opset 9, Upsample takes its scales from attributes")
        if b.net.opset < 11:
            b.op("Upsample", name, scales, mode="nearest")
        else:
            how_to = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            b.op("Resize", name, "", scales, mode="nearest", **how_to)
    elif how == 4:
        b.op("GlobalAveragePool", name)
    elif how == 5:
        b.mean(name, [2], 1)
    else:
        b.op("Identity", name)


def branch(b: Builder, x: str, kind: int, out: int, s: int, norm: bool, bias: bool) -> str:
    """A linear branch that keeps the size, or divides it by the stride."""
    c_in = b.fixed(x, 1)
    rank = len(b.shape(x)) - 2
    strides, group = [s] * rank, c_in if out == c_in and kind % 2 else 1
    common: dict[str, Any] = {"strides": strides, "bias": bias}
    if kind < 6:
        k = (3, 3, 1, 1, 5, 5)[kind]
        made = b.conv(x, out, (k,) * rank, group=group, pads=[k // 2] * 2 * rank, **common)
    elif kind == 6:
        made = b.conv(x, out, (3,) * rank, dilations=[2] * rank, pads=[2] * 2 * rank, **common)
    elif kind == 7:
        made = b.conv(x, out, (3, *(1,) * (rank - 1)), pads=[1, *(0,) * (rank - 1)] * 2, **common)
    elif kind == 8:
        made = b.conv(x, out, (2,) * rank, pads=[1] * rank + [0] * rank, **common)
    elif kind == 9:
        inner = b.conv(x, 2 * out, (1,) * rank, bias=False)
        made = b.conv(inner, out, (3,) * rank, pads=[1] * 2 * rank, **common)
    elif kind == 10:
        inner = b.conv(x, 2 * out, (1,) * rank, bias=bias)
        made = b.conv(inner, out, (3,) * rank, pads=[1] * 2 * rank, **common)
    elif kind == 11 and b.net.opset >= 7:
        inner = b.conv(x, out, (1,) * rank, bias=False)
        made = b.op(
            "AveragePool",
            inner,
            kernel_shape=[3] * rank,
            pads=[1] * 2 * rank,
            strides=strides,
            count_include_pad=1,
        )
    elif kind == 12:
        inner = b.op("Add", b.conv(x, out, (1,) * rank, bias=False), b.const(np.float32(0.5)))
        inner = b.pad(inner, [1] * rank, [1] * rank, 0.5)
        made = b.conv(inner, out, (3,) * rank, **common)
    elif kind == 13:
        made = b.conv(b.pad(x, [1] * rank, [1] * rank), out, (3,) * rank, **common)
    elif kind == 14 and c_in > 1:
        parts = [b.slice(x, 1, 0, 1), b.slice(x, 1, 1, c_in)]
        inner = b.op("Concat", b.conv(parts[0], 1, (1,) * rank, bias=bias), parts[1], axis=1)
        made = b.conv(inner, out, (1,) * rank, **common)
    elif s == 1 and c_in == out:
        made = x
    else:
        made = b.conv(x, out, (1,) * rank, **common)
    return b.norm(made) if norm else str(made)


def block(b: Builder, x: int, kinds: list[tuple[int, bool, bool]], out: int, s: int, op: str) -> None:
    """A sum of branches of one tensor."""
    name = b.image(x)
    c_out = out or b.fixed(name, 1)
    names = [branch(b, name, kind, c_out, s, norm, bias) for kind, norm, bias in kinds]
    if op in ("Sum", "Mean"):
        b.op(op, *names)
        return
    total = names[0]
    for other in names[1:]:
        total = b.op(op, total, other)


def padded_after_affine(b: Builder, x: int, op: str, style: int, group: int, bias: bool) -> None:
    """An affine operator before a Conv that pads."""
    affine(b, x, op, 0, False, style)
    name = b.pick(0)
    rank, c_in = len(b.shape(name)) - 2, b.fixed(name, 1)
    if rank < 1:
        raise InvalidError("no image")
    b.conv(name, c_in, (3,) * rank, group=(1, c_in)[group], pads=[1] * 2 * rank, bias=bias)


def gate(b: Builder, x: int) -> None:
    """Squeeze and excite."""
    name = b.image(x)
    rank, c_in = len(b.shape(name)) - 2, b.fixed(name, 1)
    inner = b.conv(b.op("GlobalAveragePool", name), c_in, (1,) * rank)
    b.op("Mul", name, b.op("Sigmoid", inner))


BACK = st.integers(0, 5)
FEW = st.integers(1, 4)
FORM = st.integers(0, 4)
FLAG = st.booleans()
STYLE = st.integers(0, 5)
PADS = st.lists(st.integers(0, 2), min_size=6, max_size=6)
AFFINE = st.sampled_from(["BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg"])

Step = tuple[str, dict[str, Any]]
STEPS: dict[str, tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = {
    "conv": (
        conv,
        {
            "x": BACK,
            "out": FEW,
            "k": st.integers(0, 63),
            "s": FEW.map(lambda n: max(1, n - 2)),
            "d": st.integers(1, 2),
            "pads": PADS,
            "same": FLAG,
            "group": st.integers(0, 3),
            "bias": FLAG,
            "style": STYLE,
        },
    ),
    "auto_conv": (
        auto_conv,
        {
            "x": BACK,
            "k": st.integers(1, 3),
            "s": st.integers(1, 2),
            "auto": st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
            "out": st.integers(0, 4),
        },
    ),
    "affine": (affine, {"x": BACK, "op": AFFINE, "form": st.integers(0, 5), "first": FLAG, "style": STYLE}),
    "combine": (
        combine,
        {"x": BACK, "y": BACK, "op": st.sampled_from(["Add", "Sub", "Sum", "Mean", "Mul"]), "many": FLAG},
    ),
    "loose": (loose, {"x": BACK, "y": BACK, "op": st.sampled_from(["Add", "Sub", "Mul"])}),
    "concat": (concat, {"x": BACK, "y": BACK, "axis": st.sampled_from([1, 1, 1, 2, 3])}),
    "cut": (
        cut,
        {"x": BACK, "lo": st.integers(0, 3), "width": FEW, "axis": st.sampled_from([1, 1, 1, 2, 3])},
    ),
    "split": (split, {"x": BACK, "at": FEW, "swap": FLAG, "join": FLAG}),
    "hidden": (
        hidden,
        {
            "x": BACK,
            "axes": st.lists(FLAG, min_size=5, max_size=5),
            "op": st.sampled_from(["Add", "Sub", "Mul"]),
            "first": FLAG,
        },
    ),
    "pool": (
        pool,
        {
            "x": BACK,
            "op": st.sampled_from(["AveragePool", "AveragePool", "MaxPool"]),
            "k": st.integers(1, 3),
            "s": st.integers(1, 2),
            "p": st.integers(0, 1),
            "include": st.integers(0, 1),
            "ceil": st.integers(0, 1),
            "auto": st.sampled_from(["", "", "", "VALID"]),
        },
    ),
    "pad": (
        pad,
        {
            "x": BACK,
            "begin": PADS,
            "end": PADS,
            "value": st.integers(0, 1),
            "mode": st.sampled_from(["constant", "constant", "constant", "reflect"]),
        },
    ),
    "activation": (
        activation,
        {
            "x": BACK,
            "op": st.sampled_from(
                ["Relu", "hardswish", "hardsigmoid", "silu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "Abs"]
            ),
        },
    ),
    "tail": (tail, {"x": BACK, "how": st.integers(0, 3), "out": FEW, "beta": FLAG, "norm": FLAG}),
    "product": (product, {"x": BACK, "out": FEW, "how": st.integers(0, 3)}),
    "last": (last, {"x": BACK, "out": FEW, "how": st.integers(2, 3), "back": FLAG}),
    "transpose_conv": (
        transpose_conv,
        {
            "x": BACK,
            "out": FEW,
            "k": st.integers(1, 3),
            "s": st.integers(1, 2),
            "p": st.integers(0, 1),
            "extra": st.integers(0, 1),
            "group": st.integers(0, 3),
            "bias": FLAG,
        },
    ),
    "view": (view, {"x": BACK, "how": st.integers(0, 6)}),
    "block": (
        block,
        {
            "x": BACK,
            "kinds": st.lists(st.tuples(st.integers(0, 15), FLAG, FLAG), min_size=2, max_size=4),
            "out": st.integers(0, 4),
            "s": st.integers(1, 2),
            "op": st.sampled_from(["Add", "Sum", "Sub", "Mean"]),
        },
    ),
    "padded_after_affine": (
        padded_after_affine,
        {"x": BACK, "op": AFFINE, "style": STYLE, "group": st.integers(0, 1), "bias": FLAG},
    ),
    "gate": (gate, {"x": BACK}),
    "capture": (capture, {"x": BACK, "y": BACK}),
    "branches": (branches, {"x": BACK, "forms": st.tuples(FORM, FORM), "entered": FLAG}),
    "rank_behind_if": (
        rank_behind_if,
        {"x": BACK, "more": st.integers(0, 2), "op": st.sampled_from(["Add", "Mul"])},
    ),
    "loop": (loop, {"x": BACK, "form": FORM, "rounds": st.integers(1, 2)}),
    "call": (call, {"x": BACK, "form": st.integers(0, 5), "number": st.integers(1, 3)}),
    **random_linear_maps.STEPS,
}
OFTEN = ("conv", "affine", "combine", "block", "conv", "affine", "combine", "block", "padded_after_affine")


def _one(name: str) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), st.fixed_dictionaries(STEPS[name][1]))


def steps(largest: int = 10) -> st.SearchStrategy[list[Step]]:
    """Lists of steps; steps that the tool folds are more frequent."""
    one = st.sampled_from([*OFTEN, *STEPS]).flatmap(_one)
    return st.lists(one, min_size=2, max_size=largest)


def grow(b: Builder, todo: list[Step]) -> None:
    """Do those steps that can run."""
    for name, arguments in todo:
        b.attempt(STEPS[name][0], arguments)
