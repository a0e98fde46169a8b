"""Steps for `runtime_graphs` in which a law of the planner applies, or one that looks alike does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.runtime_builder import Graph, factors, weight

__all__ = ["LAWS"]


def beside(g: Graph, r: random.Random, x: str) -> str:
    """A factor or a shift of any shape that broadcasts; it may enlarge an axis of one position."""
    shape = g.shape(x)
    wanted = [r.choice([1, n, n, 3 if n == 1 else n]) for n in shape[r.randrange(len(shape) + 1) :]]
    names = [x, g.const(factors(r, *wanted))]
    op = r.choice(["Mul", "Mul", "Mul", "Div", "Add", "Sub"])
    return str(g.op(op, *(names if op in ("Div", "Sub") or r.random() < 0.7 else names[::-1])))


def maybe(g: Graph, r: random.Random, x: str) -> str:
    return beside(g, r, x) if r.random() < 0.6 else x


def one_position(g: Graph, r: random.Random, x: str) -> str:
    """Perhaps the maximum along one of the last axes: what is broadcast behind it gets larger."""
    return extreme(g, r, x, [r.choice([-1, -2])], 1) if r.random() < 0.4 else x


def heads(g: Graph, r: random.Random) -> None:
    """Factors beside products whose weight is a batch of matrices, stands first, or both."""
    x = maybe(g, r, one_position(g, r, g.pick(r)))
    shape = g.shape(x)
    batch = [r.choice([1, n]) for n in shape[len(shape) - r.randrange(2, len(shape) + 1) : -2]]
    if r.random() < 0.5:
        y = g.op("MatMul", x, g.const(weight(r, *batch, shape[-1], r.choice([1, 3]))))
    else:
        y = g.op("MatMul", g.const(weight(r, *batch, r.choice([1, 3]), shape[-2])), x)
    maybe(g, r, maybe(g, r, y))


def columns(g: Graph, r: random.Random) -> None:
    """A Gemm that reads any of its inputs by columns, with a bias of any shape."""
    x = g.op("Flatten", g.pick(r), axis=r.choice([0, 1, -1]))
    x = maybe(g, r, one_position(g, r, x))
    turned, is_first = r.randrange(2), r.random() < 0.5
    summed = g.shape(x)[1 - turned] if is_first else g.shape(x)[turned]
    w = g.const(weight(r, *((summed, 3) if is_first else (3, summed))))
    rows = g.shape(x)[turned] if is_first else 3
    width = 3 if is_first else g.shape(x)[1 - turned]
    attrs: dict[str, Any] = {"alpha": r.choice([1.0, 0.5]), "beta": r.choice([1.0, 2.0])}
    bias = [g.const(weight(r, *r.choice([(), (width,), (1, width), (rows, 1), (1, 1)])))]
    bias = bias if r.random() < 0.6 else []
    if is_first:
        y = g.op("Gemm", x, w, *bias, transA=turned, **attrs)
    else:
        y = g.op("Gemm", w, x, *bias, transB=turned, **attrs)
    maybe(g, r, maybe(g, r, y))


def extremes(g: Graph, r: random.Random) -> None:
    """A maximum or minimum over any axes, between a factor and a product."""
    x = maybe(g, r, g.pick(r))
    rank = len(g.shape(x))
    axes = r.sample(range(rank), r.randrange(1, rank))
    axes = [axis - rank if r.random() < 0.5 else axis for axis in axes]
    y = extreme(g, r, x, axes, r.choice([0, 0, 1]))
    y = maybe(g, r, y)
    if g.values[y].ndim >= 3 and r.random() < 0.5:
        g.op("Conv", y, g.const(weight(r, 2, g.shape(y)[1], *[1] * (g.values[y].ndim - 2))))
    elif g.values[y].ndim >= 2:
        g.op("MatMul", y, g.const(weight(r, g.shape(y)[-1], 3)))


def extreme(g: Graph, r: random.Random, x: str, axes: list[int], keepdims: int) -> str:
    op = r.choice(["ReduceMax", "ReduceMin"])
    if g.opset < 18:
        return str(g.op(op, x, axes=axes, keepdims=keepdims))
    return str(g.op(op, x, g.ints(*axes), keepdims=keepdims))


def slopes(g: Graph, r: random.Random) -> None:
    """A PRelu with slopes along any axes, behind a Conv or a norm."""
    x = maybe(g, r, g.pick(r))
    shape = g.shape(x)
    wanted = [r.choice([1, n]) for n in shape[r.randrange(len(shape) + 1) :]]
    values = np.full(wanted, r.choice([0.1, -0.3, 1, 2])) if r.random() < 0.4 else weight(r, *wanted)
    maybe(g, r, g.op("PRelu", x, g.const(values)))


def padded(g: Graph, r: random.Random) -> None:
    """A Pad by any mode, along any axes, that may crop; a norm behind it."""
    x = maybe(g, r, g.pick(r))
    rank = len(g.shape(x))
    amounts = [0] * (2 * rank)
    for axis in r.sample(range(rank), r.choice([1, 2])):
        amounts[axis], amounts[axis + rank] = r.choice([0, 1, 2, -1]), r.choice([0, 1, -1])
    mode = r.choice(["constant", "edge", "reflect", "edge"])
    value = [g.const(np.float32(r.choice([0, 0.5])))] if mode == "constant" and r.random() < 0.5 else []
    product(g, r, maybe(g, r, g.op("Pad", x, g.ints(*amounts), *value, mode=mode)))


def product(g: Graph, r: random.Random, x: str) -> str:
    """A pointwise Conv or a MatMul, if there are axes for one."""
    if g.values[x].ndim >= 3 and r.random() < 0.6:
        rank = g.values[x].ndim - 2
        return str(g.op("Conv", x, g.const(weight(r, 3, g.shape(x)[1], *[1] * rank))))
    return str(g.op("MatMul", x, g.const(weight(r, g.shape(x)[-1], 3))))


def like_another(g: Graph, r: random.Random) -> None:
    """An Expand or a Resize to the shape of another tensor; a Slice to the sizes of one."""
    x, other = product(g, r, g.pick(r, 3)), g.pick(r, 3)
    shape = g.op("Shape", other)
    way = r.randrange(3)
    if way == 0:
        one = g.op(r.choice(["ReduceMax", "ReduceMean"]), x, axes=[-1, -2], keepdims=1) if g.opset < 18 else x
        y = g.op("Expand", one, shape if r.random() < 0.5 else g.op("Shape", x))
    elif way == 1:
        end = g.op("Slice", shape, g.ints(2), g.ints(9), g.ints(0))
        axes = g.ints(*range(2, len(g.shape(x))))
        y = g.op("Slice", x, g.ints(*[0] * (len(g.shape(x)) - 2)), end, axes)
    else:
        y = g.op("Tile", x, g.op("Slice", shape, g.ints(0), g.ints(len(g.shape(x)))))
    product(g, r, maybe(g, r, y))


def many_views(g: Graph, r: random.Random) -> None:
    """A product, views one behind another, a factor, and perhaps another product."""
    x = product(g, r, g.pick(r, 3))
    for _ in range(r.choice([1, 2, 3])):
        shape = g.shape(x)
        rank = len(shape)
        way = r.randrange(5)
        if way == 0:
            x = g.op("Transpose", x, perm=r.sample(range(rank), rank))
        elif way == 1 and rank > 2:
            x = g.op("Reshape", x, g.ints(*[0] * (rank - 2), -1))
        elif way == 2:
            x = g.op("Unsqueeze", x, g.ints(r.choice([1, -1, 2])))
        elif way == 3 and shape[-1] % 2 == 0:
            x = g.op("Reshape", x, g.ints(*[0] * (rank - 1), 2, -1))
        else:
            x = g.op("Slice", x, g.ints(0), g.ints(r.choice([2, -1])), g.ints(r.choice([-1, 1])))
        x = beside(g, r, x) if r.random() < 0.3 else x
    product(g, r, maybe(g, r, x))


def shared(g: Graph, r: random.Random) -> None:
    """A factor that several products read, written as a depthwise Conv or as arithmetic; perhaps with an activation."""
    x = g.pick(r, 3)
    c, rank = g.shape(x)[1], len(g.shape(x)) - 2
    if r.random() < 0.6:
        bias = [g.const(weight(r, c))] if r.random() < 0.6 else []
        y = g.op("Conv", x, g.const(factors(r, c, 1, *[1] * rank)), *bias, group=c)
    else:
        y = beside(g, r, x)
    for _ in range(r.choice([2, 3])):
        z = g.op("Relu", y) if r.random() < 0.15 else y
        taps = r.choice([1, 3])
        pads = r.choice([0, taps // 2])
        channels = g.shape(z)[1]
        g.op("Conv", z, g.const(weight(r, 2, channels, *[taps] * rank)), pads=[pads] * (2 * rank))
    if r.random() < 0.2:
        g.op("Sigmoid", y)


def written(g: Graph, r: random.Random) -> None:
    """A mask that is scattered into a ConstantOfShape."""
    x = g.pick(r)
    n = g.shape(x)[-1]
    row = g.op("ConstantOfShape", g.ints(n))
    places = g.const(np.array([[r.randrange(n)] for _ in range(r.choice([1, 2]))], np.int64))
    values = g.const(weight(r, len(g.values[places])))
    if r.random() < 0.5:
        row = g.op("ScatterND", row, places, values)
    else:
        row = g.op("ScatterElements", row, g.op("Squeeze", places, g.ints(1)), values, axis=r.choice([0, -1]))
    g.op(r.choice(["Mul", "Add"]), x, row)


def soft(g: Graph, r: random.Random) -> None:
    """What `--avoid` has a way for."""
    x = maybe(g, r, g.pick(r))
    ops = ["LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "GlobalAveragePool"]
    if g.opset >= 20:
        g.op("Gelu", x, approximate=r.choice(["none", "tanh"]))
    else:
        maybe(g, r, g.op(r.choice(ops), x))


LAWS: tuple[Callable[[Graph, random.Random], Any], ...] = (
    heads, columns, extremes, slopes, padded, like_another, many_views, shared, written, soft,
)  # fmt: skip
