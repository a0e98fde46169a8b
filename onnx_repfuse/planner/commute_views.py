"""Ways to compute what reads views, besides looking through them: an operator moves before the view.

Conv1x1(GlobalAveragePool(u))  =  GlobalAveragePool(Conv1x1(u)),  and the Conv1x1 may go into what computes u
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators.facts import SpaceMapSort
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.candidates import Candidate, Entry, absorbing
from onnx_repfuse.planner.compose import inline
from onnx_repfuse.planner.view_sources import common_view
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["restoring", "under_view", "why_not_before_average"]

ENLARGED = "in half precision, what it enlarges could overflow in front of the average"


def under_view(
    candidate: Candidate, entries: Mapping[str, Entry], is_free: Callable[[str], bool]
) -> Iterable[Candidate]:
    """`A view(u)` as `view(A u)`, with A put into what computes u, pointwise or not.

    Likewise `A u`, where views have cancelled.

    Args:
        candidate: `A view(u)`.
        entries: of the cover.
        is_free: whether nothing else needs a tensor such as u.
    """
    inner, view = common_view(candidate.form) or (candidate.form, None)
    if view is None and Kind.COMMUTE not in candidate.roles:
        return
    source = inner.sources[0]
    if len(inner.sources) > 1 or not isinstance(source, str) or not is_free(source):
        return  # what else reads a source would need it in both forms
    entry = entries.get(source)
    if entry is None:
        return
    for below in entry.candidates:
        form = inline(inner, source, below.form)
        if form is not None:
            setup = candidate.setup.minus(entry.best).plus(below.setup)
            yield replace(absorbing(candidate, below, form, setup), view=view)


def why_not_before_average(
    candidate: Candidate, entries: Mapping[str, Entry], data_type: int
) -> Inexact | None:
    """Why `A view(u)`, a factor above 1 behind an average, is not moved in front of it; None if it may be.

    In half precision it stays: an average of values up to 1000 may be a small number, of which a thousand times fits,
    but a thousand times each value overflows.
    """
    limits = FLOAT_FORMATS.get(data_type)
    if limits is None or not limits.is_half:
        return None
    inner, view = common_view(candidate.form) or (candidate.form, None)
    if view is None or view.sort is not SpaceMapSort.AVERAGES or inner.sources[0] not in entries:
        return None
    kernels = [term.kernel for term in inner.terms]
    if any(isinstance(kernel, Vector) and np.abs(kernel.scale).max() > 1.0 for kernel in kernels):
        return Inexact(Reason.PRECISION, ENLARGED)
    return None


def restoring(
    lifted: LinearOp, candidate: Candidate, entries: Mapping[str, Entry], scope: Scope
) -> Iterable[Candidate]:
    """`Reshape(A Flatten(u), Shape(u))` as `A u`: but for the Flatten, u is read for its shape only, and goes."""
    like = lifted.view.like if lifted.view is not None else ""
    entry = entries.get(like)
    if entry is None or candidate.form.sources != (like,) or not _read_for_shape(scope, like, lifted.node):
        return
    for below in entry.candidates:
        form = inline(candidate.form, like, below.form)
        if form is not None:
            setup = candidate.setup.plus(below.setup).minus(entry.best)
            yield replace(absorbing(candidate, below, form, setup), swallowed=like)


def _read_for_shape(scope: Scope, name: str, node: gs.Node) -> bool:
    """Whether all consumers but one are Shape nodes, which `node` alone reads."""
    consumers = scope.consumers.get(name, [])
    shapes = [consumer for consumer in consumers if consumer.op == "Shape"]
    if scope.is_seen(name) or len(consumers) != len(shapes) + 1:
        return False
    names = [shape.outputs[0].name for shape in shapes]
    return all(scope.is_private(shape) and scope.consumers[shape][0] is node for shape in names)
