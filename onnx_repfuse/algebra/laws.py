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

Transposed convolutions compose with pointwise operators, behind them always, before them without a bias. They add
as convolutions do, with equal strides and slacks. The proofs are in docs/algebra.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import gcd, lcm
from typing import NamedTuple

from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.errors import Inexact
from onnx_repfuse.records.reasons import Reason

__all__ = ["Multiple", "Size", "compose", "select_inputs", "select_outputs", "total"]

MANY = 1 << 10  # positions from which they are counted; from where does not matter
MAX_PERIOD = 64


class Multiple(NamedTuple):
    """A number of positions that is some multiple of this one."""

    of: int


Size = tuple[int | Multiple, ...]


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
    """The geometry of `g @ f` where the padding does not matter."""
    dilations, kernel = [], []
    for axis in range(g.rank):
        # Taps of g are s_f*d_g apart in x, taps of f d_f; an axis with one tap has no distance.
        step_g = f.strides[axis] * g.dilations[axis] if g.kernel[axis] > 1 else 0
        step_f = f.dilations[axis] if f.kernel[axis] > 1 else 0
        step = gcd(step_g, step_f) or 1
        dilations.append(step)
        kernel.append((step_g * (g.kernel[axis] - 1) + step_f * (f.kernel[axis] - 1)) // step + 1)
    axes = list(zip(f.strides, f.origin, f.slack, g.origin, g.slack, strict=True))
    return Geometry(
        f.c_in,
        g.c_out,
        gcd(g.groups, f.groups),
        tuple(kernel),
        tuple(s_f * s_g for s_f, s_g in zip(f.strides, g.strides, strict=True)),
        tuple(dilations),
        origin=tuple(s * o_g + o_f for s, o_f, _, o_g, _ in axes),
        slack=tuple(slack_f + s * (1 + slack_g) for s, _, slack_f, _, slack_g in axes),
        channel_axis=f.channel_axis,
    )


def _check_border(g: Geometry, f: Geometry, zero_bias: bool) -> None:
    """Raise Inexact unless g sees, wherever it reads padding, what f would compute there: zero."""
    for axis in range(g.rank):
        before, after = g.pads_begin[axis], g.pads_end[axis]  # negative where g crops
        if max(before, after) <= 0:
            continue
        if not zero_bias:
            raise Inexact(Reason.BORDER)
        # Does f vanish just outside its own positions? The formulas are in the module's docstring.
        reach = (f.kernel[axis] - 1) * f.dilations[axis]
        left = before <= 0 or reach < f.strides[axis] * _nearest(g, axis) + f.pads_begin[axis]
        right = after <= 0 or reach <= f.pads_end[axis]
        if not (left and right):
            raise Inexact(
                Reason.BORDER, "the outer padding would see values the inner operator never computes"
            )


def _nearest(g: Geometry, axis: int) -> int:
    """m for -m, the last position before its input that g reads, if it starts in its padding (docs/algebra.md)."""
    taps = range(0, g.pads_begin[axis], g.dilations[axis])[: g.kernel[axis]]
    return min((g.pads_begin[axis] - tap - 1) % g.strides[axis] + 1 for tap in taps)


def _compose_transposed(g: Geometry, f: Geometry, zero_bias: bool) -> Geometry:
    """Only pointwise operators commute with a ConvTranspose: its output is linear in each weight.

    A crop behind one is its pads.
    """
    if f.transposed and g.is_pointwise:
        return replace(f, c_out=g.c_out, groups=gcd(f.groups, g.groups))  # mixes its output channels
    if f.transposed and g.is_crop:
        origin = tuple(inner - outer for inner, outer in zip(f.origin, g.origin, strict=True))
        slack = tuple(inner + outer + 1 for inner, outer in zip(f.slack, g.slack, strict=True))
        if min(slack) < 1:  # one position of the input would leave none
            raise Inexact(Reason.SHAPE, "it crops all that a ConvTranspose writes for a small input")
        return replace(f, origin=origin, slack=slack)
    if not (g.transposed and f.is_pointwise):
        raise Inexact(Reason.UNSUPPORTED, "a ConvTranspose composes only with pointwise operators")
    if not zero_bias:
        raise Inexact(Reason.BORDER, "a ConvTranspose adds a different number of taps at each position")
    return replace(g, c_in=f.c_in, groups=gcd(f.groups, g.groups))  # mixes its input channels


@lru_cache(maxsize=1 << 14)
def total(f: Geometry, g: Geometry, size: Size | None = None) -> Geometry:
    """The geometry of `x -> f(x) + g(x)`; `size` is what is known of x's number of positions per axis.

    Raises:
        Inexact: GRID or SHAPE.
    """
    if f == g:
        return f
    _check_total(f, g, size)
    grids = [_common_grid(f, g, axis) for axis in range(f.rank)]
    return replace(
        f,
        groups=gcd(f.groups, g.groups),
        kernel=tuple(kernel for kernel, _, _ in grids),
        dilations=tuple(dilation for _, dilation, _ in grids),
        origin=tuple(origin for _, _, origin in grids),
        slack=tuple(max(pair) for pair in zip(f.slack, g.slack, strict=True)),
    )


def _check_total(f: Geometry, g: Geometry, size: Size | None) -> None:
    """Raise Inexact unless both, which are not equal, read the same channels and give the same positions."""
    if (f.layout, f.c_in, f.c_out) != (g.layout, g.c_in, g.c_out):
        raise Inexact(Reason.SHAPE)
    if f.transposed != g.transposed:
        raise Inexact(Reason.GRID, "one of them is a transposed convolution")
    if f.strides != g.strides:
        raise Inexact(Reason.GRID, "the strides differ")
    if f.slack != g.slack and (size is None or not _write_equally_many(f, g, size)):
        raise Inexact(Reason.GRID, "the branches give different numbers of positions")


def _write_equally_many(f: Geometry, g: Geometry, size: Size) -> bool:
    """Whether both, whose strides are equal, have as many positions."""
    if not any(isinstance(count, Multiple) for count in size):
        known = tuple(count for count in size if isinstance(count, int))
        return f.output(known) == g.output(known)
    period = lcm(*f.strides)  # of so many positions more, both have equally many more
    return period <= MAX_PERIOD and all(
        f.output(known) == g.output(known)
        for number in range(MANY, MANY + period)
        for known in [tuple(n.of * number if isinstance(n, Multiple) else n for n in size)]
    )


def _common_grid(f: Geometry, g: Geometry, axis: int) -> tuple[int, int, int]:
    """Kernel size, dilation and origin of the coarsest grid that has all taps of both along an axis."""
    first_f, step_f, last_f = _taps(f, axis)
    first_g, step_g, last_g = _taps(g, axis)
    first, last = min(first_f, first_g), max(last_f, last_g)
    step = gcd(step_f, step_g, first_f - first_g) or 1  # 0 where both have one tap, at the same position
    return (last - first) // step + 1, step, first


def _taps(f: Geometry, axis: int) -> tuple[int, int, int]:
    """The position of f's first tap, the distance between taps (0 if there is one), and the position of the last."""
    first = f.origin[axis]
    step = f.dilations[axis] if f.kernel[axis] > 1 else 0
    return first, step, first + step * (f.kernel[axis] - 1)


@lru_cache(maxsize=1 << 12)
def select_outputs(f: Geometry, lo: int, hi: int) -> tuple[Geometry, int, int]:
    """Keep output channels lo..hi. Returns the geometry and the range of input channels it still reads.

    Groups stay where the range holds whole groups. Else one group covers all that the range touches.
    """
    rows, columns = f.c_out // f.groups, f.c_in // f.groups
    first, count, groups = _groups_touched(lo, hi, rows)
    geometry = replace(f, c_in=count * columns, c_out=hi - lo, groups=groups)
    return geometry, first * columns, (first + count) * columns


@lru_cache(maxsize=1 << 12)
def select_inputs(f: Geometry, lo: int, hi: int) -> tuple[Geometry, int, int]:
    """Feed only input channels lo..hi, the others being zero. Returns the geometry and the range of output
    channels that can still differ from the bias."""
    rows, columns = f.c_out // f.groups, f.c_in // f.groups
    first, count, groups = _groups_touched(lo, hi, columns)
    geometry = replace(f, c_in=hi - lo, c_out=count * rows, groups=groups)
    return geometry, first * rows, (first + count) * rows


def _groups_touched(lo: int, hi: int, width: int) -> tuple[int, int, int]:
    """The first group that channels lo..hi touch, how many they touch, and how many of these can be kept."""
    first = lo // width
    count = (hi - 1) // width - first + 1
    is_whole = lo % width == 0 and hi % width == 0
    return first, count, count if is_whole else 1
