"""The oracle's sliding windows: Conv, ConvTranspose and AveragePool, by their definitions, in plain numpy.

With stride s, dilation d and padding p at the begin of an axis, tap k of output i reads x[s * i - p + d * k], and zeros
outside x. ONNX operators: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from onnx_repfuse.verifier.oracle.large_windows import Convert, by_bands, levels, on_levels
from onnx_repfuse.verifier.oracle.linear import per_channel
from onnx_repfuse.verifier.oracle.tensor import (
    Array,
    Context,
    Joined,
    Resized,
    StoredKernel,
    Tensor,
    Unsupported,
)
from onnx_repfuse.verifier.oracle.window import Window

# Bounds of memory: patches repeat each input element once per tap, and float64 weights are twice the file's or more.
PATCH_ELEMENTS = 1 << 22
BLOCK_ELEMENTS = 1 << 16
_MANY_TAPS = 10  # of a depthwise kernel, from which on it is looked for zeros among what it reads


def spatial(*where: Any) -> Any:
    """An index of the axes behind the batch and the channels."""
    return (slice(None), slice(None), *where)


def correlate(x: Array, w: Array, groups: int, window: Window, convert: Convert | None = None) -> Array:
    """y[n, m, i] = sum over c, k of w[m, c, k] * x[n, c, s * i - p + d * k].

    Args:
        x: (N, C, *space).
        w: (M, C / groups, *kernel).
        convert: for a kernel in its stored type: makes a block of output channels what it stands for, in x's type.

    Raises:
        ValueError: shapes do not fit.
    """
    out = window.output_sizes(x.shape[2:])
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError("channels do not fit")
    level = levels(x, window)
    if level is not None:
        return on_levels(level, x.shape[2:], w, groups, window, convert)
    padded = window.pad(x)
    if w.shape[1] == 1:  # matrix products of one row each would be slow
        return _depthwise(padded, w if convert is None else convert(w), window, out)
    n, m = len(x), len(w)
    kernel = w.reshape(groups, m // groups, w.shape[1], -1)
    total = np.zeros((n, m, *out), dtype=np.result_type(x, w) if convert is None else x.dtype)
    per_tap = x.shape[1] * math.prod(out)  # elements of the patches of one image
    batch = max(1, PATCH_ELEMENTS // max(1, per_tap * kernel.shape[3]))
    for first in range(0, n, batch):
        _add_dense(total[first : first + batch], padded[first : first + batch], kernel, window, convert)
    return total


def _add_dense(total: Array, padded: Array, kernel: Array, window: Window, convert: Convert | None) -> None:
    """Add to a batch of results, with matrix products over as many taps at a time as memory allows.

    A large kernel meets mostly zeros (`_depthwise`): of its taps, each block is used only where it reads anything else.
    total: (N, M, *out); padded: (N, C, *padded); kernel: (groups, M / groups, C / groups, taps).
    """
    n, m, *out = total.shape
    groups, rows = kernel.shape[:2]
    taps = list(window.taps())
    blocks = _tap_blocks(window.kernel, padded.shape[1] * n * math.prod(out))
    occupied = [_occupied(padded, 2 + axis) for axis in range(len(out))] if len(blocks) > 1 else []
    for block in blocks:
        box = [range(size) for size in out]
        if len(blocks) > 1:
            box[:-1] = _reached(window, taps[block.start], occupied, out)[:-1]
        if not all(box):
            continue
        patches = _patches(padded, groups, window, [taps[index] for index in block], box)
        # (groups, M / groups, C / groups * taps) @ (groups, C / groups * taps, N * positions)
        weight = kernel[..., block.start : block.stop].reshape(groups, rows, -1)
        product = np.matmul(weight, patches) if convert is None else _by_blocks(weight, patches, convert)
        product = np.moveaxis(product.reshape(m, n, *map(len, box)), 1, 0)
        if len(blocks) == 1:
            total[...] = product
        else:
            total[spatial(*(slice(span.start, span.stop) for span in box))] += product


def _tap_blocks(kernel: Sequence[int], per_tap: int) -> list[range]:
    """All taps by number, in blocks; where there are several, the taps of one differ along the last axis only."""
    count, row = math.prod(kernel), kernel[-1]
    if per_tap * count <= PATCH_ELEMENTS:
        return [range(count)]
    length = max(1, PATCH_ELEMENTS // per_tap)
    return [
        range(first, min(first + length, start + row))
        for start in range(0, count, row)
        for first in range(start, start + row, length)
    ]


def _patches(
    padded: Array, groups: int, window: Window, taps: Sequence[tuple[int, ...]], box: Sequence[range]
) -> Array:
    """What a box of outputs reads ("im2col"): (N, C, *padded) -> (groups, C / groups * taps, N * positions)."""
    n, depth = len(padded), padded.shape[1] // groups
    if n == len(taps) == 1:  # without a copy, as a rule
        read = padded[spatial(*window.read_by(taps[0], box))]
        return np.asarray(read.reshape(groups, depth, -1))
    patches = np.empty((groups, depth, len(taps), n, math.prod(map(len, box))), dtype=padded.dtype)
    for index, tap in enumerate(taps):
        read = padded[spatial(*window.read_by(tap, box))]
        patches[:, :, index] = read.reshape(n, groups, depth, -1).transpose(1, 2, 0, 3)
    return patches.reshape(groups, depth * len(taps), -1)


def _by_blocks(rows: Array, patches: Array, convert: Convert) -> Array:
    """(groups, M / groups, K) @ (groups, K, P), with BLOCK_ELEMENTS converted weights at a time."""
    groups, count, depth = rows.shape
    product = np.empty((groups, count, patches.shape[2]), dtype=patches.dtype)
    height = max(1, BLOCK_ELEMENTS // depth)
    for group in range(groups):
        for first in range(0, count, height):
            block = slice(first, first + height)
            product[group, block] = convert(rows[group, block]) @ patches[group]
    return product


def _depthwise(padded: Array, w: Array, window: Window, out: Sequence[int]) -> Array:
    """`correlate` with one input channel per group: tap by tap, and only where the input is not all zeros.

    Impulses, and small images under large kernels, are mostly zeros (a 31x31 kernel has 961 taps).
    padded: (N, C, *padded); w: (M, 1, *kernel), where M is a multiple of C.
    """
    n, channels, *_ = padded.shape
    looks_for_zeros = (
        math.prod(window.kernel) >= _MANY_TAPS
    )  # else that takes longer than to multiply by them
    occupied = [_occupied(padded, 2 + axis) for axis in range(len(out))] if looks_for_zeros else []
    if looks_for_zeros:
        reached = partial(_reached, window, occupied=occupied, out=out)
        total = by_bands(padded, w, window, out, occupied[-1], reached)
        if total is not None:
            return total
    # With the channels last, where there are more of them than positions in a row: each step is one long product.
    source = np.ascontiguousarray(np.moveaxis(padded, 1, -1))
    weights = np.moveaxis(w.reshape(channels, -1, *window.kernel), (0, 1), (-1, -2))  # (*kernel, M / C, C)
    total = np.zeros((n, *out, *weights.shape[-2:]), dtype=np.result_type(padded, w))
    everything = [range(size) for size in out]
    for tap in window.taps():
        outputs = _reached(window, tap, occupied, out) if looks_for_zeros else everything
        if all(outputs):
            # (N, *box, 1, C) * (M / C, C) -> (N, *box, M / C, C)
            read: Any = (slice(None), *window.read_by(tap, outputs), None)
            write: Any = (slice(None), *(slice(box.start, box.stop) for box in outputs))
            total[write] += source[read] * weights[tap]
    return np.ascontiguousarray(np.moveaxis(total, (-1, -2), (1, 2))).reshape(n, len(w), *out)


def _occupied(x: Array, axis: int) -> range:
    """From the first to the last index of an axis with anything but zeros."""
    live = np.flatnonzero(x.any(tuple(other for other in range(x.ndim) if other != axis)))
    return range(int(live[0]), int(live[-1]) + 1) if live.size else range(0)


def _reached(
    window: Window, tap: Sequence[int], occupied: Sequence[range], out: Sequence[int]
) -> list[range]:
    """Per axis, the outputs for which a tap reads an occupied position: live.start <= s * i + d * k < live.stop."""
    outputs = []
    for k, d, s, live, count in zip(tap, window.dilations, window.strides, occupied, out, strict=True):
        # -(-a // s) rounds a / s up.
        first, stop = -((d * k - live.start) // s), -((d * k - live.stop) // s)
        outputs.append(range(max(0, first), min(count, stop)))
    return outputs


def _add_bias(value: Array, magnitude: Array, bias: Tensor | None) -> Tensor:
    if bias is None:
        return Tensor(value, magnitude)
    rank = value.ndim
    return Tensor(value + per_channel(bias.value, rank), magnitude + per_channel(bias.magnitude, rank))


def conv(context: Context, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Conv: x (N, C, *space), w (M, C / group, *kernel), b (M,) -> (N, M, *out)."""
    groups = context.attributes.get("group", 1)
    parts = x.parts if isinstance(x, Joined) and x.axis == groups == 1 else (x,)
    window = Window.of(context, w.value.shape[2:], parts[0].shape[2:])
    values, magnitudes = (w.to_values, w.to_magnitudes) if isinstance(w, StoredKernel) else (None, None)
    kernels = list(_kernels_of(parts, w, groups))

    def of_values(part: Tensor, kernel: Tensor) -> Array:
        if isinstance(part, Resized) and window.is_point:
            return part.resize_values(correlate(part.before.value, kernel.value, groups, window, values))
        return correlate(part.value, kernel.value, groups, window, values)

    def of_magnitudes(part: Tensor, kernel: Tensor) -> Array:
        if isinstance(part, Resized) and window.is_point:
            sums = correlate(part.before.magnitude, kernel.magnitude, groups, window, magnitudes)
            return part.resize_magnitudes(sums)
        return correlate(part.magnitude, kernel.magnitude, groups, window, magnitudes)

    value, magnitude = context.both(
        lambda: _total(itertools.starmap(of_values, kernels)),
        lambda: _total(itertools.starmap(of_magnitudes, kernels)),
    )
    # no channel of a resized image is non-zero that was zero before
    read = (part.before if isinstance(part, Resized) and window.is_point else part for part in parts)
    context.count_terms(math.prod(w.value.shape[1:]), *(part.value for part in read))
    return _add_bias(value, magnitude, b)


