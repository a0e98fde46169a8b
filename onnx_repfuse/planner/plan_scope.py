"""Planning one scope: rounds of lifting, covering and writing, until nothing gets cheaper.

A round lifts every node, covers the scope and selects what is needed (`search`), and writes it (`folds`). The next
round sees the new nodes as any others, and may fold them further. What did not change between two rounds is neither
lifted nor covered again.

When a round finds nothing, the scope is read anew, as a second run would read it from the file, and planned once more.
The plan is finished when that finds nothing: a second run changes no byte. Mostly the first round finds all there is,
so the scope is read anew right behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnx_repfuse.graph.channel_axis import ChannelLayout, channel_layouts
from onnx_repfuse.graph.edit_points import needed_nodes, remove_dead_nodes
from onnx_repfuse.graph.idle_nodes import put_back_idle_nodes, take_out_idle_nodes
from onnx_repfuse.graph.read_again import read_again
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import Context
from onnx_repfuse.options import Options
from onnx_repfuse.planner.cover_scope import Limits, Round, cover_round, is_kept
from onnx_repfuse.planner.flush.flushing import Flushing, invisible_constants
from onnx_repfuse.planner.folds.apply_folds import (
    apply_folds,
    join_no_ops,
    reads_too_many,
    remove_no_ops,
)
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.limits.avoided import creates_avoided
from onnx_repfuse.planner.limits.every_size import NotMade, why_not_at_every_size
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.limits.refusals import refusals
from onnx_repfuse.planner.limits.shape_consumers import lost_shapes
from onnx_repfuse.planner.pricing.cost import cost_model
from onnx_repfuse.planner.pricing.lowering import Prices
from onnx_repfuse.planner.rewrites.activation_pairs import join_activations
from onnx_repfuse.planner.rewrites.activation_patterns import fold_activations
from onnx_repfuse.planner.rewrites.affine_chains import chain_refusals, merge_chains
from onnx_repfuse.planner.rewrites.affine_paths import move_affine
from onnx_repfuse.planner.rewrites.avoided_operators import avoided_refusals, rewrite_avoided
from onnx_repfuse.planner.rewrites.avoided_rules import LATE_RULES
from onnx_repfuse.planner.rewrites.casts_first import cast_first
from onnx_repfuse.planner.rewrites.constant_nodes import write_constants
from onnx_repfuse.planner.rewrites.dead_channels import ZeroChannels, drop_dead_channels
from onnx_repfuse.planner.rewrites.early_transposes import transpose_early
from onnx_repfuse.planner.rewrites.equal_nodes import merge_equal_nodes
from onnx_repfuse.planner.rewrites.joined_views import join_views
from onnx_repfuse.planner.rewrites.late_biases import move_biases
from onnx_repfuse.planner.rewrites.move_factors import factor_refusals, move_factors
from onnx_repfuse.planner.rewrites.norm_affine import fold_behind_norms, norm_refusals
from onnx_repfuse.planner.rewrites.padded_windows import apply_padded_windows
from onnx_repfuse.planner.rewrites.pass_maxima import apply_maxima, maximum_refusals
from onnx_repfuse.planner.rewrites.pass_transposes import apply_transposes
from onnx_repfuse.planner.rewrites.plain_moves import write_plain_moves
from onnx_repfuse.planner.rewrites.scalar_paths import Paths
from onnx_repfuse.planner.rewrites.shift_paths import ShiftPaths
from onnx_repfuse.planner.rewrites.slopes import is_slow_prelu
from onnx_repfuse.planner.rewrites.split_parts import fold_into_parts
from onnx_repfuse.planner.rewrites.stacked_sums import sum_stacked
from onnx_repfuse.planner.rewrites.subsampling import apply_subsamplings, subsampling_refusals
from onnx_repfuse.planner.rewrites.unexpanded import read_unexpanded
from onnx_repfuse.planner.rewrites.weight_factors import ROLES as WEIGHT_ROLES
from onnx_repfuse.planner.rewrites.weight_factors import fold_into_weights
from onnx_repfuse.planner.search.candidates import way_of
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.select import Selection
from onnx_repfuse.planner.weights.shared_weights import share_equal_weights
from onnx_repfuse.records.report import Kind, Refusal

__all__ = ["plan_scope"]

# Alarms, not limits: integer costs fall in every round, and what a reading of the file adds is little.
MAX_ROUNDS = 64
MAX_READINGS = 16
# Of one tensor. Costs do not fall where sizes are assumed that contradict each other, as of an axis that two operators
# read as channels: the same would be written in every round.
MAX_WRITINGS = 16


def plan_scope(
    scope: Scope,
    options: Options,
    banned: frozenset[str] = frozenset(),
    layouts: dict[str, ChannelLayout] | None = None,
    flushing: Flushing | None = None,
) -> ScopePlan:
    """Fold what can be folded in one scope.

    Args:
        scope: its nodes are replaced.
        options: kinds of folds, nodes to keep, and the cost model.
        banned: outputs that must stay computed as they are.
        layouts: `channel_layouts` of the scope, where the caller has them already.
        flushing: what lets small weights be zero, of the main graph.
    """
    stays = is_kept(options)
    idle = take_out_idle_nodes(scope, stays)
    # A kept node stays also where a fold leaves nobody who reads it.
    alive = needed_nodes(scope) - set(map(id, filter(stays, scope.nodes)))
    planning = _Planning(ScopePlan(scope), options, stays, banned, alive)
    planning.run(None if idle else layouts, flushing)
    put_back_idle_nodes(scope, idle, planning.plan.stand_in)
    return planning.plan


@dataclass(eq=False)
class _Planning:
    """A scope while it is planned.

    Attributes:
        stays: whether the user wants a node to stay.
        banned: outputs that must stay computed as they are.
        alive: ids of the nodes that were needed before; the others are not ours to remove.
        not_made: outputs of the plan's `refused`, and what tells why.
        written: how often each tensor was written.
        is_changed: something was written since the scope was read.
        zeros: which channels of the weights are zero.
        prices: see `Cover`.
    """

    plan: ScopePlan
    options: Options
    stays: Callable[[gs.Node], bool]
    banned: frozenset[str]
    alive: set[int]
    not_made: dict[str, NotMade] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    is_changed: bool = False
    zeros: ZeroChannels = field(default_factory=ZeroChannels)
    prices: Prices = field(default_factory=dict)
    _context: tuple[dict[str, gs.Node], Context] | None = None  # with the scope's index that it is of

    def run(self, layouts: dict[str, ChannelLayout] | None, flushing: Flushing | None) -> None:
        """Read the scope, and plan it, until that finds nothing more; see `plan_scope`."""
        scope = self.plan.scope
        for reading in range(MAX_READINGS):
            self.write_constants()
            layouts = self.merge_and_remove(layouts)
            if self.fold_activations():
                layouts = channel_layouts(scope)
            layouts = self.rewrite_windows(layouts)
            layouts = self.pass_maxima(layouts)
            layouts = self.move_constants(layouts)
            last = self.fold_in_rounds(layouts, once=reading == 0)
            if last is not None and not self.is_changed and flushing is not None:
                self.is_changed = flushing.flush_planned()
            if last is not None and not self.is_changed:
                self.drop_dead_channels(layouts)
            if last is not None and not self.is_changed:
                self.rewrite_late()
            if last is not None and not self.is_changed:
                self.finish(last, layouts)
                return
            # A second run would read the file that the nodes make now. So plan once more by what that says: without
            # what is remembered of nodes that are gone, and with the shapes that inference finds.
            read_again(scope)
            self.plan.refused, self.plan.shaped = {}, frozenset()
            self.is_changed, layouts = False, None
        self.plan.notes.append("planning stopped before it found nothing more to do; please report it")

    def write_constants(self) -> None:
        """Write what nodes compute from constants alone as initializers."""
        if self.options.allows(Kind.CONSTANT):
            for_speed = self.options.level == 2
            self._changed(written=write_constants(self.plan, self.stays, self.banned, for_speed=for_speed))

    def merge_and_remove(self, layouts: dict[str, ChannelLayout] | None) -> dict[str, ChannelLayout]:
        """Compute once what several nodes compute, and let the consumers of each no-op read what it reads.

        As long as that finds any: nodes are equal once no-ops are gone, and some are no-ops once others are equal.

        Returns:
            the layouts of all tensors.
        """
        plan, options = self.plan, self.options
        while True:
            if options.allows(Kind.EQUAL):
                self._changed(written=merge_equal_nodes(plan, self.stays, self.banned))
            layouts = channel_layouts(plan.scope) if layouts is None or self.is_changed else layouts
            if not options.allows(Kind.NO_OP) or not remove_no_ops(plan, self.is_free, layouts):
                return layouts
            self._changed(written=True)

    def fold_activations(self) -> bool:
        """Write decomposed activations as one operator each, and operators that the target cannot run as others.

        Arithmetic reads what was expanded for it as it was before. Whether there was any of it.
        """
        is_written = False
        if self.options.allows(Kind.ACTIVATION):
            avoid = self.options.avoid
            is_written = self._changed(written=fold_activations(self.plan, self.stays, self.banned, avoid))
            is_written |= self._changed(written=join_activations(self.plan, self.is_free, avoid))
        if self.options.allows(Kind.AFFINE):
            is_written |= self._changed(written=read_unexpanded(self.plan, self.is_free))
        if self.options.allows(Kind.BRANCHES):
            is_written |= self._changed(written=sum_stacked(self.plan, self.is_free))
        is_avoided = rewrite_avoided(self.plan, self.options.avoid, self.is_free, self.is_slow)
        return self._changed(written=is_avoided) or is_written

    def is_slow(self, node: gs.Node) -> bool:
        """Whether runtimes are slow with a node that others can do without."""
        return is_slow_prelu(self.plan.scope, node, self.options)

    def rewrite_late(self) -> None:
        """Write what the target cannot run, and what did not fold, as operators that fold less well."""
        avoid = self.options.avoid
        if avoid.intersection(("Mul", "Add")):
            self._changed(written=rewrite_avoided(self.plan, avoid, self.is_free, rules=LATE_RULES))

    def rewrite_windows(self, layouts: dict[str, ChannelLayout]) -> dict[str, ChannelLayout]:
        """Write Pads into windows where the algebra cannot, or else skip what all consumers skip; the layouts then."""
        plan, model, allows = self.plan, cost_model(self.options.cost), self.options.allows
        is_written = allows(Kind.INDEX) and write_plain_moves(plan, layouts, self.is_free)
        is_written |= allows(Kind.PAD) and apply_padded_windows(plan, layouts, self.is_free)
        if not is_written:  # else with the next reading
            is_written = allows(Kind.STRIDE) and apply_subsamplings(
                plan, self.context(layouts), model, self.is_free
            )
        self._changed(written=is_written)
        return channel_layouts(plan.scope, layouts) if is_written else layouts

    def drop_dead_channels(self, layouts: dict[str, ChannelLayout]) -> None:
        """Neither compute nor read channels that are zero, or that nobody reads."""
        if self.options.allows(Kind.DEAD):
            invisible = invisible_constants(self.plan.scope, self.options)
            written = drop_dead_channels(self.plan, layouts, self.is_free, self.zeros, invisible)
            self._changed(written=written)

    def move_constants(self, layouts: dict[str, ChannelLayout]) -> dict[str, ChannelLayout]:
        """Merge chains of arithmetic with constants, move scalar factors to where they fold; all layouts then."""
        is_merged = self.options.allows(Kind.AFFINE) and merge_chains(self.plan, self.paths(layouts))
        self._changed(written=is_merged)
        is_merged |= self.fold_into_weights(layouts)
        for ways in (Paths, ShiftPaths):
            is_written = move_factors(self.plan, self.paths(layouts, ways), self.options.allows_all)
            self._changed(written=is_written)
            is_merged |= is_written
        is_written = move_biases(self.plan, self.paths(layouts, ShiftPaths), self.options.allows_all)
        self._changed(written=is_written)
        is_merged |= is_written
        is_moved = not is_merged and move_affine(self.plan, self.paths(layouts), self.options.allows_all)
        self._changed(written=is_moved)
        return channel_layouts(self.plan.scope, layouts) if is_merged or is_moved else layouts

    def fold_into_weights(self, layouts: dict[str, ChannelLayout]) -> bool:
        """Put factors beside products of several matrices, or of rows, or behind norms, into their weights."""
        is_written, context = False, self.context(layouts)
        if self.options.allows_all(WEIGHT_ROLES):
            is_written = fold_into_weights(self.plan, context, self.is_free)
        if self.options.allows(Kind.AFFINE) and not is_written:  # else with the next reading
            is_written = fold_behind_norms(self.plan, context, self.is_free)
        self._changed(written=is_written)
        return is_written

    def paths(self, layouts: dict[str, ChannelLayout], ways: type[Paths] = Paths) -> Paths:
        """The ways of scalar factors, or of shifts, in the scope as it is."""
        return ways(self.context(layouts), self.is_free)

    def context(self, layouts: dict[str, ChannelLayout]) -> Context:
        """What lifting may ask for, and has answered, in the scope as it is."""
        scope = self.plan.scope
        known = self._context
        # an index is made anew whenever nodes have changed
        if known is None or known[0] is not scope.producer or known[1].channel_layouts is not layouts:
            known = scope.producer, Context(scope, layouts, protected_nodes(scope))
            self._context = known
        return known[1]

    def pass_maxima(self, layouts: dict[str, ChannelLayout]) -> dict[str, ChannelLayout]:
        """Let positive factors pass maxima and activations, and Transposes what is element-wise; the layouts then."""
        if not self.options.allows(Kind.COMMUTE):
            return layouts
        is_written = apply_maxima(self.plan, self.context(layouts), self.is_free)
        is_written = is_written or apply_transposes(self.plan, self.is_free)
        is_written = is_written or join_views(self.plan, self.is_free)
        is_written = is_written or cast_first(self.plan, self.is_free)
        is_written = is_written or transpose_early(self.plan, self.context(layouts), self.is_free)
        self._changed(written=is_written)
        return channel_layouts(self.plan.scope, layouts) if is_written else layouts

    def is_free(self, node: gs.Node) -> bool:
        """Whether a node may be replaced: it is not kept, and no fold of its outputs is banned."""
        return not self.stays(node) and self.banned.isdisjoint([tensor.name for tensor in node.outputs])

    def fold_in_rounds(self, layouts: dict[str, ChannelLayout], *, once: bool) -> Round | None:
        """Lift, cover and write until nothing gets cheaper.

        Args:
            layouts: of the scope.
            once: write one round at most.

        Returns:
            the round that found nothing; None if there was none.
        """
        scope, stale = self.plan.scope, set[str]()
        previous: Round | None = None
        for _ in range(MAX_ROUNDS):
            limits = Limits(self.banned, frozenset(self.plan.refused), self.plan.shaped)
            context = self.context(layouts)
            current = cover_round(context, self.options, limits, previous, stale, self.prices)
            not_made = self.refuse(current.cover, current.selections)
            if not_made:
                previous, stale = current, {*not_made, *current.cover.absorbed}
                continue
            if current.selections:
                apply_folds(self.plan, current.cover, current.selections)
                self.written.update(one.output for one in current.selections)
            elif not fold_into_parts(self.plan, current.cover, self.options.allows_all):
                return current
            self._changed(written=True)
            if once:
                break
            previous, layouts, stale = current, channel_layouts(scope, layouts), set()
        return None

    def refuse(self, cover: Cover, selections: Sequence[Selection]) -> set[str]:
        """Ban outputs of which too much would have to be proved, and refuse ways that must not be taken.

        These are more expensive, or fail, at some size, or write an operator to be avoided. Outputs that were written
        too often are banned, too. The last tensor whose shape tells a size stays.

        Returns:
            the outputs to be covered again.
        """
        too_wide = {one.output for one in selections if self.may_not_grow(one)}
        self.banned |= too_wide
        refused: set[str] = set()
        for one in selections:
            clause = self.why_refused(cover, one, is_banned=one.output in too_wide)
            if clause:
                self.plan.refused[one.output, way_of(one.candidate)] = clause
                refused.add(one.output)
        lost = {one.output: lost_shapes(cover, one) for one in selections}
        self.plan.shaped = self.plan.shaped.union(*lost.values())
        losing = {name for name, tensors in lost.items() if tensors}
        return too_wide.union(refused, losing, *lost.values())

    def may_not_grow(self, one: Selection) -> bool:
        """Whether a fold would get too large to prove, or was written so often that this would not end."""
        if self.written[one.output] >= MAX_WRITINGS:
            self.plan.endless.add(one.output)
        return one.output in self.plan.endless or reads_too_many(self.plan, one)

    def why_refused(self, cover: Cover, one: Selection, *, is_banned: bool) -> str:
        """Why a way to compute a tensor must not be taken: a clause, or ''; what the user is told of is noted."""
        not_made = None if is_banned else why_not_at_every_size(cover, one)
        if not_made is not None:
            self.not_made.setdefault(one.output, not_made)
            return not_made.clause
        return "it would write an operator to be avoided" if creates_avoided(one, self.options.avoid) else ""

    def finish(self, last: Round, layouts: dict[str, ChannelLayout]) -> None:
        """Put the folds in order, and say why the rest stayed.

        Args:
            last: the round that found nothing.
            layouts: of the scope.
        """
        scope, allows = self.plan.scope, self.options.allows
        join_no_ops(self.plan)
        share_equal_weights(scope)
        present = {id(node) for node in scope.nodes}
        told = [not_made.refusal(scope, present) for not_made in self.not_made.values()]
        self.plan.refusals += filter(None, told)
        self.plan.refusals += _new_refusals(self.plan, last)
        self.plan.refusals += avoided_refusals(scope, self.options.avoid, self.stays)
        if allows(Kind.STRIDE):
            self.plan.refusals += subsampling_refusals(self.context(layouts), self.is_free)
        if allows(Kind.COMMUTE):
            self.plan.refusals += maximum_refusals(self.context(layouts), self.is_free)
        if allows(Kind.PRODUCT):
            self.plan.refusals += factor_refusals(self.paths(layouts))
        if allows(Kind.AFFINE):
            paths = self.paths(layouts)
            self.plan.refusals += chain_refusals(paths)
            self.plan.refusals += norm_refusals(paths.context, self.is_free)

    def _changed(self, *, written: bool) -> bool:
        """After nodes may have been written, remove what nobody needs any more; whether they were."""
        if written:
            remove_dead_nodes(self.plan.scope, self.alive | self.plan.creator.keys())
            self.is_changed = True
        return written


def _new_refusals(plan: ScopePlan, last: Round) -> list[Refusal]:
    """The refusals of the last round, but those about nodes that have one."""
    reported = {name for refusal in plan.refusals for name in refusal.nodes}
    candidates = refusals(plan.scope, last.cover, last.declined)
    return [refusal for refusal in candidates if reported.isdisjoint(refusal.nodes[:1])]
