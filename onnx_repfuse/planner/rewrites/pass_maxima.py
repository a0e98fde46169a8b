"""Positive factors change places with maxima and activations, to where they fold.

    MaxPool(s*x + t)  =  s*MaxPool(x) + t        ReLU(s*x)  =  s*ReLU(x)        for s > 0, per channel

A BatchNormalization between a ReLU and a MaxPool so reaches the Conv behind the pool, and a factor behind a ReLU the
Conv before it. Nothing is moved that would not fold there. The next round of covering folds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnx_repfuse.algebra.kernels import Vector
from onnx_repfuse.graph.channel_axis import ChannelLayout
from onnx_repfuse.graph.decode import new_node, read_instead
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.channel_rules import NUMPY_BROADCAST_SINCE
from onnx_repfuse.graph.operators.facts import Passes
from onnx_repfuse.graph.operators.space_maps import layout_of_extreme
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.graph.windows import any_window, holds_a_position
from onnx_repfuse.lift import Context, LinearOp, lift
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.planner.limits.refusals import sign_refusal
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["apply_maxima", "maximum_refusals"]

MAX_NODES_TO_WEIGHT = 8  # per-channel operators between a node and the convolution before it


class _Pair(NamedTuple):
    """Two nodes in a row that change places; one of them is the per-channel operator `affine`."""

    first: gs.Node
    second: gs.Node
    affine: LinearOp

    @property
    def is_positive(self) -> bool:
        """Whether all factors are."""
        kernel = self.affine.terms[0].kernel
        return isinstance(kernel, Vector) and bool(np.all(kernel.scale > 0))


def apply_maxima(plan: ScopePlan, context: Context, is_free: IsFree) -> bool:
    """Let positive factors and shifts change places with maxima and activations; whether there were any.

    Args:
        plan: of the scope, which is changed.
        context: of the scope.
        is_free: whether a node may be replaced.
    """
    replacements = Replacements(plan)
    for pair in _pairs(context, is_free):
        first, second, _ = pair
        if pair.is_positive and replacements.nodes.keys().isdisjoint((id(first), id(second))):
            swapped = _swapped(plan.scope, pair, context.channel_layouts)
            replacements.fold(second.outputs[0].name, {Kind.COMMUTE}, [first, second], swapped)
            replacements.nodes[id(first)] = []
    return replacements.write()


def maximum_refusals(context: Context, is_free: IsFree) -> Iterator[Refusal]:
    """The per-channel operators that would fold behind a maximum or activation, or before it, if they were positive."""
    for pair in _pairs(context, is_free):
        if not pair.is_positive:
            affine = pair.affine.node
            other = pair.second if affine is pair.first else pair.first
            yield sign_refusal(context.scope, affine, other)


def _pairs(context: Context, is_free: IsFree) -> Iterator[_Pair]:
    """Every per-channel operator beside a maximum or an activation, in whose place it would fold."""
    scope = context.scope
    for node in scope.nodes if scope.opset >= NUMPY_BROADCAST_SINCE else ():
        passes = operator(node).passes
        if passes is None or not is_free(node) or not _commutes(context, node):
            continue
        for first, second in _neighbours(scope, node):
            affine = _per_channel(context, first if second is node else second, passes, is_free)
            if affine is None or not _keeps_positions_of(node, affine):
                continue
            if _folds_elsewhere(context, _Pair(first, second, affine)):
                yield _Pair(first, second, affine)
                break


def _neighbours(scope: Scope, node: gs.Node) -> Iterator[tuple[gs.Node, gs.Node]]:
    """A node with the one before it, and with the one behind it, where only the second reads the first."""
    before, behind = scope.producer.get(node.inputs[0].name), _only_consumer(scope, node)
    if before is not None and _only_consumer(scope, before) is node:
        yield before, node
    if behind is not None:
        yield node, behind


def _only_consumer(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The node that alone reads the only output of a node."""
    return scope.only_consumer(node.outputs[0].name) if len(node.outputs) == 1 else None


