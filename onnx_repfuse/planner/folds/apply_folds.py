"""Selected candidates written into their scope, and noted as folds."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.graph.decode import read_instead
from onnx_repfuse.graph.edit_points import replace_aliases, replace_nodes
from onnx_repfuse.graph.idle_pairs import undone
from onnx_repfuse.graph.no_ops import given_out
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import Context, may_be_linear
from onnx_repfuse.planner.folds.emit import emit
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.planner.folds.replacements import (
    IsFree,
    add_fold,
    folds_below,
    joined_fold,
    original_nodes,
    outputs_around,
)
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.limits.shape_consumers import ShapeSource, shape_sources, with_numbers
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.records.report import Kind

__all__ = ["apply_folds", "join_no_ops", "reads_too_many", "remove_no_ops"]

Dim = TypeVar("Dim")
_TRANSPARENT = ("Cast", "Identity")  # runtimes look through them when they look for patterns
# covering takes them for no operators where they do nothing
_REMOVED_FIRST = (
    "AveragePool", "Einsum", "GlobalAveragePool", "Pad", "ReduceMean", "ReduceSum", "Split",
)  # fmt: skip
MAX_JOINED_SOURCES = 4  # tensors a fold may read if it grew over several rounds


def apply_folds(plan: ScopePlan, cover: Cover, selections: Iterable[Selection]) -> None:
    """Write selections into the scope and note them as folds, joined with the folds they build upon."""
    selections = list(selections)
    shapes = [one for selection in selections for one in shape_sources(cover, selection)]
    writing = _Writing(plan, cover)
    for one in shapes:
        if one.numbers:
            writing.write_numbers(one)
    for selection in _copies_last(plan.scope, selections):
        writing.write(selection)
    writing.finish(shapes)


@dataclass(eq=False)
class _Writing:
    """The selections of one round while they are written.

    Attributes:
        replaced: id() of a node -> the nodes in its place.
        aliases: output -> the tensor that its consumers read instead.
        fresh: the tensors that this round created, with their nodes.
        sizes: output of a fold -> the nodes that write numbers into the shapes that it changes.
        shape_nodes: output of a fold -> the nodes that asked for these shapes.
    """

    plan: ScopePlan
    cover: Cover
    replaced: dict[int, list[gs.Node]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, gs.Node] = field(default_factory=dict)
    sizes: dict[str, list[gs.Node]] = field(default_factory=dict)
    shape_nodes: dict[str, list[gs.Node]] = field(default_factory=dict)

    def write_numbers(self, one: ShapeSource) -> None:
        """Let a node that asks for a shape give out numbers, where the tensor that it will read has other sizes."""
        created = with_numbers(self.plan.scope, one)
        self.replaced[id(one.node)] = created
        self.sizes.setdefault(one.fold, []).extend(created)
        self.shape_nodes.setdefault(one.fold, []).append(one.node)

    def write(self, selection: Selection) -> None:
        """Write one selection, and note it as a fold."""
        plan, output = self.plan, selection.output
        renamed = _rename_source(plan, selection, self.fresh, self.replaced)
        nodes = self.emitted(selection) if renamed is None else []
        _declare(plan.scope, selection, nodes)
        self.fresh.update((tensor.name, node) for node in nodes for tensor in node.outputs)
        self.replaced[id(selection.lifted.node)] = nodes
        earlier = folds_below(plan, selection.nodes if renamed is None else (*selection.nodes, renamed))
        renamed_from = "" if renamed is None else selection.lowered.copied
        fold = _fold(plan, selection, nodes, earlier, renamed_from)
        fold.created = self.sizes.get(output, []) + fold.created
        fold.absorbed = fold.absorbed + self.shape_nodes.get(output, [])
        if output in self.aliases:
            fold.aliases = {output: self.aliases[output]}
            plan.aliases[output] = fold
        plan.add(fold, earlier)

    def emitted(self, selection: Selection) -> list[gs.Node]:
        """The nodes of a selection; none where its output is another tensor, which is an alias then."""
        scope, output, lowered = self.plan.scope, selection.output, selection.lowered
        if not lowered.steps:
            self.aliases[output] = str(lowered.result)
            return []
        data_type = _data_type(scope, self.cover.context, selection)
        emission = emit(scope, output, lowered, data_type=data_type, name=f"{output}_fused")
        scope.add_constants(emission.constants)
        return emission.nodes

    def finish(self, shapes: Sequence[ShapeSource]) -> None:
        """Put the nodes into the scope, and let what read tensors that are gone read others."""
        plan, scope = self.plan, self.plan.scope
        replace_nodes(scope, self.replaced)
        for one in shapes:
            shape_node = self.replaced[id(one.node)][0] if one.numbers else one.node
            read_instead(shape_node, 0, plan.stand_in(one.source or shape_node.inputs[0].name))
        replace_aliases(scope, self.aliases)
        if shapes:  # a shape may be read behind where it was
            scope.nodes = scope.order(scope.nodes)


def _copies_last(scope: Scope, selections: Iterable[Selection]) -> list[Selection]:
    """The selections in their order, but those of mere copies last, in topological order: what they copy is there."""
    place = {tensor.name: number for number, node in enumerate(scope.nodes) for tensor in node.outputs}
    return sorted(selections, key=lambda one: place[one.output] if one.lowered.copied else -1)


def remove_no_ops(
    plan: ScopePlan,
    is_free: IsFree,
    layouts: Container[str],
) -> bool:
    """Let consumers read through every node that gives out what it reads (`graph.no_ops`); whether there were any.

    The parts of patterns that runtimes fuse stay, and so does what somebody outside of the scope reads. Where channels
    are known, rounds of covering see that arithmetic and views do nothing, and take them into folds. Two nodes in a row
    of which one undoes the other (`graph.idle_pairs`) do nothing, either.

    Args:
        plan: of the scope, which is changed.
        is_free: whether a node may be replaced.
        layouts: the tensors whose channels are known.
    """
    scope = plan.scope
    replaced: dict[int, list[gs.Node]] = {}
    aliases: dict[str, str] = {}
    for node in scope.nodes:
        source, nodes = _read_by_no_op(scope, node, aliases)
        if not source or not all(map(is_free, nodes)) or not _may_be_read_through(scope, node):
            continue
        if _is_left(scope, nodes, layouts):
            continue
        name = node.outputs[0].name
        aliases[name] = source
        fold = add_fold(plan, name, {Kind.NO_OP}, nodes, [])
        fold.aliases = {name: source}
        plan.aliases[name] = fold
        replaced[id(node)] = []
    replace_nodes(scope, replaced)
    replace_aliases(scope, aliases)
    return bool(aliases)


def _read_by_no_op(scope: Scope, node: gs.Node, aliases: Container[str]) -> tuple[str, list[gs.Node]]:
    """The tensor that a node gives out, alone or with the one before it, and these nodes; "" if there is none."""
    source = given_out(scope, node)
    if source:
        return source, [node]
    before = undone(scope, node)
    if before is None or before.outputs[0].name in aliases:
        return "", [node]
    return str(before.inputs[0].name), [before, node]


def _is_left(scope: Scope, nodes: Sequence[gs.Node], layouts: Container[str]) -> bool:
    """Whether a no-op stays: part of a pattern, or left to covering, which makes it part of a fold."""
    node = nodes[-1]
    if node.op in _TRANSPARENT:
        return False
    if id(node) in protected_nodes(scope):
        return True
    is_seen_by_covering = node.outputs[0].name in layouts and may_be_linear(node) and len(nodes) == 1
    return is_seen_by_covering and node.op not in _REMOVED_FIRST


def join_no_ops(plan: ScopePlan) -> None:
    """Count a no-op among folded nodes to the folds that absorbed what reads it; to none if that was dead then.

    It stays in `plan.aliases`, where what proves those folds asks for the node.
    """
    scope = plan.scope
    no_ops = [fold for fold in plan.folds if _is_no_op_of_nothing(scope, fold)]
    if not no_ops:
        return
    consumers: dict[str, list[PlannedFold]] = {}
    for fold in plan.folds:
        for node in fold.absorbed:
            _add_consumer(scope, consumers, node, fold)
    gone: set[int] = set()
    # Who absorbs the last no-op of a chain absorbs those before it, in whatever order they were noted.
    for fold in reversed(no_ops):
        gone.add(id(fold))
        for other in [other for other in consumers.get(fold.name, ()) if id(other) not in gone]:
            _absorb(scope, other, fold.absorbed)
            for node in fold.absorbed:
                _add_consumer(scope, consumers, node, other)
    plan.folds = [fold for fold in plan.folds if id(fold) not in gone]


def _absorb(scope: Scope, fold: PlannedFold, nodes: Iterable[gs.Node]) -> None:
    """Count nodes of the file to a fold, too, in the file's order."""
    absorbed = {id(node): node for node in (*fold.absorbed, *nodes)}
    fold.absorbed = sorted(absorbed.values(), key=lambda one: scope.anchor[id(one)])


