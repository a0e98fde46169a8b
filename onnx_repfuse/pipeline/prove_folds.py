"""Each fold alone, before and after: on synthetic inputs (its probe), and on the original's own intermediates."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import onnx

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.dims import known_dims
from onnx_repfuse.graph.extents import Extent
from onnx_repfuse.graph.scope import Scope, static
from onnx_repfuse.pipeline.bans import FailedFold
from onnx_repfuse.pipeline.beside import Beside, Started
from onnx_repfuse.pipeline.plan_model import ModelPlan
from onnx_repfuse.pipeline.written_weights import WrittenWeights
from onnx_repfuse.planner.folds.fold_models import fold_models, sources
from onnx_repfuse.planner.folds.planned import PlannedFold, ScopePlan
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import FoldVerdict, StageVerdict, Status

if TYPE_CHECKING:
    from onnx_repfuse.verifier.folds.fold_case import FoldCase, Window
    from onnx_repfuse.verifier.folds.structures import Structures
    from onnx_repfuse.verifier.intermediates import Intermediates
    from onnx_repfuse.verifier.outputs.baseline import Baseline

__all__ = ["ends_of_folds", "prove_folds", "take_little_memory"]

# Of the original's inner tensors, as float32 at the assumed sizes, that are read while its outputs are measured.
FEW_BYTES = 128 << 20
LARGE_WEIGHT = 1 << 20  # elements; the memory that judging such a fold took is worth giving back at once
WORTH_GIVING_BACK = 32 << 20  # bytes of tensors of the original; what is freed of them, the C library keeps
MOST_HELD = 32 << 20  # bytes of weights of folds that wait for their comparison in place
# Elements of all tensors of a fold, which is then not evaluated beside a run of the whole model: both need much memory.
MANY_ELEMENTS = 1 << 25
# No tensor has this name: those of a subgraph or a function cannot be made outputs of the model.
NOT_READABLE = [""]
T = TypeVar("T")
Stages = tuple[StageVerdict, ...]
Judged = dict[int, "Stages | Inexact"]  # index of a fold -> its verdicts, or why it cannot stay


def prove_folds(
    plan: ModelPlan,
    ends: Sequence[Sequence[str]],
    written: WrittenWeights,
    original: Started[Baseline | str],
    runtime: Runtime,
    progress: Callable[[int, int], None],
    beside: Beside,
) -> tuple[list[FailedFold], list[FoldVerdict]]:
    """Judge every fold of a plan: the folds that failed, and the verdict on each fold, in the order of the plan.

    The original runs on its first feed moved by an ulp, which also measures its noise, with the tensors at the ends of
    the folds as outputs. Weights are computed for one fold at a time. Folds are probed while the original still runs.

    Args:
        plan: the folds.
        ends: those of `ends_of_folds`.
        written: the weights that were written already.
        original: gives the original, measured; its noise is completed. Or why it does not run: then the folds have
            probes only.
        runtime: how folds are run.
        progress: called with (done, total).
        beside: reads the tensors of the original, and runs the comparisons in place.
    """
    from onnx_repfuse.verifier.folds.structures import Structures
    from onnx_repfuse.verifier.outputs.baseline import read_nudged_intermediates

    # Later folds may have left neither a node of a fold nor an alias for its output: then there is nothing to judge.
    verdicts = [FoldVerdict(fold.name, planned.scope.label) for planned, fold in plan.folds]
    places = [place for place, (planned, fold) in enumerate(plan.folds) if planned.can_be_judged(fold)]
    planned_folds = plan.folds
    folds = [planned_folds[place] for place in places]
    judge = _Judge(plan, folds, written, Structures(runtime), beside, progress)
    baseline = judge.probe_until(original)
    batches: Iterator[tuple[list[int], Intermediates]]
    if isinstance(baseline, str):
        batches = iter([(list(range(len(folds))), baseline)])
    else:
        batches = read_nudged_intermediates(
            baseline, ends, plan.document.unconverted.model, _proved_elements(plan, ends)
        )
    judged: Judged = {}
    while (read := judge.probe_until(beside.start(partial(next, batches, None)))) is not None:
        batch, seen = read
        del read
        judged.update(_judge_batch(judge, batch, seen, ends))
    failed: list[FailedFold] = []
    for index, stages in sorted(judged.items()):
        planned, fold = folds[index]
        if isinstance(stages, Inexact):
            failed.append(FailedFold(planned.scope.key, fold, stages.reason, stages.detail))
            continue
        verdict = replace(verdicts[places[index]], stages=stages)
        verdicts[places[index]] = verdict
        if verdict.status is Status.FAILED:
            failed.append(FailedFold(planned.scope.key, fold, Reason.VERIFICATION, verdict.message))
    return failed, verdicts


def _judge_batch(
    judge: _Judge, batch: Sequence[int], seen: Intermediates, ends: Sequence[Sequence[str]]
) -> Judged:
    """Judge folds of which the original's tensors were read; each tensor is held until no fold needs it any more."""
    from onnx_repfuse.verifier.session import release_heap

    judged: Judged = {}
    unused, given_up = Counter(name for index in batch for name in ends[index]), 0
    for index in batch:
        # What takes much memory comes when the others hold none.
        first = (judge.finish,) if index in judge.postponed else ()
        for step in (*first, partial(judge.begin, index, seen)):
            done = step()
            given_up += _forget(seen, unused, [name for other in done for name in ends[other]])
            judged.update(done)
            if given_up >= WORTH_GIVING_BACK:
                release_heap()
                given_up = 0
    judged.update(judge.finish())  # before the next tensors are read
    return judged


