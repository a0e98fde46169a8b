"""The output channels of a form: consecutive segments, each a sum of terms.

Neighbours that are one convolution each, of the same channels of one source and with equal geometries but for the
number of outputs, are one convolution: `concat(f(x), g(x)) = stack(f, g)(x)`. Those of equal geometries of consecutive
channels of one source are the groups of one: `concat(f(x1), g(x2)) = groups(f, g)(x)` with `x = concat(x1, x2)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.choice import Picked, Sampled
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_slices import Grouped, Stacked
from onnx_repfuse.algebra.kernels import Vector

__all__ = ["Segment", "grouped", "segmented"]

Segment = tuple[tuple[int, int], Sequence[Term]]
_START = attrgetter("lo_out")


def segmented(form: Form) -> list[Segment] | None:
    """The terms by the range of channels they write; None if the ranges leave channels out or overlap in part."""
    # By their first channel, terms of one segment follow each other.
    segments: list[tuple[tuple[int, int], list[Term]]] = []
    end = 0
    for term in sorted(form.terms, key=_START):
        channels = term.lo_out, term.lo_out + term.kernel.geometry.c_out
        if channels[0] == end:
            segments.append((channels, [term]))
            end = channels[1]
        elif segments and channels == segments[-1][0]:
            segments[-1][1].append(term)
        else:
            return None
    return _stacked(segments) if end == form.channels else None


def _stacked(segments: Sequence[Segment]) -> list[Segment]:
    """Each run of segments that are one convolution as one."""
    if len(segments) == 1:
        return [segments[0]]
    runs: list[list[Segment]] = []
    head: Term | None = None  # the first term of the run, if others may be stacked on it
    for segment in segments:
        terms = segment[1]
        if head is not None and len(terms) == 1 and _stacks_on(head, terms[0]):
            runs[-1].append(segment)
        else:
            runs.append([segment])
            head = terms[0] if len(terms) == 1 and _may_head(terms[0]) else None
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


def _may_head(term: Term) -> bool:
    """Whether others may be stacked on it: stacked groups would not read the same channels."""
    geometry = term.kernel.geometry
    return geometry.groups == 1 and not geometry.transposed and _is_dense(term)


def _stacks_on(first: Term, second: Term) -> bool:
    """Whether the second reads the same channels in the same way."""
    if first.source != second.source or first.lo_in != second.lo_in or not _is_dense(second):
        return False
    f, g = first.kernel.geometry, second.kernel.geometry
    return f is g or _widened(f, g.c_out) == g


def _is_dense(term: Term) -> bool:
    """Whether it is neither a value nor a choice for each channel."""
    return not isinstance(term.kernel, (Vector, Picked, Sampled))


def grouped(segments: Sequence[Segment]) -> list[Segment] | None:
    """The segments, with runs of equal geometries of consecutive channels as one; None if there are none.

    Which may not be cheaper: convolutions of narrow groups take longer.
    """
    runs: list[list[Segment]] = []
    for segment in segments:
        if runs and _continues(runs[-1][-1], segment):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    if len(runs) == len(segments):
        return None
    return [run[0] if len(run) == 1 else _as_groups(run) for run in runs]


def _continues(before: Segment, segment: Segment) -> bool:
    """Whether both are one convolution, the second of the channels behind those of the first."""
    if len(before[1]) != 1 or len(segment[1]) != 1:
        return False
    (first,), (second,) = before[1], segment[1]
    g = first.kernel.geometry
    is_alike = first.source == second.source and second.kernel.geometry == g and g.channel_axis == 1
    return is_alike and second.lo_in == first.lo_in + g.c_in and _is_dense(first) and _is_dense(second)


def _as_groups(run: Sequence[Segment]) -> Segment:
    (start, _), (first,) = run[0]
    g, count = first.kernel.geometry, len(run)
    geometry = replace(g, c_in=count * g.c_in, c_out=count * g.c_out, groups=count * g.groups)
    kernel = Grouped(geometry, tuple(term.kernel for _, (term,) in run))
    return (start, run[-1][0][1]), [Term(first.source, kernel, first.lo_in, first.lo_out)]
