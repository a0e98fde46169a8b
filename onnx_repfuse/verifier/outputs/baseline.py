"""The original, measured: its outputs on every feed, its noise, and the tensors its decisions hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.distance import Array, flatten
from onnx_repfuse.verifier.inputs import FeedGroup, FeedSpec, choose_feeds, index_bounds
from onnx_repfuse.verifier.intermediates import open_with_extra_outputs, tensor_names
from onnx_repfuse.verifier.noise import WEIGHTS_LIMIT, nudge_feed, nudged_weights
from onnx_repfuse.verifier.outputs.decision_tails import Tail, tails
from onnx_repfuse.verifier.session import DoesNotRun, Model, Session, load, open_session

__all__ = [
    "Baseline",
    "Key",
    "Row",
    "complete",
    "count_run",
    "measure_noise",
    "measure_original",
    "read_noise",
]

_SMALL = 16 << 20  # bytes; the ORT_ENABLE_ALL figure is shown by default for models up to this size
Row = dict[str, "Array | None"]
Key = tuple[int, int]  # scene, feed
FIRST: Key = (0, 0)


@dataclass
class Baseline:
    """The original's values, measured once and compared against any number of candidates.

    Attributes:
        original: the model.
        groups: the shapes and feeds.
        values: per scene and feed, the outputs and the tensors behind decisions.
        tapped: the noise of the inputs on the very first feed is left to a run that reads activations as well.
        by_inputs, by_weights, optimized: the same with inputs or weights moved by an ulp, or under
            ORT_ENABLE_ALL; by (scene, feed), where measured.
        ports: names of the inputs and the outputs.
        tails: of the outputs that hide what decides them.
        backend: who ran it: "onnxruntime" or "reference".
        runs: how often it ran at the largest shape.
        runtime: how it is run.
        notes: what was left out.
    """

    original: Model
    groups: list[FeedGroup]
    values: list[list[Row]]
    ports: tuple[tuple[str, ...], tuple[str, ...]]
    tails: dict[str, Tail]
    backend: str
    runtime: Runtime
    tapped: bool = False
    by_inputs: dict[Key, Row] = field(default_factory=dict)
    by_weights: dict[Key, Row] = field(default_factory=dict)
    optimized: dict[Key, Row] = field(default_factory=dict)
    runs: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def hidden(self) -> list[str]:
        """The tensors to read beside the outputs."""
        inputs, outputs = self.ports
        names = {name for tail in self.tails.values() for name in tail.reads}
        return sorted(names - set(inputs) - set(outputs))

    def is_large(self, scene: int) -> bool:
        """Whether this scene has the largest inputs, whose runs are counted."""
        return self.groups[scene].elements == max(one.elements for one in self.groups)

    def each(self) -> list[Key]:
        """(scene, feed) of every feed."""
        return [(i, j) for i, scene in enumerate(self.groups) for j in range(len(scene.feeds))]


def measure_original(
    original: Model,
    *,
    feeds: FeedSpec | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
    optimized: bool | None = None,
    tapped: bool = False,
    skeleton: onnx.ModelProto | None = None,
) -> Baseline:
    """Run the original on its inputs, and on inputs and weights moved by an ulp.

    Args:
        original: a path, or a model in memory.
        feeds: what is known about the inputs.
        runtime: how it is run.
        optimized: also run it under ORT_ENABLE_ALL; None: where that is cheap.
        tapped: `read_noise` will be given what the original makes of its first feed moved by an ulp; else
            `complete` measures it.
        skeleton: the original without its weights, so that they need not be read for its integer inputs.

    Raises:
        InputError: it does not run; the message is one line.
    """
    found = _tails(original)
    hidden = sorted({name for tail in found.values() for name in tail.reads} - _public(original, found))
    try:
        baseline = _measure(original, skeleton, found, hidden, feeds or FeedSpec(), runtime, tapped)
    except DoesNotRun:
        baseline = _measure(original, skeleton, {}, [], feeds or FeedSpec(), runtime, tapped)
    first = [(index, 0) for index in range(len(baseline.groups))]
    _weights_noise(baseline, first)
    small = not isinstance(original, Path | str) or Path(original).stat().st_size <= _SMALL
    if (optimized or (optimized is None and small)) and baseline.backend == "onnxruntime":
        _optimized(baseline, [key for key in first if optimized or not baseline.is_large(key[0])])
    return baseline


def count_run(baseline: Baseline) -> None:
    """Count a run of the original on its very first feed."""
    baseline.runs += baseline.is_large(FIRST[0])


def read_noise(baseline: Baseline, moved: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Take the noise of the inputs from a run that read other tensors as well.

    Args:
        moved: the very first feed, moved by an ulp.
        seen: what was read, and the feed; nothing is taken if that was another, or outputs are missing.
    """
    names = {*baseline.ports[1], *baseline.hidden}
    if names <= set(seen) and all(seen.get(name) is value for name, value in moved.items()):
        _enter(baseline, FIRST, moved, flatten({name: seen[name] for name in names}))


