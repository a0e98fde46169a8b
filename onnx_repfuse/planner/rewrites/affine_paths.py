"""Factors and shifts per element move up, past Reshapes and Transposes that keep no channels, to the operator below.

    Reshape(x @ W) * s  =  Reshape((x @ W) * s')        of a Linear split into heads; s' is s once for each head

A view only moves elements, so whatever is done to each element may be done before. Where that has one value for each
channel of a Conv, Gemm or MatMul, covering folds it. Views that keep channels apart are left to covering.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.dims import dims_of
from onnx_repfuse.graph.edit_points import let_shapes_read
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.scope import Const, Scope
from onnx_repfuse.lift import LinearOp
from onnx_repfuse.lift.batchnorm_arithmetic import most_that_cancels
from onnx_repfuse.lift.linear_op import affine_role
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import Replacements
from onnx_repfuse.planner.rewrites.affine_nodes import factor_and_shift_of
from onnx_repfuse.planner.rewrites.factor_patterns import by_channel, pattern_above
from onnx_repfuse.planner.rewrites.scalar_paths import Paths
from onnx_repfuse.planner.weights.rounding import rounded
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["move_affine"]

Array = NDArray[np.float64]
MAX_VIEWS = 8
_NONE = np.ones(0)  # not known yet
_HAVE_BIAS = ("Conv", "ConvTranspose", "Gemm")
_VIEWS = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class _Move(NamedTuple):
    """What moves.

    Attributes:
        node: the operator.
        views: before it, from the last one upwards.
        source: what the first of them reads.
        layout: of `source`.
        factor, shift: of each channel of `source`.
        sink: the operator that absorbs them.
    """

    node: gs.Node
    views: list[gs.Node]
    source: str
    layout: ChannelLayout
    factor: Array
    shift: Array
    sink: LinearOp


def move_affine(plan: ScopePlan, paths: Paths, is_allowed: Callable[[frozenset[Kind]], bool]) -> bool:
    """Move factors and shifts to where the next round folds them; whether there were any.

    Args:
        plan: of the scope, which is changed.
        paths: what is known of it.
        is_allowed: whether the user allows a fold of these kinds.
    """
    scope, replacements = plan.scope, Replacements(plan)
    if scope.opset < NUMPY_BROADCAST_SINCE:
        return False
    taken: set[int] = set()
    for node in scope.nodes:
        move = _move(paths, node)
        if move is None:
            continue
        kinds = frozenset((Kind.COMMUTE, affine_role(move.sink.layout), *move.sink.roles))
        ids = {id(one) for one in (node, *move.views, move.sink.node)}
        if not is_allowed(kinds) or ids & taken:
            continue
        taken |= ids
        replacements.fold(
            node.outputs[0].name, {Kind.COMMUTE}, [*reversed(move.views), node], _written(scope, move)
        )
        replacements.nodes.update((id(view), []) for view in move.views)
    is_written = replacements.write()
    if is_written:  # a shape may be read behind where it was
        scope.nodes = scope.order(scope.nodes)
    return is_written


def _move(paths: Paths, node: gs.Node) -> _Move | None:
    """The way of an operator up to what absorbs it, past a view that covering does not see through; None if none."""
    patterns = _patterns(paths, node)
    views: list[gs.Node] = []
    reader, name = node, _data(paths.scope, node)
    while patterns and len(views) < MAX_VIEWS:
        view = _view_before(paths, name, reader)
        patterns = [] if view is None else _above(paths.scope, view, patterns)
        if view is None or not patterns:
            return None
        views.append(view)
        reader, name = view, str(view.inputs[0].name)
        sink, layout = paths.absorbs_from_below(name, reader), paths.layouts.get(name)
        if sink is not None and layout is not None:
            move = _absorbed(patterns, _Move(node, views, name, layout, _NONE, _NONE, sink))
            return move if move is not None and _is_gained(paths, move) else None
    return None


def _data(scope: Scope, node: gs.Node) -> str:
    """The one input of a node that is no constant; "" if there are others."""
    names = [tensor.name for tensor in node.inputs if scope.const(tensor.name) is None]
    return str(names[0]) if len(names) == len(node.outputs) == 1 else ""


def _patterns(paths: Paths, node: gs.Node) -> list[Array]:
    """The factor and the shift of an operator behind a view, with the rank of its tensor; [] if it is none."""
    scope, name = paths.scope, _data(paths.scope, node)
    view = scope.producer.get(name)
    if view is None or view.op not in _VIEWS or not paths.may_go(node):
        return []
    affine, dims = factor_and_shift_of(paths.context, node, name), dims_of(scope, name)
    if affine is None or dims is None or not all(np.isfinite(values).all() for values in affine):
        return []
    return [values.reshape((1,) * (len(dims) - values.ndim) + values.shape) for values in affine]


def _view_before(paths: Paths, name: str, reader: gs.Node) -> gs.Node | None:
    """The view that computes a tensor for its reader alone."""
    view = paths.scope.producer.get(name)
    if view is None or view.op not in _VIEWS or not paths.may_go(view):
        return None
    return view if paths.is_alone(name, reader) else None


def _above(scope: Scope, view: gs.Node, patterns: list[Array]) -> list[Array]:
    """Factor and shift in front of a view; [] if they are not told."""
    above = [pattern_above(scope, view, values) for values in patterns]
    known = [values for values in above if values is not None]
    return known if len(known) == len(patterns) else []


def _absorbed(patterns: list[Array], move: _Move) -> _Move | None:
    """A move whose factor and shift are these; None if they vary within a channel, or are there to round."""
    factor, shift = (by_channel(values, move.layout) for values in patterns)
    if factor is None or shift is None or _rounds(factor, shift, move.layout):
        return None
    return move._replace(factor=factor, shift=shift)


def _is_gained(paths: Paths, move: _Move) -> bool:
    """Whether a move lets something fold that covering does not see."""
    folds = (move.factor != 1).any() or _takes_shifts(paths, move.source, move.sink)
    return bool(folds) and not _is_seen_by_covering(paths, move.node, move.views)


def _takes_shifts(paths: Paths, name: str, sink: LinearOp) -> bool:
    """Whether a shift of a tensor costs nothing: what computes it has a bias, or adds another shift."""
    node = sink.node
    is_behind_a_shift = paths.scope.producer.get(name) is not node
    return is_behind_a_shift or node.op in _HAVE_BIAS or operator(node).normalizes


def _rounds(factor: Array, shift: Array, layout: ChannelLayout) -> bool:
    """Whether it adds so much that it may be there to round: `(y + 2**23) - 2**23` rounds y."""
    limits = FLOAT_FORMATS.get(layout.data_type)
    return limits is None or bool((np.abs(shift) > most_that_cancels(limits.epsilon) * np.abs(factor)).any())


def _is_seen_by_covering(paths: Paths, node: gs.Node, views: list[gs.Node]) -> bool:
    """Whether the channels of an operator are those behind the sink, through views that keep them apart."""
    reader = paths.lifted(node.outputs[0].name)
    for view in views:
        lifted = paths.lifted(view.outputs[0].name)
        if reader is None or lifted is None:
            return False
        if (lifted.layout, lifted.channels) != (reader.operands[0].layout, reader.operands[0].channels):
            return False
        reader = lifted
    return True


def _written(scope: Scope, move: _Move) -> list[gs.Node]:
    """The factor and the shift of the source, and the views of that."""
    layout, output = move.layout, str(move.node.outputs[0].name)
    shape = (-1, *(1,) * layout.rank) if layout.channel_axis == 1 else (-1,)
    created: list[gs.Node] = []
    name = move.source
    for op, values, is_nothing in (("Mul", move.factor, 1.0), ("Add", move.shift, 0.0)):
        if (values == is_nothing).all():
            continue
        moved = values.reshape(shape)
        constant = Const(moved.shape, layout.data_type, partial(rounded, moved, layout.data_type))
        inputs = [name, scope.new_constant(f"{output}_{op.lower()}", constant)]
        name = scope.fresh(f"{move.source}_moved")
        scope.declare_like(name, move.source)
        created.append(new_node(op, scope.fresh(f"{output}_moved"), {}, inputs, [name]))
    let_shapes_read(scope, str(move.views[0].outputs[0].name), output)
    for view in reversed(move.views):
        is_last = view is move.views[0]
        result = output if is_last else scope.fresh(f"{view.outputs[0].name}_moved")
        if not is_last:
            scope.declare_like(result, view.outputs[0].name)
            let_shapes_read(scope, view.outputs[0].name, result)
        inputs = [name, *(tensor.name for tensor in view.inputs[1:])]
        created.append(new_node(view.op, scope.fresh(f"{view.name}_moved"), view.attrs, inputs, [result]))
        name = result
    return created
