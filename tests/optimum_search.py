"""The exhaustive search of `tests.optimum`: all that single steps make of a region, and the cheapest of it."""

from __future__ import annotations

import copy
import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from typing import Any
from unittest.mock import patch

import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnx_repfuse import Options, RepfuseError
from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.channel_axis import channel_layouts
from onnx_repfuse.graph.edit_points import present_proto, remove_dead_nodes
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.lift import Context, LinearOp
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.planner.cover_scope import cover_scope
from onnx_repfuse.planner.folds.apply_folds import apply_folds
from onnx_repfuse.planner.folds.planned import ScopePlan
from onnx_repfuse.planner.forms.view_sources import is_viewed_form, tensors_read
from onnx_repfuse.planner.limits.every_size import why_not_at_every_size
from onnx_repfuse.planner.limits.protected_patterns import protected_nodes
from onnx_repfuse.planner.limits.shape_consumers import lost_shapes
from onnx_repfuse.planner.plan_scope import plan_scope
from onnx_repfuse.planner.pricing.cost import ORT_CPU, Price, node_price
from onnx_repfuse.planner.pricing.sizes import Sizes
from onnx_repfuse.planner.rewrites.affine_chains import merge_chains
from onnx_repfuse.planner.rewrites.early_transposes import transpose_early
from onnx_repfuse.planner.rewrites.joined_views import join_views
from onnx_repfuse.planner.rewrites.move_factors import move_factors
from onnx_repfuse.planner.rewrites.padded_windows import apply_padded_windows
from onnx_repfuse.planner.rewrites.pass_maxima import apply_maxima
from onnx_repfuse.planner.rewrites.scalar_paths import Paths
from onnx_repfuse.planner.rewrites.split_parts import fold_into_parts
from onnx_repfuse.planner.rewrites.subsampling import apply_subsamplings
from onnx_repfuse.planner.search import cover as cover_module
from onnx_repfuse.planner.search import shared_consumers
from onnx_repfuse.planner.search.candidates import Candidate, Entry, Option
from onnx_repfuse.planner.search.cover import Cover
from onnx_repfuse.planner.search.lift_scope import lift_all
from onnx_repfuse.planner.search.select import Selection, select, selection

MAX_STATES = 60  # looked at in the search of one region; of more, the cheapest are
MAX_FORMS = 400  # of one tensor, and combinations of its operands' forms
UNCHECKED = Options(check=False)


@dataclass(frozen=True)
class Gap:
    """A result that the planner did not find.

    Attributes:
        region: the region as a model.
        planned, best: prices.
        steps: from the region to the cheaper result.
        result: its operators.
    """

    region: onnx.ModelProto
    planned: Price
    best: Price
    steps: tuple[str, ...]
    result: str