def complete(baseline: Baseline) -> None:
    """Measure the noise of the inputs on the very first feed, if nobody did. Raises DoesNotRun."""
    if FIRST not in baseline.by_inputs:
        _by_inputs(baseline, [FIRST])


def measure_noise(baseline: Baseline, keys: Sequence[Key]) -> bool:
    """Measure noise on feeds where it was only scaled from another: that of the weights, and when that was done
    before, that of the inputs. Whether anything was measured. Raises DoesNotRun."""
    for table, measure in ((baseline.by_weights, _weights_noise), (baseline.by_inputs, _by_inputs)):
        missing = [key for key in keys if key not in table]
        if missing:
            measure(baseline, missing)
            if any(key in table for key in missing):
                return True
    return False


def _by_inputs(baseline: Baseline, keys: Sequence[Key]) -> None:
    with open_with_extra_outputs(baseline.original, baseline.hidden, baseline.runtime) as runner:
        _inputs_noise(baseline, runner, keys)


def _measure(
    original: Model,
    skeleton: onnx.ModelProto | None,
    found: dict[str, Tail],
    hidden: Sequence[str],
    spec: FeedSpec,
    runtime: Runtime,
    tapped: bool,
) -> Baseline:
    with open_with_extra_outputs(original, hidden, runtime) as runner:
        chosen = choose_feeds(runner, spec, index_bounds(skeleton or original, runner.inputs))
        inputs = tuple(port.name for port in runner.inputs)
        outputs = tuple(port.name for port in runner.outputs if port.name not in hidden)
        values = [[flatten(row) for row in group.outputs] for group in chosen]
        baseline = Baseline(
            original,
            chosen,
            values,
            (inputs, outputs),
            found,
            runner.backend,
            runtime,
            tapped,
        )
        for scene, rows in zip(baseline.groups, values, strict=True):
            for feed, row in zip(scene.feeds, rows, strict=True):
                row.update({name: value for name, value in feed.items() if _is_read(found, name)})
        baseline.runs = sum(len(s.feeds) for i, s in enumerate(baseline.groups) if baseline.is_large(i))
        _inputs_noise(baseline, runner, [(index, 0) for index in range(int(tapped), len(baseline.groups))])
    return baseline


def _is_read(found: dict[str, Tail], name: str) -> bool:
    return any(name in tail.reads for tail in found.values())


def _tails(original: Model) -> dict[str, Tail]:
    if isinstance(original, Path | str) and _size(original) > WEIGHTS_LIMIT:
        return {}
    return tails(load(original, weights=False))


def _size(path: Path | str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _public(original: Model, found: dict[str, Tail]) -> set[str]:
    if not found:
        return set()
    made, outputs = tensor_names(original)
    produced = {name for node in load(original, weights=False).graph.node for name in node.output}
    return outputs | (made - produced)


def _inputs_noise(baseline: Baseline, runner: Session, keys: Sequence[Key]) -> None:
    for scene, feed in keys:
        moved = nudge_feed(baseline.groups[scene].feeds[feed])
        _enter(baseline, (scene, feed), moved, _run(runner, moved))
        baseline.runs += baseline.is_large(scene)


def _enter(baseline: Baseline, key: Key, moved: Mapping[str, Any], row: Row) -> None:
    row.update({name: value for name, value in moved.items() if _is_read(baseline.tails, name)})
    baseline.by_inputs[key] = row


def _weights_noise(baseline: Baseline, keys: Sequence[Key]) -> None:
    moved = nudged_weights(baseline.original)
    if moved is None:
        note = "the noise of the weights was not measured: the model is too large, or has none"
        baseline.notes = list(dict.fromkeys([*baseline.notes, note]))
        return
    try:
        with open_with_extra_outputs(moved, baseline.hidden, baseline.runtime) as runner:
            for scene, feed in keys:
                baseline.by_weights[scene, feed] = _run(runner, baseline.groups[scene].feeds[feed])
                baseline.runs += baseline.is_large(scene)
    except DoesNotRun as error:
        baseline.notes.append(f"the noise of the weights was not measured: {error}")


def _optimized(baseline: Baseline, keys: Sequence[Key]) -> None:
    """What ORT_ENABLE_ALL changes: shown, and never part of the tolerance."""
    if not keys:
        return
    try:
        with open_session(baseline.original, baseline.runtime.optimized(), fallback=False) as runner:
            for scene, feed in keys:
                baseline.optimized[scene, feed] = _run(runner, baseline.groups[scene].feeds[feed])
                baseline.runs += baseline.is_large(scene)
    except DoesNotRun as error:
        baseline.notes.append(f"ORT_ENABLE_ALL does not run the original: {error}")


def _run(runner: Session, feed: dict[str, Any]) -> Row:
    try:
        return flatten(runner.run(feed))
    except DoesNotRun:
        return {}
