"""The output channels of a form: consecutive segments, each a sum of terms.

Neighbours that are one convolution each of the same channels of the same source, alike but for their outputs, are one
convolution: `concat(f(x), g(x)) = stack(f, g)(x)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Stacked
from onnx_repfuse.algebra.kernels import Vector

__all__ = ["Segment", "segmented"]

Segment = tuple[tuple[int, int], Sequence[Term]]
_START = attrgetter("lo_out")


def segmented(form: Form) -> list[Segment] | None:
    """The terms by the channels they write, with their ranges; None if these leave channels out or overlap."""
    apart: list[tuple[tuple[int, int], list[Term]]] = []
    end = 0
    for term in sorted(form.terms, key=_START):
        channels = term.lo_out, term.lo_out + term.kernel.geometry.c_out
        if channels[0] == end:
            apart.append((channels, [term]))
            end = channels[1]
        elif apart and channels == apart[-1][0]:
            apart[-1][1].append(term)
        else:
            return None
    return _stacked(apart) if end == form.channels else None


def _stacked(apart: Sequence[Segment]) -> list[Segment]:
    """Each run of alike segments as one."""
    if len(apart) == 1:
        return [apart[0]]
    runs: list[list[Segment]] = []
    head: Term | None = None  # of the run, if it may go on
    for segment in apart:
        terms = segment[1]
        if head is not None and len(terms) == 1 and _is_alike(head, terms[0]):
            runs[-1].append(segment)
        else:
            runs.append([segment])
            head = terms[0] if len(terms) == 1 and _stacks(terms[0]) else None
    return [run[0] if len(run) == 1 else _stack(run) for run in runs]


def _stack(run: list[Segment]) -> Segment:
    (start, _), (first,) = run[0]
    hi = run[-1][0][1]
    head = first.kernel.parts if isinstance(first.kernel, Stacked) else (first.kernel,)
    geometry = _widened(first.kernel.geometry, hi - start)
    kernel = Stacked(geometry, (*head, *(term.kernel for _, (term,) in run[1:])))
    return (start, hi), [Term(first.source, kernel, first.lo_in, first.lo_out)]


@lru_cache(maxsize=1 << 12)
def _widened(geometry: Geometry, c_out: int) -> Geometry:
    return replace(geometry, c_out=c_out)


def _stacks(term: Term) -> bool:
    """Whether others may be stacked on it."""
    geometry = term.kernel.geometry
    return not (geometry.groups > 1 or geometry.transposed or isinstance(term.kernel, Vector))


def _is_alike(first: Term, second: Term) -> bool:
    """Whether the second may be stacked on the first."""
    if first.source != second.source or first.lo_in != second.lo_in or isinstance(second.kernel, Vector):
        return False
    f, g = first.kernel.geometry, second.kernel.geometry
    return f is g or _widened(f, g.c_out) == g
