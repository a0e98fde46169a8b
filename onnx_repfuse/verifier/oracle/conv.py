"""The oracle's windows: Conv, ConvTranspose and AveragePool, in plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnx_repfuse.verifier.oracle.registry import Context, Unsupported, Value, Weight, register

__all__ = ["column", "correlate"]
_PATCHES = 1 << 22  # elements of the patch matrix at once
_WEIGHTS = 1 << 20  # elements of a large kernel in float64 at once

Array = np.ndarray[Any, np.dtype[Any]]
Window = tuple[list[int], list[int], list[int], list[int]]  # strides, dilations, pads begin, pads end


def column(bias: Array, rank: int) -> Array:
    """Per channel values, broadcastable to a tensor of `rank` dims."""
    return bias.reshape(1, -1, *(1,) * (rank - 2))


def window(context: Context, space: Sequence[int], kernel: Sequence[int]) -> Window:
    """(strides, dilations, pads begin, pads end) with auto_pad worked out."""
    rank = len(space)
    given = context.attributes
    strides = given.get("strides") or [1] * rank
    dilations = given.get("dilations") or [1] * rank
    pads = given.get("pads") or [0] * (2 * rank)
    auto = given.get("auto_pad", "NOTSET")
    begin, end = list(pads[:rank]), list(pads[rank:])
    if auto == "VALID":
        begin, end = [0] * rank, [0] * rank
    elif auto.startswith("SAME"):
        for axis in range(rank):
            extent = (kernel[axis] - 1) * dilations[axis] + 1
            out = -(-space[axis] // strides[axis])
            total = max(0, (out - 1) * strides[axis] + extent - space[axis])
            half = total // 2
            begin[axis], end[axis] = (half, total - half) if auto == "SAME_UPPER" else (total - half, half)
    return list(strides), list(dilations), begin, end


def correlate(
    x: Array,
    w: Array,
    groups: int,
    how: Window,
    ceil: bool = False,
    meaning: Callable[[Array], Array] | None = None,
) -> Array:
    """y[n, o, i] = sum w[o, c, k] x[n, c, s*i - begin + d*k], in the type of its operands.

    Args:
        x: (N, C, *space).
        w: (M, C/groups, *kernel).
        meaning: what to make of w, a block of its output channels at a time; None: it is meant as it is.
    """
    strides, dilations, begin, end = how
    kernel, space = w.shape[2:], x.shape[2:]
    out = []
    for axis, size in enumerate(space):
        room = size + begin[axis] + end[axis] - ((kernel[axis] - 1) * dilations[axis] + 1)
        count = (-(-room // strides[axis]) if ceil else room // strides[axis]) + 1
        if room < 0 and not (ceil and count > 0):
            raise ValueError("the window does not fit")
        out.append(count)
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError("channels do not fit")
    slack = [(b, max(0, e) + (s if ceil else 0)) for b, e, s in zip(begin, end, strides, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *slack])
    n, m, deep = x.shape[0], w.shape[0], w.shape[1]
    if deep == 1:
        return _depthwise(padded, w if meaning is None else meaning(w), groups, how, out)
    positions = int(np.prod(out, dtype=int))
    taps = int(np.prod(kernel, dtype=int))
    kind = np.result_type(x, w if meaning is None else meaning(w[:1]))
    total = np.empty((n, m, positions), dtype=kind)
    flat = w.reshape(groups, m // groups, deep * taps)  # as it lies: positions are few, weights are many
    rows = max(1, _PATCHES // max(1, groups * deep * taps * positions))
    for first in range(0, n, rows):
        some = padded[first : first + rows]
        patches = np.empty((groups, deep, taps, len(some), positions), dtype=padded.dtype)
        for index, tap in enumerate(itertools.product(*(range(k) for k in kernel))):
            at = tuple(
                slice(t * d, t * d + (count - 1) * s + 1, s)
                for t, d, count, s in zip(tap, dilations, out, strides, strict=True)
            )
            where: Any = (slice(None), slice(None), *at)
            patches[:, :, index] = some[where].reshape(len(some), groups, deep, -1).transpose(1, 2, 0, 3)
        columns = patches.reshape(groups, deep * taps, -1)
        product = _product(flat, columns, kind, meaning)
        total[first : first + rows] = product.reshape(m, len(some), positions).transpose(1, 0, 2)
    return total.reshape(n, m, *out)


def _product(
    flat: Array, columns: Array, kind: np.dtype[Any], meaning: Callable[[Array], Array] | None
) -> Array:
    """flat @ columns, (groups, rows, k) by (groups, k, positions), with few converted weights at a time."""
    if meaning is None:
        return np.asarray(np.matmul(flat, columns))
    groups, rows, deep = flat.shape
    result = np.empty((groups, rows, columns.shape[2]), dtype=kind)
    block = max(1, _WEIGHTS // deep)
    for group in range(groups):
        for first in range(0, rows, block):
            some = slice(first, first + block)
            result[group, some] = np.matmul(meaning(flat[group, some]), columns[group])
    return result


def _depthwise(padded: Array, w: Array, groups: int, how: Window, out: Sequence[int]) -> Array:
    """`correlate` with one channel per group: tap by tap, and only where the input is not zero.

    Large kernels over small images, and impulses, are mostly zeros.
    """
    strides, dilations, _, _ = how
    n, m = padded.shape[0], w.shape[0]
    each, rank = m // groups, len(out)
    total = np.zeros((n, groups, each, *out), dtype=np.result_type(padded, w))
    live = [np.flatnonzero(padded.any(tuple(a for a in range(rank + 2) if a != 2 + i))) for i in range(rank)]
    if not all(one.size for one in live):
        return total.reshape(n, m, *out)
    for tap in itertools.product(*(range(k) for k in w.shape[2:])):
        read: list[slice] = []
        write: list[slice] = []
        for axis, (t, d, s, count) in enumerate(zip(tap, dilations, strides, out, strict=True)):
            first = max(0, -((d * t - int(live[axis][0])) // s))
            last = min(count - 1, (int(live[axis][-1]) - d * t) // s)
            if first > last:
                break
            read.append(slice(d * t + s * first, d * t + s * last + 1, s))
            write.append(slice(first, last + 1))
        else:
            where: Any = (slice(None), 0, *tap)
            there: Any = (slice(None), slice(None), None, *read)
            here: Any = (..., *write)
            weight = w[where].reshape(groups, each, *(1,) * rank)
            total[here] += padded[there] * weight
    return total.reshape(n, m, *out)


@register("Conv")
def conv(context: Context, x: Value, w: Value, b: Value | None = None) -> Value:
    groups = context.attributes.get("group", 1)
    how = window(context, x.v.shape[2:], w.v.shape[2:])
    values, sizes = (w.values, w.sizes) if isinstance(w, Weight) else (None, None)
    v = correlate(x.v, w.v, groups, how, meaning=values)
    m = correlate(x.m, w.m, groups, how, meaning=sizes)
    context.count(int(np.prod(w.v.shape[1:])), x.v)
    if b is not None:
        v, m = v + column(b.v, v.ndim), m + column(b.m, v.ndim)
    return Value(v, m)


@register("ConvTranspose")
def conv_transpose(context: Context, x: Value, w: Value, b: Value | None = None) -> Value:
    """Upsample with zeros, pad, and correlate with the flipped kernel."""
    given = context.attributes
    groups, kernel, space = given.get("group", 1), w.v.shape[2:], x.v.shape[2:]
    if "output_shape" in given or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported("ConvTranspose with output_shape or auto_pad")
    strides, dilations, begin, end = window(context, space, kernel)
    extra = given.get("output_padding") or [0] * len(kernel)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]

    def apply(data: Array, weight: Array) -> Array:
        n, c = data.shape[:2]
        spread = np.zeros(
            (n, c, *((size - 1) * s + 1 for size, s in zip(space, strides, strict=True))), data.dtype
        )
        index: Any = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
        spread[index] = data
        left = [r - p for r, p in zip(reach, begin, strict=True)]
        right = [r - p + e for r, p, e in zip(reach, end, extra, strict=True)]
        pads = [(max(0, a), max(0, b)) for a, b in zip(left, right, strict=True)]
        spread = np.pad(spread, [(0, 0), (0, 0), *pads])
        crop = tuple(
            slice(max(0, -a), spread.shape[2 + i] - max(0, -b))
            for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
        inner: Any = (slice(None), slice(None), *crop)
        spread = spread[inner]
        turned = weight.reshape(groups, c // groups, -1, *kernel).swapaxes(1, 2)
        turned = turned.reshape(-1, c // groups, *kernel)[
            (slice(None),) * 2 + (slice(None, None, -1),) * len(kernel)
        ]
        ones, none = [1] * len(kernel), [0] * len(kernel)
        return correlate(spread, turned, groups, (ones, dilations, none, none))

    v, m = apply(x.v, w.v), apply(x.m, w.m)
    context.count(int(w.v.shape[0] // groups * np.prod(kernel)), x.v)
    if b is not None:
        v, m = v + column(b.v, v.ndim), m + column(b.m, v.ndim)
    return Value(v, m)


@register("AveragePool")
def average_pool(context: Context, x: Value) -> Value:
    given = context.attributes
    kernel, channels = given["kernel_shape"], x.v.shape[1]
    how = window(context, x.v.shape[2:], kernel)
    ceil = bool(given.get("ceil_mode", 0))
    ones = np.ones((channels, 1, *kernel))
    v = correlate(x.v, ones, channels, how, ceil=ceil)
    m = correlate(x.m, ones.astype(np.float32), channels, how, ceil=ceil)
    if given.get("count_include_pad", 0):
        if ceil:
            raise Unsupported("AveragePool with ceil_mode over padding")
        count: Any = float(np.prod(kernel))
    else:
        count = correlate(np.ones((1, 1, *x.v.shape[2:])), np.ones((1, 1, *kernel)), 1, how, ceil=ceil)
    context.count(int(np.prod(kernel)), x.v)
    return Value(v / count, (m / count**context.power).astype(np.float32))
