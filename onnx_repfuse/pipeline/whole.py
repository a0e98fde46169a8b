"""The whole model, original against result, and which fold is to blame when it fails though each passed alone."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_repfuse.errors import Inexact
from onnx_repfuse.graph.document import Document
from onnx_repfuse.graph.save import save
from onnx_repfuse.options import Options
from onnx_repfuse.pipeline.planned import FoldKey, Plan, make_plan
from onnx_repfuse.pipeline.undoing import Failure
from onnx_repfuse.reasons import Reason
from onnx_repfuse.verify.verdict import Status, Verification

if TYPE_CHECKING:
    from onnx_repfuse.verify.baseline import Baseline

__all__ = ["blame", "compare", "measure", "reason"]

CULPRITS = 8  # more than these, and it is not a matter of single folds
REPLANS = 8


def measure(document: Document, options: Options, folder: Path) -> Baseline:
    """The original's outputs and noise; a model from memory is written to `folder` for it.

    Raises:
        InputError: it does not run.
    """
    from onnx_repfuse.feeding import feed_spec
    from onnx_repfuse.verify.outputs import measure_original

    constant = {i.name for i in document.model.graph.initializer}
    inputs = [i.name for i in document.model.graph.input if i.name not in constant]
    feeds = feed_spec(options.input_shapes, options.input_data, inputs)
    original = document.path
    if original is None:
        original = folder / "original.onnx"
        save(document, {}, original)
    document.release()
    return measure_original(original, feeds=feeds, tapped=True, skeleton=document.model)


def compare(baseline: Baseline, result: Path, options: Options) -> Verification:
    """A result on the feeds of the original."""
    from onnx_repfuse.verify.outputs import against

    return against(baseline, result, rtol=options.rtol, atol=options.atol)


def reason(verification: Verification) -> str:
    """What failed, in one clause."""
    bad = next((v for v in verification.outputs if v.status is Status.FAILED), None)
    if bad is not None:
        return bad.message
    return "; ".join(verification.notes) or "nothing could be compared"


def blame(
    plan: Plan, baseline: Baseline, options: Options, banned: Set[FoldKey], folder: Path, why: str
) -> list[Failure]:
    """The folds without which the rest of a failing plan passes.

    Args:
        plan: the plan whose result failed, under the bans `banned`.
        baseline: the original, measured.
        folder: where trial results are written.
        why: how the result failed.

    Returns:
        none if single folds are not the cause: the original does not even agree with itself, or one fold
        after the other had to go.
    """
    from onnx_repfuse.verify.bisect import culprits

    document, trial = plan.document, folder / "trial.onnx"
    if compare(baseline, Path(baseline.original), options).status is Status.FAILED:  # type: ignore[arg-type]
        return []

    def passes(kept: Sequence[FoldKey]) -> bool:
        edits = _only(kept, plan, options, banned).edits()
        if not edits:
            return True
        try:
            save(document, edits, trial, external=options.external)
        except Inexact:
            return False
        document.release()
        return compare(baseline, trial, options).status is not Status.FAILED

    keys = plan.keys
    found = culprits(keys, passes, CULPRITS)
    if len(found) == len(keys) > 1:
        return []
    made = {key: fold for key, (_, fold) in zip(keys, plan.folds, strict=True)}
    return [
        Failure(
            key[0],
            made[key],
            Reason.VERIFICATION,
            f"it passed alone, but with it the whole model fails: {why}",
        )
        for key in found
    ]


def _only(kept: Sequence[FoldKey], plan: Plan, options: Options, banned: Set[FoldKey]) -> Plan:
    """A plan with no other folds than these: what takes the place of a banned fold is banned, too."""
    wanted = set(kept)
    bans = set(banned) | {key for key in plan.keys if key not in wanted}
    trial = plan
    for _ in range(REPLANS):
        trial = make_plan(plan.document, options, bans)
        more = {key for key in trial.keys if key not in wanted}
        if not more:
            break
        bans |= more
    return trial
