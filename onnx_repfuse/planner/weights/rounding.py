"""Kernels as weights: in the operators' own layout, by blocks of output channels, rounded once to the data type.

Half precision asks for more than rounding. Its normal numbers end at 6e-5 (float16), so small weights lose digits:
an output channel that has only such weights is refused. And its rounding errors show: where the taps of a kernel add
up to zero, as in an edge filter, they still do when they are rounded, or a bright image would leave a residue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Kernel, Total, streams
from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.planner.weights.zero_sums import keep_zero_sums
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason

__all__ = ["check_underflow", "factors", "grown", "materialized", "rounded", "transposed", "transposed_shape"]

BLOCK = 1 << 18  # elements of a float64 block: 2 MB, which stays in the processor's cache


def grown(kernel: Kernel) -> Kernel:
    """The same operator with zero taps in place of negative pads, which ONNX Conv does not allow."""
    geometry = kernel.geometry.grown()
    return kernel if geometry == kernel.geometry else Total(geometry, (kernel,))


def rounded(value: NDArray[np.float64], data_type: int) -> NDArray[Any]:
    """In an ONNX float type. Raises Inexact where that is not finite."""
    with np.errstate(all="ignore"):
        result = value.astype(numpy_dtype(data_type))
    finite = np.isfinite(result.astype(np.float64) if result.dtype.kind == "V" else result)
    if not finite.all():
        reason = Reason.OVERFLOW if np.isfinite(value).all() else Reason.NON_FINITE
        raise Inexact(reason)
    return np.asarray(result)


def check_underflow(weights: NDArray[np.float64], data_type: int) -> None:
    """Raise Inexact(UNDERFLOW) where an output channel is too small for a half-precision type.

    It is where rounding its subnormal weights costs more than rounding may cost its largest, u times that. So a few
    subnormals beside ordinary weights are fine. Weights of other types are never too small: float32's lose digits
    below 1e-38 only.

    Args:
        weights: (channels, ...).
        data_type: an ONNX float type.
    """
    limits = FLOAT_FORMATS.get(data_type)
    if limits is None or not limits.is_half:
        return
    rows = np.abs(weights.reshape(len(weights), -1))
    is_subnormal = rows < limits.smallest_normal
    if not is_subnormal.any():
        return
    lost = np.where(is_subnormal, np.abs(rows.astype(limits.dtype).astype(np.float64) - rows), 0.0)
    if (lost.max(axis=1) > limits.unit_roundoff * rows.max(axis=1)).any():
        raise Inexact(Reason.UNDERFLOW)


def factors(scale: NDArray[np.float64], shape: tuple[int, ...], data_type: int) -> NDArray[Any]:
    """One factor per channel, (channels,), in another shape and an ONNX float type. Raises Inexact: `materialized`."""
    check_underflow(scale, data_type)
    return rounded(scale.reshape(shape), data_type)


def materialized(kernel: Kernel, data_type: int) -> NDArray[Any]:
    """The weight, of shape `geometry.weight_shape`, in an ONNX float type.

    Raises:
        Inexact: OVERFLOW or NON_FINITE where it is not finite; UNDERFLOW.
    """
    g = kernel.geometry
    result = np.empty(g.weight_shape, numpy_dtype(data_type))
    size = int(np.prod(g.weight_shape))
    limit = BLOCK if streams(kernel) else 64 * BLOCK
    step = g.c_out if size <= limit else max(1, BLOCK * g.c_out // size)
    for lo in range(0, g.c_out, step):
        hi = min(lo + step, g.c_out)
        with np.errstate(all="ignore"):
            rows = kernel.rows(lo, hi)
        check_underflow(rows, data_type)
        result[lo:hi] = keep_zero_sums(rows, rounded(rows, data_type))
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
