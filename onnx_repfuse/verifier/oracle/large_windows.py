"""Large kernels in fewer steps than one for each tap: a 127x127 kernel has 16,129.

Both compute what `conv.correlate` defines, y[i] = sum over k of w[k] * x[s * i - p + d * k], for the inputs on which
tap by tap would take minutes:

* On an input of one value per channel, an output reads a box of taps. Sums over boxes are differences of running sums
  (a summed-area table), one axis after the other.
* With one input channel per group, a row of taps is a band matrix. Its product with the rows of the input takes no
  more multiplications than tap by tap, and they are matrix products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnx_repfuse.verifier.oracle.tensor import Array
from onnx_repfuse.verifier.oracle.window import Window

__all__ = ["Convert", "by_bands", "levels", "on_levels"]

_LARGE = 1024  # taps from which on it pays
_WIDE = 8  # taps of a row
_BLOCK_ELEMENTS = 1 << 20  # of weights that are summed at a time
_BAND_ELEMENTS = 1 << 23  # of the band matrices of one row of taps
Convert = Callable[[Array], Array]
Reached = Callable[[Sequence[int]], list[range]]


def levels(x: Array, window: Window) -> Array | None:
    """The values of an input that has one per row and channel, (N, C); None if it has more, or the kernel is small."""
    if math.prod(window.kernel) < _LARGE or not x.size:
        return None
    flat = x.reshape(*x.shape[:2], -1)
    return flat[..., 0] if (flat == flat[..., :1]).all() else None


def on_levels(
    level: Array, space: Sequence[int], w: Array, groups: int, window: Window, convert: Convert | None
) -> Array:
    """`conv.correlate` of an input that is `level`, (N, C), everywhere: w (M, C / groups, *kernel) -> (N, M, *out)."""
    out = window.output_sizes(space)
    boxes = [_read_taps(window, axis, size, out[axis]) for axis, size in enumerate(space)]
    m = len(w)
    given = level.reshape(len(level), groups, -1)
    result = np.zeros((len(level), m, *out), np.result_type(level, w) if convert is None else level.dtype)
    height = max(1, _BLOCK_ELEMENTS // max(1, math.prod(w.shape[1:])))
    for group in range(groups):
        last = (group + 1) * m // groups
        for first in range(group * m // groups, last, height):
            rows = slice(first, min(first + height, last))
            sums = (w[rows] if convert is None else convert(w[rows])).astype(np.float64)
            for axis, (begin, end) in enumerate(boxes, 2):
                running = np.insert(np.cumsum(sums, axis), 0, 0.0, axis)
                sums = running.take(end, axis) - running.take(begin, axis)
            result[:, rows] = np.einsum("nc,mc...->nm...", given[:, group], sums)
    return result


def _read_taps(window: Window, axis: int, size: int, out: int) -> tuple[Array, Array]:
    """(first, one behind the last) tap of each output that reads a position of the input, and no padding."""
    stride, dilation, count = window.strides[axis], window.dilations[axis], window.kernel[axis]
    at = stride * np.arange(out) - window.begin[axis]  # what the first tap reads
    begin = np.clip(-(at // dilation), 0, count)  # the first at 0 or above: rounded up
    end = np.clip((size - 1 - at) // dilation + 1, 0, count)
    return begin, np.maximum(begin, end)


def by_bands(
    padded: Array, w: Array, window: Window, out: Sequence[int], live: range, reached: Reached
) -> Array | None:
    """A depthwise `conv.correlate`, a row of taps at a time.

    Args:
        padded: (N, C, *padded).
        w: (M, 1, *kernel), where M is a multiple of C.
        window, out: how it slides, and the sizes of the output.
        live: the positions of the last axis of `padded` that hold anything but zeros.
        reached: the outputs, per axis, for which a tap reads anything but zeros.

    Returns:
        (N, M, *out); None where a tap at a time is better, or values are not finite, which times zero is NaN.
    """
    n, channels = padded.shape[:2]
    *_, width = window.kernel
    elements = len(w) * len(live) * out[-1]
    if width < _WIDE or math.prod(window.kernel) < _LARGE or elements > _BAND_ELEMENTS:
        return None
    if not np.isfinite(padded).all():
        return None
    total = np.zeros((n, channels, len(w) // channels, *out), np.result_type(padded, w))
    # Position a of the input is read by output i with tap k = (a - s * i) / d; a zero stands for what is no tap.
    offset = np.asarray(live)[:, None] - window.strides[-1] * np.arange(out[-1])
    tap, rest = np.divmod(offset, window.dilations[-1])
    tap = np.where((rest == 0) & (tap >= 0) & (tap < width), tap, width)
    rows = w.reshape(channels, -1, *window.kernel)
    rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], 1), w.dtype)], axis=-1)
    for row in itertools.product(*map(range, window.kernel[:-1])):
        outputs = reached((*row, 0))[:-1]
        if not all(outputs):
            continue
        read: Any = (slice(None), slice(None), *window.read_by((*row, 0), [*outputs, range(1)])[:-1])
        lines = padded[read][..., live.start : live.stop]
        at: Any = (slice(None), slice(None), *row)
        bands = rows[at][..., tap]
        # (N, C, 1, lines, live) @ (C, M / C, live, out)
        product = lines.reshape(n, channels, 1, -1, len(live)) @ bands
        write: Any = (..., *(slice(span.start, span.stop) for span in outputs), slice(None))
        total[write] += product.reshape(n, channels, -1, *map(len, outputs), out[-1])
    return total.reshape(n, len(w), *out)
