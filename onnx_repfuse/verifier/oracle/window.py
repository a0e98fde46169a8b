"""How a kernel slides over an input, for the oracle's convolutions and pools.

With stride s, dilation d and padding p at the begin of an axis, tap k of output i reads x[s * i - p + d * k], and zeros
outside x.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_repfuse.verifier.oracle.tensor import Array, Context, check_size

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """How a kernel slides: one number per spatial axis in each field.

    Attributes:
        kernel, strides, dilations: as the operators' attributes.
        begin, end: padding.
        ceil: AveragePool's ceil_mode: a last window that is not full counts.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    ceil: bool = False

    @staticmethod
    def of(context: Context, kernel: Sequence[int], space: Sequence[int]) -> Window:
        """The window of a node over an input of spatial sizes `space`, its auto_pad resolved."""
        given, rank = context.attributes, len(space)
        strides = tuple(given.get("strides") or [1] * rank)
        dilations = tuple(given.get("dilations") or [1] * rank)
        pads = tuple(given.get("pads") or [0] * (2 * rank))
        begin, end = pads[:rank], pads[rank:]
        auto_pad = given.get("auto_pad", "NOTSET")
        if auto_pad == "VALID":
            begin = end = (0,) * rank
        elif auto_pad.startswith("SAME"):
            # As much padding as ceil(size / stride) outputs take. Of an odd total, UPPER has one more at the end.
            geometry = zip(space, kernel, strides, dilations, strict=True)
            totals = [max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in geometry]
            less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
            begin, end = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        return Window(tuple(kernel), strides, dilations, begin, end, bool(given.get("ceil_mode", 0)))

    @property
    def is_point(self) -> bool:
        """Whether each output reads one position, its own."""
        return {*self.kernel, *self.strides} == {1} and not any((*self.begin, *self.end))

    def output_sizes(self, space: Sequence[int]) -> list[int]:
        """floor((size + padding - extent) / stride) + 1 per axis, or ceil. Raises ValueError if none fits."""
        sizes = []
        for axis, size in enumerate(space):
            # 3 taps of dilation 2 span 5 positions
            extent = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            room, stride = size + self.begin[axis] + self.end[axis] - extent, self.strides[axis]
            count = (-(-room // stride) if self.ceil else room // stride) + 1
            is_too_small = room < 0 and not self.ceil  # with ceil_mode, a window that is not full counts
            if count < 1 or is_too_small:
                raise ValueError("the window does not fit")
            sizes.append(count)
        return sizes

    def pad(self, x: Array) -> Array:
        """x with its padding, and room for a last window that is not full: (N, C, *space) -> (N, C, *padded)."""
        beyond = self.strides if self.ceil else (0,) * len(self.strides)
        width = [(b, max(0, e) + more) for b, e, more in zip(self.begin, self.end, beyond, strict=True)]
        if not any(map(any, width)):
            return x
        if min(map(min, width)) < 0:
            raise ValueError("negative padding")
        sizes = [begin + size + end for size, (begin, end) in zip(x.shape[2:], width, strict=True)]
        check_size((*x.shape[:2], *sizes))
        padded = np.zeros((*x.shape[:2], *sizes), x.dtype)  # np.pad takes ten times as long for small tensors
        inner = (slice(begin, begin + size) for size, (begin, _) in zip(x.shape[2:], width, strict=True))
        where = (slice(None), slice(None), *inner)
        padded[where] = x
        return padded

    def taps(self) -> Iterator[tuple[int, ...]]:
        """Every position of the kernel."""
        return itertools.product(*(range(size) for size in self.kernel))

    def read_by(self, tap: Sequence[int], outputs: Iterable[range]) -> list[slice]:
        """The positions of the padded input that a tap reads for a box of outputs."""
        return [
            slice(d * k + s * box.start, d * k + s * (box.stop - 1) + 1, s)
            for k, d, s, box in zip(tap, self.dilations, self.strides, outputs, strict=True)
        ]
