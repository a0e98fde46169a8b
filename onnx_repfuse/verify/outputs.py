"""End to end: the original against the result, with the original's own noise as the measure.

Sessions are opened one after another, from paths. At the ordinary size the original runs once per seed and
twice more for the noise (inputs moved, weights moved), the result once per seed. Smaller sizes are free.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx_repfuse.verify.bounds import integer_bounds
from onnx_repfuse.verify.feeds import FeedSpec, Scene, scenes
from onnx_repfuse.verify.flips import explain
from onnx_repfuse.verify.judge import Sample, judge_output
from onnx_repfuse.verify.measure import Array, flatten
from onnx_repfuse.verify.noise import nudge_feed, nudged_weights
from onnx_repfuse.verify.sessions import DoesNotRun, Model, Runner, open_model
from onnx_repfuse.verify.verdict import OutputVerdict, Status, Verification

__all__ = ["Baseline", "measure_original", "verify_outputs"]

_SMALL = 16 << 20  # bytes; the ORT_ENABLE_ALL figure is shown by default for models up to this size
_ROWS = dict[str, Array | None]


@dataclass
class Baseline:
    """The original's values, measured once and compared against any number of candidates."""

    scenes: list[Scene]
    values: list[list[_ROWS]]
    by_inputs: list[_ROWS]
    by_weights: list[_ROWS]
    optimized: list[_ROWS]
    ports: tuple[tuple[str, ...], tuple[str, ...]]
    judge: str
    runs: int
    original: Model
    notes: list[str] = field(default_factory=list)


def verify_outputs(
    original: Model,
    fused: Model,
    *,
    feeds: FeedSpec | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    threads: int = 1,
    optimized: bool | None = None,
    by_position: bool = False,
) -> Verification:
    """Compare all outputs of two models with one interface.

    Args:
        original, fused: paths (any size), or models in memory.
        feeds: shapes, data and seeds; see `FeedSpec`.
        rtol, atol: replace the calibrated tolerance by |d| <= atol + rtol*|y|.
        threads: threads of the sessions.
        optimized: also measure what ORT_ENABLE_ALL changes in the original (one more run); by default only
            where that is cheap.
        by_position: pair inputs and outputs by position where their names differ.

    Returns:
        a Verification whose truth says whether it passed; a result that does not run has FAILED.

    Raises:
        InputError: the original does not run; the message says why in one line.
    """
    baseline = measure_original(original, feeds=feeds, threads=threads, optimized=optimized)
    return against(baseline, fused, rtol=rtol, atol=atol, threads=threads, by_position=by_position)


def measure_original(
    original: Model, *, feeds: FeedSpec | None = None, threads: int = 1, optimized: bool | None = None
) -> Baseline:
    """Run the original on its inputs, and on inputs and weights moved by an ulp. Raises InputError."""
    spec = feeds or FeedSpec()
    with open_model(original, threads=threads) as runner:
        chosen = scenes(runner, spec, integer_bounds(original, runner.inputs))
        names = tuple(port.name for port in runner.inputs), tuple(port.name for port in runner.outputs)
        baseline = Baseline(
            [scene for scene, _ in chosen],
            [[flatten(row) for row in rows] for _, rows in chosen],
            [],
            [],
            [],
            names,
            runner.judge,
            0,
            original,
        )
        for scene in baseline.scenes:
            baseline.by_inputs.append(_run(runner, nudge_feed(scene.feeds[0])))
    large = max(scene.elements for scene in baseline.scenes)
    baseline.runs = sum(len(s.feeds) + 1 for s in baseline.scenes if s.elements == large)
    _weights_noise(original, baseline, threads, large)
    small = isinstance(original, Path | str) and Path(original).stat().st_size <= _SMALL
    if (optimized or (optimized is None and small)) and baseline.judge == "onnxruntime":
        _optimized(original, baseline, threads, bool(optimized), large)
    return baseline


