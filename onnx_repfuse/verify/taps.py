"""Taps: a fold's replacement on the original's own activations, against what the original has at its root.

No depth, no saturation and no argmax is in the way: what the fold gets wrong shows where it is made. The
tolerance is the probes', with the magnitudes of a small tile whose channels hold levels the activations
reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_repfuse.errors import InputError
from onnx_repfuse.verify.cases import FoldCase, reach
from onnx_repfuse.verify.feeds import Feed, FeedSpec, scenes
from onnx_repfuse.verify.measure import difference
from onnx_repfuse.verify.noise import nudge_feed
from onnx_repfuse.verify.sessions import DoesNotRun, Model, Runner, open_model
from onnx_repfuse.verify.tapped import open_tapped, tensor_names
from onnx_repfuse.verify.tolerance import Side, Worst, ulps_tolerance
from onnx_repfuse.verify.truth import Unsupported
from onnx_repfuse.verify.verdict import FoldVerdict, Status

__all__ = ["tap"]

Array = np.ndarray[Any, np.dtype[Any]]
_MEMORY = 1 << 30
_REFERENCE_PRODUCTS = 300_000_000


def tap(
    original: Model,
    cases: Sequence[FoldCase],
    feeds: FeedSpec | Sequence[Feed] | None = None,
    *,
    threads: int = 1,
    memory: int = _MEMORY,
) -> list[FoldVerdict]:
    """Judge folds in place.

    Args:
        original: the model they were found in.
        cases: the folds; their sources and outputs are tensors of the original's main graph.
        feeds: whole-model inputs (the first is used), or what is known about them.
        threads: threads of the sessions.
        memory: bytes of activations to hold at once; more take more runs of the original.

    Returns:
        one verdict per case, in order. NOT_OBSERVED where the original's tensors cannot be read (inside a
        subgraph) or hold no signal.

    Raises:
        InputError: the original does not run.
    """
    made, public = tensor_names(original)
    wanted = [(*(source.name for source in case.sources), case.output) for case in cases]
    verdicts: list[FoldVerdict | None] = [
        None if set(names) <= made else _unseen(case, "its tensors are not in the main graph")
        for case, names in zip(cases, wanted, strict=True)
    ]
    live = [index for index, verdict in enumerate(verdicts) if verdict is None]
    if not live:
        return [verdict for verdict in verdicts if verdict is not None]
    feed = _feed(original, feeds, threads)
    needed = {name for index in live for name in wanted[index]}
    extra = sorted(needed - public - set(feed))
    with open_tapped(original, extra, threads) as runner:
        for batch in _batches(runner, feed, live, wanted, memory):
            names = sorted({name for index in batch for name in wanted[index]} - set(feed))
            try:
                values = {**feed, **runner.run(feed, names)}
            except DoesNotRun as error:
                raise InputError(f"the model does not run: {error}") from error
            for index in batch:
                verdicts[index] = _judge(cases[index], values, threads)
    return [verdict for verdict in verdicts if verdict is not None]


def _feed(original: Model, feeds: FeedSpec | Sequence[Feed] | None, threads: int) -> Feed:
    if feeds is not None and not isinstance(feeds, FeedSpec):
        return dict(feeds[0])
    spec = feeds or FeedSpec()
    one = FeedSpec(spec.shapes, spec.data[:1], spec.seeds[:1] or (0,))
    with open_model(original, threads=threads) as runner:
        (scene, _), *_ = scenes(runner, one)
    return dict(scene.feeds[0])


def _batches(
    runner: Runner, feed: Feed, live: Sequence[int], wanted: Sequence[tuple[str, ...]], memory: int
) -> Iterator[list[int]]:
    """Folds whose tensors fit into memory together, by the shapes the runtime infers."""
    guess = max((int(np.size(value)) for value in feed.values() if not isinstance(value, list)), default=1)
    sizes: dict[str, int] = dict.fromkeys(feed, 0)
    for port in runner.outputs:
        known = [dim for dim in port.shape if isinstance(dim, int) and dim > 0]
        whole = len(known) == len(port.shape) and port.shape
        sizes[port.name] = 4 * (int(np.prod(known)) if whole else max(guess * 8, int(np.prod(known or [1]))))
    batch: list[int] = []
    held: set[str] = set()
    for index in live:
        more = held | set(wanted[index])
        if batch and sum(sizes.get(name, 4 * guess) for name in more) > memory:
            yield batch
            batch, more = [], set(wanted[index])
        batch.append(index)
        held = more
    if batch:
        yield batch


def _judge(case: FoldCase, values: Mapping[str, Any], threads: int) -> FoldVerdict:
    inputs = {source.name: values[source.name] for source in case.sources}
    root = np.asarray(values[case.output])
    if not root.size or not any(np.any(value) for value in inputs.values()):
        return _unseen(case, "the activations it reads are all zero")
    try:
        after = open_model(case.after, threads=threads)
        if after.judge == "reference" and case.weights * root.size > _REFERENCE_PRODUCTS * root.shape[1]:
            return _unseen(case, "onnx's reference evaluator is too slow for it", after.judge)
        new = after.run(inputs)[case.output]
    except DoesNotRun as error:
        return _failed(case, f"its replacement does not run in place: {error}")
    if new.shape != root.shape:
        return _failed(case, f"in place its shape is {new.shape} instead of {root.shape}", after.judge)
    worst = Worst(case.output, after.judge)
    usable = np.isfinite(root) & (np.abs(np.nan_to_num(root.astype(np.float64))) < case.largest / 4)
    if not usable.any():
        return _unseen(case, "the original's activations overflow there", after.judge)
    gap = np.where(usable, difference(root, new), 0.0)
    try:
        allowed = _allowed(case, inputs, root.ndim)
    except Unsupported as reason:
        worst.note(f"the oracle does not know {reason}; the runtime alone was the judge")
        try:
            allowed = _by_noise(case, inputs, root, threads)
        except DoesNotRun as error:
            return _failed(case, f"its nodes do not run alone: {error}", after.judge)
    worst.see(gap, allowed, "on the model's own activations")
    return worst.verdict("tap")


def _allowed(case: FoldCase, inputs: Mapping[str, Array], rank: int) -> Array:
    """Per output channel, broadcastable to the root: what rounding may change at these activations."""
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
        channel = case.sources[0].channel if rank > 1 else 0
        total = after.fold(before) + before.run(spread=True) + after.run(spread=True)
        total = np.broadcast_to(total, before.value.shape)
        axes = tuple(axis for axis in range(rank) if axis != channel % rank)
        return np.asarray(total.max(axes, keepdims=True))
    raise Unsupported(f"these nodes at a small size ({last})")


def _tiles(case: FoldCase, inputs: Mapping[str, Array], size: tuple[int, ...]) -> Iterable[dict[str, Array]]:
    """Small constant inputs at the level of the activations; then one batch of the activations themselves."""
    levels = {source.name: _level(inputs[source.name], source.channel, case.depth) for source in case.sources}
    if len(case.sources) == 1:
        (source,) = case.sources
        axes = max(len(source.space), 1)
        yield {source.name: np.broadcast_to(levels[source.name], source.shape(1, (size * axes)[:axes]))}
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


def _by_noise(case: FoldCase, inputs: Mapping[str, Array], root: Array, threads: int) -> Array:
    with open_model(case.before, threads=threads) as before:
        return ulps_tolerance(root, [before.run(nudge_feed(inputs, seed))[case.output] for seed in (1, 2)])


def _unseen(case: FoldCase, why: str, judge: str = "onnxruntime") -> FoldVerdict:
    message = f"'{case.output}' was not observed: {why}"
    return FoldVerdict(case.output, Status.NOT_OBSERVED, "tap", 0.0, 0.0, judge, message)


def _failed(case: FoldCase, message: str, judge: str = "onnxruntime") -> FoldVerdict:
    return FoldVerdict(
        case.output, Status.FAILED, "tap", float("inf"), 0.0, judge, f"'{case.output}': {message}"
    )