@dataclass
class Tally:
    """What was looked at."""

    regions: int = 0
    states: int = 0
    cut: int = 0
    gaps: list[tuple[str, Gap]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


# --- one state ---


@dataclass(eq=False)
class State:
    """A model on the way.

    Attributes:
        model: the model.
        steps: how it was reached.
        cover: what there is to choose in it; asked for only where the search goes on from it.
    """

    model: onnx.ModelProto
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.scope = read_scopes(Document.from_model(self.model))[0]
        self.price = price_of(self.scope)

    @cached_property
    def cover(self) -> _Exhaustive:
        return _Exhaustive.of(self.scope)

    def moves(self) -> Iterator[tuple[onnx.ModelProto, str]]:
        """All models that one step makes of it, and what the step is."""
        for selections, told in self._selections():
            yield from self._after(partial(self._apply, selections), told)
        for told, rewrite in self._rewrites():
            yield from self._after(rewrite, told)

    def _selections(self) -> Iterator[tuple[list[Selection], str]]:
        cover = self.cover
        position = {id(node): place for place, node in enumerate(self.scope.nodes)}
        for name, candidates in cover.found.items():
            chosen = cover.entries[name].choice
            for candidate in candidates:
                cover.entries[name].choice = candidate
                one = selection(cover, name, position)
                if why_not_at_every_size(cover, one) is None and not lost_shapes(cover, one):
                    yield [one], f"{name} by {len(candidate.form.terms)} terms of {_sources(candidate)}"
            cover.entries[name].choice = chosen
        yield from self._joint()

    def _joint(self) -> Iterator[tuple[list[Selection], str]]:
        """One shared tensor absorbed by all that read it, whatever that costs."""
        cover, before = self.cover, dict(self.cover.entries)
        for name in list(cover.lifts):
            if not shared_consumers.may_be_absorbed(cover, name):
                continue
            for candidate in cover.entries[name].candidates:
                cover.absorb(name, candidate)
                cover.solve(cover.lifts)
                chosen = select(cover)
                ends = [one for one in cover.lifts if not cover.regions.is_private(one) and one != name]
                if chosen and not shared_consumers.is_still_read(cover, name, ends):
                    yield chosen, f"{name} absorbed by all as {_sources(candidate)}"
                cover.absorb(name, None)
                cover.entries.update(before)

    def _apply(self, selections: Sequence[Selection], plan: ScopePlan) -> bool:
        apply_folds(plan, self.cover, selections)
        return True

    def _rewrites(self) -> Iterator[tuple[str, Callable[[ScopePlan], bool]]]:
        layouts = channel_layouts(self.scope)

        def is_free(node: gs.Node) -> bool:
            return True

        def context(plan: ScopePlan) -> Context:
            return Context(plan.scope, layouts, protected_nodes(plan.scope))

        def paths(plan: ScopePlan) -> Paths:
            return Paths(context(plan), is_free)

        yield "chains merged", lambda plan: merge_chains(plan, paths(plan))
        yield "factors moved", lambda plan: move_factors(plan, paths(plan), lambda kinds: True)
        yield "pads into windows", lambda plan: apply_padded_windows(plan, layouts, is_free)
        yield "strides moved", lambda plan: apply_subsamplings(plan, context(plan), ORT_CPU, is_free)
        yield "past maxima", lambda plan: apply_maxima(plan, context(plan), is_free)
        yield "views joined", lambda plan: join_views(plan, is_free)
        yield "transposes early", lambda plan: transpose_early(plan, context(plan), is_free)
        yield "into parts", lambda plan: fold_into_parts(plan, self.cover, lambda kinds: True)

    def _after(self, change: Callable[[ScopePlan], bool], told: str) -> Iterator[tuple[onnx.ModelProto, str]]:
        """The model after a change of the scope, which is undone."""
        with _undone(self.scope) as scope:
            if change(ScopePlan(scope)):
                remove_dead_nodes(scope, {id(node) for node in scope.nodes})
                with suppress(Inexact):  # its weights cannot be written: a run bans the fold
                    yield _model_of(scope, self.model), told


@contextmanager
def _undone(scope: Scope) -> Iterator[Scope]:
    """A scope in which something is tried."""
    fields = {
        key: copy.copy(value) for key, value in vars(scope).items() if isinstance(value, (dict, list, set))
    }
    tensors = [(node, list(node.inputs), list(node.outputs)) for node in scope.nodes]
    names = [(tensor, tensor.name) for node in scope.nodes for tensor in (*node.inputs, *node.outputs)]
    yield scope
    vars(scope).update(fields)
    for node, inputs, outputs in tensors:
        node.inputs[:], node.outputs[:] = inputs, outputs
    for tensor, name in names:
        tensor.name = name
    scope.index()


def initializers(scope: Scope, names: Iterable[str]) -> Iterator[onnx.TensorProto]:
    for name in names:
        const = scope.const(name)
        if const is not None:
            yield numpy_helper.from_array(const.read(), name)


def _model_of(scope: Scope, before: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(before)
    del model.graph.node[:], model.graph.initializer[:]
    scope.nodes = scope.order(scope.nodes)
    model.graph.node.extend(present_proto(scope, node) for node in scope.nodes)
    read = dict.fromkeys(tensor.name for node in scope.nodes for tensor in node.inputs if tensor.name)
    model.graph.initializer.extend(initializers(scope, read))
    return model


def _sources(candidate: Candidate) -> str:
    form = candidate.form
    views = " behind views" if any(map(is_viewed_form, form.sources)) or not form.reads_tensors else ""
    return ", ".join(dict.fromkeys(tensors_read(form))) + views


# --- all forms of a scope ---


class _Exhaustive(Cover):
    """A cover that prunes nothing, and keeps all it considered."""

    found: dict[str, list[Candidate]]

    @classmethod
    def of(cls, scope: Scope) -> _Exhaustive:
        pruned = cover_scope(scope, UNCHECKED)
        cover = cls(pruned.context, pruned.lifts, pruned.model, pruned.is_allowed)
        cover.found = {}
        with (
            patch.object(cover_module, "prune", _all_of),
            patch.object(cover_module, "few_enough", lambda options: True),
            patch.object(cover_module, "combinations", _all_combinations),
        ):
            cover.solve(cover.lifts)
        found, cover.found = cover.found, {}
        cover.solve(cover.lifts)  # the planner's own entries, for joint steps
        cover.found = found
        return cover

    def _consider(self, lifted: LinearOp, candidate: Candidate, entry: Entry) -> Price | None:
        known = self.found.setdefault(lifted.output, [])
        price = self.price(lifted, candidate)
        if price is not None and len(known) < MAX_FORMS and self._may_choose(lifted, candidate):
            known.append(candidate)
        return super()._consider(lifted, candidate, entry)


def _all_of(ranked: list[tuple[int, Candidate]]) -> list[Candidate]:
    """All candidates, those of equal cost and form once."""
    kept: dict[Any, Candidate] = {}
    for cost, candidate in ranked:
        terms = [
            (term.source, term.lo_in, term.lo_out, term.kernel.geometry) for term in candidate.form.terms
        ]
        kept.setdefault((cost, frozenset(terms), len(terms)), candidate)
    return list(kept.values())[:MAX_FORMS]


def _all_combinations(options: list[list[Option]]) -> Iterable[tuple[Option, ...]]:
    return [one for one, _ in zip(product(*options), range(MAX_FORMS), strict=False)]


def price_of(scope: Scope) -> Price:
    """Of all nodes of a scope, by the planner's own prices; of nodes that are not linear, by what they move."""
    context = Context(scope, channel_layouts(scope), protected_nodes(scope))
    found = lift_all(context, lambda node: False, None, set())
    lifts = {one.output: one.outcome for one in found if isinstance(one.outcome, LinearOp)}
    sizes, total = Sizes(context, lifts), Price()
    inner = {id(node) for one in lifts.values() for node in one.inner_nodes}
    for node in scope.nodes:
        read = [lifts[tensor.name] for tensor in node.outputs if tensor.name in lifts]
        for one in read:
            if id(node) not in inner:
                total = total.plus(node_price(one, ORT_CPU, sizes.elements, scope.is_used))
        if not read and any(scope.const(tensor.name) is None for tensor in node.outputs):
            names = [tensor.name for tensor in (*node.inputs, *node.outputs) if tensor.name]
            moved = sum(scope.elements(name) or 0 for name in names if scope.const(name) is None)
            total = total.plus(Price(ORT_CPU.elementwise(moved), 0, 1))
    return total


# --- the search ---


def structure(model: onnx.ModelProto) -> str:
    """What tells models apart: operators, attributes and wiring, and of constants shapes, and values where few."""
    names = {value.name: f"in{n}:{value.type}" for n, value in enumerate(model.graph.input)}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        values = array.tolist() if array.dtype.kind != "f" or array.size == 1 else ""
        names[tensor.name] = f"{array.dtype}{array.shape}{values}"
    for node in model.graph.node:
        told = [node.op_type, *(names.get(name, "") for name in node.input)]
        told += sorted(str(attribute) for attribute in node.attribute)
        digest = hashlib.sha256("|".join(told).encode()).hexdigest()
        names.update({name: f"{digest}.{n}" for n, name in enumerate(node.output)})
    every = sorted(names[name] for node in model.graph.node for name in node.output)
    outputs = [names[value.name] for value in model.graph.output]
    return hashlib.sha256("|".join([*every, *outputs]).encode()).hexdigest()


def examine(model: onnx.ModelProto, tally: Tally, label: str, seconds: float = float("inf")) -> Gap | None:
    """Plan a region, and search it for so many seconds at most; the gap, if there is one."""
    key = structure(model)
    if key in tally.seen:
        return None
    tally.seen.add(key)
    tally.regions += 1
    scope = read_scopes(Document.from_model(model))[0]
    plan_scope(scope, UNCHECKED)
    try:
        planned = State(_model_of(scope, model))
    except Inexact:  # a run bans the fold, and plans again
        return None
    first = State(model)
    known, pending = {key}, [(first.price.cost, 0, first)]
    best, looked_at = planned, 0
    end = time.perf_counter() + seconds
    while pending and looked_at < MAX_STATES and time.perf_counter() < end:
        _, _, state = heapq.heappop(pending)
        looked_at += 1
        for model_after, step in state.moves():
            reached = structure(model_after)
            if reached in known:
                continue
            known.add(reached)
            try:
                after = State(model_after, (*state.steps, step))
            except RepfuseError:  # as the planner would find when it reads it again
                continue
            heapq.heappush(pending, (after.price.cost, len(known), after))
            replaces = after.price.replaces_products(
                first.price
            )  # which the planner does not, whatever the price
            replaces = replaces or _trades_pools(first.model, after.model)
            if after.price.improves(best.price.cost, first.price) and not replaces:
                best = after
    tally.states += looked_at
    tally.cut += bool(pending)
    if best is planned:
        return None
    result = operators_of(best.model)
    gap = Gap(model, planned.price, best.price, best.steps, f"{operators_of(planned.model)} => {result}")
    tally.gaps.append((label, gap))
    return gap


def _trades_pools(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    """Whether nothing happens but that pools become depthwise Convs.

    ONNX Runtime takes 0.85 to 1.25 times as long for these (windows of 2x2 to 5x5, 4 to 256 channels, 5 to 56 rows).
    The price of a pool is one for all windows: it says nothing of a pool alone.
    """
    old, new = (Counter(node.op_type for node in model.graph.node) for model in (before, after))
    gone, made = old - new, new - old
    return set(gone) == {"AveragePool"} and set(made) == {"Conv"} and gone.total() == made.total()


def operators_of(model: onnx.ModelProto) -> str:
    counted = Counter(node.op_type for node in model.graph.node)
    return " ".join(f"{op}*{count}" if count > 1 else op for op, count in sorted(counted.items()))
