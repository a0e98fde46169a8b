"""The original, measured once: its outputs on every feed, its noise, and the tensors behind its decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.distance import Array, flatten
from onnx_repfuse.verifier.input_hints import input_hints
from onnx_repfuse.verifier.inputs import FeedGroup, FeedKey, FeedSpec, choose_feeds
from onnx_repfuse.verifier.intermediates import (
    Intermediates,
    open_with_extra_outputs,
    read_intermediates,
    readable_tensors,
)
from onnx_repfuse.verifier.noise import WEIGHTS_LIMIT, nudge_feed, nudged_weights
from onnx_repfuse.verifier.outputs.decision_tails import DecisionTail, find_tails, may_have_tails
from onnx_repfuse.verifier.outputs.float32_twin import (
    behind_short_weights,
    float32_twin,
    is_short,
    uses_short_floats,
    widened,
)
from onnx_repfuse.verifier.outputs.random_outputs import random_tensors
from onnx_repfuse.verifier.session import (
    DoesNotRun,
    Model,
    Session,
    file_size,
    input_names,
    load,
    open_session,
)
from onnx_repfuse.verifier.strong_feed import with_strong_feed
from onnx_repfuse.verifier.unrunnable import refuse_unrunnable

__all__ = [
    "Baseline",
    "Row",
    "complete_noise",
    "measure_noise_on",
    "measure_original",
    "read_nudged_intermediates",
]

Row = dict[str, "Array | None"]  # tensors by name, from one run; None for an absent optional
_FIRST_FEED: FeedKey = FeedKey(0, 0)
_QUICK_FILE = 16 << 20  # bytes; ORT_ENABLE_ALL is measured by default on files up to this size


@dataclass
class Baseline:
    """The original's values, measured once and compared against any number of candidates.

    Attributes:
        original: the model.
        runtime: how it was run, and candidates will be.
        backend: "onnxruntime" or "reference".
        groups: the feeds, by shape.
        inputs, outputs: names, in order.
        tails: of the outputs that have one, by name.
        random: tensors that depend on random numbers.
        deciding: the tensors that tails read and that are no inputs or outputs; read as extra outputs.
        values: outputs and deciding tensors, by group and feed.
        by_inputs, by_weights: the same with inputs, or weights, moved by one ulp, where measured.
        optimized: the outputs under ORT_ENABLE_ALL, where measured.
        twin: those of the float32 twin of a model in half precision, where it runs, to which half precision leads.
        own_errors: |value - float64|, where measured.
        captured: inner tensors on the very first feed moved by one ulp, until `read_nudged_intermediates` takes them.
        runs: how often it ran at the largest shape.
        notes: what was left out.
    """

    original: Model
    runtime: Runtime
    backend: str
    groups: list[FeedGroup]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tails: dict[str, DecisionTail]
    deciding: list[str]
    random: frozenset[str] = frozenset()
    values: dict[FeedKey, Row] = field(default_factory=dict)
    by_inputs: dict[FeedKey, Row] = field(default_factory=dict)
    by_weights: dict[FeedKey, Row] = field(default_factory=dict)
    optimized: dict[FeedKey, Row] = field(default_factory=dict)
    twin: dict[FeedKey, Row] = field(default_factory=dict)
    own_errors: dict[FeedKey, Row] = field(default_factory=dict)
    captured: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[FeedKey]:
        """Of every feed."""
        return [FeedKey(i, feed) for i, group in enumerate(self.groups) for feed in range(len(group.feeds))]

    def feed(self, key: FeedKey) -> dict[str, Any]:
        """Input name -> value."""
        return self.groups[key.group].feeds[key.feed]

    def is_largest(self, group: int) -> bool:
        """Whether this group has the largest inputs, whose runs are counted."""
        return self.groups[group].elements == max(other.elements for other in self.groups)

    def with_deciding_inputs(self, row: Row, feed: Mapping[str, Any]) -> Row:
        """The tensors of a run, and the inputs that a tail reads."""
        names = {name for tail in self.tails.values() for name in tail.deciding}
        return {**row, **{name: feed[name] for name in feed if name in names}}

    def count_run(self, key: FeedKey) -> None:
        """Count a run of the original, if it was at the largest shape."""
        self.runs += self.is_largest(key.group)


def measure_original(
    original: Model,
    *,
    spec: FeedSpec | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
    defer_noise: bool = False,
    skeleton: onnx.ModelProto | None = None,
    wanted: Sequence[Sequence[str]] = (),
) -> Baseline:
    """Run the original on its inputs, and on inputs and weights moved by one ulp.

    Args:
        original: a path, or a model in memory.
        spec: what the user said about the inputs.
        runtime: how it is run.
        optimized: also run it under ORT_ENABLE_ALL; None: where that is cheap.
        defer_noise: leave the noise of the inputs on the very first feed to `read_nudged_intermediates` or
            `complete_noise`, and that of the weights to `measure_noise_on`, for feeds that fail without it. It can only
            widen the tolerance, so what passes without it is proved by more. In half precision it is part of the
            measure (`is_judged_by_twin`) and not deferred.
        skeleton: the original without its weights, so that they need not be read for its integer inputs.
        wanted: what `read_nudged_intermediates` will be asked for; every run holds these tensors.

    Raises:
        NoImplementation: it has an operator that nothing here implements, or that ONNX Runtime never ends on, or a
            tensor too large to be run.
        InputError: it does not run; the message is one line.
    """
    spec = spec or FeedSpec()
    bounds_model = original if skeleton is None else skeleton
    parsed = _parsed(original, skeleton)
    if parsed is not None:
        refuse_unrunnable(parsed)
    in_half_precision = parsed is not None and uses_short_floats(parsed)
    tails = _tails(original, skeleton)
    run = partial(_run_original, original, bounds_model, spec, runtime, defer_noise, in_half_precision)
    baseline = _first_that_runs(run, tails, readable_tensors(bounds_model, wanted))
    if parsed is not None:
        baseline.random = random_tensors(parsed)
        if in_half_precision:
            _run_twin(baseline, behind_short_weights(parsed))
    # The other feeds of a group take the noise of its first, scaled, unless one of them fails.
    first_feeds = [FeedKey(group, 0) for group in range(len(baseline.groups))]
    if in_half_precision or not defer_noise:
        _measure_noise_of_weights(baseline, first_feeds)
    if optimized is None and file_size(original) <= _QUICK_FILE:
        _measure_optimized(baseline, [key for key in first_feeds if not baseline.is_largest(key.group)])
    elif optimized:
        _measure_optimized(baseline, first_feeds)
    return baseline


def read_nudged_intermediates(
    baseline: Baseline,
    wanted: Sequence[Sequence[str]],
    skeleton: onnx.ModelProto | None = None,
    elements: Mapping[str, int] | None = None,
) -> Iterator[tuple[list[int], Intermediates]]:
    """The original's inner tensors on the very first feed moved by one ulp, see `read_intermediates`.

    Folds can be compared on any input. On this one, the same run measures the noise of the inputs.
    """
    feed = baseline.feed(_FIRST_FEED)
    moved, names = nudge_feed(feed), [*baseline.outputs, *baseline.deciding]
    known, baseline.captured = baseline.captured, {}
    reading = read_intermediates(
        baseline.original,
        wanted,
        moved,
        runtime=replace(baseline.runtime, reuses_memory=False),  # nearly all it holds are outputs
        also=names,
        fallback_feed=feed,
        skeleton=skeleton,
        on_run=lambda: baseline.count_run(_FIRST_FEED),
        known=known,
        elements=elements,
    )
    for batch, values in reading:
        # With the first batch, unless the feed is the fallback.
        if not isinstance(values, str) and values.keys() >= set(names) and _holds(values, moved):
            row = flatten({name: values[name] for name in names})
            baseline.by_inputs[_FIRST_FEED] = baseline.with_deciding_inputs(row, moved)
        yield batch, values


def complete_noise(baseline: Baseline) -> None:
    """Measure the noise of the inputs on the very first feed if nobody did. Raises DoesNotRun."""
    if _FIRST_FEED not in baseline.by_inputs:
        _measure_noise_of_inputs(baseline, [_FIRST_FEED])


def measure_noise_on(baseline: Baseline, keys: Sequence[FeedKey]) -> bool:
    """Measure the noise where it is not known or only scaled from another feed: that of the weights on the first feed
    of each shape, on the feeds themselves, and where that is known, that of the inputs. Whether anything was measured.
    Raises DoesNotRun."""
    first_feeds = list(dict.fromkeys(FeedKey(key.group, 0) for key in keys))
    # One table a call: where the noise of the weights is enough to pass, the runs for the inputs are saved.
    for wanted, table, measure in (
        (first_feeds, baseline.by_weights, _measure_noise_of_weights),
        (keys, baseline.by_weights, _measure_noise_of_weights),
        (keys, baseline.by_inputs, _measure_noise_of_inputs),
    ):
        missing = [key for key in wanted if key not in table]
        if missing:
            measure(baseline, missing)
            if not table.keys().isdisjoint(missing):
                return True
    return False


def _first_that_runs(
    run: Callable[[dict[str, DecisionTail], Sequence[str]], Baseline],
    tails: dict[str, DecisionTail],
    inner: Sequence[str],
) -> Baseline:
    """A run with inner tensors as outputs, else with the deciding ones alone, else with none: not all can be read."""
    with suppress(DoesNotRun):
        return run(tails, inner)
    if inner:
        with suppress(DoesNotRun):
            return run(tails, ())
    return run({}, ())


def _run_original(
    original: Model,
    bounds_model: Model,
    spec: FeedSpec,
    runtime: Runtime,
    defer_noise: bool,
    in_half_precision: bool,
    tails: dict[str, DecisionTail],
    inner: Sequence[str],
) -> Baseline:
    deciding = _extra_outputs(bounds_model, tails)
    whole = runtime.reusing_memory()
    used = runtime if inner else whole  # with inner tensors, outputs may be most of what it holds
    with open_with_extra_outputs(original, sorted({*deciding, *inner}), used) as opened:
        session = opened.without_outputs(set(inner).difference(deciding))
        groups = choose_feeds(session, spec, input_hints(bounds_model, session.inputs))
        if in_half_precision and not spec.data:
            groups[0] = with_strong_feed(groups[0], session)
        inputs = tuple(value.name for value in session.inputs)
        outputs = tuple(value.name for value in session.outputs if value.name not in deciding)
        baseline = Baseline(original, whole, session.backend, groups, inputs, outputs, tails, deciding)
        for key in baseline.keys:  # the runs that chose the sizes
            row = flatten(groups[key.group].outputs[key.feed])
            baseline.values[key] = baseline.with_deciding_inputs(row, baseline.feed(key))
            baseline.count_run(key)
        # The first feed of every group, but for the very first where its noise comes later.
        _run_nudged(baseline, session, [FeedKey(group, 0) for group in range(int(defer_noise), len(groups))])
        if inner:
            baseline.captured = _capture(baseline, opened)
    return baseline


def _capture(baseline: Baseline, session: Session) -> dict[str, Any]:
    """All that a session gives on the very first feed moved by one ulp, whose noise that is; {} if it does not run."""
    moved = nudge_feed(baseline.feed(_FIRST_FEED))
    try:
        values = session.run(moved)
    except DoesNotRun:  # as where a size is computed from the inputs; others are tried
        return {}
    baseline.count_run(_FIRST_FEED)
    row = flatten({name: values[name] for name in (*baseline.outputs, *baseline.deciding)})
    baseline.by_inputs[_FIRST_FEED] = baseline.with_deciding_inputs(row, moved)
    return {**moved, **values}


def _holds(values: Mapping[str, Any], feed: Mapping[str, Any]) -> bool:
    return all(values.get(name) is value for name, value in feed.items())


def _tails(original: Model, skeleton: onnx.ModelProto | None) -> dict[str, DecisionTail]:
    """None of a large file, which is not parsed, nor of one whose nodes alone show that there are none."""
    has_none = skeleton is not None and not may_have_tails(skeleton.graph)
    if has_none or file_size(original) > WEIGHTS_LIMIT:
        return {}
    return find_tails(load(original, weights=False))


def _parsed(original: Model, skeleton: onnx.ModelProto | None) -> onnx.ModelProto | None:
    """The original as a proto; None of a large file without a skeleton, which is not parsed."""
    if skeleton is not None:
        return skeleton
    if file_size(original) > WEIGHTS_LIMIT:
        return None
    return load(original, weights=False)


def _extra_outputs(original: Model, tails: dict[str, DecisionTail]) -> list[str]:
    if not tails:
        return []
    graph = load(original, weights=False).graph
    names = {name for tail in tails.values() for name in tail.deciding}
    return sorted(names - set(input_names(graph)) - {value.name for value in graph.output})


def _measure_noise_of_inputs(baseline: Baseline, keys: Sequence[FeedKey]) -> None:
    with open_with_extra_outputs(baseline.original, baseline.deciding, baseline.runtime) as session:
        _run_nudged(baseline, session, keys)


def _run_nudged(baseline: Baseline, session: Session, keys: Sequence[FeedKey]) -> None:
    for key in keys:
        moved = nudge_feed(baseline.feed(key))
        row = _run(baseline, session, key, moved)
        baseline.by_inputs[key] = baseline.with_deciding_inputs(row, moved)


def _measure_noise_of_weights(baseline: Baseline, keys: Sequence[FeedKey]) -> None:
    moved = nudged_weights(baseline.original)
    if moved is None:
        note = "the noise of the weights was not measured: the model is too large, or has none"
        if note not in baseline.notes:
            baseline.notes.append(note)
        return
    try:
        with open_with_extra_outputs(moved, baseline.deciding, baseline.runtime) as session:
            for key in keys:
                baseline.by_weights[key] = _run(baseline, session, key, baseline.feed(key))
    except DoesNotRun as error:
        baseline.notes.append(f"the noise of the weights was not measured: {error}")


def _run_twin(baseline: Baseline, behind: Set[str]) -> None:
    """Run the float32 twin on every feed. It is not counted: it is another model than the original.

    Args:
        baseline: whose `twin` is filled.
        behind: the tensors that depend on half-precision weights. Those that are in half precision come along.
    """
    twin = float32_twin(baseline.original)
    if twin is None:
        baseline.notes.append("the original was not run in float32: it is too large")
        return
    try:
        with open_with_extra_outputs(twin, baseline.deciding, baseline.runtime) as session:
            for key in baseline.keys:
                feed = widened(baseline.feed(key))
                row = baseline.with_deciding_inputs(flatten(session.run(feed)), feed)
                values = baseline.values[key]
                baseline.twin[key] = {
                    name: value
                    for name, value in row.items()
                    if name in behind or _is_short(values.get(name))
                }
    except DoesNotRun as error:
        baseline.twin.clear()
        baseline.notes.append(f"the original does not run in float32: {error}")


def _is_short(value: Array | None) -> bool:
    return value is not None and is_short(value.dtype)


def _measure_optimized(baseline: Baseline, keys: Sequence[FeedKey]) -> None:
    """What ORT_ENABLE_ALL changes: shown to the user, and never part of the tolerance."""
    if not keys or baseline.backend != "onnxruntime":
        return
    try:
        # Not the reference evaluator, which optimizes nothing.
        with open_session(baseline.original, baseline.runtime.optimized(), fallback=False) as session:
            for key in keys:
                baseline.optimized[key] = _run(baseline, session, key, baseline.feed(key))
    except DoesNotRun as error:
        baseline.notes.append(f"ORT_ENABLE_ALL does not run the original: {error}")


def _run(baseline: Baseline, session: Session, key: FeedKey, feed: dict[str, Any]) -> Row:
    """The outputs on a variant of a feed, counted as a run; empty where the model does not take it."""
    baseline.count_run(key)
    try:
        return flatten(session.run(feed))
    except DoesNotRun:  # as where a size is computed from the inputs; then there is no noise to take
        return {}
