"""A Transpose in front of a window goes before what picks, pads and stacks positions of one tensor.

    Transpose(Pad(x))                        ->  Pad(Transpose(x))
    Transpose(Concat(Slice(x), Slice(x)))    ->  Concat(Slice(Transpose(x)), Slice(Transpose(x)))

So images with the channels last are padded, or taken apart as YOLO's Focus does, with the channels first, where the
Conv behind takes that in. Only where the Transpose has no more to move than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import new_node
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.operators.index_maps import END_OF_AXIS
from onnx_repfuse.graph.operators.space_maps import permutation
from onnx_repfuse.graph.scope import Const, Scope, optional_input
from onnx_repfuse.graph.windows import has_window
from onnx_repfuse.lift import Context
from onnx_repfuse.lift.linear_op import Declined
from onnx_repfuse.lift.pad_pool import PadAmounts, read_pads
from onnx_repfuse.lift.slice_concat import slice_arguments
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.folds.replacements import IsFree, Replacements
from onnx_repfuse.records.report import Kind

__all__ = ["transpose_early"]

MAX_NODES = 32  # between the Transpose and the tensor that it reads then
MAX_NODES_BEHIND = 8  # arithmetic between the Transpose and the window
_ARITHMETIC = ("Add", "BatchNormalization", "Div", "Mul", "Sub")


@dataclass(eq=False)
class _Tree:
    """Nodes that pick, pad and stack positions of one tensor, in topological order.

    Attributes:
        context: the scope around.
        rank: dims of every tensor.
        nodes: output -> the node.
        shares: tensor -> its number of elements as a share of the source's; a lower bound where sizes are not known.
    """

    context: Context
    rank: int
    nodes: dict[str, gs.Node] = field(default_factory=dict)
    shares: dict[str, Fraction] = field(default_factory=dict)

    def source_of(self, name: str) -> str:
        """The one tensor that the nodes before a tensor read; their shares are noted."""
        node = self.context.scope.producer.get(name)
        if node is None or name in self.nodes or len(self.nodes) >= MAX_NODES:
            return self._source(name)
        known, share = len(self.nodes), _SHARES.get(node.op)
        before = [tensor.name for tensor in node.inputs] if node.op == "Concat" else [optional_input(node, 0)]
        sources = list(map(self.source_of, before)) if share is not None and len(node.outputs) == 1 else []
        of_node = None if len(set(sources)) != 1 or share is None else share(self, node)
        if of_node is None:
            for other in list(self.nodes)[known:]:
                del self.nodes[other]
            return self._source(name)
        self.nodes[name], self.shares[name] = node, of_node
        return sources[0]

    def _source(self, name: str) -> str:
        if name in self.nodes:
            return self.source_of(str(self.nodes[name].inputs[0].name))
        self.shares[name] = Fraction(1)
        return name


def transpose_early(plan: ScopePlan, context: Context, is_free: IsFree) -> bool:
    """Write every such Transpose before the nodes; whether there was any.

    Args:
        plan: of the scope, which is changed.
        context: the scope and its layouts.
        is_free: whether a node may be replaced.
    """
    scope, replacements = plan.scope, Replacements(plan)
    for last in scope.nodes:
        rank = len(scope.shape(last.inputs[0].name) or ()) if last.op == "Transpose" else 0
        if rank < 3 or not _leads_to_window(scope, str(last.outputs[0].name), MAX_NODES_BEHIND):
            continue
        name = str(last.inputs[0].name)
        tree = _Tree(context, rank)
        source = tree.source_of(name)
        nodes = [*tree.nodes.values(), last]
        is_worth_it = name in tree.nodes and tree.shares[name] >= 1 and _pads_space_only(tree, last)
        if is_worth_it and _may_go(context, nodes, is_free):
            created = _written(tree, last, source)
            replacements.fold(last.outputs[0].name, {Kind.COMMUTE}, nodes, created)
    return replacements.write()


def _leads_to_window(scope: Scope, name: str, nodes: int) -> bool:
    """Whether only arithmetic with constants is between a tensor and windows, which alone read it."""
    consumers = scope.consumers.get(name, [])
    if scope.is_seen(name) or not consumers:
        return False
    for node in consumers:
        others = [tensor.name for tensor in node.inputs if tensor.name != name]
        is_passed = node.op in _ARITHMETIC and all(scope.const(other) is not None for other in others)
        if is_passed and nodes and _leads_to_window(scope, str(node.outputs[0].name), nodes - 1):
            continue
        if not has_window(node) or node.inputs[0].name != name:
            return False
    return True


def _may_go(context: Context, nodes: Sequence[gs.Node], is_free: IsFree) -> bool:
    """Whether all nodes may be replaced, and nobody else reads what is between them."""
    own = set(map(id, nodes))
    if not all(map(is_free, nodes)) or not own.isdisjoint(context.protected):
        return False
    for node in nodes[:-1]:
        name = node.outputs[0].name
        if context.scope.is_seen(name) or any(
            id(one) not in own for one in context.scope.consumers.get(name, ())
        ):
            return False
    return True


def _pads_space_only(tree: _Tree, last: gs.Node) -> bool:
    """Whether no Pad pads what is batch or channels behind the Transpose, which no window does."""
    batch_and_channels = permutation(last, tree.rank)[:2]
    for node in tree.nodes.values():
        pads = _pads(tree, node) if node.op == "Pad" else None
        if pads is not None and any(pads.begin[axis] or pads.end[axis] for axis in batch_and_channels):
            return False
    return True


# The number of elements of what a node computes, as a share of the source's, or less; None where the node stays.


def _share_of_pad(tree: _Tree, pad: gs.Node) -> Fraction | None:
    return None if _pads(tree, pad) is None else tree.shares[pad.inputs[0].name]


def _pads(tree: _Tree, pad: gs.Node) -> PadAmounts | None:
    """What a Pad with zeros adds; None where it does anything else."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    pads = read_pads(tree.context, pad, tree.rank)
    if isinstance(pads, Declined) or pads.value or min(*pads.begin, *pads.end) < 0:
        return None
    return pads


