"""Rounds of covering until nothing gets cheaper.

What the nodes of a scope are in the algebra; in later rounds, asked only of those that may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import is_
from typing import TypeVar

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import ChannelLayout, channel_layouts
from onnx_repfuse.graph.edit_points import needed_nodes, remove_dead_nodes, replace_nodes
from onnx_repfuse.graph.operators import operator
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.lift import Context, Declined, LinearOp, lift
from onnx_repfuse.options import Options
from onnx_repfuse.planner.activation_patterns import Activation, activations
from onnx_repfuse.planner.apply_folds import apply_folds, reads_too_many
from onnx_repfuse.planner.candidates import chief
from onnx_repfuse.planner.cost import cost_model
from onnx_repfuse.planner.cover import Cover
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.planner.protected_patterns import protected_nodes
from onnx_repfuse.planner.refusals import refusals, too_old
from onnx_repfuse.planner.select import select
from onnx_repfuse.planner.shared_readers import expose
from onnx_repfuse.records.report import Kind

__all__ = ["Lifting", "cover_scope", "lift_all", "plan_scope"]

T = TypeVar("T")
ROUNDS = 64  # an alarm, not a limit: integer costs fall in every round
Lifting = tuple[gs.Node, LinearOp | Declined | None, str]
# once lifted, these are what their constants and the frames of their tensors say, whoever makes or reads those


def plan_scope(
    scope: Scope,
    options: Options,
    banned: frozenset[str] = frozenset(),
    known: dict[str, ChannelLayout] | None = None,
) -> ScopePlan:
    """Fold what can be folded in one scope; `banned` names roots that must stay as they are, `known` are its frames."""
    result = ScopePlan(scope)
    alive = needed_nodes(scope)
    if options.allows(Kind.ACTIVATION):
        _write_activations(scope, activations(scope, _kept(options), banned), result)
        if result.creator:
            remove_dead_nodes(scope, alive | set(result.creator))
            known = None
    known = channel_layouts(scope) if known is None else known
    previous: Round | None = None
    stale: set[str] = set()
    for _ in range(ROUNDS):
        current = _round(scope, options, banned, previous, known, stale)
        found = select(current.cover)
        wide = frozenset(one.output for one in found if reads_too_many(result, one))
        if wide:
            banned |= wide
            previous, stale = current, {*wide, *current.cover.exposed}
            continue
        if not found:
            declined = [(node, one) for node, one, _ in current.lifted if isinstance(one, Declined)]
            told = {name for one in result.refusals for name in one.nodes}
            others = refusals(scope, current.cover, declined)
            result.refusals += [one for one in others if told.isdisjoint(one.nodes[:1])]
            return result
        apply_folds(result, current.cover, found)
        remove_dead_nodes(scope, alive | set(result.creator))
        previous, known, stale = current, channel_layouts(scope, known), set()
    result.notes.append(f"planning stopped after {ROUNDS} rounds; please report this model")
    return result


def cover_scope(scope: Scope, options: Options) -> Cover:
    """What the planner weighs in a scope as it is."""
    return _round(scope, options, frozenset(), None, channel_layouts(scope)).cover


@dataclass(eq=False)
class Round:
    """What one round found, for the next one to build upon.

    Attributes:
        cover: of the scope as it was.
        lifted: every output of every node that may change, and what it is.
        producer, readers: of each tensor, as they were.
    """

    cover: Cover
    lifted: list[Lifting]
    producer: dict[str, gs.Node]
    consumers: dict[str, list[gs.Node]]


def _round(
    scope: Scope,
    options: Options,
    banned: frozenset[str],
    previous: Round | None,
    known: dict[str, ChannelLayout],
    stale: Set[str] = frozenset(),
) -> Round:
    """Lift every node, cover the scope, look for joint steps; where nothing changed, the last round stands.

    `stale` are tensors to be covered again although nothing changed: new bans, and joint steps not taken.
    """
    context = Context(scope, known, protected_nodes(scope))
    changed = _changed(scope, previous) | stale if previous else set()
    before = (previous.cover.context, previous.lifted) if previous else None
    lifted = lift_all(context, _kept(options), before, changed)
    lifts = {name: found for _, found, name in lifted if isinstance(found, LinearOp)}
    model = cost_model(options.cost)
    cover = Cover(context, lifts, model, lambda roles: options.allows(chief(roles)), banned)
    touched = cover.resume(previous.cover, changed) if previous else None
    cover.solve(name for name in lifts if touched is None or cover.regions.roots[name] in touched)
    expose(cover, touched)
    return Round(cover, lifted, scope.producer, scope.consumers)


def _changed(scope: Scope, previous: Round) -> set[str]:
    """The tensors that others make or read than before."""
    if scope.producer is previous.producer:
        return set()
    return _differing(scope.producer, previous.producer, is_) | _differing(
        scope.consumers, previous.consumers, _are_same
    )


def _differing(now: dict[str, T], then: dict[str, T], alike: Callable[[T, T], bool]) -> set[str]:
    """The keys that only one of both has, or whose values are not alike."""
    changed = now.keys() ^ then.keys()
    return changed | {name for name in now.keys() & then.keys() if not alike(now[name], then[name])}


def _are_same(some: list[gs.Node], others: list[gs.Node]) -> bool:
    """Whether two lists hold the very same nodes."""
    return len(some) == len(others) and all(map(is_, some, others))


def _write_activations(scope: Scope, found: Iterable[Activation], result: ScopePlan) -> None:
    replaced: dict[int, list[gs.Node]] = {}
    for one in found:
        if not one.created:
            result.refusals.append(too_old(scope, one.place, one.absorbed))
            continue
        fold = PlannedFold((one.output,), one.absorbed, one.created, frozenset((Kind.ACTIVATION,)), 0, 0)
        replaced[id(one.place)] = one.created
        result.add(fold)
    replace_nodes(scope, replaced)


def _kept(options: Options) -> Callable[[gs.Node], bool]:
    patterns = options.keep
    if not patterns:
        return lambda node: False
    return lambda node: any(fnmatchcase(node_name(node), pattern) for pattern in patterns)


def lift_all(
    context: Context,
    kept: Callable[[gs.Node], bool],
    previous: tuple[Context, Sequence[Lifting]] | None,
    changed: set[str],
) -> list[Lifting]:
    """Every used output of every node that may change, and what it is.

    Args:
        context: of the scope as it is.
        kept: whether a node stays as it is.
        previous: the context and the result of the round before.
        changed: tensors that others make or read since then.
    """
    before, lifted = previous or (context, ())
    known = {name: found for _, found, name in lifted}
    fresh = context.channel_layouts.keys() - before.channel_layouts.keys()
    result: list[Lifting] = []
    for node in context.scope.nodes:
        if kept(node):
            continue
        names = [t.name for t in (*node.inputs, *node.outputs)] if previous else []
        stands = previous is not None and fresh.isdisjoint(names) and _same_idiom(context, before, node)
        moved = stands and not changed.isdisjoint(names)
        for number, tensor in enumerate(node.outputs):
            if not context.scope.is_used(tensor.name):
                continue
            found = known.get(tensor.name)
            if not stands or tensor.name not in known or _may_differ(node, found, moved):
                found = lift(context, node, number)
            if isinstance(found, LinearOp) and any(kept(inner) for inner in found.inner_nodes):
                continue
            result.append((node, found, tensor.name))
    return result


def _same_idiom(context: Context, before: Context, node: gs.Node) -> bool:
    """Whether its part in an idiom is the same."""
    return (id(node) in context.protected) == (id(node) in before.protected)


def _has_parameters(node: gs.Node) -> bool:
    """Whether its own constants say what it computes from its first input: a Conv, a MatMul, a BatchNormalization."""
    facts = operator(node)
    return facts.weight is not None or facts.normalizes


def _may_differ(node: gs.Node, found: LinearOp | Declined | None, moved: bool) -> bool:
    """Whether a node that is as before, but for its neighbours if it has `moved`, may be something else."""
    if isinstance(found, LinearOp) and found.inner_nodes:
        return True
    if not moved:
        return False
    if not _has_parameters(node) or not isinstance(found, LinearOp) or found.node is not node:
        return True  # another node may have come to make this tensor
    return bool(found.operands[0].name != node.inputs[0].name)
