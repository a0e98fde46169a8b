"""One round of planning a scope: every node lifted, the scope covered, joint steps tried.

What did not change since the round before is taken over. Most joint steps do not pay, and to find that out takes long
in the large regions of a training graph. So they wait, where they can, for a round that finds nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import is_
from typing import NamedTuple, TypeVar

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import channel_layouts
from onnx_repfuse.graph.scope import Scope, node_name
from onnx_repfuse.lift import Context, Declined, LinearOp
from onnx_repfuse.options import Options
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.pricing.cost import cost_model
from onnx_repfuse.planner.pricing.lowering import Prices
from onnx_repfuse.planner.search.candidates import Way
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.lift_scope import Lifted, lift_all
from onnx_repfuse.planner.search.select import Selection, chooses_any, select
from onnx_repfuse.planner.search.shared_consumers import absorb_shared_tensors

__all__ = ["Limits", "Round", "cover_round", "cover_scope", "is_kept"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Round:
    """What one round found, for the next one to build upon.

    Attributes:
        cover: of the scope as it was.
        selections: what is to be written.
        has_put_off: joint steps were put off, as there was something else to write.
        lifted: every output of every node that may change.
        producer, consumers: of each tensor, as they were.
    """

    cover: Cover
    selections: list[Selection]
    has_put_off: bool
    lifted: list[Lifted]
    producer: dict[str, gs.Node]
    consumers: dict[str, list[gs.Node]]

    @property
    def declined(self) -> list[tuple[gs.Node, Declined]]:
        """The nodes that were not lifted although they are linear, and why."""
        return [(one.node, one.declined) for one in self.lifted if one.declined is not None]


class Limits(NamedTuple):
    """What must not be done in a scope.

    Attributes:
        banned: outputs that must stay computed as they are.
        refused: outputs, and ways to compute them that must not be taken, see `Cover`.
        shaped: tensors that stay, as their shape is asked for, and no other tensor would have it.
    """

    banned: frozenset[str] = frozenset()
    refused: frozenset[tuple[str, Way]] = frozenset()
    shaped: frozenset[str] = frozenset()


def cover_round(
    context: Context,
    options: Options,
    limits: Limits,
    previous: Round | None,
    stale: Set[str],
    prices: Prices,
    *,
    may_put_off: bool = True,
) -> Round:
    """Lift every node, cover the scope, try joint steps; where nothing changed, take over the last round.

    Args:
        context: of the scope, whose nodes stay as they are.
        options: kinds of folds, nodes to keep, and the cost model.
        limits: what must not be done.
        previous: the last round, if there was one.
        stale: tensors to be covered again although nothing changed: new bans, and joint steps not taken.
        prices: see `Cover`.
        may_put_off: another round follows, if there is anything to write.
    """
    scope = context.scope
    changed = set() if previous is None else _changed(scope, previous) | stale
    before = None if previous is None else (previous.lifted, previous.cover.context)
    lifted = lift_all(context, is_kept(options), before, changed)
    lifts = {one.output: one.outcome for one in lifted if isinstance(one.outcome, LinearOp)}
    model = cost_model(options.cost)
    banned, refused, shaped = limits
    cover = Cover(context, lifts, model, options.allows_all, banned, refused, options.avoid, shaped, prices)
    touched: set[str] | None = None
    if previous is None:
        cover.solve(lifts)
    else:
        touched = cover.resume(previous.cover, changed)
        cover.solve(name for name in lifts if cover.regions.roots[name] in touched)
        touched = None if previous.has_put_off else touched
    puts_off = may_put_off and chooses_any(cover)
    absorb_shared_tensors(cover, touched, only_now=puts_off)
    return Round(cover, select(cover), puts_off, lifted, scope.producer, scope.consumers)


def _changed(scope: Scope, previous: Round) -> set[str]:
    """The tensors that other nodes make or read than before."""
    if scope.producer is previous.producer:
        return set()
    made = _differing(scope.producer, previous.producer, is_)
    return made | _differing(scope.consumers, previous.consumers, _are_same)


def _differing(now: dict[str, T], then: dict[str, T], are_same: Callable[[T, T], bool]) -> set[str]:
    """The keys that only one of both has, or whose values are not the same."""
    changed = now.keys() ^ then.keys()
    return changed | {name for name in now.keys() & then.keys() if not are_same(now[name], then[name])}


def _are_same(some: list[gs.Node], others: list[gs.Node]) -> bool:
    """Whether two lists hold the very same nodes."""
    return len(some) == len(others) and all(map(is_, some, others))


def cover_scope(scope: Scope, options: Options, plan: ScopePlan | None = None) -> Cover:
    """What the planner weighs in a scope as it is; what a plan of the scope refused is refused here, too."""
    limits = Limits() if plan is None else Limits(refused=frozenset(plan.refused), shaped=plan.shaped)
    context = Context(scope, channel_layouts(scope), protected_nodes(scope))
    return cover_round(context, options, limits, None, frozenset(), {}, may_put_off=False).cover


def is_kept(options: Options) -> Callable[[gs.Node], bool]:
    """Whether the user wants a node to stay, by the pattern of its name."""
    patterns = options.keep
    if not patterns:
        return lambda node: False
    return lambda node: any(fnmatchcase(node_name(node), pattern) for pattern in patterns)
