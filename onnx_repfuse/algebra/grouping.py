"""Weights of grouped convolutions: which input channels a row reads, and rows written for other groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_repfuse.algebra.geometry import Geometry

__all__ = ["Array", "columns_of", "place", "regroup"]

Array = NDArray[np.float64]


def columns_of(f: Geometry, lo: int, hi: int) -> NDArray[np.intp]:
    """The input channels that rows lo..hi read: shape (hi - lo, c_in / groups)."""
    width = f.c_in // f.groups
    group = np.arange(lo, hi) // (f.c_out // f.groups)
    return group[:, None] * width + np.arange(width)


def place(weight: Array, columns: NDArray[np.intp], target: Geometry, lo: int) -> Array:
    """Lay rows, whose entries belong to the input channels `columns`, into the groups of `target`."""
    width = target.c_in // target.groups
    start = (np.arange(lo, lo + len(weight)) // (target.c_out // target.groups)) * width
    local = columns - start[:, None]
    inside = (local >= 0) & (local < width)
    if weight.shape[1] == width and inside.all():
        return weight
    result = np.zeros((len(weight), width, *weight.shape[2:]))
    row, entry = np.nonzero(inside)
    result[row, local[row, entry]] = weight[row, entry]
    return result


def regroup(weight: Array, f: Geometry, lo: int, groups: int) -> Array:
    """Rows of `f` written for fewer groups, with zeros where a group did not look."""
    if f.groups == groups:
        return weight
    wide = Geometry.conv(f.c_in, f.c_out, (), groups=groups)
    return place(weight, columns_of(f, lo, lo + len(weight)), wide, lo)