def _per_channel(context: Context, node: gs.Node, passes: Passes, is_free: IsFree) -> LinearOp | None:
    """A node as a factor and shift per channel, where a maximum or activation lets these pass."""
    if not is_free(node) or operator(node).weight is not None or not node.inputs:
        return None
    lifted = _lifted(context, node)
    if lifted is None or lifted.inner_nodes or not isinstance(lifted.terms[0].kernel, Vector):
        return None
    is_identity = lifted.terms[0].kernel.is_one and lifted.bias.is_zero
    shift_passes = lifted.bias.is_zero or (passes is Passes.AFFINE and lifted.layout[0] == 1)
    return lifted if shift_passes and not is_identity else None


def _keeps_positions_of(node: gs.Node, affine: LinearOp) -> bool:
    """Whether a window takes no maximum over the axis along which the factors vary."""
    return affine.layout[0] == 1 or node.op not in ("MaxPool", "GlobalMaxPool")


def _lifted(context: Context, node: gs.Node) -> LinearOp | None:
    """A node as an operator of one tensor that moves no positions."""
    lifted = lift(context, node)
    is_of_one = isinstance(lifted, LinearOp) and lifted.view is None and len(lifted.operands) == 1
    return lifted if isinstance(lifted, LinearOp) and is_of_one else None


def _folds_elsewhere(context: Context, pair: _Pair) -> bool:
    """Whether the per-channel operator of a pair moves to where it folds: down, else up."""
    scope, has_shift = context.scope, not pair.affine.bias.is_zero
    if pair.affine.node is pair.first:
        is_at_home = _rises(context, pair.first, has_shift=True, passing=False)
        return not is_at_home and _sinks(context, pair.second, has_shift=has_shift)
    if scope.data_type(pair.affine.output) == onnx.TensorProto.FLOAT16:
        return False  # where only the largest value was scaled, all of them would be, and might overflow
    rises = _rises(context, pair.second, has_shift=has_shift, passing=True)
    return rises and not _sinks(context, pair.second, has_shift=has_shift)


def _passes(context: Context, node: gs.Node, *, has_shift: bool) -> bool:
    """Whether a factor, and a shift where there is one, passes a maximum or an activation."""
    passes = operator(node).passes
    if passes is None or (has_shift and passes is not Passes.AFFINE):
        return False
    return _commutes(context, node)


def _sinks(context: Context, node: gs.Node, *, has_shift: bool) -> bool:
    """Whether a convolution or matrix product behind a node takes a factor, and a shift, into its weights."""
    for _ in range(MAX_NODES_TO_WEIGHT):
        consumer = _only_consumer(context.scope, node)
        if consumer is None or consumer.inputs[0].name != node.outputs[0].name:
            return False
        if operator(consumer).weight is not None:
            lifted = lift(context, consumer)
            # reads_padding of a ConvTranspose, too: how often it adds a shift depends on the position
            return isinstance(lifted, LinearOp) and not (
                has_shift and lifted.terms[0].kernel.geometry.reads_padding
            )
        is_passed = _is_view(context, consumer, has_shift=has_shift)
        if not is_passed and not _passes(context, consumer, has_shift=has_shift):
            return False
        node = consumer
    return False


def _is_view(context: Context, node: gs.Node, *, has_shift: bool) -> bool:
    """Whether a node moves positions and keeps channels apart, as the Flatten in front of a Gemm: covering sees it."""
    lifted = lift(context, node)
    view = lifted.view if isinstance(lifted, LinearOp) else None
    return view is not None and (view.keeps_constants or not has_shift)


def _rises(context: Context, node: gs.Node, *, has_shift: bool, passing: bool) -> bool:
    """Whether a convolution or matrix product is before a node, and only what a factor passes in between.

    Args:
        has_shift: a shift has to pass it, too.
        passing: maxima and activations may be in between, not only per-channel operators.
    """
    scope = context.scope
    for _ in range(MAX_NODES_TO_WEIGHT):
        producer = _producer_for_it_alone(scope, node)
        if producer is None:
            return False
        if not passing or not _passes(context, producer, has_shift=has_shift):
            lifted = _lifted(context, producer)
            if lifted is None:
                return False
            if operator(producer).weight is not None:
                return True
            if not isinstance(lifted.terms[0].kernel, Vector):
                return False
        node = producer
    return False


