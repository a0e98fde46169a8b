"""A factor and a shift behind one part of a convolution's channels go into the rows of the convolution.

    Split(Conv(x)) -> (a, b);  y = BatchNormalization(a)        ->        Split(Conv'(x)) -> (y, b)

The parts are those of a Split, or what several Slices and Gathers choose: the rows of the convolution are theirs. Views
of all channels may be in between, as a Transpose to channels last. No
form of one tensor says this: the part becomes what the operator behind it computed, and the others stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.affine_form import Form, Term
from onnx_repfuse.algebra.bias import Bias
from onnx_repfuse.algebra.choice import Picked, taps_of
from onnx_repfuse.algebra.geometry import Geometry
from onnx_repfuse.algebra.kernel_products import is_one
from onnx_repfuse.algebra.kernels import Array, Vector
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.graph.views import View
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.planner.folds.emit import Emission, emit
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements, add_fold
from onnx_repfuse.planner.forms.compose import form_of_node, inline
from onnx_repfuse.planner.forms.value_range import check_range, data_type_of
from onnx_repfuse.planner.pricing.steps import Lowered, Wanted
from onnx_repfuse.planner.search.commute_views import MEANS
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["fold_into_parts"]

_ROLES = frozenset((Kind.AFFINE, Kind.CONCAT))
_CHOICES = ("Gather", "Slice", "Split")


class _Part(NamedTuple):
    """Some channels of a convolution's output: the node that chooses them, and what stands behind, or None."""

    node: gs.Node
    output: str
    channels: NDArray[np.intp]
    behind: LinearOp | None

    @property
    def name(self) -> str:
        """The tensor that is this part in the end."""
        return self.output if self.behind is None else self.behind.output


class _Parts(NamedTuple):
    """The operator of a convolution, the views behind it, and the parts that all consumers of the last one choose."""

    before: LinearOp
    views: list[LinearOp]
    parts: list[_Part]

    @property
    def choices(self) -> list[gs.Node]:
        """The nodes that choose the parts, in their order."""
        return list({id(part.node): part.node for part in self.parts}.values())


def fold_into_parts(plan: ScopePlan, cover: Cover, is_allowed: Callable[[frozenset[Kind]], bool]) -> bool:
    """Fold what stands behind parts of a convolution's output; whether there was any."""
    if not is_allowed(_ROLES):
        return False
    replacements = Replacements(plan)
    for parts in _found(cover):
        lowered = _lowered(cover, parts)
        if lowered is not None:
            replacements.nodes |= _written(plan, cover, parts, lowered)
    return replacements.write()


def _found(cover: Cover) -> Iterator[_Parts]:
    """The convolutions read in parts, that have something to fold behind one of them."""
    for node in cover.context.scope.nodes:
        before = None if operator(node).weight is None else cover.lifts.get(node.outputs[0].name)
        views = [] if before is None else _views_behind(cover, before)
        parts = None if before is None else _parts_of(cover, views[-1] if views else before)
        if before is not None and parts and any(part.behind for part in parts) and _are_apart(parts):
            yield _Parts(before, views, parts)


def _views_behind(cover: Cover, before: LinearOp) -> list[LinearOp]:
    """The views in a row of a convolution's output, that keep all channels and what is added to each."""
    views: list[LinearOp] = []
    while cover.context.scope.is_private((views[-1] if views else before).output):
        (consumer,) = cover.context.scope.consumers[(views[-1] if views else before).output]
        lifted = cover.lifts.get(consumer.outputs[0].name)
        if lifted is None or lifted.view is None or lifted.inner_nodes or lifted.output in cover.banned:
            break
        if not _passes_factors(cover, lifted.view):
            break
        views.append(lifted)
    return views


def _passes_factors(cover: Cover, view: View) -> bool:
    """Whether a factor and a shift behind a view may go before it: in half precision, not in front of an average.

    What is large there, and small in the mean, would overflow.
    """
    limits = FLOAT_FORMATS.get(cover.context.scope.data_type(view.output) or 0)
    may_overflow = view.sort in MEANS and (limits is None or limits.is_half)
    return view.keeps_constants and view.channels == view.channels_behind and not may_overflow


def _parts_of(cover: Cover, before: LinearOp) -> list[_Part] | None:
    """What all consumers of a tensor choose; None where one does anything else. A Slice alone is for covering."""
    scope = cover.context.scope
    consumers = scope.consumers.get(before.output, [])
    if scope.is_seen(before.output) or not consumers or (len(consumers) == 1 and consumers[0].op != "Split"):
        return None
    parts: list[_Part] = []
    for consumer in consumers:
        names = [tensor.name for tensor in consumer.outputs]
        if consumer.op not in _CHOICES or not cover.banned.isdisjoint(names):
            return None
        for name in names:
            if consumer.op == "Split" and not scope.is_used(name):
                continue
            channels = _chosen(cover, name, before)
            if channels is None:
                return None
            parts.append(_Part(consumer, name, channels, _behind(cover, name)))
    return parts


