"""Kernels as weights: in the operators' own layout, by blocks of output channels, rounded once to the data type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Kernel, streams
from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.records.reasons import Reason

__all__ = ["grown", "materialized", "rounded", "transposed", "transposed_shape"]

BLOCK = 1 << 18  # elements of a float64 block: 2 MB, which stays in the processor's cache


@dataclass(frozen=True, eq=False)
class _Grown:
    """A kernel with zero taps added, where a pad would be negative."""

    inner: Kernel

    @property
    def geometry(self) -> Any:
        return self.inner.geometry.grown()

    @property
    def depth(self) -> int:
        return self.inner.depth + 1

    @property
    def size(self) -> int:
        return self.inner.size + 1

    def rows(self, lo: int, hi: int) -> NDArray[np.float64]:
        f, g = self.inner.geometry, self.geometry
        result = np.zeros((hi - lo, *g.weight_shape[1:]))
        place = tuple(
            slice((of - og) // d, (of - og) // d + k)
            for of, og, d, k in zip(f.origin, g.origin, g.dilations, f.kernel, strict=True)
        )
        index = (slice(None), slice(None), *place)
        result[index] = self.inner.rows(lo, hi)
        return result


def grown(kernel: Kernel) -> Kernel:
    """The same operator without a negative pad, which ONNX Conv has not."""
    return kernel if kernel.geometry.grown() == kernel.geometry else _Grown(kernel)


def rounded(value: NDArray[np.float64], data_type: int) -> NDArray[Any]:
    """In an ONNX float type. Raises Inexact where that is not finite."""
    with np.errstate(all="ignore"):
        result = value.astype(numpy_dtype(data_type))
    finite = np.isfinite(result.astype(np.float64) if result.dtype.kind == "V" else result)
    if not finite.all():
        reason = Reason.OVERFLOW if np.isfinite(value).all() else Reason.NON_FINITE
        raise Inexact(reason)
    return np.asarray(result)


def materialized(kernel: Kernel, data_type: int) -> NDArray[Any]:
    """The weight, of shape `geometry.weight_shape`, in an ONNX float type. Raises Inexact where that is not finite."""
    g = kernel.geometry
    result = np.empty(g.weight_shape, numpy_dtype(data_type))
    size = int(np.prod(g.weight_shape))
    limit = BLOCK if streams(kernel) else 64 * BLOCK
    step = g.c_out if size <= limit else max(1, BLOCK * g.c_out // size)
    for lo in range(0, g.c_out, step):
        hi = min(lo + step, g.c_out)
        with np.errstate(all="ignore"):
            rows = kernel.rows(lo, hi)
        result[lo:hi] = rounded(rows, data_type)
    return result


def transposed_shape(kernel: Kernel) -> tuple[int, ...]:
    """That of a ConvTranspose's weight."""
    g = kernel.geometry
    return (g.c_in, g.c_out // g.groups, *g.kernel)


def transposed(weight: NDArray[Any], kernel: Kernel) -> NDArray[Any]:
    """A weight of shape `geometry.weight_shape` in the layout of ConvTranspose."""
    g = kernel.geometry
    split = weight.reshape(g.groups, g.c_out // g.groups, g.c_in // g.groups, *g.kernel)
    return np.ascontiguousarray(np.swapaxes(split, 1, 2).reshape(transposed_shape(kernel)))
