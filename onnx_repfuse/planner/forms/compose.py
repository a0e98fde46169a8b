"""An operator applied to forms of its operands: the form of its output.

    y = W u + b,   u = K x + c      ->      y = (W K) x + (W c + b)

Several combinations of options share the form of an operand. What a term of the operator becomes with that form is
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from onnx_repfuse.algebra.affine_form import (
    MAX_TERMS,
    TOO_LONG,
    Form,
    Part,
    Term,
    fits,
    gather,
    key_of,
    side_by_side,
    substitute,
)
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.algebra.laws import Size
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.report import Kind

__all__ = ["Parts", "composed", "form_of_node", "inline", "writes_itself"]

Positions = Size | None  # per spatial axis, as far as proved
Parts = dict[tuple[int, int], Part | Inexact]  # by the number of a term and the id of the form it reads


def composed(
    lifted: LinearOp,
    forms: list[Form],
    parts: Parts,
    positions_of: Callable[[Hashable], Positions],
) -> Form | None:
    """The form of the operator's output; None where operands are not proved to have equal shapes, and must have.

    Args:
        lifted: not a view.
        forms: of its operands; they must live as long as `parts`.
        parts: what earlier combinations computed; extended.
        positions_of: a source's positions per axis, where proved.

    Raises:
        Inexact: when no form equals it for every input.
    """
    if lifted.needs_equal_shapes and _share_no_source(lifted, forms):
        return None
    if lifted.node.op == "Concat" and lifted.role is Kind.CONCAT:  # and not the last node of a border
        return _side_by_side(lifted, forms)
    summands = [_part(lifted, number, forms, parts) for number in range(len(lifted.terms))]
    form = gather(lifted.channels, lifted.layout, lifted.bias, summands, positions_of)
    return None if lifted.needs_equal_shapes and not _proves_equal_shapes(form, forms) else form


def form_of_node(lifted: LinearOp) -> Form | None:
    """What `composed` returns for the operands themselves, in a fraction of its time; None in the less simple cases."""
    if not _reads_each_operand_once(lifted):
        return None
    operands, terms = lifted.operands, []
    for term in lifted.terms:
        place: Any = term.source
        operand, kernel = operands[place], term.kernel
        geometry = kernel.geometry
        if geometry.layout != operand.layout or term.lo_in + geometry.c_in > operand.channels:
            return None
        terms.append(Term(operand.name, kernel, term.lo_in, term.lo_out))
    return Form(lifted.channels, lifted.layout, tuple(terms), lifted.bias) if fits(terms) else None


def _reads_each_operand_once(lifted: LinearOp) -> bool:
    """Whether it is a sum of one term for each operand, all of them different tensors, and pads with zeros."""
    operands = lifted.operands
    if lifted.needs_equal_shapes or lifted.padding_value is not None or len(operands) != len(lifted.terms):
        return False
    return len(operands) == 1 or len({operand.name for operand in operands}) == len(operands)


def _side_by_side(lifted: LinearOp, forms: list[Form]) -> Form:
    """Forms of the operands of a Concat, each in its channels: none adds to another. Raises Inexact: too many terms."""
    terms: list[Term] = []
    bias = lifted.bias
    for place, form in zip(lifted.terms, forms, strict=True):
        lo = place.lo_out
        terms += [Term(t.source, t.kernel, t.lo_in, lo + t.lo_out) for t in form.terms] if lo else form.terms
        if not form.bias.is_zero:
            bias = bias + form.bias.placed(lo, lifted.channels)
    terms = side_by_side(terms)
    if len(terms) > MAX_TERMS:
        raise Inexact(Reason.COST, TOO_LONG)
    return Form(lifted.channels, lifted.layout, tuple(terms), bias)


def inline(
    outer: Form,
    name: str,
    inner: Form,
    positions_of: Callable[[Hashable, int], Positions] = lambda source, rank: None,
) -> Form | None:
    """`outer` with a form in the place of one of its sources; None if no form equals that, or it reads no tensors.

    Args:
        outer: the form that reads it.
        name: the source.
        inner: what the source is.
        positions_of: a source's positions per axis, given its rank, where proved.
    """
    if outer.layout != inner.layout or not outer.reads_tensors:
        return None
    zero, rank = Bias.zeros(outer.channels), outer.layout[1]
    try:
        parts = [
            substitute(term, inner, outer.channels) if term.source == name else ((term,), zero)
            for term in outer.terms
        ]
        return gather(
            outer.channels, outer.layout, outer.bias, parts, lambda source: positions_of(source, rank)
        )
    except Inexact:
        return None


def _part(lifted: LinearOp, number: int, forms: list[Form], parts: Parts) -> Part:
    """What one term of an operator becomes. Raises Inexact."""
    term = lifted.terms[number]
    place: Any = term.source
    form = forms[place]
    key = number, id(form)
    part = parts.get(key)
    if part is None:
        try:
            part = substitute(term, form, lifted.channels, lifted.padding_value)
        except Inexact as reason:
            part = reason
        parts[key] = part
    if isinstance(part, Inexact):
        raise part
    return part


def _share_no_source(lifted: LinearOp, operands: list[Form]) -> bool:
    """Whether no shapes will be proved equal, as no two forms share a source, and `gather` has nothing else to say."""
    seen: set[Hashable] = set()
    for form in operands:
        if form.layout != lifted.layout or not seen.isdisjoint(form.sources):
            return False
        seen.update(form.sources)
    return fits([term for form in operands for term in form.terms])


def _proves_equal_shapes(form: Form, operands: list[Form]) -> bool:
    """Whether each term of an operand was added to one of every other: of one source and stride, so of one shape."""
    keys = set(map(key_of, form.terms))
    return all(len(set(map(key_of, operand.terms))) == len(keys) for operand in operands)


def writes_itself(lifted: LinearOp) -> bool:
    """Whether the form of the node alone would be lowered to the node itself, at the same price.

    Then it need not be lowered to know its price, which spares most of the work in networks that are folded already.
    """
    if lifted.view is not None or lifted.inner_nodes or lifted.padding_value is not None:
        return False
    if lifted.also is not None:
        return True  # nobody writes an AveragePool as a convolution that takes nothing else in
    facts, kernel = operator(lifted.node), lifted.terms[0].kernel
    if facts.weight is not None:
        return not isinstance(kernel, Vector)  # a 1x1 depthwise Conv would become a Mul
    if facts.normalizes:
        return not lifted.bias.is_zero  # without a bias it would become a Mul
    if lifted.node.op not in ("Add", "Sum", "Concat") or not lifted.bias.is_zero:
        return False
    # the same tensor twice would become a Mul by 2
    return len(lifted.terms) == len(lifted.operands) == len({o.name for o in lifted.operands}) > 1