def _chosen(cover: Cover, part: str, before: LinearOp) -> NDArray[np.intp] | None:
    """The channels of a tensor that a part consists of; None where it is anything else."""
    lifted = cover.lifts.get(part)
    if lifted is None or len(lifted.terms) != 1 or lifted.operands[0].name != before.output:
        return None
    if lifted.view is not None or lifted.layout != before.layout or not lifted.bias.is_zero:
        return None
    (term,) = lifted.terms
    if not is_one(taps_of(term.kernel)):
        return None
    index = term.kernel.index if isinstance(term.kernel, Picked) else np.arange(lifted.channels)
    return term.lo_in + index


def _are_apart(parts: list[_Part]) -> bool:
    """Whether what is folded behind a part changes no channel of another one."""
    taken = np.concatenate([part.channels for part in parts])
    channels, times = np.unique(taken, return_counts=True)
    shared = channels[times > 1]
    return not any(part.behind and np.isin(part.channels, shared).any() for part in parts)


def _behind(cover: Cover, part: str) -> LinearOp | None:
    """The operator with one value per channel that alone reads a part."""
    scope = cover.context.scope
    consumer = scope.only_consumer(part)
    if consumer is None or len(consumer.outputs) != 1:
        return None
    lifted = cover.lifts.get(consumer.outputs[0].name)
    if lifted is None or lifted.output in cover.banned:
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
    for part in parts.parts:
        if part.behind is None:
            continue
        kernel = part.behind.terms[0].kernel
        assert isinstance(kernel, Vector)
        scale[part.channels] = kernel.scale
        bias = bias + part.behind.bias.mapped(partial(_at, part.channels, before.channels))
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


def _at(channels: NDArray[np.intp], total: int, values: Array) -> Array:
    """A value for each of some channels, and zero for the others."""
    result = np.zeros(total)
    result[channels] = values
    return result


def _written(plan: ScopePlan, cover: Cover, parts: _Parts, lowered: Lowered) -> dict[int, list[gs.Node]]:
    """The nodes in the place of others, noted as one fold for each part: its output is compared by itself."""
    scope, before = plan.scope, parts.before
    emission, whole = _emitted(cover, parts, lowered)
    created = list(emission.nodes)
    for view in parts.views:
        created.append(_of_another(scope, view, whole))
        whole = str(created[-1].outputs[0].name)
    names = {part.output: part.name for part in parts.parts}
    chosen = {id(node): _choice(scope, node, whole, names) for node in parts.choices}
    first, *others = parts.choices
    is_created = id(before.node) in plan.creator  # then an earlier fold has its multiply-adds
    macs = 0 if is_created else cover.entries[before.output].node.macs
    replaced: dict[int, list[gs.Node]] = {id(first): [*created, *chosen.values()]}
    replaced |= {id(node): [] for node in others}
    for part in parts.parts:
        absorbed = [before.node, *(view.node for view in parts.views), part.node]
        if part.behind is not None:
            absorbed.append(part.behind.node)
            replaced[id(part.behind.node)] = []
        # parts share the new nodes, and each of them may be what an earlier fold computed
        below = [fold for fold in plan.folds if part.output in fold.outputs] if is_created else []
        written = [*created, chosen[id(part.node)]]
        add_fold(plan, part.name, _ROLES, absorbed, written, (macs, macs), below=below)
        macs = 0  # counted once
    return replaced


def _of_another(scope: Scope, view: LinearOp, source: str) -> gs.Node:
    """A view of another tensor of the same shape."""
    node, output = view.node, scope.fresh(f"{view.output}_fused")
    scope.declare_like(output, view.output)
    inputs = [source, *(tensor.name for tensor in node.inputs[1:])]
    return new_node(node.op, scope.fresh(f"{view.output}_fused"), node.attrs, inputs, [output])


def _choice(scope: Scope, node: gs.Node, whole: str, names: dict[str, str]) -> gs.Node:
    """A node that chooses parts, of another tensor."""
    outputs = [names.get(tensor.name, tensor.name) for tensor in node.outputs]
    inputs = [whole, *(tensor.name for tensor in node.inputs[1:])]
    return new_node(node.op, scope.fresh(f"{outputs[0]}_fused"), node.attrs, inputs, outputs)


def _emitted(cover: Cover, parts: _Parts, lowered: Lowered) -> tuple[Emission, str]:
    """The nodes of the convolution, and the name of the tensor they compute."""
    scope, before = cover.context.scope, parts.before
    name = scope.fresh(f"{before.output}_fused")
    data_type = data_type_of(before, cover.context) or onnx.TensorProto.FLOAT
    emission = emit(scope, name, lowered, data_type=data_type, name=name)
    scope.add_constants(emission.constants)
    scope.declare_like(name, before.output)
    return emission, name
