"""Each fold alone, before and after: on made-up inputs, and on the original's own activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.load import new_node
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.pipeline.bans import Failure
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.planner.fold_models import before_and_after, sources
from onnx_repfuse.planner.folds import PlannedFold, originals
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import FoldVerdict, Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.folds.isolated import FoldCase
    from onnx_repfuse.verifier.intermediates import Intermediates
    from onnx_repfuse.verifier.outputs.baseline import Baseline

__all__ = ["prove"]

LARGE = 1 << 20  # elements of a weight
INSIDE = [""]  # no tensor has this name: the tensors of a subgraph or a function are not to be had


def prove(
    plan: ModelPlan, baseline: Baseline, tell: Callable[[int, int], None]
) -> tuple[list[Failure], list[FoldVerdict]]:
    """Judge every fold of a plan: the folds that failed, and all verdicts.

    The original runs on its first feed moved by an ulp, which also measures its noise, with the tensors at the ends
    of the folds as outputs. Weights are computed for one fold at a time.
    """
    from onnx_repfuse.verifier.intermediates import read_intermediates
    from onnx_repfuse.verifier.noise import nudge_feed
    from onnx_repfuse.verifier.outputs.baseline import count_run, read_noise
    from onnx_repfuse.verifier.session import release_heap

    folds = _folds(plan)
    wanted = [[*fold.sources, fold.made.root] if not fold.scope.key else INSIDE for fold in folds]
    failed: list[Failure] = []
    verdicts: list[FoldVerdict] = []
    done = 0
    feed = baseline.groups[0].feeds[0]
    moved = nudge_feed(feed)
    also = [*baseline.ports[1], *baseline.hidden]
    reading = read_intermediates(
        baseline.original,
        wanted,
        moved,
        runtime=baseline.runtime,
        also=also,
        fallback_feed=feed,
        skeleton=plan.document.model,
        on_run=lambda: count_run(baseline),
    )
    for batch, seen in reading:
        if not isinstance(seen, str):
            read_noise(baseline, moved, seen)
        for index in batch:
            fold = folds[index]
            tell(done, len(folds))
            done += 1
            try:
                found = _judge(plan, fold, seen, baseline.runtime)
            except Inexact as reason:
                failed.append(Failure(fold.scope.key, fold.made, reason.reason, reason.detail))
                continue
            finally:
                plan.document.release()  # the pages of the weights just read
                if fold.is_large:
                    release_heap()
            verdicts += found
            if found[-1].status is Status.FAILED:
                failed.append(Failure(fold.scope.key, fold.made, Reason.VERIFICATION, found[-1].message))
    return failed, verdicts


@dataclass(frozen=True, eq=False)
class _Fold:
    """A fold with its two sides: nodes of the document, and nodes that came and are still there."""

    scope: Scope
    made: PlannedFold
    absorbed: list[onnx.NodeProto]
    created: list[gs.Node]

    @property
    def sources(self) -> list[str]:
        return sources(self.scope, self.absorbed, self.created, self.made.groups)

    @cached_property
    def is_large(self) -> bool:
        """Whether judging it takes memory worth giving back at once."""
        tables = (self.scope.constants, self.scope.created)
        names = [tensor.name for node in self.created for tensor in node.inputs]
        read = (table[name] for table in tables for name in names if name in table)
        return any(const.size > LARGE for const in read)


def _folds(plan: ModelPlan) -> list[_Fold]:
    """The folds of a plan; where nodes came to nothing, they are held against an Identity."""
    found: list[_Fold] = []
    for planned in plan.scopes:
        scope = planned.scope
        place = {id(node): position for position, node in enumerate(scope.nodes)}
        for made in planned.folds:
            absorbed = originals(planned, made)
            present = [node for node in made.created if id(node) in place]
            created = sorted(present, key=lambda node: place[id(node)])
            if not created and made.alias in sources(scope, absorbed, [], made.groups):
                created = [new_node("Identity", "", {}, [made.alias], [made.root])]
            if created:
                found.append(_Fold(scope, made, absorbed, created))
    return found


def _judge(plan: ModelPlan, fold: _Fold, seen: Intermediates, runtime: Runtime) -> list[FoldVerdict]:
    """The verdicts of the probes and, if they passed, of the tap. Raises Inexact where a weight overflows."""
    from onnx_repfuse.verifier.folds.in_place import judge
    from onnx_repfuse.verifier.folds.isolated import probe
    from onnx_repfuse.verifier.session import release_heap

    case = _case(plan, fold, sized=False)
    if fold.is_large:  # what folding its weights took
        plan.document.release()
        release_heap()
    verdict = probe(case, runtime=runtime)
    if fold.is_large:
        release_heap()  # what the sessions and the oracles held
    if verdict.status is Status.FAILED:
        case = _case(plan, fold, sized=True)
        verdict = probe(case, runtime=runtime)
    if verdict.status is Status.FAILED:
        return [verdict]
    return [verdict, judge(case, seen, runtime)]


def _case(plan: ModelPlan, fold: _Fold, *, sized: bool) -> FoldCase:
    """A fold for the verifier: at any size, or at the sizes the file proves, for which alone it may be exact."""
    from onnx_repfuse.verifier.folds.isolated import FoldCase

    root, ir_version = fold.made.root, plan.document.model.ir_version
    known = plan.channel_layouts[fold.scope.key]
    groups = fold.made.groups
    before, after = before_and_after(
        fold.scope, known, root, fold.absorbed, fold.created, ir_version, groups, sized=sized
    )
    return FoldCase(root, before, after)
