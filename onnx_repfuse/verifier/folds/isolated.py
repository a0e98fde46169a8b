"""Probes: a fold's nodes, before and after, on inputs made to show faults, against the float64 oracle.

With u the unit roundoff, m = sum |w| |x| and n the number of terms, three comparisons are made.

1. Oracle against oracle, after against before: weights are rounded once when they are folded, so the two
   differ by at most u * m(after), plus u * m(before) for each earlier round. No summation error is in the
   way, which is why one weight off by a part in a thousand shows among 4608.
2. The runtime against the oracle, before: the oracle reads the nodes as the runtime does.
3. The runtime against the oracle, after: so does the replacement. Rounding errors of a sum are a random walk,
   hence the tolerance (sqrt(n) + nodes) * u * m; the rigorous n * u * m is met by no input and hides faults.

docs/verification.md derives them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import FoldVerdict, Status
from onnx_repfuse.verifier.distance import difference
from onnx_repfuse.verifier.folds.error_bound import Side, Worst, ulps_tolerance
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.stimuli import RULES, Stimulus, stimuli
from onnx_repfuse.verifier.noise import nudge_feed, nudged_weights
from onnx_repfuse.verifier.oracle.tensor import Unsupported
from onnx_repfuse.verifier.session import DoesNotRun, Session, open_session

__all__ = ["FoldCase", "probe"]

_REFERENCE_PRODUCTS = 20_000_000  # onnx's evaluator is slow: it judges only feeds that cost less than this


def probe(case: FoldCase, seed: int = 0, runtime: Runtime = DEFAULT_RUNTIME) -> FoldVerdict:
    """Judge one fold on synthetic inputs.

    Args:
        case: the fold; float sources of any rank.
        seed: of the random values.
        runtime: how both sides are run.

    Returns:
        PASSED, or FAILED with the worst error found; a fold of which nothing could be compared has FAILED.
    """
    try:
        before = open_session(case.before, runtime)
    except DoesNotRun as error:
        return _failed(case, f"its nodes do not run alone: {error}")
    try:
        after = open_session(case.after, runtime)
    except DoesNotRun as error:
        return _failed(case, f"its replacement does not run: {error}", before.backend)
    judge = "onnxruntime" if before.backend == after.backend == "onnxruntime" else "reference"
    try:
        first, second = Side(case, case.before), Side(case, case.after)
    except Unsupported as reason:
        return _by_runtime_alone(case, before, after, judge, seed, str(reason), runtime)
    try:
        return _by_oracle(case, before, after, first, second, judge, seed)
    except Unsupported as reason:
        return _by_runtime_alone(case, before, after, judge, seed, str(reason), runtime)


def _by_oracle(
    case: FoldCase, before: Session, after: Session, first: Side, second: Side, judge: str, seed: int
) -> FoldVerdict:
    worst = Worst(case.output, judge)
    rules = _rules(case, first)
    ran = compared = False
    for stimulus in stimuli(case, rules, seed):
        try:
            want = first(stimulus.feed)
        except (ValueError, IndexError, ZeroDivisionError):
            continue  # this size does not fit the nodes before
        if not want.value.size:
            continue
        try:
            got = second(stimulus.feed)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            return _failed(case, f"its replacement does not take {_sizes(stimulus)}: {error}", judge)
        if got.value.shape != want.value.shape:
            return _failed(
                case,
                f"on {_sizes(stimulus)} its shape is {got.value.shape} instead of {want.value.shape}",
                judge,
            )
        compared = True
        folded = got.fold(want)
        worst.see(
            difference(want.value, got.value), folded, f"on {stimulus.kind} inputs of {_sizes(stimulus)}"
        )
        if (
            judge == "reference"
            and case.weights * want.value.size > _REFERENCE_PRODUCTS * want.value.shape[1]
        ):
            continue
        try:
            old = before.run(stimulus.feed)[case.output]
        except DoesNotRun:
            continue
        try:
            new = after.run(stimulus.feed)[case.output]
        except DoesNotRun as error:
            return _failed(case, f"its replacement does not run on {_sizes(stimulus)}: {error}", judge)
        if new.shape != want.value.shape or old.shape != want.value.shape:
            return _failed(
                case, f"on {_sizes(stimulus)} the runtime's shapes are {old.shape} and {new.shape}", judge
            )
        ran = True
        usable = np.isfinite(old) & (np.abs(want.value) < case.largest / 4)
        where = f"in {judge}, on {stimulus.kind} inputs of {_sizes(stimulus)}"
        allowed = want.run()
        gap = np.where(usable, difference(want.value, old), 0.0)
        if bool((gap > allowed).any()):
            raise Unsupported("these nodes as the runtime does")
        allowed = allowed + got.run() + folded
        worst.see(np.where(usable, difference(want.value, new), 0.0), allowed, where)
    if not compared:
        return _failed(case, "no size fits its nodes, so nothing could be compared", judge)
    if not ran:
        worst.note("no probe could be run; it was judged in float64 alone")
    return worst.verdict("probe")


def _by_runtime_alone(
    case: FoldCase, before: Session, after: Session, judge: str, seed: int, reason: str, runtime: Runtime
) -> FoldVerdict:
    """Before against after in the runtime, calibrated as whole models are."""
    worst = Worst(case.output, judge)
    worst.note(f"the oracle does not know {reason}; the runtime alone was the judge")
    moved = nudged_weights(case.before)
    noisy = open_session(moved, runtime) if moved is not None else before
    compared = False
    for rules in _guesses(case):
        for stimulus in stimuli(case, rules, seed):
            try:
                old = before.run(stimulus.feed)[case.output]
                shaken = [
                    before.run(nudge_feed(stimulus.feed))[case.output],
                    noisy.run(stimulus.feed)[case.output],
                ]
            except DoesNotRun:
                continue
            try:
                new = after.run(stimulus.feed)[case.output]
            except DoesNotRun as error:
                return _failed(case, f"its replacement does not run on {_sizes(stimulus)}: {error}", judge)
            if new.shape != old.shape:
                return _failed(
                    case, f"on {_sizes(stimulus)} its shape is {new.shape} instead of {old.shape}", judge
                )
            compared = True
            worst.see(difference(old, new), ulps_tolerance(old, shaken), f"on inputs of {_sizes(stimulus)}")
        if compared:
            return worst.verdict("probe")
    return _failed(case, "no size fits its nodes, so nothing could be compared", judge)


def _guesses(case: FoldCase) -> Iterator[tuple[int, ...]]:
    others = len(case.sources) - 1
    for rule in range(len(RULES) if others > 0 else 1):
        yield (0, *(rule,) * others)


def _rules(case: FoldCase, side: Side) -> tuple[int, ...]:
    """How the sizes of further sources follow from the first: the first combination the nodes accept."""
    if len(case.sources) < 2 or not any(source.space for source in case.sources):
        return (0,) * len(case.sources)
    found = [0] * len(case.sources)
    base = (21, 24)  # not 1, which would broadcast, and of both parities

    def fits(rules: list[int]) -> bool:
        feed = {}
        for source, rule in zip(case.sources, rules, strict=True):
            shape = source.shape(1, tuple(RULES[rule](size) for size in base))
            feed[source.name] = np.zeros(shape, dtype=np.float64)
        try:
            side.oracle(feed)
        except (ValueError, IndexError, ZeroDivisionError):
            return False
        return True

    if fits(found):
        return tuple(found)
    for index in range(1, len(found)):  # one other source off, then all the same
        for rule in range(1, len(RULES)):
            trial = list(found)
            trial[index] = rule
            if fits(trial):
                return tuple(trial)
    for guess in _guesses(case):
        if fits(list(guess)):
            return guess
    return tuple(found)


def _sizes(stimulus: Stimulus) -> str:
    return ", ".join("x".join(map(str, array.shape)) for array in stimulus.feed.values())


def _failed(case: FoldCase, message: str, judge: str = "onnxruntime") -> FoldVerdict:
    return FoldVerdict(
        case.output, Status.FAILED, "probe", float("inf"), 0.0, judge, f"'{case.output}': {message}"
    )