def _forget(seen: Intermediates, unused: Counter[str], names: Iterable[str]) -> int:
    """Let go of tensors that no fold of the batch needs any more: all together take much memory. How many bytes."""
    if isinstance(seen, str):
        return 0
    unused.subtract(names)
    gone = [seen.pop(name, None) for name in dict.fromkeys(names) if not unused[name]]
    return sum(getattr(value, "nbytes", 0) for value in gone)


def ends_of_folds(plan: ModelPlan) -> list[list[str]]:
    """What each fold that can be judged reads and computes: the tensors it is compared with in place."""
    return [
        NOT_READABLE if planned.scope.key else [*_read(planned, fold), *fold.outputs]
        for planned, fold in plan.folds
        if planned.can_be_judged(fold)
    ]


def _read(planned: ScopePlan, fold: PlannedFold) -> Iterator[str]:
    """The sources of a fold, or their sizes where nothing else is read."""
    from onnx_repfuse.verifier.intermediates import shape_name

    for name, has_readers in sources(planned, fold).items():
        yield name if has_readers else shape_name(name)


def _proved_elements(plan: ModelPlan, ends: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of elements of the tensors of which the file proves it."""
    main = next((planned.scope for planned in plan.scopes if not planned.scope.key), None)
    shapes = {name: main.shape(name) for names in ends for name in names if name} if main else {}
    return {
        name: math.prod(dim or 0 for dim in shape)
        for name, shape in shapes.items()
        if shape is not None and None not in shape
    }


def take_little_memory(plan: ModelPlan, ends: Sequence[Sequence[str]], *, has_given_sizes: bool) -> bool:
    """Whether the tensors at the ends of all folds can be held at once, at the assumed sizes.

    Args:
        plan: the folds.
        ends: those of `ends_of_folds`.
        has_given_sizes: the user gives inputs or their sizes, which may be far larger where the file leaves them open.
    """
    main = next((planned.scope for planned in plan.scopes if not planned.scope.key), None)
    if main is None:
        return True
    if has_given_sizes and any(static(main.shape(value.name)) is None for value in main.proto.input):
        return False
    from onnx_repfuse.verifier.intermediates import is_shape

    sizes = {name: main.elements(name) for names in ends for name in names if name and not is_shape(name)}
    largest = max((size for size in sizes.values() if size is not None), default=0)
    return 4 * sum(largest if size is None else size for size in sizes.values()) <= FEW_BYTES


@dataclass
class _Judge:
    """Probes one fold after the other, and compares those that passed in place, beside the next probes."""

    plan: ModelPlan
    folds: Sequence[tuple[ScopePlan, PlannedFold]]
    written: WrittenWeights
    structures: Structures
    beside: Beside
    progress: Callable[[int, int], None]
    # probed, and not begun to be compared: the fold and its verdict, or why it cannot stay
    _ahead: dict[int, tuple[FoldCase, StageVerdict] | Inexact] = field(default_factory=dict)
    postponed: set[int] = field(default_factory=set)  # as they take much memory
    _next: int = 0  # the first that was not looked at
    _probed: int = 0  # how many were probed
    _waiting: deque[tuple[int, int, Started[Stages]]] = field(default_factory=deque)
    _held: int = 0  # bytes of weights of those

    def probe_until(self, job: Started[T]) -> T:
        """The result of a job. Until it is there, folds are probed, but for those that take much memory."""
        try:
            while not job.is_over() and self._next < len(self.folds) and self._held <= MOST_HELD:
                self._probe_at(self._next, is_ahead=True)
        except Exception:
            job()  # what it raises comes first: that the model does not run
            raise
        return job()

    def begin(self, index: int, seen: Intermediates) -> Judged:
        """Probe a fold, and begin to compare it in place; the folds that are judged meanwhile, as a rule others."""
        if index not in self._ahead:
            self._probe_at(index)
        probed = self._ahead.pop(index)
        if isinstance(probed, Inexact):
            return {index: probed}
        case, verdict = probed
        # of constants alone, there is nothing else to try
        if verdict.status is Status.FAILED or not case.sources:
            self._held -= case.bytes_apart
            return {index: (verdict,)}
        is_large = self._is_large(*self.folds[index])
        job = partial(_in_place, case, seen, self.structures, verdict, is_large)
        self._waiting.append((index, case.bytes_apart, self.beside.start(job)))
        return self._done(MOST_HELD if self.beside.is_at_once else 0)

    def finish(self) -> Judged:
        """The folds that are left."""
        return self._done(-1)

    def _done(self, most: int) -> Judged:
        """The folds that are judged, in order; waits while the others hold more than so many bytes of weights."""
        judged: Judged = {}
        while self._waiting and (self._held > most or self._waiting[0][2].is_over()):
            index, held, wait = self._waiting.popleft()
            self._held -= held
            try:
                judged[index] = wait()
            except Inexact as error:
                judged[index] = error
        return judged

    def _probe_at(self, index: int, *, is_ahead: bool = False) -> None:
        """Probe a fold; not yet if it is `is_ahead` of its turn and takes much memory."""
        planned, fold = self.folds[index]
        self.progress(self._probed, len(self.folds))
        self._next = max(self._next, index + 1)
        try:
            probed = self._probe(planned, fold, is_ahead=is_ahead)
            if probed is None:
                self.postponed.add(index)
                return
            self._ahead[index] = probed
            self._held += probed[0].bytes_apart
        except Inexact as error:
            self._ahead[index] = error
        finally:
            self._give_back(planned, fold)  # what the sessions and the oracles held
        self._probed += 1

    def _probe(
        self, planned: ScopePlan, fold: PlannedFold, *, is_ahead: bool
    ) -> tuple[FoldCase, StageVerdict] | None:
        """The fold, and the verdict on it alone; None if it has to wait for its turn.

        Raises Inexact where a weight does not fit its type.
        """
        from onnx_repfuse.verifier.folds.isolated import probe

        case = self._case(planned, fold, sized=False)
        self._give_back(planned, fold)  # what folding its weights took
        if not case.names_its_sizes:
            verdict = probe(case, structures=self.structures)
            if verdict.status is not Status.FAILED:
                return case, verdict
        # It may be exact at the sizes the file proves alone.
        case = self._case(planned, fold, sized=True)
        if is_ahead and _elements(case) > MANY_ELEMENTS:
            return None
        return case, probe(case, structures=self.structures)

    def _give_back(self, planned: ScopePlan, fold: PlannedFold) -> None:
        """Give back the pages of the weights just read, and the heap if they were large."""
        from onnx_repfuse.verifier.session import release_heap

        self.plan.document.release()
        if self._is_large(planned, fold):
            release_heap()

    def _is_large(self, planned: ScopePlan, fold: PlannedFold) -> bool:
        scope = planned.scope
        names = [tensor.name for node in fold.created for tensor in node.inputs]
        tables = (scope.constants, scope.created)
        return any(name in table and table[name].size > LARGE_WEIGHT for name in names for table in tables)

    def _case(self, planned: ScopePlan, fold: PlannedFold, *, sized: bool) -> FoldCase:
        """A fold for the verifier: at any size, or at the sizes that the file proves."""
        from onnx_repfuse.verifier.folds.fold_case import FoldCase

        plan, scope = self.plan, planned.scope
        layouts = plan.channel_layouts[scope.key]
        weights = self.written.of(scope.key, fold)
        models = fold_models(
            planned, fold, layouts, plan.document.model.ir_version, sized=sized, weights=weights
        )
        shapes = {value.name: scope.shape(value.name) for value in models[0].graph.input}
        return FoldCase(
            *models,
            flushed=_flushed_below(plan, scope, models),
            proved={name: shape for name, shape in shapes.items() if shape is not None},
            behind=_behind(scope, shapes),
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


def _elements(case: FoldCase) -> int:
    """Of all tensors of a fold of fixed sizes."""
    from onnx_repfuse.verifier.folds.whole_axes import known_shapes

    return sum(map(math.prod, known_shapes(case.before).values()))


def _flushed_below(plan: ModelPlan, scope: Scope, models: Iterable[onnx.ModelProto]) -> float:
    """The largest weight of a fold that became zero because it was too small to show."""
    if plan.flushing is None or scope.key:
        return 0.0
    return plan.flushing.limit_of({tensor.name for model in models for tensor in model.graph.initializer})


def _in_place(
    case: FoldCase, seen: Intermediates, structures: Structures, probed: StageVerdict, is_large: bool
) -> Stages:
    """The verdict of the probe, and that of the comparison in place. Raises Inexact where precision is lost."""
    from onnx_repfuse.verifier.folds.half_precision import loses_precision
    from onnx_repfuse.verifier.folds.in_place import check_in_place
    from onnx_repfuse.verifier.session import release_heap

    try:
        in_place = check_in_place(case, seen, structures)
        why = "" if in_place.status is Status.FAILED else loses_precision(case, seen)
    finally:
        if is_large:
            release_heap()
    if why:
        raise Inexact(Reason.PRECISION, why)
    return probed, in_place
