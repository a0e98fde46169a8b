"""Kernels as weights: in the operators' own layout, by blocks of output channels, rounded once to the data type.

Half precision asks for more than rounding. Its normal numbers end at 6e-5 (float16), so small weights lose digits:
an output channel that has only such weights is refused. And its rounding errors show where the taps of a kernel add up
to zero, as in an edge filter (Sobel, Laplace), which does not see how bright an image is. Each tap is rounded by
itself, so the rounded taps add up to some ulps, and that sum times the brightness is added to every output. The sum is
known, so it is given back, one ulp at a time, to taps that were rounded in its direction, the largest first. Thus no
tap is farther than one ulp from where it should be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Kernel, Total, streams
from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.dtypes import numpy_dtype
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason

__all__ = [
    "check_underflow",
    "factors",
    "grown",
    "keep_zero_sums",
    "materialized",
    "rounded",
    "transposed",
    "transposed_shape",
]

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


Weights = NDArray[Any]
NEGLIGIBLE = 2.0**-40  # of the sum of the magnitudes: what float64 leaves of a sum that is zero
HALF = {limits.dtype for limits in FLOAT_FORMATS.values() if limits.is_half}


def keep_zero_sums(exact: NDArray[np.float64], rounded: Weights) -> Weights:
    """Rounded weights whose sums are as near to zero as can be, wherever those of the exact ones are zero.

    Args:
        exact: (output channels, input channels, *kernel).
        rounded: the same in the model's type, of the same shape; changed in place if that is half precision.
    """
    if rounded.dtype not in HALF or exact.size == 0:
        return rounded
    channels, inputs = exact.shape[:2]
    taps = exact.reshape(channels * inputs, -1)
    by_input = _is_zero_sum(taps).reshape(channels, inputs)
    _give_back(taps, rounded.reshape(channels * inputs, -1), by_input.ravel())
    # A whole output channel may add up to zero, though no kernel of it does.
    rows = exact.reshape(channels, -1)
    _give_back(rows, rounded.reshape(channels, -1), _is_zero_sum(rows) & ~by_input.any(axis=1))
    return rounded


def _is_zero_sum(rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows add up to zero without being zero; (rows,)."""
    magnitude = np.abs(rows).sum(axis=1)
    return np.asarray((magnitude > 0) & (np.abs(rows.sum(axis=1)) <= NEGLIGIBLE * magnitude))


def _give_back(exact: NDArray[np.float64], rounded: Weights, chosen: NDArray[np.bool_]) -> None:
    """Move taps of the chosen rows by an ulp, until the rows add up to zero; (rows, taps), changed in place."""
    rows = np.flatnonzero(chosen)
    if not rows.size:
        return
    values = rounded[rows]
    errors = values.astype(np.float64) - exact[rows]
    left = values.astype(np.float64).sum(axis=1)
    line = np.arange(len(rows))
    for tap in np.argsort(-np.abs(exact[rows]), axis=1, kind="stable").T:
        value = values[line, tap]
        towards = np.where(left > 0, -np.inf, np.inf).astype(value.dtype)
        moved = np.nextafter(value, towards)
        step = moved.astype(np.float64) - value.astype(np.float64)
        # Only where it brings the sum nearer to zero, and takes back an error of the same sign.
        is_better = (np.abs(left + step) < np.abs(left)) & (errors[line, tap] * left > 0) & np.isfinite(step)
        values[line, tap] = np.where(is_better, moved, value)
        left = left + np.where(is_better, step, 0.0)
    rounded[rows] = values
