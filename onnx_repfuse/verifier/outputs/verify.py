"""End to end: the original against the result, with the original's own noise as the measure.

Sessions are opened one after another, from paths. At the ordinary size the original runs once per seed and
twice more for the noise (inputs moved, weights moved), the result once per seed. Smaller sizes are free. Only
on a feed that fails is the noise measured, too: some inputs are worse conditioned than others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import OutputVerdict, Status, Verification
from onnx_repfuse.verifier.distance import flatten
from onnx_repfuse.verifier.inputs import FeedSpec
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_names
from onnx_repfuse.verifier.outputs.baseline import (
    Baseline,
    Key,
    Row,
    complete,
    measure_noise,
    measure_original,
)
from onnx_repfuse.verifier.outputs.decision_tails import explains
from onnx_repfuse.verifier.outputs.judge import Sample, beyond, judge_output
from onnx_repfuse.verifier.session import DoesNotRun, Model, load

__all__ = ["Baseline", "against", "measure_original", "verify_outputs"]

Ports = tuple[tuple[str, ...], tuple[str, ...]]
Samples = dict[str, list[Sample]]


def verify_outputs(
    original: Model,
    fused: Model,
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
    by_position: bool = False,
) -> Verification:
    """Compare all outputs of two models with one interface.

    Args:
        original, fused: paths (any size), or models in memory.
        feeds: shapes, data and seeds; see `FeedSpec`.
        rtol, atol: replace the calibrated tolerance by |d| <= atol + rtol*|y|.
        runtime: how it is run.
        optimized: also measure what ORT_ENABLE_ALL changes in the original (one more run); by default only
            where that is cheap.
        by_position: pair inputs and outputs by position where their names differ.

    Returns:
        a Verification whose truth says whether it passed; a result that does not run has FAILED.

    Raises:
        InputError: the original does not run; the message says why in one line.
    """
    baseline = measure_original(original, feeds=feeds, runtime=runtime, optimized=optimized)
    return against(baseline, fused, rtol=rtol, atol=atol, by_position=by_position)


def against(
    baseline: Baseline,
    fused: Model,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    by_position: bool = False,
) -> Verification:
    """Compare a candidate with the original's measured values; see `verify_outputs`."""
    try:
        complete(baseline)
    except DoesNotRun as error:
        return _refused(baseline, f"the original does not run again: {error}")
    try:
        values, backend = _run(baseline, fused, by_position)
    except DoesNotRun as error:
        return _refused(baseline, f"the result does not run: {error}")
    if isinstance(values, str):
        return _refused(baseline, values)
    verdicts = _judge(baseline, values, rtol, atol)
    fixed = rtol is not None or atol is not None
    while not fixed and any(one.status is Status.FAILED for one in verdicts):
        if not _remeasure(baseline, values):
            break
        verdicts = _judge(baseline, values, rtol, atol)
    notes = list(baseline.notes)
    if backend != baseline.backend:
        notes.append(f"the original was run by {baseline.backend}, the result by {backend}")
    if baseline.backend == "reference":
        notes.append("ONNX Runtime has no kernel for this model; onnx's reference evaluator was the judge")
    return Verification(
        verdicts, (), baseline.backend, _seeds(baseline), _shapes(baseline), tuple(notes),
        (baseline.runs, sum(baseline.is_large(scene) for scene, _ in baseline.each())),
    )  # fmt: skip


def _remeasure(baseline: Baseline, values: Mapping[Key, Row]) -> bool:
    """Measure the noise on the feeds where something is beyond the tolerance; whether there was more to measure."""
    keys = baseline.each()
    failing = {keys[index] for found in _samples(baseline, values).values() for index in beyond(found)}
    try:
        return measure_noise(baseline, [key for key in keys if key in failing])
    except DoesNotRun:
        return False


def _run(baseline: Baseline, fused: Model, by_position: bool) -> tuple[dict[tuple[int, int], Row] | str, str]:
    """The candidate's values under the original's names, or why the two cannot be paired; and who ran it."""
    extra: list[str] = []
    if baseline.tails:
        graph = load(fused, weights=False).graph
        made = tensor_names(fused)[0]
        held = {name for tail in baseline.tails.values() if tail.is_in(graph) for name in tail.reads}
        extra = [name for name in baseline.hidden if name in held & made]
    values: dict[tuple[int, int], Row] = {}
    with open_with_extra_outputs(fused, extra, baseline.runtime) as runner:
        outputs = tuple(port.name for port in runner.outputs if port.name not in extra)
        paired = _pair(baseline.ports, (tuple(port.name for port in runner.inputs), outputs), by_position)
        if isinstance(paired, str):
            return paired, runner.backend
        given, wanted = paired
        for scene, feed in baseline.each():
            data = baseline.groups[scene].feeds[feed]
            found = runner.run(
                {given[name]: value for name, value in data.items()}, [*wanted.values(), *extra]
            )
            named = {name: found[other] for name, other in wanted.items()}
            values[scene, feed] = {
                **flatten({**data, **{name: found[name] for name in extra}}),
                **flatten(named),
            }
        return values, runner.backend