def _is_no_op_of_nothing(scope: Scope, fold: PlannedFold) -> bool:
    """Whether it removed a no-op that gave out a tensor which nobody reads any more."""
    is_alone = fold.is_no_op and not fold.created and bool(fold.aliases)
    return is_alone and not any(scope.is_used(source) for source in fold.aliases.values())


def _add_consumer(
    scope: Scope, consumers: dict[str, list[PlannedFold]], node: gs.Node, fold: PlannedFold
) -> None:
    for name in dict.fromkeys(scope.proto.node[scope.anchor[id(node)]].input[:]):
        consumers.setdefault(name, []).append(fold)


def _may_be_read_through(scope: Scope, node: gs.Node) -> bool:
    """Whether the consumers of a no-op may read what it reads."""
    name = node.outputs[0].name
    if scope.const(name) is not None and not _shares_initializer(scope, node):
        return False  # whoever reads it takes it for the constant that it is
    return bool(scope.consumers.get(name)) and not scope.is_seen(name)


def _shares_initializer(scope: Scope, node: gs.Node) -> bool:
    """Whether it is an Identity of a weight, as torch's legacy exporter writes one that modules share.

    Of large ones no second initializer is made. Numbers may be what a Range reads, see `rewrites.constant_nodes`.
    """
    source = node.inputs[0].name
    const = scope.const(source) if node.op == "Identity" and source not in scope.producer else None
    return const is not None and const.data_type in FLOAT_FORMATS and const.size > 1