def against(
    baseline: Baseline,
    fused: Model,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    threads: int = 1,
    by_position: bool = False,
) -> Verification:
    """Compare a candidate with the original's measured values."""
    values: list[list[_ROWS]] = []
    notes = list(baseline.notes)
    try:
        with open_model(fused, threads=threads) as runner:
            theirs = tuple(port.name for port in runner.inputs), tuple(port.name for port in runner.outputs)
            pairing = _pair(baseline.ports, theirs, by_position)
            if isinstance(pairing, str):
                return _refused(baseline, pairing)
            given, wanted = pairing
            if runner.judge != baseline.judge:
                notes.append(f"the original was run by {baseline.judge}, the result by {runner.judge}")
            for scene in baseline.scenes:
                rows = []
                for feed in scene.feeds:
                    found = runner.run(
                        {given[name]: value for name, value in feed.items()}, list(wanted.values())
                    )
                    rows.append(flatten({name: found[other] for name, other in wanted.items()}))
                values.append(rows)
    except DoesNotRun as error:
        return _refused(baseline, f"the result does not run: {error}")
    large = max(scene.elements for scene in baseline.scenes)
    collected = _samples(baseline, values)
    verdicts = tuple(judge_output(name, samples, rtol, atol) for name, samples in collected.items())
    if rtol is None and atol is None:
        verdicts = _flipped(baseline, fused, verdicts, threads)
    if baseline.judge == "reference":
        notes.append("ONNX Runtime has no kernel for this model; onnx's reference evaluator was the judge")
    return Verification(
        verdicts,
        (),
        baseline.judge,
        _seeds(baseline),
        tuple(dict(scene.shapes) for scene in baseline.scenes),
        tuple(notes),
        (baseline.runs, sum(len(s.feeds) for s in baseline.scenes if s.elements == large)),
    )


def _flipped(
    baseline: Baseline, fused: Model, verdicts: tuple[OutputVerdict, ...], threads: int
) -> tuple[OutputVerdict, ...]:
    """Accept differences that only decisions within rounding make."""
    reasons: dict[str, str] = {}
    settled = []
    for verdict in verdicts:
        name = next((port for port in baseline.ports[1] if verdict.name == port), "")
        if verdict.status is Status.FAILED and name:
            if name not in reasons:
                reasons[name] = explain(baseline.original, fused, baseline.scenes, name, threads)
            if reasons[name]:
                verdict = replace(
                    verdict, status=Status.PASSED, message=f"{verdict.message}: {reasons[name]}"
                )
        settled.append(verdict)
    return tuple(settled)


def _pair(
    ours: tuple[tuple[str, ...], tuple[str, ...]],
    theirs: tuple[tuple[str, ...], tuple[str, ...]],
    by_position: bool,
) -> tuple[dict[str, str], dict[str, str]] | str:
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


def _samples(baseline: Baseline, values: list[list[_ROWS]]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    for index, (before, after) in enumerate(zip(baseline.values, values, strict=True)):
        for number, (first, second) in enumerate(zip(before, after, strict=True)):
            for name in dict.fromkeys((*first, *second)):
                noise = [
                    rows[index].get(name) if number == 0 and index < len(rows) else None
                    for rows in (baseline.by_inputs, baseline.by_weights, baseline.optimized)
                ]
                samples.setdefault(name, []).append(Sample(index, first.get(name), second.get(name), *noise))
    return samples


def _refused(baseline: Baseline, reason: str) -> Verification:
    inf = float("inf")
    verdicts = tuple(
        OutputVerdict(name, Status.FAILED, "", inf, inf, inf, (0.0, 0.0), 0.0, inf, message=reason)
        for name in baseline.ports[1]
    )
    shapes = tuple(dict(scene.shapes) for scene in baseline.scenes)
    return Verification(
        verdicts, (), baseline.judge, _seeds(baseline), shapes, (*baseline.notes, reason), (baseline.runs, 0)
    )


def _seeds(baseline: Baseline) -> tuple[int, ...]:
    return tuple(dict.fromkeys(seed for scene in baseline.scenes for seed in scene.seeds if seed >= 0))


def _run(runner: Runner, feed: dict[str, Any]) -> _ROWS:
    try:
        return flatten(runner.run(feed))
    except DoesNotRun:
        return {}


def _weights_noise(original: Model, baseline: Baseline, threads: int, large: int) -> None:
    moved = nudged_weights(original)
    if moved is None:
        baseline.notes.append(
            "the noise of the weights was not measured: the model is too large, or has none"
        )
        return
    try:
        with open_model(moved, threads=threads) as runner:
            baseline.by_weights.extend(_run(runner, scene.feeds[0]) for scene in baseline.scenes)
    except DoesNotRun as error:
        baseline.notes.append(f"the noise of the weights was not measured: {error}")
        return
    baseline.runs += sum(1 for scene in baseline.scenes if scene.elements == large)


def _optimized(original: Model, baseline: Baseline, threads: int, every: bool, large: int) -> None:
    """What ORT_ENABLE_ALL changes: shown, and never part of the tolerance."""
    if not every and all(scene.elements == large for scene in baseline.scenes):
        return
    try:
        with open_model(original, optimize=True, threads=threads, fallback=False) as runner:
            baseline.optimized.extend(
                _run(runner, scene.feeds[0]) if every or scene.elements < large else {}
                for scene in baseline.scenes
            )
    except DoesNotRun as error:
        baseline.notes.append(f"ORT_ENABLE_ALL does not run the original: {error}")
        return
    baseline.runs += sum(1 for scene in baseline.scenes if every and scene.elements == large)
