"""Two whole models: the original against the result, with the original's own noise as the measure.

Sessions are opened one after another, from paths. At the ordinary size the original runs once per seed and twice more
for the noise (inputs moved, weights moved), the result once per seed; smaller sizes cost little. Only where a feed
fails is the noise measured on that feed, too: some inputs are worse conditioned than others.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status, Verification
from onnx_repfuse.verifier.distance import flatten
from onnx_repfuse.verifier.inputs import FeedKey, FeedSpec
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_names
from onnx_repfuse.verifier.noise import flush_tolerance
from onnx_repfuse.verifier.outputs.baseline import (
    Baseline,
    Row,
    complete_noise,
    measure_noise_on,
    measure_original,
)
from onnx_repfuse.verifier.outputs.decision_tails import DecisionTail, explains_flips, has_same_tail
from onnx_repfuse.verifier.outputs.interfaces import (
    DifferentInterface,
    asked_for,
    pair,
    sizes_of_other,
    spec_for_both,
)
from onnx_repfuse.verifier.outputs.judge import failing_feeds, judge_output, verdict_without_figures
from onnx_repfuse.verifier.outputs.own_error import measure_own_errors
from onnx_repfuse.verifier.outputs.tolerance import Sample, UserTolerance, user_tolerance
from onnx_repfuse.verifier.session import DoesNotRun, Model, load

__all__ = ["compare_with_baseline", "verify_outputs"]

_DOES_NOT_RUN = "the result does not run"

Samples = dict[str, list[Sample]]  # by tensor name, one sample per feed, in the order of `Baseline.keys`
Values = Mapping[FeedKey, Row]


def verify_outputs(
    original: Model,
    fused: Model,
    *,
    spec: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
    by_position: bool = False,
) -> Verification:
    """Compare all outputs of two models with one interface.

    Args:
        original, fused: paths (any size), or models in memory.
        spec: shapes, data and seeds of the inputs.
        rtol, atol: replace the calibrated tolerance by |difference| <= atol + rtol * |y|.
        runtime: how both are run.
        optimized: also measure what ORT_ENABLE_ALL changes in the original (one more run); by default only where that
            is cheap.
        by_position: pair inputs and outputs by position where their names differ.

    Returns:
        a Verification whose truth says whether it passed; a result that does not run has FAILED.

    Raises:
        InputError: the original does not run, or ONNX Runtime would never end; the message says why in one line.
    """
    spec = spec or FeedSpec()
    try:
        spec = spec_for_both(original, fused, spec, by_position)
    except DifferentInterface as error:
        return _incomparable_interfaces(original, str(error))
    measure = partial(measure_original, original, runtime=runtime, optimized=optimized)
    compare = partial(compare_with_baseline, fused=fused, rtol=rtol, atol=atol, by_position=by_position)
    result = compare(measure(spec=spec))
    if _does_not_run(result) and not spec.shapes and not spec.data:
        # The second model does not run at the first one's sizes: perhaps the first runs at those of the second.
        with suppress(InputError):
            sizes = sizes_of_other(original, fused, spec, by_position)
            again = compare(measure(spec=replace(spec, shapes=sizes)))
            if again.runs[1]:
                return again
        hint = f"no size was found at which both run; give --input-shape {asked_for(spec)}".rstrip()
        return replace(result, notes=(*result.notes, hint))
    return result


def compare_with_baseline(
    baseline: Baseline,
    fused: Model,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    by_position: bool = False,
    flushed: float = 0.0,
) -> Verification:
    """Compare a candidate with the original's measured values; see `verify_outputs`.

    `flushed` is what the outputs of its nodes may differ by, for inputs of magnitude 1, because weights that are too
    small to show became zero.
    """
    try:
        complete_noise(baseline)
    except DoesNotRun as error:
        return _incomparable(baseline, f"the original does not run again: {error}")
    try:
        values, backend = _run_candidate(baseline, fused, by_position)
    except DoesNotRun as error:
        return _incomparable(baseline, f"{_DOES_NOT_RUN}: {error}")
    except DifferentInterface as error:
        return _incomparable(baseline, str(error))
    user, floor = user_tolerance(rtol, atol), flush_tolerance(flushed)
    verdicts = _judge(baseline, values, user, floor)
    # Each round measures noise that was missing on the feeds that fail, so it ends.
    while user is None and any(verdict.status is Status.FAILED for verdict in verdicts):
        if not _measure_noise_where_failing(baseline, values, floor):
            break
        verdicts = _judge(baseline, values, user, floor)
    has_failed = user is None and any(verdict.status is Status.FAILED for verdict in verdicts)
    if has_failed and measure_own_errors(baseline, _failing_feeds(baseline, values, floor)):
        verdicts = _judge(baseline, values, user, floor)
    verdicts = tuple(_without_random(baseline, verdict) for verdict in verdicts)
    notes = list(baseline.notes)
    # Two backends round in different ways, which the noise of one of them does not cover.
    if backend != baseline.backend:
        notes.append(f"the original was run by {baseline.backend}, the result by {backend}")
    if baseline.backend == "reference":
        notes.append("ONNX Runtime has no kernel for this model; onnx's reference evaluator was the judge")
    runs_of_result = sum(baseline.is_largest(key.group) for key in baseline.keys)
    return _verification(baseline, verdicts, notes, runs_of_result)


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


def _incomparable(baseline: Baseline, reason: str) -> Verification:
    """Every output has failed."""
    verdicts = tuple(verdict_without_figures(name, Status.FAILED, "", reason) for name in baseline.outputs)
    return _verification(baseline, verdicts, [*baseline.notes, reason], 0)


def _incomparable_interfaces(original: Model, reason: str) -> Verification:
    """As `_incomparable`, before anything was run."""
    names = [value.name for value in load(original, weights=False).graph.output]
    verdicts = tuple(verdict_without_figures(name, Status.FAILED, "", reason) for name in names)
    return Verification(verdicts, notes=(reason,))


def _measure_noise_where_failing(baseline: Baseline, values: Values, floor: float) -> bool:
    """Measure the noise on the feeds where something is beyond the tolerance; whether there was more to measure."""
    try:
        return measure_noise_on(baseline, _failing_feeds(baseline, values, floor))
    except DoesNotRun:
        return False


def _failing_feeds(baseline: Baseline, values: Values, floor: float) -> list[FeedKey]:
    failing: set[FeedKey] = set()
    for samples in _samples(baseline, values, floor).values():
        failing |= failing_feeds(samples)
    return sorted(failing)


def _run_candidate(baseline: Baseline, fused: Model, by_position: bool) -> tuple[dict[FeedKey, Row], str]:
    """(the candidate's outputs and deciding tensors under the original's names, its backend).

    Raises:
        DoesNotRun, DifferentInterface.
    """
    deciding = _deciding_tensors(baseline, fused)
    values: dict[FeedKey, Row] = {}
    with open_with_extra_outputs(fused, deciding, baseline.runtime) as session:
        outputs = [value.name for value in session.outputs if value.name not in deciding]
        input_names = pair("inputs", baseline.inputs, [value.name for value in session.inputs], by_position)
        output_names = pair("outputs", baseline.outputs, outputs, by_position)
        for key in baseline.keys:
            feed = baseline.feed(key)
            renamed = {input_names[name]: value for name, value in feed.items()}
            results = session.run(renamed, [*output_names.values(), *deciding])
            row = {name: results[name] for name in deciding}
            row.update({name: results[other] for name, other in output_names.items()})
            values[key] = baseline.with_deciding_inputs(flatten(row), feed)
        return values, session.backend


def _deciding_tensors(baseline: Baseline, fused: Model) -> list[str]:
    """Those the candidate has, too, where its tails are the original's."""
    if not baseline.tails:
        return []
    graph = load(fused, weights=False).graph
    shared = {
        name for tail in baseline.tails.values() if has_same_tail(graph, tail) for name in tail.deciding
    }
    produced, _ = tensor_names(fused)
    return [name for name in baseline.deciding if name in shared & produced]


def _judge(
    baseline: Baseline, values: Values, user: UserTolerance | None, floor: float
) -> tuple[OutputVerdict, ...]:
    samples = _samples(baseline, values, floor)
    # Inputs are among the samples where a tail reads them; a model may also return an input as it is.
    no_outputs = {*baseline.deciding, *baseline.inputs} - set(baseline.outputs)
    verdicts = [
        judge_output(name, of_output, user) for name, of_output in samples.items() if name not in no_outputs
    ]
    if user is None:
        verdicts = [_consider_deciding_tensors(baseline, verdict, samples, values) for verdict in verdicts]
    return tuple(verdicts)


def _samples(baseline: Baseline, values: Values, floor: float) -> Samples:
    samples: Samples = {}
    for key in baseline.keys:
        original, fused = baseline.values[key], values[key]
        variants = [
            rows.get(key, {})
            for rows in (
                baseline.by_inputs, baseline.by_weights, baseline.optimized, baseline.twin, baseline.own_errors
            )
        ]  # fmt: skip
        # Parts of a sequence have names of their own, so either model may have more of them.
        for name in dict.fromkeys([*original, *fused]):
            sample = Sample(
                key, original.get(name), fused.get(name), *(row.get(name) for row in variants), floor=floor
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