def reads_too_many(plan: ScopePlan, selection: Selection) -> bool:
    """Whether it would join earlier folds into one of too many sources to prove, or for a person to follow.

    A bias moved down a residual stream would chain all blocks of a network into one fold. Lists of sizes, which are
    integers, do not count: with them, what folds in the file that a fold writes would not fold here.
    """
    earlier = folds_below(plan, selection.nodes)
    nodes = original_nodes(plan, selection.nodes, earlier)
    if len(nodes) <= len(selection.nodes):
        return False
    computed = {tensor.name for node in nodes for tensor in node.outputs}
    read = {tensor.name for node in nodes for tensor in node.inputs if tensor.name}
    sources = read - computed - plan.scope.constants.keys()
    types = [plan.scope.data_type(name) or 0 for name in sources]
    return sum(data_type == 0 or data_type in FLOAT_FORMATS for data_type in types) > MAX_JOINED_SOURCES


def _fold(
    plan: ScopePlan,
    selection: Selection,
    nodes: list[gs.Node],
    earlier: Sequence[PlannedFold],
    renamed_from: str,
) -> PlannedFold:
    """A selection as a fold, joined with earlier ones."""
    # what earlier folds created and this one absorbs is neither in the file before nor in the file after
    between = sum(macs for node, macs in selection.macs.items() if node in plan.creator)
    fold = PlannedFold(
        _outputs(selection, earlier, renamed_from),
        [],
        nodes,
        selection.roles,
        sum(selection.macs.values()) - between,
        selection.lowered.macs - between,
        selection.groups,
    )
    return joined_fold(plan, fold, selection.nodes, earlier)


