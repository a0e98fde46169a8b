"""The output channels of a form: consecutive segments, each a sum of terms.

Neighbours that are one convolution each of the same channels of the same source, alike but for their outputs, are one
convolution: `concat(f(x), g(x)) = stack(f, g)(x)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from onnx_repfuse.algebra.form import Form, Term
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.algebra.selections import Stacked

__all__ = ["Segment", "segmented"]

Segment = tuple[tuple[int, int], Sequence[Term]]


def segmented(form: Form) -> list[Segment] | None:
    """The terms by the channels they write, with their ranges; None if these leave channels out or overlap."""
    if all(not term.lo_out and term.kernel.geometry.c_out == form.channels for term in form.terms):
        return [((0, form.channels), form.terms)] if form.terms else None
    found: dict[tuple[int, int], list[Term]] = {}
    for term in form.terms:
        lo = term.lo_out
        found.setdefault((lo, lo + term.kernel.geometry.c_out), []).append(term)
    order = sorted(found)
    if order[0][0] != 0 or order[-1][1] != form.channels:
        return None
    if any(a[1] != b[0] for a, b in pairwise(order)):
        return None
    return _stacked([(key, found[key]) for key in order])


def _stacked(apart: list[Segment]) -> list[Segment]:
    """Each run of alike segments as one."""
    runs: list[list[Segment]] = []
    before: Sequence[Term] = ()
    for segment in apart:
        terms = segment[1]
        if len(before) == len(terms) == 1 and _is_alike(before[0], terms[0]):
            runs[-1].append(segment)
        else:
            runs.append([segment])
            before = terms
    return [run[0] if len(run) == 1 else _stack(run) for run in runs]


def _stack(run: list[Segment]) -> Segment:
    (start, _), (first,) = run[0]
    hi = run[-1][0][1]
    head = first.kernel.parts if isinstance(first.kernel, Stacked) else (first.kernel,)
    geometry = _widened(first.kernel.geometry, hi - start)
    kernel = Stacked(geometry, (*head, *(term.kernel for _, (term,) in run[1:])))
    return (start, hi), [replace(first, kernel=kernel)]


@lru_cache(maxsize=1 << 12)
def _widened(geometry: Geometry, c_out: int) -> Geometry:
    return replace(geometry, c_out=c_out)


def _is_alike(first: Term, second: Term) -> bool:
    f, g = first.kernel.geometry, second.kernel.geometry
    if first.source != second.source or first.lo_in != second.lo_in or f.groups > 1 or f.transposed:
        return False
    if isinstance(first.kernel, Vector) or isinstance(second.kernel, Vector):
        return False
    return f is g or _widened(f, g.c_out) == g