def _share_of_slice(tree: _Tree, node: gs.Node) -> Fraction | None:
    scope, name = tree.context.scope, node.inputs[0].name
    shape, arguments = scope.shape(name), slice_arguments(scope, node)
    if shape is None or len(shape) != tree.rank or arguments is None:
        return None
    starts, ends, axes, steps = arguments
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    if {len(ends), len(axes), len(steps)} != {len(starts)} or min(steps, default=1) < 1:
        return None
    share = tree.shares[name]
    for axis, *cut in zip(axes, starts, ends, steps, strict=True):
        share *= _kept(shape[axis], *cut)
    return share


def _kept(size: int | None, start: int, end: int, step: int) -> Fraction:
    """The part of an axis that a Slice keeps; of any size, it has to keep a position of every block."""
    if size is not None:
        return Fraction(len(range(size)[start:end:step]), max(size, 1))
    return Fraction(1, step) if 0 <= start < step and end >= END_OF_AXIS else Fraction(0)


def _share_of_concat(tree: _Tree, node: gs.Node) -> Fraction | None:
    shares = (tree.shares[tensor.name] for tensor in node.inputs)
    return sum(shares, Fraction(0)) if "axis" in node.attrs else None


_SHARES = {"Concat": _share_of_concat, "Pad": _share_of_pad, "Slice": _share_of_slice}


# The nodes again, of a tensor whose axes are in another order.


def _written(tree: _Tree, last: gs.Node, source: str) -> list[gs.Node]:
    """The Transpose, and the other nodes behind it."""
    scope, order = tree.context.scope, permutation(last, tree.rank)
    output = str(last.outputs[0].name)
    names = {str(last.inputs[0].name): output}

    def written(name: str) -> str:
        if name not in names:
            names[name] = scope.fresh(f"{name}_transposed")
            shape = scope.shape(name)
            axes = None if shape is None else tuple(shape[axis] for axis in order)
            scope.types[names[name]] = scope.data_type(name) or 0, axes
        return names[name]

    attributes = {"perm": list(order)}
    created = [new_node("Transpose", scope.fresh(f"{output}_early"), attributes, [source], [written(source)])]
    for name, node in tree.nodes.items():
        inputs = [written(tensor.name) for tensor in node.inputs[: None if node.op == "Concat" else 1]]
        lists, attrs = _arguments(tree, node, list(order))
        fresh = scope.fresh(f"{name}_transposed")
        created.append(new_node(node.op, fresh, attrs, [*inputs, *lists], [written(name)]))
    return created


def _arguments(tree: _Tree, node: gs.Node, order: list[int]) -> tuple[list[str], dict[str, Any]]:
    """The further inputs and the attributes of a node whose axes are in another order."""
    scope, attrs = tree.context.scope, dict(node.attrs)
    if node.op == "Concat":
        return [], {"axis": order.index(node.attrs["axis"] % tree.rank)}
    has_attributes = operator(node).uses_attributes(scope.opset)
    lists = [tensor.name for tensor in node.inputs[1:]]
    stem = str(node.outputs[0].name)
    if node.op == "Slice":
        starts, _, axes, _ = slice_arguments(scope, node) or [[], [], [], []]
        moved = [order.index(axis % tree.rank) for axis in axes or range(len(starts))]
        if has_attributes:
            return [], {**attrs, "axes": moved}
        return [*lists[:2], _integers(scope, f"{stem}_axes", moved), *lists[3:]], attrs
    pads = _pads(tree, node)
    assert pads is not None
    amounts = [side[axis] for side in (pads.begin, pads.end) for axis in order]
    if has_attributes:
        return [], {**{key: value for key, value in attrs.items() if key != "paddings"}, "pads": amounts}
    return [_integers(scope, f"{stem}_pads", amounts), *lists[1:2]], attrs


def _integers(scope: Scope, stem: str, values: list[int]) -> str:
    made = partial(np.array, values, np.int64)
    return scope.new_constant(stem, Const((len(values),), onnx.TensorProto.INT64, made))