def _total(summands: Iterator[Array]) -> Array:
    total, is_ours = next(summands), False
    for summand in summands:
        total = np.add(total, summand, out=total if is_ours else None)
        is_ours = True
    return total


def _kernels_of(parts: Sequence[Tensor], w: Tensor, groups: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The parts of an operand, and what of a kernel reads each. Raises ValueError where the channels do not fit."""
    ends = list(itertools.accumulate(part.shape[1] for part in parts))
    if ends[-1] != w.value.shape[1] * groups:
        raise ValueError("channels do not fit")
    if len(parts) == 1:
        yield parts[0], w
        return
    for first, end, part in zip([0, *ends], ends, parts, strict=False):
        yield part, Tensor(w.value[:, first:end], w.magnitude[:, first:end])


def conv_transpose(context: Context, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """ConvTranspose: x (N, C, *space), w (C, M / group, *kernel), b (M,) -> (N, M, *out).

    Input i adds w[k] * x[i] to output s * i - p + d * k. Raises Unsupported for output_shape and auto_pad SAME, whose
    paddings changed between opset 1 and 11.
    """
    given = context.attributes
    if "output_shape" in given or given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Unsupported("ConvTranspose with output_shape or auto_pad")
    groups = given.get("group", 1)
    window = Window.of(context, w.value.shape[2:], x.value.shape[2:])
    extra = given.get("output_padding") or [0] * len(window.kernel)
    value = _scatter(x.value, w.value, groups, window, extra)
    magnitude = _scatter(x.magnitude, w.magnitude, groups, window, extra)
    context.count_terms(len(w.value) // groups * math.prod(window.kernel), x.value)
    return _add_bias(value, magnitude, b)


def _scatter(x: Array, w: Array, groups: int, window: Window, extra: Sequence[int]) -> Array:
    """ConvTranspose without bias; `extra` is its output_padding, at the end of each axis."""
    n, c, *space = x.shape
    if c != len(w):
        raise ValueError("channels do not fit")
    kernel = w.reshape(groups, c // groups, -1, *window.kernel).swapaxes(1, 2)
    pixels = x.reshape(n, groups, c // groups, math.prod(space))
    m = groups * kernel.shape[1]
    last_tap = [size - 1 for size in window.kernel]
    full = [
        span.stop + more
        for span, more in zip(window.read_by(last_tap, map(range, space)), extra, strict=True)
    ]
    total = np.zeros((n, m, *full), dtype=np.result_type(x, w))
    for tap in window.taps():
        of_tap: Any = (..., *tap)
        # (groups, M / groups, C / groups) @ (N, groups, C / groups, P) -> (N, groups, M / groups, P)
        product = kernel[of_tap] @ pixels
        total[spatial(*window.read_by(tap, map(range, space)))] += product.reshape(n, m, *space)
    kept = [slice(b, size - e) for b, e, size in zip(window.begin, window.end, full, strict=True)]
    if any(span.stop <= span.start for span in kept):
        raise ValueError("the padding crops everything")
    return np.asarray(total[spatial(*kept)])


def average_pool(context: Context, x: Tensor) -> Tensor:
    """AveragePool: (N, C, *space) -> (N, C, *out); padding counts as zeros, or (count_include_pad = 0) not at all.

    Raises Unsupported for ceil_mode with count_include_pad: whether what lies beyond the padding counts, too, has not
    been the same in all versions of the runtimes.
    """
    given, channels = context.attributes, x.value.shape[1]
    window = Window.of(context, given["kernel_shape"], x.value.shape[2:])
    ones = np.ones((channels, 1, *window.kernel))
    value = correlate(x.value, ones, channels, window)
    magnitude = correlate(x.magnitude, ones.astype(np.float32), channels, window)
    if not given.get("count_include_pad", 0):
        count: Any = correlate(np.ones((1, 1, *x.value.shape[2:])), ones[:1], 1, window)
    elif window.ceil:
        raise Unsupported("AveragePool with ceil_mode over padding")
    else:
        count = float(math.prod(window.kernel))
    context.count_terms(math.prod(window.kernel), x.value)
    return Tensor(value / count, (magnitude / count**context.power).astype(np.float32))


def max_pool(context: Context, x: Tensor) -> Tensor:
    """MaxPool: (N, C, *space) -> (N, C, *out); padding is never the largest. An error is that of any tap at most.

    Raises Unsupported for indices as a second output, and where runtimes count windows in their own ways: padding
    with ceil_mode, and automatic padding of dilated windows.
    """
    given = context.attributes
    window = Window.of(context, given["kernel_shape"], x.value.shape[2:])
    pads_automatically = given.get("auto_pad", "NOTSET").startswith("SAME")
    is_unclear = window.ceil and any((*window.begin, *window.end))
    if context.outputs > 1 or is_unclear or (pads_automatically and max(window.dilations) > 1):
        raise Unsupported("MaxPool of this form")
    out = [range(size) for size in window.output_sizes(x.value.shape[2:])]
    reads = [spatial(*window.read_by(tap, out)) for tap in window.taps()]
    is_padding = window.pad(np.ones_like(x.value)) == 0
    padded = np.where(is_padding, -np.inf, window.pad(x.value))
    magnitude = window.pad(x.magnitude)
    return Tensor(
        np.maximum.reduce([padded[read] for read in reads]),
        np.maximum.reduce([magnitude[read] for read in reads]),
    )
