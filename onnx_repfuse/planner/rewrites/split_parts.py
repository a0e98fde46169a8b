"""A factor and a shift behind one part of a Split go into the rows of the convolution before it.

    Split(Conv(x)) -> (a, b);  y = BatchNormalization(a)        ->        Split(Conv'(x)) -> (y, b)

The convolution computes what the Split gives out, so its rows are those of the parts. No form of one tensor says this:
the part becomes what the operator behind it computed, and the other parts stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.folds.emit import Emission, emit
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements, add_fold
from onnx_repfuse.planner.forms.compose import form_of_node, inline
from onnx_repfuse.planner.forms.value_range import check_range, data_type_of
from onnx_repfuse.planner.pricing.steps import Lowered, Wanted
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.report import Kind

__all__ = ["fold_into_parts"]

_ROLES = frozenset((Kind.AFFINE, Kind.CONCAT))


class _Parts(NamedTuple):
    """A Split behind a convolution: the operator of the convolution, and what stands behind each part, or None."""

    split: gs.Node
    before: LinearOp
    behind: list[LinearOp | None]


def fold_into_parts(plan: ScopePlan, cover: Cover, is_allowed: Callable[[frozenset[Kind]], bool]) -> bool:
    """Fold what stands behind parts of Splits; whether there was any."""
    if not is_allowed(_ROLES):
        return False
    replacements = Replacements(plan)
    for parts in _found(cover):
        lowered = _lowered(cover, parts)
        if lowered is not None:
            replacements.nodes |= _written(plan, cover, parts, lowered)
    return replacements.write()


def _found(cover: Cover) -> Iterator[_Parts]:
    """The Splits behind convolutions that have something to fold behind a part."""
    scope = cover.context.scope
    for node in scope.nodes:
        before = _convolution_before(cover, node)
        names = [tensor.name for tensor in node.outputs]
        if before is None or not cover.banned.isdisjoint(names):
            continue
        if any(scope.is_used(name) and name not in cover.lifts for name in names):
            continue  # a part of which nobody knows the channels
        behind = [_behind(cover, name) for name in names]
        if any(behind):
            yield _Parts(node, before, behind)


def _convolution_before(cover: Cover, split: gs.Node) -> LinearOp | None:
    """The operator with a weight that a Split alone reads; None if there is none, or the node is no Split."""
    if split.op != "Split" or not split.inputs:
        return None
    before = cover.lifts.get(split.inputs[0].name)
    if before is None or operator(before.node).weight is None:
        return None
    return before if cover.context.scope.is_private(before.output) else None


def _behind(cover: Cover, part: str) -> LinearOp | None:
    """The operator with one value per channel that alone reads a part."""
    scope = cover.context.scope
    if not scope.is_private(part):
        return None
    (consumer,) = scope.consumers[part]
    lifted = cover.lifts.get(consumer.outputs[0].name)
    if lifted is None or lifted.output in cover.banned or len(consumer.outputs) != 1:
        return None
    return lifted if _is_per_channel(lifted) and lifted.layout == cover.lifts[part].layout else None


def _is_per_channel(lifted: LinearOp) -> bool:
    """Whether an operator is one node with a factor and a shift for each channel of its only operand."""
    if lifted.view is not None or lifted.padding_value is not None or lifted.inner_nodes:
        return False
    if len(lifted.terms) != 1 or len(lifted.operands) != 1 or lifted.operands[0].channels != lifted.channels:
        return False
    return isinstance(lifted.terms[0].kernel, Vector)


def _lowered(cover: Cover, parts: _Parts) -> Lowered | None:
    """The convolution that computes the parts as they are behind the operators; None if one node does not."""
    before = parts.before
    scale, bias = np.ones(before.channels), Bias.zeros(before.channels)
    for tensor, lifted in zip(parts.split.outputs, parts.behind, strict=True):
        if lifted is None:
            continue
        lo = cover.lifts[tensor.name].terms[0].lo_in
        kernel = lifted.terms[0].kernel
        assert isinstance(kernel, Vector)
        scale[lo : lo + lifted.channels] = kernel.scale
        bias = bias + lifted.bias.placed(lo, before.channels)
    axis, rank = before.layout
    factors = Vector(Geometry.diagonal(before.channels, rank, axis), scale)
    outer = Form(before.channels, before.layout, (Term(before.output, factors),), bias)
    own = form_of_node(before)
    form = None if own is None else inline(outer, before.output, own, cover.sizes.positions)
    if form is None:
        return None
    try:
        check_range(form, before, data_type_of(before, cover.context))
    except Inexact:
        return None
    elements = cover.sizes.elements(before.output)
    lowered = cover.lowering.lower(form, Wanted(elements, may_normalize=False))
    return lowered if lowered is not None and [step.op for step in lowered.steps] == ["Conv"] else None


def _written(plan: ScopePlan, cover: Cover, parts: _Parts, lowered: Lowered) -> dict[int, list[gs.Node]]:
    """The nodes in the place of others, noted as one fold for each part: its output is compared by itself."""
    scope, split, before = plan.scope, parts.split, parts.before
    emission, whole = _emitted(cover, parts, lowered)
    names = [
        tensor.name if lifted is None else lifted.output
        for tensor, lifted in zip(split.outputs, parts.behind, strict=True)
    ]
    inputs = [whole, *(tensor.name for tensor in split.inputs[1:])]
    created = [
        *emission.nodes,
        new_node("Split", scope.fresh(f"{names[0]}_fused"), split.attrs, inputs, names),
    ]
    macs = cover.entries[before.output].node.macs
    replaced = {id(split): created}
    for name, lifted in zip(names, parts.behind, strict=True):
        absorbed = [before.node, split]
        if lifted is not None:
            absorbed.append(lifted.node)
            replaced[id(lifted.node)] = []
        elif not scope.is_used(name):
            continue
        add_fold(plan, name, _ROLES, absorbed, list(created), (macs, macs))
        macs = 0  # counted once
    return replaced


def _emitted(cover: Cover, parts: _Parts, lowered: Lowered) -> tuple[Emission, str]:
    """The nodes of the convolution, and the name of the tensor they compute."""
    scope, before = cover.context.scope, parts.before
    name = scope.fresh(f"{before.output}_fused")
    data_type = data_type_of(before, cover.context) or onnx.TensorProto.FLOAT
    emission = emit(scope, name, lowered, data_type=data_type, name=name)
    scope.add_constants(emission.constants)
    scope.declare_like(name, before.output)
    return emission, name
