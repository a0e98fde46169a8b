"""Probes: each fold alone, before and after, on synthetic inputs made to show faults, against the float64 oracle.

Three comparisons are made, with the bounds of `error_bound`.

1. Oracle against oracle, after against before: only the folded weights are rounded. No summation error is in the way,
   which is why one weight off by a part in a thousand shows among 4608.
2. The runtime against the oracle, before: the oracle reads the nodes as the runtime does.
3. The runtime against the oracle, after: so does the replacement.

Of a later fold of a structure (`structures`) the second is left out: the first fold has shown how the oracle reads
these nodes, and the whole model runs them. Where the oracle does not know an operator, or the second comparison fails,
the runtime alone is the judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.records.verdict import StageVerdict, Status
from onnx_repfuse.verifier.distance import Array, difference, is_float_array
from onnx_repfuse.verifier.folds.blocks import Block, blocks
from onnx_repfuse.verifier.folds.comparison import Comparison
from onnx_repfuse.verifier.folds.error_bound import (
    SIZE_ERRORS,
    Evaluation,
    Side,
    folding_bound,
    measured_bound,
    runtime_bound,
)
from onnx_repfuse.verifier.folds.fold_case import FoldCase
from onnx_repfuse.verifier.folds.size_rules import (
    EQUAL,
    Rules,
    apply,
    candidate_rules,
    has_sizes_in_file,
    holds_in_file,
    rules_of_file,
    shared_rules,
)
from onnx_repfuse.verifier.folds.special_values import first_difference, hands_on, larger, special_feed
from onnx_repfuse.verifier.folds.stimuli import Stimulus, stimuli
from onnx_repfuse.verifier.folds.structures import FoldSession, Structures
from onnx_repfuse.verifier.noise import nudge_feed, nudged_weights
from onnx_repfuse.verifier.oracle.tensor import TooLarge, Unsupported
from onnx_repfuse.verifier.session import DoesNotRun, open_session

__all__ = ["probe"]

_REFERENCE_PRODUCTS = 20_000_000  # onnx's evaluator is slow: it judges only feeds that take fewer than this
# Of two axes. No 1, which would broadcast; odd and even; all remainders of strides up to 3.
_TRIED = ((21, 24), (22, 25), (23, 26))
_EXACT = 2.0**52  # integers up to here are exact in float64
_Outputs = tuple["Array | None", Array]  # of the nodes before, where they are run, and of their replacement
_NOTHING_FITS = "no size fits its nodes, so nothing could be compared"


class _Failed(Exception):  # noqa: N818 - an outcome, like Unsupported
    """The fold has failed, and not by a difference; `str()` says how."""


def probe(case: FoldCase, seed: int = 0, structures: Structures | None = None) -> StageVerdict:
    """Judge one fold on synthetic inputs.

    Args:
        case: the fold; float sources of any rank.
        seed: of the random values.
        structures: runs both sides, and knows what was proved of other folds of this structure.

    Returns:
        PASSED, or FAILED with the worst error found; a fold of which nothing could be compared has FAILED.
    """
    structures = structures or Structures()
    comparison = Comparison(case.output, "isolated")
    if _has_equal_sides(case):
        return comparison.equal("the nodes after are those before")
    try:
        before = structures.open(case, case.before)
    except DoesNotRun as error:
        return comparison.failed(f"its nodes do not run alone: {error}")
    comparison.backend = before.backend
    try:
        after = structures.open(case, case.after)
    except DoesNotRun as error:
        return comparison.failed(f"its replacement does not run: {error}")
    if before.backend == "onnxruntime":  # else the reference evaluator ran one side, which the verdict says
        comparison.backend = after.backend
    backend = comparison.backend
    try:
        try:
            # Of a later fold, the bound of its replacement alone is enough as a rule, and narrower than that of both.
            rules = structures.proved_rules(case)
            if rules is not None and not case.is_exact:
                quick = _by_oracle(
                    case, before, after, comparison.anew(), seed, structures, rules, alone=True
                )
                if quick.status is Status.PASSED:
                    return quick
            return _by_oracle(case, before, after, comparison, seed, structures, rules)
        except Unsupported as reason:
            comparison = Comparison(case.output, "isolated", backend)
            comparison.note(f"the oracle does not know {reason}; the runtime alone was the judge")
            return _by_runtime_alone(case, before, after, comparison, seed, structures.runtime)
    except (_Failed, TooLarge) as reason:
        return comparison.failed(str(reason))


def _has_equal_sides(case: FoldCase) -> bool:
    """Whether both sides are one model, as where the consumers of an Identity read what it reads."""
    first, second = case.before.graph, case.after.graph
    return (
        not first.initializer
        and not second.initializer
        and list(first.input) == list(second.input)
        and list(first.node) == list(second.node)
    )


def _by_oracle(
    case: FoldCase,
    before: FoldSession,
    after: FoldSession,
    comparison: Comparison,
    seed: int,
    structures: Structures,
    proved: Rules | None,
    *,
    alone: bool = False,
) -> StageVerdict:
    """The three comparisons; with what rounding may change of the replacement `alone`, or of both sides.

    Raises Unsupported where the oracle cannot judge.
    """
    first, second = Side(case, case.before), Side(case, case.after)
    was_compared = was_run = is_shown = False
    largest: Stimulus | None = None
    if proved is not None and not case.has_weights:
        return comparison.equal("a fold of the same nodes has passed, and there are no weights")
    rules = proved or _rules_that_fit(case, first)
    of_weights = proved is not None
    for stimulus, expected in _fitting(case, first, seed, rules, of_weights=of_weights, of_values=alone):
        actual = _evaluate_replacement(second, stimulus, expected.value.shape)
        was_compared, is_shown = True, is_shown or stimulus.kind != "border"
        outputs: _Outputs | None = None
        products = case.products(expected.value.shape)
        if comparison.backend != "reference" or products <= _REFERENCE_PRODUCTS:
            outputs = _run(case, before, after, stimulus, expected.value.shape, alone=proved is not None)
        was_run = was_run or outputs is not None
        if outputs is not None:
            largest = larger(largest, stimulus)
        where = f"on {stimulus.kind} inputs of {_sizes(stimulus)}"
        for block in blocks(expected.value.shape):
            parts = expected.part(block), actual.part(block)
            _compare(case, comparison, *parts, outputs, where, block)
    if not was_compared:
        if case.is_initializer and _is_empty(case, before, after, rules, seed):
            return comparison.equal("it is empty, of the same type and shape")
        raise _Failed(_NOTHING_FITS)
    if not is_shown and has_sizes_in_file(case):
        raise _Failed("none but the smallest sizes fit its nodes")
    if not was_run:
        comparison.note("no probe could be run; it was judged in float64 alone")
    _check_special_values(case, before, after, largest)
    verdict = comparison.verdict()
    if was_run and verdict.status is Status.PASSED:
        structures.note_proved(case, rules)
    return verdict


def _check_special_values(
    case: FoldCase, before: FoldSession, after: FoldSession, like: Stimulus | None
) -> None:
    """Raise _Failed where the sides hand on other NaNs, infinities, largest or smallest numbers."""
    if like is None or not hands_on(case):
        return
    stimulus = Stimulus("special", special_feed(case, like.feed))
    old = _run_if_it_runs(case, before, stimulus)
    if old is None or not is_float_array(old):
        return
    why = first_difference(case, old, _run_replacement(case, after, stimulus))
    if why:
        raise _Failed(f"of NaN, infinities, or the largest or smallest numbers it makes {why}")


def _is_empty(case: FoldCase, before: FoldSession, after: FoldSession, rules: Rules, seed: int) -> bool:
    """Whether an initializer without elements takes the place of nodes that compute none; they may read sizes alone."""
    for stimulus in stimuli(case, rules, seed):
        try:
            old, new = (np.asarray(side.run(stimulus.feed)[case.output]) for side in (before, after))
        except DoesNotRun:
            continue
        return not old.size and (old.shape, old.dtype) == (new.shape, new.dtype)
    return False


def _compare(
    case: FoldCase,
    comparison: Comparison,
    expected: Evaluation,
    actual: Evaluation,
    outputs: _Outputs | None,
    where: str,
    block: Block,
) -> None:
    """The three comparisons of one block. Raises Unsupported."""
    # 1. Oracle against oracle.
    bound = folding_bound(expected, actual)
    if case.is_initializer:  # the runtime computed it: nothing was folded in float64
        bound = bound + runtime_bound(expected)
    if case.is_exact and expected.magnitude.max(initial=0) > _EXACT:
        raise Unsupported("integers so large")
    most = 0.5 if case.is_exact else np.inf  # of integers, the next one is wrong
    comparison.record(difference(expected.value, actual.value), np.minimum(bound, most), where, block)
    if outputs is not None:  # 2. and 3. The runtime against the oracle.
        old, new = outputs
        gap, allowed = _runtime_errors(
            case, expected, actual, None if old is None else old[block], new[block]
        )
        allowed = np.minimum(allowed + bound, most)
        comparison.record(gap, allowed, f"in {comparison.backend}, {where}", block)


def _fitting(
    case: FoldCase, side: Side, seed: int, rules: Rules, *, of_weights: bool, of_values: bool
) -> Iterator[tuple[Stimulus, Evaluation]]:
    """The stimuli that the nodes before take, and what these compute; of whole blocks where only small ones fit.

    If asked for values alone, they have no magnitudes.
    """
    for block in case.blocks:
        fits = False
        for stimulus in stimuli(case, rules, seed, block, of_weights=of_weights):
            try:
                expected = side.evaluate(stimulus.feed, needs_magnitudes=not of_values)
            except SIZE_ERRORS:
                continue  # this size does not fit the nodes before
            if expected.value.size:  # an empty output shows nothing
                fits = fits or stimulus.kind != "border"
                yield stimulus, expected
        if fits:
            return
    if of_weights:  # as where a Slice leaves nothing of the one size that shows the weights
        yield from _fitting(case, side, seed, rules, of_weights=False, of_values=of_values)


def _evaluate_replacement(side: Side, stimulus: Stimulus, shape: tuple[int, ...]) -> Evaluation:
    try:
        actual = side.evaluate(stimulus.feed)
    except SIZE_ERRORS as error:
        raise _Failed(f"its replacement does not take {_sizes(stimulus)}: {error}") from error
    if actual.value.shape != shape:
        raise _Failed(f"on {_sizes(stimulus)} its shape is {actual.value.shape} instead of {shape}")
    return actual


def _run(
    case: FoldCase,
    before: FoldSession,
    after: FoldSession,
    stimulus: Stimulus,
    shape: tuple[int, ...],
    *,
    alone: bool,
) -> _Outputs | None:
    """What both sides give in the runtime, or the replacement `alone`; None if the nodes before do not run."""
    old = None if alone else _run_if_it_runs(case, before, stimulus)
    if old is None and not alone:
        return None
    try:
        new = _run_replacement(case, after, stimulus)
    except _Failed:
        if alone and _run_if_it_runs(case, before, stimulus) is None:
            return None
        raise
    for values in (new, new if old is None else old):
        if values.shape != shape:
            raise _Failed(f"on {_sizes(stimulus)} the runtime's shape is {values.shape} instead of {shape}")
    return old, new


def _run_if_it_runs(case: FoldCase, side: FoldSession, stimulus: Stimulus) -> Array | None:
    try:
        return np.asarray(side.run(stimulus.feed)[case.output])
    except DoesNotRun:
        return None


def _run_replacement(case: FoldCase, after: FoldSession, stimulus: Stimulus) -> Array:
    try:
        return np.asarray(after.run(stimulus.feed)[case.output])
    except DoesNotRun as error:
        raise _Failed(f"its replacement does not run on {_sizes(stimulus)}: {error}") from error


def _runtime_errors(
    case: FoldCase, expected: Evaluation, actual: Evaluation, old: Array | None, new: Array
) -> tuple[Array, Array]:
    """Comparison 2, if there is an `old`, and the error of comparison 3 with what both sides may differ by.

    Raises:
        Unsupported: the oracle does not read the nodes before as the runtime does.
    """
    usable = case.is_usable(expected.value)
    allowed = runtime_bound(expected)
    if old is not None:
        usable &= np.isfinite(old)
        own = difference(expected.value, old)
        if bool((own > allowed)[usable].any()):
            raise Unsupported("these nodes as the runtime does")
    gap = difference(expected.value, new)
    if not usable.all():  # rare; the mask takes time
        gap = np.where(usable, gap, 0.0)
    return gap, allowed + runtime_bound(actual)


def _by_runtime_alone(
    case: FoldCase,
    before: FoldSession,
    after: FoldSession,
    comparison: Comparison,
    seed: int,
    runtime: Runtime,
) -> StageVerdict:
    """Before against after in the runtime, with the tolerance that whole models have."""
    nudged_model = nudged_weights(case.side(case.before).complete)
    noisy = before if nudged_model is None else open_session(nudged_model, runtime)
    was_compared, largest = False, None
    for rules, block in itertools.product(shared_rules(case), case.blocks):
        for stimulus in stimuli(case, rules, seed, block):
            try:
                old = before.run(stimulus.feed)[case.output]
                # The same nodes, with inputs and with weights moved by one ulp.
                nudged = [
                    before.run(nudge_feed(stimulus.feed))[case.output],
                    noisy.run(stimulus.feed)[case.output],
                ]
            except DoesNotRun:
                continue
            if not old.size:  # an empty output shows nothing
                continue
            new = _run_replacement(case, after, stimulus)
            if new.shape != old.shape:
                raise _Failed(f"on {_sizes(stimulus)} its shape is {new.shape} instead of {old.shape}")
            was_compared = True
            bound = measured_bound(old, nudged)
            comparison.record(difference(old, new), bound, f"on inputs of {_sizes(stimulus)}")
            largest = larger(largest, stimulus)
        if was_compared:  # these rules fit: others would at best fit by broadcasting
            _check_special_values(case, before, after, largest)
            return comparison.verdict()
    raise _Failed(_NOTHING_FITS)


def _rules_that_fit(case: FoldCase, side: Side) -> Rules:
    """How the sizes of further sources follow from the first's: by the rules that fit the nodes at the most sizes."""
    equal = (EQUAL,) * len(case.sources)
    if len(case.sources) < 2 or not any(source.space for source in case.sources):
        return equal
    known = rules_of_file(case)
    best, fitting = equal, 0
    for rules in candidate_rules(case):
        if not holds_in_file(case, rules) or not _fits(case, side, rules, _TRIED[0]):
            continue
        if rules in (equal, known):
            return rules
        # ceil(size / 3) is size / 3 at 21 and 24, and at no other size of the probes.
        count = 1 + sum(_fits(case, side, rules, sizes) for sizes in _TRIED[1:])
        if count > fitting:
            best, fitting = rules, count
        if count == len(_TRIED):
            break
    return best


def _fits(case: FoldCase, side: Side, rules: Rules, sizes: tuple[int, int]) -> bool:
    """Whether the nodes take these sizes of the first source."""
    feed = {}
    for source, rule in zip(case.sources, rules, strict=True):
        shape = source.shape(1, apply(rule, sizes))
        if min(shape, default=1) < 1:
            return False
        feed[source.name] = np.zeros(shape, dtype=np.float64)
    try:
        side.oracle(feed)
    except SIZE_ERRORS:
        return False
    return True


def _sizes(stimulus: Stimulus) -> str:
    return ", ".join("x".join(map(str, array.shape)) for array in stimulus.feed.values())
