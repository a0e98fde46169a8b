"""Values known while planning must fit the model's float type.

Sixty factors of 100 in a row are one factor of 1e120, which no float32 holds. If it were found when weights are
written, each of them would cost a plan. So a form is refused where its factors first leave the range, and the rest of
the row becomes another fold. Kernels are not read at first: whether a weight overflows shows when it is computed. Then
the model is planned again, and the kernels of that fold are read wherever operators are composed (`weighed`).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import taps_of
from onnx_repfuse.algebra.kernels import Scaled, Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.planner.weights.rounding import check_underflow, materialized
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, FloatFormat
from onnx_repfuse.records.reasons import Reason

__all__ = ["check_range", "data_type_of", "weighed"]

MAX_WEIGHED = 1 << 20  # elements of a kernel that is read while planning


def weighed(output: str) -> str:
    """What stands among the banned outputs for "read the kernels of what computes this one"; no tensor's name."""
    return f"\0{output}"


def check_range(form: Form, lifted: LinearOp, data_type: int, *, reads_kernels: bool = False) -> None:
    """Raise Inexact(OVERFLOW or UNDERFLOW) where composing an operator with what it reads left the range of its type.

    What the operator's own constants exceed is in the file as it is, and judged when it is written. With
    `reads_kernels`, weights of up to a million elements are computed, too.
    """
    limits = FLOAT_FORMATS.get(data_type)
    if limits is None:
        return
    if _exceeds(form.terms, form.bias, limits) and not _exceeds(lifted.terms, lifted.bias, limits):
        raise Inexact(Reason.OVERFLOW)
    if limits.is_half:
        _check_factors(form, data_type)
    if reads_kernels:
        _check_kernels(form, data_type)


def _check_factors(form: Form, data_type: int) -> None:
    """Raise Inexact(UNDERFLOW) where a factor per channel is too small for its type."""
    for term in form.terms:
        taps = taps_of(term.kernel)
        if isinstance(taps, Vector) and not taps.is_one:
            check_underflow(taps.scale, data_type)


def _check_kernels(form: Form, data_type: int) -> None:
    """Raise Inexact where a kernel that is not too large to be read has a weight that its type does not hold."""
    for term in form.terms:
        kernel = taps_of(term.kernel)
        if not isinstance(kernel, Vector) and prod(kernel.geometry.weight_shape) <= MAX_WEIGHED:
            materialized(kernel, data_type)


def data_type_of(lifted: LinearOp, context: Context) -> int:
    """The element type of an operator's output, or of what it reads; 0 if the file does not say."""
    names = lifted.output, *[operand.name for operand in lifted.operands]
    return next(filter(None, (_data_type(name, context) for name in names)), 0)


def _data_type(name: str, context: Context) -> int:
    layout = context.channel_layout(name)
    return context.scope.data_type(name) or (0 if layout is None else layout.data_type)


def _exceeds(terms: Iterable[Term], bias: Bias, limits: FloatFormat) -> bool:
    """Whether a bias, or a factor per channel that is known without reading a kernel, is larger, or no number."""
    most = limits.largest
    if not bias.largest <= most:  # NaN is neither
        return True
    for term in terms:
        kernel = taps_of(term.kernel)
        if isinstance(kernel, (Vector, Scaled)) and not kernel.largest <= most:
            return True
    return False