def _judge(
    baseline: Baseline,
    values: Mapping[tuple[int, int], Row],
    rtol: float | None,
    atol: float | None,
) -> tuple[OutputVerdict, ...]:
    samples = _samples(baseline, values)
    hidden = set(baseline.hidden) | (set(baseline.ports[0]) - set(baseline.ports[1]))
    verdicts = [
        judge_output(name, found, rtol, atol) for name, found in samples.items() if name not in hidden
    ]
    if rtol is not None or atol is not None:
        return tuple(verdicts)
    return tuple(_settle(baseline, verdict, samples, values) for verdict in verdicts)


def _samples(baseline: Baseline, values: Mapping[Key, Row]) -> Samples:
    """By name, one sample per feed, in the order of `baseline.each()`."""
    samples: Samples = {}
    for key in baseline.each():
        before, after = baseline.values[key[0]][key[1]], values[key]
        noise = [rows.get(key, {}) for rows in (baseline.by_inputs, baseline.by_weights, baseline.optimized)]
        for name in dict.fromkeys((*before, *(name for name in after if name not in baseline.ports[0]))):
            others = [row.get(name) for row in noise]
            samples.setdefault(name, []).append(Sample(key[0], before.get(name), after.get(name), *others))
    return samples


def _settle(
    baseline: Baseline,
    verdict: OutputVerdict,
    samples: Samples,
    values: Mapping[tuple[int, int], Row],
) -> OutputVerdict:
    """Let the tensors that decide an output speak where it is blind, or where rounding flips it."""
    tail = baseline.tails.get(verdict.name)
    if tail is None or verdict.status is Status.PASSED:
        return verdict
    read = [samples.get(name, []) for name in tail.reads]
    if not all(found and all(one.fused is not None for one in found) for found in read):
        return verdict  # the result does not have them
    found = [judge_output(name, samples[name]) for name in tail.reads]
    bad = next((one for one in found if one.status is Status.FAILED), None)
    names = ", ".join(repr(name) for name in tail.reads)
    if bad is not None:
        message = f"{verdict.message}; {bad.message}, which decides it"
        return replace(verdict, status=Status.FAILED, message=message)
    if not any(one.status is Status.PASSED for one in found):
        return verdict
    if verdict.status is Status.NOT_OBSERVED and not verdict.max_abs:
        return replace(
            verdict, status=Status.PASSED, message=f"{verdict.message}, but {names} can, and passed"
        )
    if explains(tail, [values[key] for key in baseline.each()], baseline.runtime):
        message = f"{verdict.message}: rounding flips decisions on {names}, which passed"
        return replace(verdict, status=Status.PASSED, message=message)
    return verdict


def _pair(ours: Ports, theirs: Ports, by_position: bool) -> tuple[dict[str, str], dict[str, str]] | str:
    """Our input and output names -> theirs, or why that cannot be."""
    found: list[dict[str, str]] = []
    for what, mine, other in zip(("inputs", "outputs"), ours, theirs, strict=True):
        if set(mine) == set(other):
            found.append({name: name for name in mine})
        elif by_position and len(mine) == len(other):
            found.append(dict(zip(mine, other, strict=True)))
        else:
            return f"the {what} differ: {list(other)} instead of {list(mine)}"
    return found[0], found[1]


def _refused(baseline: Baseline, reason: str) -> Verification:
    inf = float("inf")
    verdicts = tuple(
        OutputVerdict(name, Status.FAILED, "", inf, inf, inf, (0.0, 0.0), 0.0, inf, message=reason)
        for name in baseline.ports[1]
    )
    notes = (*baseline.notes, reason)
    return Verification(
        verdicts, (), baseline.backend, _seeds(baseline), _shapes(baseline), notes, (baseline.runs, 0)
    )


def _seeds(baseline: Baseline) -> tuple[int, ...]:
    return tuple(dict.fromkeys(seed for scene in baseline.groups for seed in scene.seeds if seed >= 0))


def _shapes(baseline: Baseline) -> tuple[dict[str, tuple[int, ...]], ...]:
    return tuple(dict(scene.shapes) for scene in baseline.groups)
