"""Each fold alone, before and after: on synthetic inputs (its probe), and on the original's own intermediates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.dims import known_dims
from onnx_repfuse.graph.extents import Extent
from onnx_repfuse.graph.scope import Scope
from onnx_repfuse.pipeline.bans import FailedFold
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.planner.folds.fold_models import Weights, fold_models, sources
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import FoldVerdict, StageVerdict, Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.folds.fold_case import FoldCase, Window
    from onnx_repfuse.verifier.folds.structures import Structures
    from onnx_repfuse.verifier.intermediates import Intermediates
    from onnx_repfuse.verifier.outputs.baseline import Baseline

__all__ = ["prove_folds"]

LARGE_WEIGHT = 1 << 20  # elements; the memory that judging such a fold took is worth giving back at once
# No tensor has this name: those of a subgraph or a function cannot be made outputs of the model.
NOT_READABLE = [""]


def prove_folds(
    plan: ModelPlan, baseline: Baseline | str, runtime: Runtime, progress: Callable[[int, int], None]
) -> tuple[list[FailedFold], list[FoldVerdict]]:
    """Judge every fold of a plan: the folds that failed, and the verdict on each fold, in the order of the plan.

    The original runs on its first feed moved by an ulp, which also measures its noise, with the tensors at the ends of
    the folds as outputs. Weights are computed for one fold at a time.

    Args:
        plan: the folds.
        baseline: the original, measured; its noise is completed. Or why it does not run: then the folds have probes
            only.
        runtime: how folds are run.
        progress: called with (done, total).
    """
    from onnx_repfuse.verifier.folds.structures import Structures
    from onnx_repfuse.verifier.outputs.baseline import read_nudged_intermediates

    structures = Structures(runtime)
    # Later folds may have left neither a node of a fold nor an alias for its output: then there is nothing to judge.
    verdicts = [FoldVerdict(fold.name, planned.scope.label) for planned, fold in plan.folds]
    places = [place for place, (planned, fold) in enumerate(plan.folds) if planned.can_be_judged(fold)]
    planned_folds = plan.folds
    folds = [planned_folds[place] for place in places]
    wanted = [
        NOT_READABLE if planned.scope.key else [*sources(planned, fold), *fold.outputs]
        for planned, fold in folds
    ]
    failed: list[FailedFold] = []
    batches: Iterable[tuple[list[int], Intermediates]]
    if isinstance(baseline, str):
        batches = [(list(range(len(folds))), baseline)]
    else:
        batches = read_nudged_intermediates(baseline, wanted, plan.document.unconverted.model)
    for done, (index, seen) in enumerate((index, seen) for batch, seen in batches for index in batch):
        planned, fold = folds[index]
        progress(done, len(folds))
        try:
            stages = _judge(plan, planned, fold, seen, structures)
        except Inexact as error:
            failed.append(FailedFold(planned.scope.key, fold, error.reason, error.detail))
            continue
        finally:
            _give_back(plan, planned.scope, fold)
        verdict = replace(verdicts[places[index]], stages=stages)
        verdicts[places[index]] = verdict
        if verdict.status is Status.FAILED:
            failed.append(FailedFold(planned.scope.key, fold, Reason.VERIFICATION, verdict.message))
    return failed, verdicts


def _judge(
    plan: ModelPlan, planned: ScopePlan, fold: PlannedFold, seen: Intermediates, structures: Structures
) -> tuple[StageVerdict, ...]:
    """The verdict of the probe and, if it passed, of the comparison in place.

    Raises:
        Inexact: a weight does not fit its type, or the fold loses precision in half precision.
    """
    from onnx_repfuse.verifier.folds.half_precision import loses_precision
    from onnx_repfuse.verifier.folds.in_place import check_in_place
    from onnx_repfuse.verifier.folds.isolated import probe

    case = _case(plan, planned, fold, sized=False)
    is_free = not case.names_its_sizes
    if not is_free:
        case = _case(plan, planned, fold, sized=True)
    _give_back(plan, planned.scope, fold)  # what folding its weights took
    verdict = probe(case, structures=structures)
    if is_free and verdict.status is Status.FAILED:
        # It may be exact at the sizes the file proves alone.
        case = _case(plan, planned, fold, sized=True)
        verdict = probe(case, structures=structures)
    # of constants alone, there is nothing else to try
    if verdict.status is Status.FAILED or not case.sources:
        return (verdict,)
    _give_back(plan, planned.scope, fold)  # what the sessions and the oracles held
    in_place = check_in_place(case, seen, structures)
    why = "" if in_place.status is Status.FAILED else loses_precision(case, seen)
    if why:
        raise Inexact(Reason.PRECISION, why)
    return verdict, in_place


def _case(plan: ModelPlan, planned: ScopePlan, fold: PlannedFold, *, sized: bool) -> FoldCase:
    """A fold for the verifier: at any size, or at the sizes that the file proves."""
    from onnx_repfuse.verifier.folds.fold_case import FoldCase

    layouts = plan.channel_layouts[planned.scope.key]
    weights: Weights = {}
    models = fold_models(planned, fold, layouts, plan.document.model.ir_version, sized=sized, weights=weights)
    shapes = {value.name: planned.scope.shape(value.name) for value in models[0].graph.input}
    proved = {name: shape for name, shape in shapes.items() if shape is not None}
    flushed = _flushed_below(plan, planned.scope, models)
    return FoldCase(
        *models,
        flushed=flushed,
        proved=proved,
        behind=_behind(planned.scope, shapes),
        weights_apart=weights,
    )


def _behind(scope: Scope, names: Iterable[str]) -> dict[str, tuple[Window | None, ...]]:
    """What is known of sizes: the windows between the axes of tensors and those of others."""
    from onnx_repfuse.verifier.folds.fold_case import Window

    known = known_dims(scope)
    return {
        name: tuple(Window(*dim) if isinstance(dim, Extent) else None for dim in known[name])
        for name in names
        if name in known
    }


def _flushed_below(plan: ModelPlan, scope: Scope, models: Iterable[onnx.ModelProto]) -> float:
    """The largest weight of a fold that became zero because it was too small to show."""
    if plan.flushing is None or scope.key:
        return 0.0
    return plan.flushing.limit_of({tensor.name for model in models for tensor in model.graph.initializer})


def _give_back(plan: ModelPlan, scope: Scope, fold: PlannedFold) -> None:
    """Give back the pages of the weights just read, and the heap if they were large."""
    from onnx_repfuse.verifier.session import release_heap

    plan.document.release()
    names = [tensor.name for node in fold.created for tensor in node.inputs]
    tables = (scope.constants, scope.created)
    if any(name in table and table[name].size > LARGE_WEIGHT for name in names for table in tables):
        release_heap()
