"""Two whole models: the original against the result, with the original's own noise as the measure.

Sessions are opened one after another, from paths. At the ordinary size the original runs once per seed and twice more
for the noise (inputs moved, weights moved), the result once per seed; smaller sizes cost little. Only where a feed
fails is the noise measured on that feed, too: some inputs are worse conditioned than others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status, Verification
from onnx_repfuse.verifier.inputs import FeedKey, FeedSpec
from onnx_repfuse.verifier.noise import flush_tolerance
from onnx_repfuse.verifier.outputs.baseline import (
    Baseline,
    Row,
    complete_noise,
    measure_noise_on,
    measure_original,
)
from onnx_repfuse.verifier.outputs.candidate import Ran, run_candidate
from onnx_repfuse.verifier.outputs.decision_tails import DecisionTail, explains_flips
from onnx_repfuse.verifier.outputs.interfaces import (
    DifferentInterface,
    Pairing,
    asked_for,
    fixed_by_either,
    pair_interfaces,
    sizes_of_other,
    why_incomparable,
)
from onnx_repfuse.verifier.outputs.judge import failing_feeds, judge_output, verdict_without_figures
from onnx_repfuse.verifier.outputs.own_error import measure_own_errors
from onnx_repfuse.verifier.outputs.tolerance import Sample, UserTolerance, user_tolerance
from onnx_repfuse.verifier.session import DoesNotRun, Model

__all__ = [
    "Compared",
    "Terms",
    "compare_at_common_sizes",
    "compare_with_baseline",
    "compared_outputs",
    "incomparable_interfaces",
    "judge_candidate",
    "verify_outputs",
]

_DOES_NOT_RUN = "the result does not run"

Samples = dict[str, list[Sample]]  # by tensor name, one sample per feed, in the order of `Baseline.keys`
Values = Mapping[FeedKey, Row]


class Compared(NamedTuple):
    """Two models that were run.

    Attributes:
        verification: the verdicts.
        baseline: the values of the original.
        values: those of the candidate, under the original's names; empty if it did not run.
    """

    verification: Verification
    baseline: Baseline
    values: Values


@dataclass(frozen=True)
class Terms:
    """How a candidate is compared.

    Attributes:
        rtol, atol: replace the calibrated tolerance by |difference| <= atol + rtol * |y|.
        flushed: what the outputs of its nodes may differ by, for inputs of magnitude 1, because weights that are too
            small to show became zero.
        pairing: which inputs and outputs belong together; None if all names are the same.
        other_precision: the candidate is meant to have another float type, and is compared nevertheless.
    """

    rtol: float | None = None
    atol: float | None = None
    flushed: float = 0.0
    pairing: Pairing | None = None
    other_precision: bool = False


def verify_outputs(
    original: Model,
    fused: Model,
    *,
    spec: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
) -> Verification:
    """Compare all outputs of two models with one interface.

    Args:
        original, fused: paths (any size), or models in memory.
        spec: shapes, data and seeds of the inputs.
        rtol, atol: replace the calibrated tolerance by |difference| <= atol + rtol * |y|.
        runtime: how both are run.
        optimized: also measure what ORT_ENABLE_ALL changes in the original (one more run); by default only where that
            is cheap.

    Returns:
        a Verification whose truth says whether it passed; a result that does not run has FAILED.

    Raises:
        InputError: the original does not run, or ONNX Runtime would never end; the message says why in one line.
    """
    found = compared_outputs(
        original, fused, spec=spec, rtol=rtol, atol=atol, runtime=runtime, optimized=optimized
    )
    return found.verification if isinstance(found, Compared) else found


def compared_outputs(
    original: Model,
    fused: Model,
    *,
    spec: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
) -> Compared | Verification:
    """As `verify_outputs`, with the values of both where they were run."""
    terms = Terms(rtol, atol)
    try:
        pairing = pair_interfaces(original, fused)
    except DoesNotRun:  # whoever runs them says why
        baseline = measure_original(original, spec=spec, runtime=runtime, optimized=optimized)
        return judge_candidate(baseline, fused, terms)
    reason = why_incomparable(pairing, every_output=True)
    try:
        if reason:
            raise DifferentInterface(reason)
        spec, terms = spec or FeedSpec(), replace(terms, pairing=pairing)
        return compare_at_common_sizes(
            original, fused, terms, spec=spec, runtime=runtime, optimized=optimized
        )
    except DifferentInterface as error:
        return incomparable_interfaces(pairing.outputs.first, str(error))


def compare_at_common_sizes(
    original: Model,
    fused: Model,
    terms: Terms,
    *,
    spec: FeedSpec,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
) -> Compared:
    """Compare two models on inputs that both take. `terms` has their pairing; the rest is as for `verify_outputs`.

    Raises:
        DifferentInterface: no input fits both.
        InputError: the original does not run.
    """
    assert terms.pairing is not None
    fixed = fixed_by_either(original, fused, terms.pairing, terms.other_precision)
    spec = replace(spec, fixed=fixed)
    measure = partial(measure_original, original, runtime=runtime, optimized=optimized)
    result = judge_candidate(measure(spec=spec), fused, terms)
    if _does_not_run(result.verification) and not spec.shapes and not spec.data:
        # The second model does not run at the first one's sizes: perhaps the first runs at those of the second.
        with suppress(InputError):
            sizes = sizes_of_other(fused, spec, terms.pairing)
            again = judge_candidate(measure(spec=replace(spec, shapes=sizes)), fused, terms)
            if again.verification.runs[1]:
                return again
        hint = f"no size was found at which both run; give --input-shape {asked_for(spec)}".rstrip()
        notes = (*result.verification.notes, hint)
        return result._replace(verification=replace(result.verification, notes=notes))
    return result


def compare_with_baseline(
    baseline: Baseline,
    fused: Model,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    flushed: float = 0.0,
    run: Callable[[], Ran] | None = None,
) -> Verification:
    """Compare a candidate with the original's measured values; see `verify_outputs` and `Terms`.

    `run` gives what `run_candidate` does, where that was begun before.
    """
    return judge_candidate(baseline, fused, Terms(rtol, atol, flushed), run).verification


def judge_candidate(
    baseline: Baseline, fused: Model, terms: Terms, run: Callable[[], Ran] | None = None
) -> Compared:
    """Run a candidate on the feeds of the original, and judge it. A candidate that does not run has FAILED."""
    try:
        complete_noise(baseline)
    except DoesNotRun as error:
        return _incomparable(baseline, f"the original does not run again: {error}")
    try:
        values, backend = run_candidate(baseline, fused, terms.pairing) if run is None else run()
    except DoesNotRun as error:
        return _incomparable(baseline, f"{_DOES_NOT_RUN}: {error}")
    except DifferentInterface as error:
        return _incomparable(baseline, str(error))
    trial = _Trial(baseline, values, flush_tolerance(terms.flushed), terms.other_precision)
    verdicts = _verdicts(trial, user_tolerance(terms.rtol, terms.atol))
    verdicts = tuple(_without_random(baseline, verdict) for verdict in verdicts)
    notes = list(baseline.notes)
    # Two backends round in different ways, which the noise of one of them does not cover.
    if backend != baseline.backend:
        notes.append(f"the original was run by {baseline.backend}, the result by {backend}")
    if baseline.backend == "reference":
        notes.append("ONNX Runtime has no kernel for this model; onnx's reference evaluator was the judge")
    runs_of_result = sum(baseline.is_largest(key.group) for key in baseline.keys)
    return Compared(_verification(baseline, verdicts, notes, runs_of_result), baseline, values)


class _Trial(NamedTuple):
    """A candidate's values beside the original's; `floor` is a difference that is always allowed."""

    baseline: Baseline
    values: Values
    floor: float
    other_precision: bool


def _verdicts(trial: _Trial, user: UserTolerance | None) -> tuple[OutputVerdict, ...]:
    """On every output; before one fails, more of the original's noise is measured."""
    verdicts = _judge(trial, user)
    # Each round measures noise that was missing on the feeds that fail, so it ends.
    while user is None and any(verdict.status is Status.FAILED for verdict in verdicts):
        if not _measure_noise_where_failing(trial):
            break
        verdicts = _judge(trial, user)
    has_failed = user is None and any(verdict.status is Status.FAILED for verdict in verdicts)
    if has_failed and measure_own_errors(trial.baseline, _failing_feeds(trial)):
        verdicts = _judge(trial, user)
    return verdicts


