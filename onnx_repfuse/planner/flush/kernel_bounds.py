"""How large the weights of an output channel may be, told from what a kernel is made of."""

from __future__ import annotations

import numpy as np

from onnx_repfuse.algebra.kernel_slices import InLayout
from onnx_repfuse.algebra.kernels import Array, Kernel, Scaled, Stored, Total, Vector

__all__ = ["largest_rows"]

BLOCK = 1 << 18  # elements that are read at once


def largest_rows(kernel: Kernel) -> Array | None:
    """At least the largest magnitude of each output channel, (channels,); None if the kernel would have to be computed.

    Reads stored weights. It is exact but for a sum, of which the parts may cancel, and for factors of input channels.
    """
    if isinstance(kernel, Vector):
        return np.abs(kernel.scale)
    if isinstance(kernel, InLayout):
        return largest_rows(kernel.inner)
    if isinstance(kernel, Stored):
        return None if kernel.is_computed else _largest_stored(kernel)
    if isinstance(kernel, Scaled):
        rows = largest_rows(kernel.inner)
        if rows is None:
            return None
        with np.errstate(all="ignore"):  # weights that are not finite are refused later
            rows = rows if kernel.outer is None else rows * np.abs(kernel.outer)
            return rows if kernel.inputs is None else rows * np.abs(kernel.inputs).max(initial=0.0)
    if isinstance(kernel, Total):
        parts = [largest_rows(part) for part in kernel.parts]
        known = [part for part in parts if part is not None]
        return np.sum(known, axis=0) if len(known) == len(parts) else None
    return None


def _largest_stored(kernel: Stored) -> Array:
    weight, channels = kernel.read(), kernel.geometry.c_out
    step = max(1, BLOCK * channels // max(weight.size, 1))
    largest = np.zeros(channels)
    for lo in range(0, channels, step):
        block = weight[lo : lo + step]
        largest[lo : lo + step] = np.abs(block.reshape(len(block), -1)).max(axis=1, initial=0.0)
    return largest
