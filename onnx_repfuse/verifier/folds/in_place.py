"""Taps: a fold's replacement on the original's own activations, against what the original has at its root.

No depth, no saturation and no argmax is in the way: what the fold gets wrong shows where it is made. The
tolerance is the probes', with the magnitudes of a small tile whose channels hold levels the activations
reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.records.verdict import FoldVerdict, Status
from onnx_repfuse.verifier.distance import difference
from onnx_repfuse.verifier.folds.error_bound import Side, Worst, ulps_tolerance
from onnx_repfuse.verifier.folds.fold_case import FoldCase, reach
from onnx_repfuse.verifier.inputs import Feed, FeedSpec, choose_feeds
from onnx_repfuse.verifier.intermediates import MAX_INTERMEDIATE_BYTES, Intermediates, read_intermediates
from onnx_repfuse.verifier.noise import nudge_feed
from onnx_repfuse.verifier.oracle.tensor import Unsupported
from onnx_repfuse.verifier.session import DoesNotRun, Model, open_session

__all__ = ["judge", "tap"]

Array = np.ndarray[Any, np.dtype[Any]]
_REFERENCE_PRODUCTS = 300_000_000


def tap(
    original: Model,
    cases: Sequence[FoldCase],
    feeds: FeedSpec | Sequence[Feed] | None = None,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    memory: int = MAX_INTERMEDIATE_BYTES,
) -> list[FoldVerdict]:
    """Judge folds in place.

    Args:
        original: the model they were found in.
        cases: the folds; their sources and outputs are tensors of the original's main graph.
        feeds: whole-model inputs (the first is used), or what is known about them.
        runtime: how they are run.
        memory: bytes of activations to hold at once; more take more runs of the original.

    Returns:
        one verdict per case, in order. NOT_OBSERVED where the original's tensors cannot be read (inside a
        subgraph) or hold no signal.

    Raises:
        InputError: the original does not run.
    """
    wanted = [(*(source.name for source in case.sources), case.output) for case in cases]
    feed = _feed(original, feeds, runtime)
    verdicts: dict[int, FoldVerdict] = {}
    for batch, seen in read_intermediates(original, wanted, feed, runtime=runtime, max_bytes=memory):
        verdicts.update({index: judge(cases[index], seen, runtime) for index in batch})
    return [verdicts[index] for index in range(len(cases))]


def _feed(original: Model, feeds: FeedSpec | Sequence[Feed] | None, runtime: Runtime) -> Feed:
    if feeds is not None and not isinstance(feeds, FeedSpec):
        return dict(feeds[0])
    spec = feeds or FeedSpec()
    one = FeedSpec(spec.shapes, spec.data[:1], spec.seeds[:1] or (0,))
    with open_session(original, runtime) as runner:
        group = choose_feeds(runner, one)[0]
    return dict(group.feeds[0])


def judge(case: FoldCase, seen: Intermediates, runtime: Runtime = DEFAULT_RUNTIME) -> FoldVerdict:
    """Judge one fold by tensors of the original that were read, its sources and its output among them."""
    if isinstance(seen, str):
        return _unseen(case, seen)
    inputs = {source.name: seen[source.name] for source in case.sources}
    root = np.asarray(seen[case.output])
    if not root.size or not any(np.any(value) for value in inputs.values()):
        return _unseen(case, "the activations it reads are all zero")
    case = _of_seen_ranks(case, inputs)
    try:
        after = open_session(case.after, runtime)
        if after.backend == "reference" and case.weights * root.size > _REFERENCE_PRODUCTS * root.shape[1]:
            return _unseen(case, "onnx's reference evaluator is too slow for it", after.backend)
        new = after.run(inputs)[case.output]
    except DoesNotRun as error:
        return _failed(case, f"its replacement does not run in place: {error}")
    if new.shape != root.shape:
        return _failed(case, f"in place its shape is {new.shape} instead of {root.shape}", after.backend)
    worst = Worst(case.output, after.backend)
    usable = np.isfinite(root) & (np.abs(np.nan_to_num(root.astype(np.float64))) < case.largest / 4)
    if not usable.any():
        return _unseen(case, "the original's activations overflow there", after.backend)
    gap = np.where(usable, difference(root, new), 0.0)
    try:
        allowed = _allowed(case, inputs, root.shape)
    except Unsupported as reason:
        worst.note(f"the oracle does not know {reason}; the runtime alone was the judge")
        try:
            allowed = _by_noise(case, inputs, root, runtime)
        except DoesNotRun as error:
            return _failed(case, f"its nodes do not run alone: {error}", after.backend)
    worst.see(gap, allowed, "on the model's own activations")
    return worst.verdict("tap")


def _of_seen_ranks(case: FoldCase, inputs: Mapping[str, Array]) -> FoldCase:
    """The case with the ranks that were seen, where it was declared with others: a product on the last axis takes
    any, and the file need not prove one."""
    other = {s.name: s for s in case.sources if len(s.dims) != np.ndim(inputs[s.name])}
    if not other:
        return case
    models = []
    for model in (case.before, case.after):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for value in copy.graph.input:
            source = other.get(value.name)
            if source is not None:
                rank, channels = np.ndim(inputs[value.name]), source.dims[source.channel]
                last = channels if source.channel == len(source.dims) - 1 else None
                dims = [*(f"d{axis}" for axis in range(rank - 1)), last or "channels"]
                kind = value.type.tensor_type.elem_type
                value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, dims))
        models.append(copy)
    return replace(case, before=models[0], after=models[1])


def _allowed(case: FoldCase, inputs: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Per output channel, broadcastable to the root's shape: what rounding may change at these activations."""
    first, second = Side(case, case.before), Side(case, case.after)
    extents, stride = reach(case)
    size = tuple(extent + stride + 1 for extent in extents) or (2,)
    last: Exception = Unsupported("these sizes")
    for feed in _tiles(case, inputs, size):
        try:
            before, after = first(feed), second(feed)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            last = error
            continue
        total = after.fold(before) + before.run(spread=True) + after.run(spread=True)
        total = np.broadcast_to(total, before.value.shape)
        rank = len(shape)
        if total.ndim != rank:
            raise Unsupported("their rank")
        likely = [axis % rank for axis in (case.sources[0].channel, 1, -1) if -rank <= axis < rank]
        channel = next((axis for axis in likely if total.shape[axis] == shape[axis]), None)
        axes = tuple(axis for axis in range(rank) if axis != channel)
        return np.asarray(total.max(axes, keepdims=True))
    raise Unsupported(f"these nodes at a small size ({last})")