def _does_not_run(result: Verification) -> bool:
    """Whether the candidate took none of the inputs; one whose interface differs was not even tried."""
    return any(note.startswith(_DOES_NOT_RUN) for note in result.notes)


def _without_random(baseline: Baseline, verdict: OutputVerdict) -> OutputVerdict:
    """NOT_OBSERVED for an output that depends on random numbers: neither equality nor a difference says anything."""
    if verdict.name not in baseline.random:
        return verdict
    message = f"'{verdict.name}' depends on random numbers, which are others in every run"
    return verdict_without_figures(verdict.name, Status.NOT_OBSERVED, verdict.dtype, message)


def _verification(
    baseline: Baseline, verdicts: tuple[OutputVerdict, ...], notes: list[str], runs_of_result: int
) -> Verification:
    seeds = [seed for group in baseline.groups for seed in group.seeds if seed >= 0]
    return Verification(
        verdicts,
        judge=baseline.backend,
        provider=baseline.runtime.providers[0],
        threads=baseline.runtime.threads,
        seeds=tuple(dict.fromkeys(seeds)),
        shapes=tuple(dict(group.shapes) for group in baseline.groups),
        notes=tuple(notes),
        runs=(baseline.runs, runs_of_result),
    )


def _incomparable(baseline: Baseline, reason: str) -> Compared:
    """Every output has failed."""
    verdicts = tuple(verdict_without_figures(name, Status.FAILED, "", reason) for name in baseline.outputs)
    return Compared(_verification(baseline, verdicts, [*baseline.notes, reason], 0), baseline, {})


