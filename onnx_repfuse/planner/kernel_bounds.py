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
        return None if getattr(kernel.origin, "inner", 0) else _largest_stored(kernel)
    if isinstance(kernel, Scaled):
        rows = largest_rows(kernel.inner)
        if rows is None:
            return None
        rows = rows if kernel.outer is None else rows * np.abs(kernel.outer)
        return rows if kernel.inputs is None else rows * np.abs(kernel.inputs).max(initial=0.0)
    if isinstance(kernel, Total):
        parts = [largest_rows(part) for part in kernel.parts]
        known = [part for part in parts if part is not None]
        return np.sum(known, axis=0) if len(known) == len(parts) else None
    return None


def _largest_stored(kernel: Stored) -> Array:
    geometry = kernel.geometry
    size = int(np.prod(geometry.weight_shape))
    step = max(1, BLOCK * geometry.c_out // max(size, 1))
    blocks = [
        np.abs(kernel.rows(lo, min(lo + step, geometry.c_out))) for lo in range(0, geometry.c_out, step)
    ]
    return np.concatenate([block.reshape(len(block), -1).max(axis=1, initial=0.0) for block in blocks])