def _outputs(selection: Selection, earlier: Iterable[PlannedFold], renamed_from: str) -> tuple[str, ...]:
    """The selection's output; those of the earlier fold that created it, if it is a tensor inside that fold.

    Args:
        renamed_from: the name that the output had in an earlier fold, see `_rename_source`.
    """
    for fold in earlier:
        if renamed_from in fold.outputs:
            return tuple(selection.output if name == renamed_from else name for name in fold.outputs)
        outside = outputs_around(selection.output, [fold])
        if outside:
            return outside
    return (selection.output,)


def _rename_source(
    plan: ScopePlan, selection: Selection, fresh: dict[str, gs.Node], replaced: Container[int]
) -> gs.Node | None:
    """Where an output is a mere copy of a tensor we created for it alone, that tensor takes the output's name.

    So `y = relu(conv(x) + 0)` keeps the name of the sum, the one that everybody behind it reads.

    Args:
        plan: the folds so far.
        selection: what is chosen for the output.
        fresh: the tensors that this round created, with their nodes; the renamed one changes its place.
        replaced: the nodes that are gone after this round, by id().

    Returns:
        the node that now computes the output; None where there is no such tensor.
    """
    scope, name, output = plan.scope, selection.lowered.copied, selection.output
    producer = fresh.get(name, scope.producer.get(name))
    if producer is None or id(producer) not in plan.creator or len(producer.outputs) != 1:
        return None
    if id(producer) in replaced:  # as where it, too, turned out to be a copy
        return None
    # A form that looked through the copy may read the tensor, too.
    is_read = any(tensor.name == name for node in fresh.values() for tensor in node.inputs)
    if is_read or not scope.is_private(name):
        return None
    producer.outputs[0].name = output
    plan.renamed[name] = output
    fresh[output] = producer
    fresh.pop(name, None)
    return producer


def _data_type(scope: Scope, context: Context, selection: Selection) -> int:
    """The output's or, where inference gave up (behind an If), that of any tensor of the fold: all have the same."""
    for name in _typed_tensors(selection):
        layout = context.channel_layout(name)
        data_type = scope.data_type(name) or (layout.data_type if layout else 0)
        if data_type in FLOAT_FORMATS:
            return data_type
    return onnx.TensorProto.FLOAT


def _typed_tensors(selection: Selection) -> Iterator[str]:
    """The tensors of a fold; parameters of a BatchNormalization, which may be of another type than its data, last."""
    yield selection.output
    for node in selection.nodes:
        yield from (tensor.name for tensor in node.outputs)
    parameters: list[str] = []
    for node in selection.nodes:
        names = [tensor.name for tensor in node.inputs]
        data = 1 if node.op == "BatchNormalization" else len(names)
        yield from names[:data]
        parameters += names[data:]
    yield from parameters


def _declare(scope: Scope, selection: Selection, nodes: Sequence[gs.Node]) -> None:
    """Types and sizes of new inner tensors: those of a tensor that was there, with other channels."""
    data_type, _ = scope.types.get(selection.output, (0, None))
    for node, step in zip(nodes, selection.lowered.steps, strict=False):
        name = node.outputs[0].name
        if name == selection.output:
            continue
        if step.op in ("SizesMul", "SizesAdd"):
            length = (step.index.size,) if step.index is not None else (None,)
            scope.types[name] = (onnx.TensorProto.INT64, length)
            continue
        axis, like = step.layout[0], step.like or selection.output
        shape, assumed = scope.shape(like), scope.assumed.get(like)
        if shape is not None:
            scope.types[name] = (data_type, _with_channels(shape, axis, step.channels))
        if assumed is not None:
            scope.assumed[name] = _with_channels(assumed, axis, step.channels)


def _with_channels(shape: tuple[Dim, ...], axis: int, channels: Dim) -> tuple[Dim, ...]:
    place = axis % len(shape)
    return (*shape[:place], channels, *shape[place + 1 :])
