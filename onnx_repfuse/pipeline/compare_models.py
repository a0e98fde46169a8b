"""The whole model, original against result; and which folds are to blame when it fails though each passed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from onnx_repfuse.errors import Inexact
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.modelfile.snapshot import snapshot
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.bans import FailedFold
from onnx_repfuse.pipeline.plan_model import FoldKey, ModelPlan, make_plan
from onnx_repfuse.pipeline.runtime import runtime_of
from onnx_repfuse.planner.flush.flushing import Flushing
from onnx_repfuse.records.reasons import Reason
from onnx_repfuse.records.verdict import Status, Verification

if TYPE_CHECKING:
    from onnx_repfuse.verifier.outputs.baseline import Baseline
    from onnx_repfuse.verifier.outputs.candidate import Ran

__all__ = ["bisect", "compare", "folds_to_blame", "measuring", "reason_of"]

# of trial results while folds to blame are searched; that finds two or three of many
MAX_RUNS_PER_HALVING = 3
MAX_REPLANS = 8
# Of random inputs. Folds are proved one by one: the whole shows that they are connected rightly.
SEEDS = (0, 1)
T = TypeVar("T")


def measuring(
    document: Document, options: Options, folder: Path, wanted: Sequence[Sequence[str]] = ()
) -> Callable[[], Baseline | str]:
    """What measures the original's outputs and noise; when it is called, the document is not read any more.

    Args:
        document: the original. What ONNX Runtime maps (external data), or has no file, is copied to `folder` first: if
            another program shortened a mapped file, the system would end the process.
        options: sizes and values of inputs.
        folder: one of our own that does not exist yet.
        wanted: inner tensors that folds will be compared with.

    Returns:
        A function. It gives, instead, why nothing here can run it, in a sentence: it has an operator that nothing
        implements. It raises InputError where it does not run for another reason.

    Raises:
        OutputError: it cannot be copied.
    """
    from onnx_repfuse.verifier.outputs.baseline import measure_original
    from onnx_repfuse.verifier.session import NoImplementation
    from onnx_repfuse.verifier.user_inputs import feed_spec

    spec = replace(feed_spec(document.model, options.input_shapes, options.input_data), seeds=SEEDS)
    original = document.path
    if original is None or document.has_external_data:
        original = snapshot(document, folder)
    document.release()  # ONNX Runtime needs the memory now
    runtime = runtime_of(options)

    def measure() -> Baseline | str:
        try:
            return measure_original(
                original, spec=spec, runtime=runtime, defer_noise=True, skeleton=document.model, wanted=wanted
            )
        except NoImplementation as error:
            return str(error)

    return measure


def compare(
    baseline: Baseline,
    result: Path,
    options: Options,
    flushing: Flushing | None = None,
    run: Callable[[], Ran] | None = None,
) -> Verification:
    """A result on the feeds of the original.

    Args:
        baseline: the original, measured.
        result: the file to judge.
        options: the user's tolerances.
        flushing: tells which of its weights became zero.
        run: gives what the result computes on these feeds, if that was begun before.
    """
    from onnx_repfuse.verifier.outputs.compare import compare_with_baseline

    flushed = 0.0 if flushing is None else flushing.bound
    return compare_with_baseline(
        baseline, result, rtol=options.rtol, atol=options.atol, flushed=flushed, run=run
    )


def reason_of(verification: Verification, status: Status) -> str:
    """Why a verification has FAILED, or was NOT_OBSERVED, in one clause."""
    for verdict in verification.verdicts:
        if verdict.status is status:
            return verdict.message
    return "; ".join(verification.notes) or "nothing could be compared"


def folds_to_blame(
    plan: ModelPlan,
    agrees: Callable[[Path], bool],
    baseline: Baseline,
    options: Options,
    banned: Set[FoldKey],
    folder: Path,
    why: str,
) -> list[FailedFold]:
    """The folds without which the rest of a failing plan passes.

    Args:
        plan: the plan whose result failed, under the bans `banned`.
        agrees: whether a file agrees with the original.
        baseline: the original, measured.
        options: the user's.
        banned: folds the plan was made without.
        folder: where trial results are written.
        why: how the result failed.

    Returns:
        None at all if single folds are not the cause: the original does not even agree with itself, or one fold after
        the other had to go.
    """
    document, trial = plan.document, folder / "trial.onnx"
    # A model that is not deterministic (RandomNormal, for one) fails against itself.
    if not agrees(Path(baseline.original)):  # type: ignore[arg-type]
        return []

    def passes(kept: Sequence[FoldKey]) -> bool:
        edits = _plan_with_only(kept, plan, options, banned).edits()
        if not edits:
            return True
        try:
            save(document, edits, trial, external=options.external)
        except Inexact:  # a fold of this plan alone overflows
            return False
        document.release()
        return agrees(trial)

    folds = {key: fold for key, (_, fold) in zip(plan.keys, plan.folds, strict=True)}
    runs = MAX_RUNS_PER_HALVING * (len(folds).bit_length() + 1)
    found, unsearched = bisect(plan.keys, passes, runs)
    if len(found) + len(unsearched) == len(folds) > 1:
        return []
    messages = dict.fromkeys(found, f"it passed alone, but with it the whole model fails: {why}")
    for key in unsearched:
        messages[key] = (
            f"it passed alone, but the whole model fails with it and {len(unsearched) - 1} others, among which "
            f"the fold to blame was not searched after {runs} runs: {why}"
        )
    return [FailedFold(key[0], folds[key], Reason.VERIFICATION, text) for key, text in messages.items()]


def _plan_with_only(
    kept: Sequence[FoldKey], plan: ModelPlan, options: Options, banned: Set[FoldKey]
) -> ModelPlan:
    """A plan with no other folds than these: what takes the place of a banned fold is banned, too."""
    wanted = set(kept)
    bans = set(banned).union(plan.keys) - wanted
    trial = plan
    # Without a fold, the planner may find another one for the same nodes, with another output.
    for _ in range(MAX_REPLANS):
        scanned = {} if plan.flushing is None else plan.flushing.scanned
        trial = make_plan(plan.document, options, bans, scanned)
        more = set(trial.keys) - wanted
        if not more:
            break
        bans |= more
    return trial


def bisect(
    items: Sequence[T], passes: Callable[[Sequence[T]], bool], max_calls: int = 1 << 30
) -> tuple[list[T], list[T]]:
    """The items to leave out so that the rest passes, in the order they were found.

    The shortest prefix (of what is left) that fails ends in one, and is found by halving. That takes
    log2(len(items)) + 1 calls of `passes` per item; a prefix that is known to pass is not searched again.

    Args:
        items: the changes, in the order they build on each other.
        passes: whether the result with only these changes, a subsequence of `items`, is right. It is assumed to pass
            without any, and where a longer prefix passes.
        max_calls: of `passes`.

    Returns:
        (the items that were found, those that were not searched any more when the calls were spent: one of them is to
        be left out, too, and without all of them the rest passes).

    >>> bisect(range(10), lambda kept: 3 not in kept and 7 not in kept)
    ([3, 7], [])
    """
    left = list(items)
    failing: list[T] = []
    low = calls = 0  # left[:low] passes
    while len(left) > low:
        high = len(left) + 1  # left[:high] fails; one more than there are as long as that is not known
        while high - low > 1:
            if calls == max_calls:
                return failing, left[low:]
            middle = (low + high) // 2 if high <= len(left) else len(left)
            calls += 1
            if passes(left[:middle]):
                low = middle
            else:
                high = middle
        if high <= len(left):
            failing.append(left.pop(high - 1))
    return failing, []
