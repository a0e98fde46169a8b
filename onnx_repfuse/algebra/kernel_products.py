"""`g @ f`, `f + g`, and some of the rows or columns of a kernel: the kernels they give, where the laws allow it.

What is known by one number per channel is multiplied at once: a `Vector`, the factors of a `Scaled`, the channels of a
`Picked`. Everything else is a kernel that computes itself later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from onnx_repfuse.algebra import laws
from onnx_repfuse.algebra.choice import Picked, Sampled, columns_at, picked, rows_at, taps_at
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Block, InLayout
from onnx_repfuse.algebra.kernels import Array, Composed, Kernel, Scaled, Total, Vector

MAX_SUMS = 8  # that a kernel is tried to join: planning stays linear

__all__ = ["columns", "composed", "in_layout_of", "is_one", "narrowed", "rows", "sums_of", "total"]


def is_one(kernel: Kernel) -> bool:
    """The identity."""
    return isinstance(kernel, Vector) and kernel.is_one


def rows(kernel: Kernel, lo: int, hi: int) -> tuple[Kernel, int]:
    """Output channels lo..hi, and the first input channel they read."""
    if isinstance(kernel, Picked):
        index = kernel.index[lo:hi]
        return picked(index, taps_at(kernel.taps, np.arange(lo, hi)), kernel.geometry.c_in), 0
    geometry, first, _ = laws.select_outputs(kernel.geometry, lo, hi)
    return _block(kernel, geometry, lo, first, slice(lo, hi)), first


def columns(kernel: Kernel, lo: int, hi: int) -> tuple[Kernel, int]:
    """Input channels lo..hi, and the first output channel they reach."""
    if isinstance(kernel, Picked):
        return _picked_columns(kernel, lo, hi), 0
    geometry, first, _ = laws.select_inputs(kernel.geometry, lo, hi)
    return _block(kernel, geometry, first, lo, slice(lo, hi)), first


def _block(kernel: Kernel, geometry: Geometry, row: int, column: int, channels: slice) -> Kernel:
    """The part of a kernel that begins at a row and a column; both are the same where it keeps `channels` apart."""
    if isinstance(kernel, Vector):
        return Vector(geometry, kernel.scale[channels])
    if isinstance(kernel, Sampled):
        return Sampled(geometry)
    return Block(geometry, kernel, row, column)


def _picked_columns(kernel: Picked, lo: int, hi: int) -> Kernel:
    """A choice fed only input channels lo..hi: rows that choose another one are zero."""
    is_inside = (kernel.index >= lo) & (kernel.index < hi)
    scale, taps = is_inside.astype(np.float64), kernel.taps
    diagonal = _diagonal_of(taps.geometry)
    masked = composed(Vector(diagonal, scale), taps, zero_bias=True)
    return picked(np.where(is_inside, kernel.index - lo, 0), masked, hi - lo)


def _diagonal_of(g: Geometry) -> Geometry:
    """One value for each output channel of g."""
    return Geometry.diagonal(g.c_out, g.rank, g.channel_axis)


def narrowed(kernel: Kernel) -> tuple[Kernel, int]:
    """A choice of consecutive channels as the kernel of these channels alone, and the first of them."""
    if not isinstance(kernel, Picked):
        return kernel, 0
    first = int(kernel.index[0])
    if not np.array_equal(kernel.index, np.arange(first, first + len(kernel.index))):
        return kernel, 0
    return kernel.taps, first


def composed(g: Kernel, f: Kernel, *, zero_bias: bool) -> Kernel:
    """`g @ f`; values per channel are multiplied at once, so chains of them do not nest.

    Raises:
        Inexact: see `laws.compose`.
    """
    geometry = laws.compose(g.geometry, f.geometry, zero_bias=zero_bias)
    if isinstance(g, Picked):
        return _picked_after(g, f, zero_bias=zero_bias)
    if isinstance(f, Picked):
        return _after_picked(g, f, zero_bias=zero_bias)
    if isinstance(g, Vector) and isinstance(f, Vector):
        return Vector(geometry, g.scale * f.scale)
    if isinstance(g, Sampled) and isinstance(f, Sampled):
        return Sampled(geometry)
    if isinstance(g, Sampled) and f.geometry.transposed:
        return InLayout(geometry, f)
    if isinstance(g, Vector):
        return f if g.is_one else _scaled_outputs(geometry, g.scale, f)
    if isinstance(f, Vector):
        return g if f.is_one else _scaled_inputs(geometry, g, f.scale)
    return Composed(geometry, g, f)


def _picked_after(g: Picked, f: Kernel, *, zero_bias: bool) -> Kernel:
    """`(D P) @ f`: rows of f, under D."""
    if isinstance(f, Picked):
        inner = taps_at(f.taps, g.index)
        return picked(f.index[g.index], composed(g.taps, inner, zero_bias=zero_bias), f.geometry.c_in)
    if _keeps_channels_apart(f.geometry):
        inner = taps_at(f, g.index)
        return picked(g.index, composed(g.taps, inner, zero_bias=zero_bias), f.geometry.c_in)
    return composed(g.taps, rows_at(f, g.index), zero_bias=zero_bias)


def _after_picked(g: Kernel, f: Picked, *, zero_bias: bool) -> Kernel:
    """`g @ (D P)`: columns of `g @ D`."""
    inner = composed(g, f.taps, zero_bias=zero_bias)
    if _keeps_channels_apart(g.geometry):
        return picked(f.index, inner, f.geometry.c_in)
    return columns_at(inner, f.index, f.geometry.c_in)


def _keeps_channels_apart(g: Geometry) -> bool:
    """Whether output channel c reads input channel c alone, at whatever positions."""
    return g.groups == g.c_in == g.c_out


def _scaled_outputs(geometry: Geometry, scale: Array, f: Kernel) -> Kernel:
    """`diag(scale) @ f`."""
    if not isinstance(f, Scaled):
        return Scaled(geometry, f, scale)
    return Scaled(geometry, f.inner, scale if f.outer is None else scale * f.outer, f.inputs)


def _scaled_inputs(geometry: Geometry, g: Kernel, scale: Array) -> Kernel:
    """`g @ diag(scale)`."""
    if not isinstance(g, Scaled):
        return Scaled(geometry, g, None, scale)
    return Scaled(geometry, g.inner, g.outer, scale if g.inputs is None else scale * g.inputs)


def total(parts: Sequence[Kernel], size: laws.Size | None = None) -> Kernel:
    """The sum of kernels that read one source of `size` positions, where known; sums of sums stay flat.

    Raises:
        Inexact: see `laws.total`.
    """
    if len(parts) == 1:
        return parts[0]
    flat: list[Kernel] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Total) else (part,))
    geometry = reduce(lambda f, g: laws.total(f, g, size), [part.geometry for part in parts])
    if all(isinstance(part, Vector) for part in flat):
        return Vector(geometry, np.sum([part.scale for part in flat if isinstance(part, Vector)], axis=0))
    first = flat[0]
    if isinstance(first, Picked) and all(_chooses_alike(first, part) for part in flat):
        taps = [part.taps for part in flat if isinstance(part, Picked)]
        return picked(first.index, total(taps, size), first.geometry.c_in)
    return Total(geometry, tuple(flat))


def sums_of(parts: Sequence[Kernel], size: laws.Size | None = None) -> list[Kernel]:
    """Kernels that read one source, as few that have the same sum: all are one unless several are cheaper apart.

    Conv1x1 + Conv1x1 + depthwise 3x3 is a Conv1x1 and the depthwise one: as one, it would be a dense 3x3. Of two that
    is for the caller to weigh.

    Raises:
        Inexact: see `laws.total`.
    """
    whole = total(parts, size)
    if len(parts) < 3 or _weights(whole) <= sum(map(_weights, parts)):
        return [whole]
    groups: list[list[Kernel]] = []
    sums: list[Kernel] = []
    for part in sorted(parts, key=_weights, reverse=True):
        for place, other in enumerate(sums[:MAX_SUMS]):
            both = total((other, part), size)
            if _weights(both) <= _weights(other) + _weights(part):
                groups[place].append(part)
                sums[place] = both
                break
        else:
            groups.append([part])
            sums.append(part)
    return [whole] if len(sums) == len(parts) else [total(group, size) for group in groups]


def _weights(kernel: Kernel) -> int:
    """Multiply-adds for each position."""
    if isinstance(kernel, Picked):
        return _weights(kernel.taps)
    return 0 if isinstance(kernel, Vector) else kernel.geometry.weights


def _chooses_alike(first: Picked, other: Kernel) -> bool:
    """Whether both read the same channels: then their sum does."""
    return isinstance(other, Picked) and np.array_equal(first.index, other.index)


def in_layout_of(kernel: Kernel, layout: tuple[int, int]) -> Kernel | None:
    """A pointwise kernel in another (channel axis, rank); None if it is not pointwise."""
    if isinstance(kernel, Picked):
        taps = in_layout_of(kernel.taps, layout)
        return None if taps is None else picked(kernel.index, taps, kernel.geometry.c_in)
    geometry = kernel.geometry.in_layout(layout)
    if geometry is None:
        return None
    if is_one(kernel):
        return Vector.unit(geometry.c_out, geometry.layout)
    return Vector(geometry, kernel.scale) if isinstance(kernel, Vector) else InLayout(geometry, kernel)