def _tiles(case: FoldCase, inputs: Mapping[str, Array], size: tuple[int, ...]) -> Iterable[dict[str, Array]]:
    """Small constant inputs at the level of the activations; then one batch of the activations themselves."""
    levels = {source.name: _level(inputs[source.name], source.channel, case.depth) for source in case.sources}
    if len(case.sources) == 1:
        (source,) = case.sources
        axes = max(len(source.space), 1)
        level = levels[source.name]
        if level.ndim == len(source.dims):
            guess = source.shape(
                1, (size * axes)[:axes]
            )  # channels that nobody declared have a made-up number
            shape = tuple(
                known if known > 1 else made for known, made in zip(level.shape, guess, strict=True)
            )
            yield {source.name: np.broadcast_to(level, shape)}
    yield {
        name: np.broadcast_to(level, (1, *np.shape(inputs[name])[1:]) if level.ndim > 1 else level.shape)
        for name, level in levels.items()
    }


def _level(value: Array, channel: int, depth: int) -> Array:
    """Per channel, a size that is rarely exceeded by many channels at once; shape (1, ..., C, ..., 1).

    With few channels per sum that is the largest |x|. With many it is the root mean square, raised by how
    much the most energetic position stands out.
    """
    wide = np.abs(np.nan_to_num(np.asarray(value, dtype=np.float64), posinf=0.0, neginf=0.0))
    if wide.ndim < 2:
        return wide
    others = tuple(axis for axis in range(wide.ndim) if axis != channel)
    top = wide.max(others, keepdims=True)
    if depth < 32:
        return np.asarray(top)
    square = np.square(wide)
    energy = square.mean(channel)
    peak = float(energy.max() / energy.mean()) if energy.any() else 1.0
    return np.asarray(np.minimum(top, 1.5 * np.sqrt(peak * square.mean(others, keepdims=True))))


def _by_noise(case: FoldCase, inputs: Mapping[str, Array], root: Array, runtime: Runtime) -> Array:
    with open_session(case.before, runtime) as before:
        return ulps_tolerance(root, [before.run(nudge_feed(inputs, seed))[case.output] for seed in (1, 2)])


def _unseen(case: FoldCase, why: str, judge: str = "onnxruntime") -> FoldVerdict:
    message = f"'{case.output}' was not observed: {why}"
    return FoldVerdict(case.output, Status.NOT_OBSERVED, "tap", 0.0, 0.0, judge, message)


def _failed(case: FoldCase, message: str, judge: str = "onnxruntime") -> FoldVerdict:
    return FoldVerdict(
        case.output, Status.FAILED, "tap", float("inf"), 0.0, judge, f"'{case.output}': {message}"
    )