def _producer_for_it_alone(scope: Scope, node: gs.Node) -> gs.Node | None:
    """The node that computes the first operand which is no constant, if nobody else reads that."""
    data = [tensor.name for tensor in node.inputs if scope.const(tensor.name) is None]
    if not data or not scope.is_private(data[0]):
        return None
    producer = scope.producer.get(data[0])
    return producer if producer is not None and producer.inputs else None


def _commutes(context: Context, node: gs.Node) -> bool:
    """Whether a maximum or activation is one of the form that positive factors pass."""
    if node.op == "Clip":
        return _is_from_zero(context.scope, node)
    if node.op in ("ReduceMax", "ReduceMin"):
        layout = context.channel_layout(node.inputs[0].name)
        return layout is not None and layout_of_extreme(context.scope, node, layout.layout) is not None
    return node.op != "MaxPool" or _has_real_taps(context, node)


def _is_from_zero(scope: Scope, clip: gs.Node) -> bool:
    """Whether a Clip has the lower end 0 and no upper one."""
    if operator(clip).uses_attributes(scope.opset):
        ends = clip.attrs.get("min"), clip.attrs.get("max")
        return ends[0] == 0 and (ends[1] is None or ends[1] >= np.finfo(np.float32).max)
    has_end = bool(optional_input(clip, 2))
    return not has_end and scope.scalar(optional_input(clip, 1)) == 0


def _has_real_taps(context: Context, pool: gs.Node) -> bool:
    """Whether every window holds a position of the input: what a window of padding alone gives is no maximum."""
    window = any_window(context.scope, pool, rounds_up=True)
    return window is not None and holds_a_position(pool, window.kernel, window.pads)


def _swapped(scope: Scope, pair: _Pair, layouts: dict[str, ChannelLayout]) -> list[gs.Node]:
    """The second node of a pair, reading what the first reads, and the first behind it."""
    first, second = pair.first, pair.second
    source = pair.affine.operands[0].name if pair.affine.node is first else first.inputs[0].name
    between = scope.fresh(f"{first.outputs[0].name}_swapped")
    # positions are as behind the maximum, if that comes first now
    like = second.outputs[0].name if pair.affine.node is first else source
    data_type = scope.data_type(second.outputs[0].name) or 0
    scope.types[between] = data_type, scope.shape(like)
    if like in scope.assumed:
        scope.assumed[between] = scope.assumed[like]
    middle = first.outputs[0].name
    nodes = [
        _reading(scope, second, middle, source, between),
        _reading(scope, first, source, between, second.outputs[0].name),
    ]
    is_behind = pair.affine.node is first
    place = layouts.get(second.outputs[0].name if is_behind else source)
    if place is not None and place.layout != pair.affine.layout:
        _bring_to(scope, nodes[is_behind], place)
    return nodes


def _bring_to(scope: Scope, affine: gs.Node, place: ChannelLayout) -> None:
    """Give the constants of arithmetic the rank that tensors have in another place: (C, 1, 1) there is (C,) here."""
    if operator(affine).normalizes:  # its parameters are vectors in every place
        return
    for number, tensor in enumerate(affine.inputs):
        const = scope.const(tensor.name)
        if const is None:
            continue
        shape = () if const.size == 1 else (const.size, *(1,) * place.rank)
        name = scope.fresh(f"{tensor.name}_in_place")
        made = Const(shape, const.data_type, partial(_reshaped, const, shape))
        scope.constants[name] = scope.created[name] = made
        read_instead(affine, number, name)


def _reshaped(const: Const, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.reshape(const.read(), shape)


def _reading(scope: Scope, node: gs.Node, old: str, new: str, output: str) -> gs.Node:
    """A copy of a node that reads another tensor and computes another one."""
    inputs = [new if tensor.name == old else tensor.name for tensor in node.inputs]
    return new_node(node.op, scope.fresh(output), dict(node.attrs), inputs, [output])
