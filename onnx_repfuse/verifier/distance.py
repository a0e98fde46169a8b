"""How far two values are apart: NaN-aware, in float64, one sample or many."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from onnx_repfuse.records.float_formats import FLOAT_FORMATS, is_float

__all__ = [
    "FEWEST_CLASSES",
    "Array",
    "cosine",
    "difference",
    "flatten",
    "is_float_array",
    "is_inexact",
    "is_part",
    "is_structure",
    "largest",
    "median",
    "relative_to",
    "top1",
    "ulp",
]

Array = np.ndarray[Any, np.dtype[Any]]
FEWEST_CLASSES = 5  # a row of fewer is hardly one of class scores
_BY_NAME = {limits.dtype.name: limits for limits in FLOAT_FORMATS.values()}


def is_inexact(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type, float or complex, carry rounding noise."""
    return dtype.kind == "c" or is_float(dtype)


def is_float_array(value: Any) -> TypeGuard[Array]:
    """Whether it is an array of floats, and no sequence, number or text."""
    return isinstance(value, np.ndarray) and is_float(value.dtype)


def ulp(value: float, dtype: np.dtype[Any]) -> float:
    """One unit in the last place: the spacing of the floats of `dtype` at `value`; 0 for other types."""
    name = {"complex64": "float32", "complex128": "float64"}.get(dtype.name, dtype.name)
    if name not in _BY_NAME or not np.isfinite(value):
        return 0.0
    limits = _BY_NAME[name]
    if value == 0:
        return limits.smallest
    # the fraction is from a half to one; a logarithm would be rounded, beside the largest number up to infinity
    _, exponent = math.frexp(abs(value))
    return float(max(math.ldexp(limits.epsilon, exponent - 1), limits.smallest))


def difference(first: Array, second: Array) -> Array:
    """|first - second| as float64, of the same shape.

    It is 0 where both are NaN, or the same infinity, and `inf` where only one is.
    """
    a, b = _widened(first), _widened(second)
    with np.errstate(invalid="ignore", over="ignore"):
        gap: Array = np.abs(a - b)
    if gap.size and not np.isfinite(gap.max()):  # rare; the masks take time
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
    return gap


def largest(array: Array) -> float:
    """max|array| over its finite elements; 0 if there is none."""
    size = np.abs(_widened(array))
    top = float(size.max()) if size.size else 0.0
    if np.isfinite(top):  # as a rule, and without a mask of the array's size
        return top
    return float(size[np.isfinite(size)].max(initial=0.0))


def median(array: Array) -> float:
    """The middle of some finite values, as numpy's, which imports masked arrays for it and takes longer than that.

    >>> median(np.array([3.0, 1.0, 10.0, 2.0]))
    2.5
    """
    middle = [(array.size - 1) // 2, array.size // 2]
    return float(np.partition(array, middle, axis=None)[middle].mean())


def relative_to(size: float, error: float) -> float:
    """An error in relation to a size: 0 for none at all, else infinite where the size is zero."""
    if error == 0:
        return 0.0
    return error / size if size > 0 else math.inf


def cosine(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Cosine similarity of two lists of arrays, over the elements finite in both.

    None for zero vectors, complex numbers and shapes that differ, where it means nothing.
    """
    dot = left = right = 0.0
    for first, second in pairs:
        a, b = _widened(first).ravel(), _widened(second).ravel()
        if a.dtype.kind == "c" or a.shape != b.shape:
            return None
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            a, b = a[finite], b[finite]
        scale = max(largest(a), largest(b)) or 1.0
        if not 1e-140 < scale < 1e140:  # squares would overflow, or vanish
            a, b = a / scale, b / scale
        dot += float(a @ b)
        left += float(a @ a)
        right += float(b @ b)
    norm = np.sqrt(left) * np.sqrt(right)
    return min(1.0, float(dot / norm)) if norm > 0 else None


def top1(pairs: Sequence[tuple[Array, Array]]) -> float | None:
    """Share of rows with the same argmax; None unless all arrays look like class scores: floats, (rows, 5 or more)."""
    same = rows = 0
    for first, second in pairs:
        if first.shape != second.shape or not is_inexact(first.dtype):
            return None
        if first.ndim != 2 or first.shape[1] < FEWEST_CLASSES:
            return None
        rows += first.shape[0]
        same += int((_widened(first).argmax(1) == _widened(second).argmax(1)).sum())
    return same / rows if rows else None


_LENGTH, _KEYS = ".length", ".keys"
_PART = re.compile(r"(\[\d+\])*(\.length|\.keys|\.values)?\Z")


def is_structure(name: str) -> bool:
    """Whether `flatten` made this tensor of how an output is built: equal is all that such a tensor can be.

    >>> is_structure("scores.length"), is_structure("scores[0]")
    (True, False)
    """
    return name.endswith((_LENGTH, _KEYS))


def flatten(values: dict[str, Any]) -> dict[str, Array | None]:
    """Tensors by name: parts of sequences get names such as `scores[2]`, an absent optional is None."""
    flat: dict[str, Array | None] = {}
    for name, value in values.items():
        if isinstance(value, list | tuple):
            flat[f"{name}{_LENGTH}"] = np.asarray(len(value))
            flat.update(flatten({f"{name}[{index}]": item for index, item in enumerate(value)}))
        elif isinstance(value, dict):  # ONNX-ML's ZipMap: class name -> score
            keys = sorted(value)
            flat[f"{name}{_KEYS}"] = np.asarray(keys)
            flat[f"{name}.values"] = np.asarray([value[key] for key in keys])
        else:
            flat[name] = None if value is None else np.asarray(value)
    return flat


def is_part(name: str, whole: str) -> bool:
    """Whether `flatten` may have made a tensor of that name of a value named `whole`, or of itself.

    >>> is_part("scores[2]", "scores"), is_part("scores.1", "scores")
    (True, False)
    """
    return name.startswith(whole) and _PART.fullmatch(name, len(whole)) is not None


def _widened(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64, copy=False)
