"""An operator applied to forms of its operands.

Several of its combinations share the form of an operand: what becomes of that one is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from onnx_repfuse.algebra.affine_form import MAX_TERMS, TOO_LONG, Form, Part, Term, fits, gather, substitute
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.errors import Inexact
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["Parts", "composed", "form_of_node", "inline"]

Parts = dict[tuple[int, int], Part | Inexact]  # by the number of a term and the id of the form it reads


def composed(
    lifted: LinearOp,
    forms: list[Form],
    parts: Parts,
    size_of: Callable[[Hashable], tuple[int, ...] | None],
) -> Form | None:
    """The form of the operator's output; None where an Add is not proved to leave shapes alone.

    Args:
        lifted: not a view.
        forms: of its operands; they must live as long as `parts`.
        parts: what other combinations found out, extended.
        size_of: see `gather`.

    Raises:
        Inexact: when no form equals it for every input.
    """
    if lifted.needs_equal_shapes and _never_meet(lifted, forms):
        return None
    if lifted.node.op == "Concat" and lifted.role is Kind.CONCAT:  # and not the last node of a border
        return _side_by_side(lifted, forms)
    found = [_part(lifted, number, forms, parts) for number in range(len(lifted.terms))]
    form = gather(lifted.channels, lifted.layout, lifted.bias, found, size_of)
    return None if lifted.needs_equal_shapes and not _proves_shape(form, forms) else form


def form_of_node(lifted: LinearOp) -> Form | None:
    """What `composed` makes of the operands themselves; None where more than their names goes into it."""
    operands, terms = lifted.operands, []
    if lifted.needs_equal_shapes or lifted.padding_value is not None or len(operands) != len(lifted.terms):
        return None
    for term in lifted.terms:
        place: Any = term.source
        operand, kernel = operands[place], term.kernel
        geometry = kernel.geometry
        if geometry.layout != operand.layout or term.lo_in + geometry.c_in > operand.channels:
            return None
        terms.append(Term(operand.name, kernel, term.lo_in, term.lo_out))
    if len(operands) > 1 and len({operand.name for operand in operands}) < len(operands):
        return None
    return Form(lifted.channels, lifted.layout, tuple(terms), lifted.bias) if fits(terms) else None


def _side_by_side(lifted: LinearOp, forms: list[Form]) -> Form:
    """Forms of the operands of a Concat, each in its channels: they never meet. Raises Inexact: too many terms."""
    terms: list[Term] = []
    bias = lifted.bias
    for place, form in zip(lifted.terms, forms, strict=True):
        lo = place.lo_out
        terms += [Term(t.source, t.kernel, t.lo_in, lo + t.lo_out) for t in form.terms] if lo else form.terms
        if not form.bias.is_zero:
            bias = bias + form.bias.placed(lo, lifted.channels)
    if len(terms) > MAX_TERMS:
        raise Inexact(Reason.COST, TOO_LONG)
    return Form(lifted.channels, lifted.layout, tuple(terms), bias)


def inline(
    outer: Form,
    name: str,
    inner: Form,
    size_of: Callable[[Hashable, int], tuple[int, ...] | None] = lambda source, rank: None,
) -> Form | None:
    """`outer` with a form in the place of one of its sources; None if no form equals that, or it reads no tensors.

    Args:
        outer: what reads it.
        name: the source.
        inner: what it is.
        size_of: positions per axis of a source of that rank, where proved.
    """
    if outer.layout != inner.layout or not outer.reads_tensors:
        return None
    none, rank = Bias.zeros(outer.channels), outer.layout[1]
    try:
        parts = [
            substitute(term, inner, outer.channels) if term.source == name else ((term,), none)
            for term in outer.terms
        ]
        return gather(outer.channels, outer.layout, outer.bias, parts, lambda source: size_of(source, rank))
    except Inexact:
        return None


def _part(lifted: LinearOp, number: int, forms: list[Form], parts: Parts) -> Part:
    """What one term of an operator becomes. Raises Inexact."""
    term = lifted.terms[number]
    place: Any = term.source
    form = forms[place]
    key = number, id(form)
    found = parts.get(key)
    if found is None:
        try:
            found = substitute(term, form, lifted.channels, lifted.padding_value)
        except Inexact as reason:
            found = reason
        parts[key] = found
    if isinstance(found, Inexact):
        raise found
    return found


def _never_meet(lifted: LinearOp, operands: list[Form]) -> bool:
    """No source is shared, so that no shapes will be proved equal, and `gather` would find no other fault."""
    seen: set[Hashable] = set()
    for form in operands:
        if form.layout != lifted.layout or not seen.isdisjoint(form.sources):
            return False
        seen.update(form.sources)
    return fits([term for form in operands for term in form.terms])


def _proves_shape(form: Form, operands: list[Form]) -> bool:
    """Every term of every operand met its like: one source, equal stride and slack, so equal shapes."""
    return all(len(operand.terms) == len(form.terms) for operand in operands)