def incomparable_interfaces(outputs: Sequence[str], reason: str) -> Verification:
    """Every output has failed, before anything was run."""
    verdicts = tuple(verdict_without_figures(name, Status.FAILED, "", reason) for name in outputs)
    return Verification(verdicts, notes=(reason,))


def _measure_noise_where_failing(trial: _Trial) -> bool:
    """Measure the noise on the feeds where something is beyond the tolerance; whether there was more to measure."""
    try:
        return measure_noise_on(trial.baseline, _failing_feeds(trial))
    except DoesNotRun:
        return False


def _failing_feeds(trial: _Trial) -> list[FeedKey]:
    failing: set[FeedKey] = set()
    for samples in _samples(trial).values():
        failing |= failing_feeds(samples)
    return sorted(failing)


def _judge(trial: _Trial, user: UserTolerance | None) -> tuple[OutputVerdict, ...]:
    baseline, samples = trial.baseline, _samples(trial)
    # Inputs are among the samples where a tail reads them; a model may also return an input as it is.
    no_outputs = {*baseline.deciding, *baseline.inputs} - set(baseline.outputs)
    verdicts = [
        judge_output(name, of_output, user) for name, of_output in samples.items() if name not in no_outputs
    ]
    if user is None:
        verdicts = [
            _consider_deciding_tensors(baseline, verdict, samples, trial.values) for verdict in verdicts
        ]
    return tuple(verdicts)


def _samples(trial: _Trial) -> Samples:
    samples: Samples = {}
    baseline = trial.baseline
    for key in baseline.keys:
        original, fused = baseline.values[key], trial.values[key]
        variants = [
            rows.get(key, {})
            for rows in (
                baseline.by_inputs, baseline.by_weights, baseline.optimized, baseline.twin, baseline.own_errors
            )
        ]  # fmt: skip
        # Parts of a sequence have names of their own, so either model may have more of them.
        for name in dict.fromkeys([*original, *fused]):
            sample = Sample(
                key,
                original.get(name),
                fused.get(name),
                *(row.get(name) for row in variants),
                floor=trial.floor,
                other_precision=trial.other_precision,
            )
            samples.setdefault(name, []).append(sample)
    return samples


def _judge_deciding(tail: DecisionTail, samples: Samples) -> list[OutputVerdict]:
    """The verdicts on the tensors a tail reads; none if the result lacks one of them."""
    verdicts = []
    for name in tail.deciding:
        of_tensor = samples.get(name, [])
        if not of_tensor or any(sample.fused is None for sample in of_tensor):
            return []
        verdicts.append(judge_output(name, of_tensor))
    return verdicts


def _consider_deciding_tensors(
    baseline: Baseline, verdict: OutputVerdict, samples: Samples, values: Values
) -> OutputVerdict:
    """The verdict on an output that did not pass, in the light of the tensors that decide it.

    A deciding tensor that failed makes it fail. If they passed, an output that could not show a fault passes, and so
    does one that differs, where rounding explains each difference. Then the figures are those of a deciding tensor.
    """
    tail = baseline.tails.get(verdict.name)
    if tail is None or verdict.status is Status.PASSED:
        return verdict
    deciding = _judge_deciding(tail, samples)
    failed = next((other for other in deciding if other.status is Status.FAILED), None)
    if failed is not None:
        message = f"{verdict.message}; {failed.message}, which decides it"
        return replace(verdict, status=Status.FAILED, message=message)
    if Status.PASSED not in {other.status for other in deciding}:
        return verdict
    names = ", ".join(repr(name) for name in tail.deciding)
    # The figures are those of what was judged: 6e-8 where 1e-44 is allowed is no pass to a reader.
    judged = max(deciding, key=lambda other: (other.status is Status.PASSED, other.over_noise))
    # A NOT_OBSERVED output may still differ, within its tolerance; then rounding has to explain that, too.
    if verdict.status is Status.NOT_OBSERVED and not verdict.max_abs:
        message = f"{verdict.message}, but {names} can, and passed"
    elif explains_flips(tail, [values[key] for key in baseline.keys], baseline.runtime):
        message = f"{verdict.message}: rounding flips decisions on {names}, which passed"
    else:
        return verdict
    place = f"judged before the {tail.kind}, at {judged.name!r}"
    against = f"{place}, {judged.against}" if judged.against else place
    return replace(judged, name=verdict.name, dtype=verdict.dtype, message=message, against=against)
