"""When `g @ f` and `f + g` are exact, and the geometry they have.

Composition. With `y_f[j]` reading `x[s_f*j + o_f + d_f*b]` and `y_g[i]` reading `y_f[s_g*i + o_g + d_g*a]`,

    stride = s_f*s_g    origin = s_f*o_g + o_f    slack = S_f + s_f*(1 + S_g)    taps at s_f*d_g*a + d_f*b

Between the two, g reads zeros where f has no output, while the composed operator reads what f *would* have
there. Both agree iff, on each side of each axis, g reads no padding, or f's bias is zero and f's taps all
fall outside x at the positions beyond its own grid. The first such position decides: on the left -m (m = 1
unless g's stride and dilation step over it), on the right n_f:

    left    -s_f*m + o_f + d_f*(k_f - 1) < 0          <=>  (k_f - 1)*d_f < s_f*m + pad_begin_f
    right   s_f*n_f + o_f >= n   for every size n     <=>  (k_f - 1)*d_f <= pad_end_f

Sum. Equal strides and slacks give equal numbers of positions; kernels are laid on one grid whose step is the
gcd of the dilations and of the distance of the origins (an axis with one tap has no dilation), groups become
their gcd. Where the sizes are known, slacks may differ as long as the numbers of positions agree.

Transposed convolutions compose with one value per channel and add when their geometries are equal; nothing
else. The proofs are in docs/algebra.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import gcd

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.errors import Inexact
from onnx_repfuse.records.reasons import Reason

__all__ = ["compose", "select_inputs", "select_outputs", "total"]


def compose(g: Geometry, f: Geometry, *, zero_bias: bool) -> Geometry:
    """The geometry of `x -> g(f(x))`; `zero_bias` says that f's bias is known to be zero.

    Raises:
        Inexact: BORDER, SHAPE or UNSUPPORTED.
    """
    if g.layout != f.layout or g.c_in != f.c_out:
        raise Inexact(Reason.SHAPE, f"{f.c_out} channels meet {g.c_in}" if g.layout == f.layout else "")
    if g.transposed or f.transposed:
        return _compose_transposed(g, f, zero_bias)
    if not g.is_pointwise:
        _check_border(g, f, zero_bias)
    return _composed(g, f)


@lru_cache(maxsize=1 << 14)
def _composed(g: Geometry, f: Geometry) -> Geometry:
    strides, dilations, kernel = [], [], []
    for axis in range(g.rank):
        step_g = f.strides[axis] * g.dilations[axis] if g.kernel[axis] > 1 else 0
        step_f = f.dilations[axis] if f.kernel[axis] > 1 else 0
        step = gcd(step_g, step_f) or 1
        strides.append(f.strides[axis] * g.strides[axis])
        dilations.append(step)
        kernel.append((step_g * (g.kernel[axis] - 1) + step_f * (f.kernel[axis] - 1)) // step + 1)
    axes = list(zip(f.strides, f.origin, f.slack, g.origin, g.slack, strict=True))
    return Geometry(
        f.c_in,
        g.c_out,
        gcd(g.groups, f.groups),
        tuple(kernel),
        tuple(strides),
        tuple(dilations),
        tuple(s * og + of for s, of, _, og, _ in axes),
        tuple(sf + s * (1 + sg) for s, _, sf, _, sg in axes),
        f.channel_axis,
    )


def _check_border(g: Geometry, f: Geometry, zero_bias: bool) -> None:
    for axis in range(g.rank):
        before, after = g.pads_begin[axis], g.pads_end[axis]
        if max(before, after) <= 0:
            continue
        if not zero_bias:
            raise Inexact(Reason.BORDER)
        reach = (f.kernel[axis] - 1) * f.dilations[axis]
        left = before <= 0 or reach < f.strides[axis] * _nearest(g, axis) + f.pads_begin[axis]
        right = after <= 0 or reach <= f.pads_end[axis]
        if not (left and right):
            detail = "the outer padding would see values the inner operator never computes"
            raise Inexact(Reason.BORDER, detail)


def _nearest(g: Geometry, axis: int) -> int:
    """How far before its input g reads at least, given that it starts in its padding: m for position -m."""
    taps = range(0, g.pads_begin[axis], g.dilations[axis])[: g.kernel[axis]]
    return min((g.pads_begin[axis] - tap - 1) % g.strides[axis] + 1 for tap in taps)


def _compose_transposed(g: Geometry, f: Geometry, zero_bias: bool) -> Geometry:
    if g.is_diagonal:
        return f
    if f.is_diagonal and zero_bias:
        return g
    if f.is_diagonal:
        raise Inexact(Reason.BORDER, "a ConvTranspose adds a different number of taps at each position")
    raise Inexact(Reason.UNSUPPORTED, "a ConvTranspose composes only with one value per channel")


@lru_cache(maxsize=1 << 14)
def total(f: Geometry, g: Geometry, size: tuple[int, ...] | None = None) -> Geometry:
    """The geometry of `x -> f(x) + g(x)`; `size` is x's number of positions per axis, where known.

    Raises:
        Inexact: GRID or SHAPE.
    """
    if f == g:
        return f
    if (f.layout, f.c_in, f.c_out) != (g.layout, g.c_in, g.c_out):
        raise Inexact(Reason.SHAPE)
    if f.transposed or g.transposed:
        raise Inexact(Reason.GRID, "transposed convolutions add only when their geometries are equal")
    if f.strides != g.strides:
        raise Inexact(Reason.GRID, "the strides differ")
    slack = f.slack
    if f.slack != g.slack:
        if size is None or f.output(size) != g.output(size):
            raise Inexact(Reason.GRID, "the branches give different numbers of positions")
        slack = tuple(max(pair) for pair in zip(f.slack, g.slack, strict=True))
    kernel, dilations, origin = [], [], []
    for axis in range(f.rank):
        step_f = f.dilations[axis] if f.kernel[axis] > 1 else 0
        step_g = g.dilations[axis] if g.kernel[axis] > 1 else 0
        start = min(f.origin[axis], g.origin[axis])
        end = max(
            f.origin[axis] + step_f * (f.kernel[axis] - 1), g.origin[axis] + step_g * (g.kernel[axis] - 1)
        )
        step = gcd(step_f, step_g, abs(f.origin[axis] - g.origin[axis])) or 1
        kernel.append((end - start) // step + 1)
        dilations.append(step)
        origin.append(start)
    return replace(
        f,
        groups=gcd(f.groups, g.groups),
        kernel=tuple(kernel),
        dilations=tuple(dilations),
        origin=tuple(origin),
        slack=slack,
    )


@lru_cache(maxsize=1 << 12)
def select_outputs(f: Geometry, lo: int, hi: int) -> tuple[Geometry, int, int]:
    """Keep output channels lo..hi. Returns the geometry and the range of input channels it still reads.

    Groups survive where the range holds whole groups, or lies inside one; else they are given up (groups = 1
    over the groups touched).
    """
    rows, cols = f.c_out // f.groups, f.c_in // f.groups
    first, last = lo // rows, (hi - 1) // rows
    count = last - first + 1
    whole = lo % rows == 0 and hi % rows == 0
    groups = count if whole else 1
    return replace(f, c_in=count * cols, c_out=hi - lo, groups=groups), first * cols, (last + 1) * cols


@lru_cache(maxsize=1 << 12)
def select_inputs(f: Geometry, lo: int, hi: int) -> tuple[Geometry, int, int]:
    """Feed only input channels lo..hi, the others being zero. Returns the geometry and the range of output
    channels that can still differ from the bias."""
    rows, cols = f.c_out // f.groups, f.c_in // f.groups
    first, last = lo // cols, (hi - 1) // cols
    count = last - first + 1
    whole = lo % cols == 0 and hi % cols == 0
    groups = count if whole else 1
    return replace(f, c_in=hi - lo, c_out=count * rows, groups=groups), first * rows, (last + 1) * rows
