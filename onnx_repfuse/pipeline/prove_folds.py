"""Each fold alone, before and after: on made-up inputs, and on the original's own activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.pipeline.bans import Failure
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.planner.fold_models import fold_models, sources
from onnx_repfuse.planner.folds import PlannedFold, ScopePlan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import FoldVerdict, Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.folds.fold_case import FoldCase
    from onnx_repfuse.verifier.intermediates import Intermediates
    from onnx_repfuse.verifier.outputs.baseline import Baseline

__all__ = ["prove"]

LARGE_WEIGHT = 1 << 20  # elements of a weight
INSIDE = [""]  # no tensor has this name: the tensors of a subgraph or a function are not to be had


def prove(
    plan: ModelPlan, baseline: Baseline, tell: Callable[[int, int], None]
) -> tuple[list[Failure], list[FoldVerdict]]:
    """Judge every fold of a plan: the folds that failed, and all verdicts.

    The original runs on its first feed moved by an ulp, which also measures its noise, with the tensors at the ends
    of the folds as outputs. Weights are computed for one fold at a time.
    """
    from onnx_repfuse.verifier.outputs.baseline import read_nudged_intermediates
    from onnx_repfuse.verifier.session import release_heap

    folds = [(planned, fold) for planned, fold in plan.folds if planned.nodes_after(fold)]
    wanted = [
        INSIDE if planned.scope.key else [*sources(planned, fold), *fold.outputs] for planned, fold in folds
    ]
    failed: list[Failure] = []
    verdicts: list[FoldVerdict] = []
    done = 0
    for batch, seen in read_nudged_intermediates(baseline, wanted, plan.document.model):
        for index in batch:
            planned, fold = folds[index]
            key = planned.scope.key
            tell(done, len(folds))
            done += 1
            try:
                found = _judge(plan, planned, fold, seen, baseline.runtime)
            except Inexact as reason:
                failed.append(Failure(key, fold, reason.reason, reason.detail))
                continue
            finally:
                plan.document.release()  # the pages of the weights just read
                if _reads_large_weight(planned.scope, fold):
                    release_heap()
            verdicts += found
            if found[-1].status is Status.FAILED:
                failed.append(Failure(key, fold, Reason.VERIFICATION, found[-1].message))
    return failed, verdicts


def _reads_large_weight(scope: Scope, fold: PlannedFold) -> bool:
    """Whether judging a fold takes memory worth giving back at once."""
    names = [tensor.name for node in fold.created for tensor in node.inputs]
    tables = (scope.constants, scope.created)
    return any(name in table and table[name].size > LARGE_WEIGHT for name in names for table in tables)


def _judge(
    plan: ModelPlan, planned: ScopePlan, fold: PlannedFold, seen: Intermediates, runtime: Runtime
) -> list[FoldVerdict]:
    """The verdicts of the probes and, if they passed, of the tap. Raises Inexact where a weight overflows."""
    from onnx_repfuse.verifier.folds.in_place import check_in_place
    from onnx_repfuse.verifier.folds.isolated import probe
    from onnx_repfuse.verifier.session import release_heap

    is_large = _reads_large_weight(planned.scope, fold)
    case = _case(plan, planned, fold, sized=False)
    if is_large:  # what folding its weights took
        plan.document.release()
        release_heap()
    verdict = probe(case, runtime=runtime)
    if is_large:
        release_heap()  # what the sessions and the oracles held
    if verdict.status is Status.FAILED:
        case = _case(plan, planned, fold, sized=True)
        verdict = probe(case, runtime=runtime)
    if verdict.status is Status.FAILED:
        return [verdict]
    return [verdict, check_in_place(case, seen, runtime)]


def _case(plan: ModelPlan, planned: ScopePlan, fold: PlannedFold, *, sized: bool) -> FoldCase:
    """A fold for the verifier: at any size, or at the sizes the file proves, for which alone it may be exact."""
    from onnx_repfuse.verifier.folds.fold_case import FoldCase

    layouts = plan.channel_layouts[planned.scope.key]
    return FoldCase(*fold_models(planned, fold, layouts, plan.document.model.ir_version, sized=sized))
