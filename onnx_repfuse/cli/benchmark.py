"""`--bench`: the latency of the original and the fused model, interleaved in one process.

A round times a block of runs of each model, in alternating order. The ratio is taken within a round, so that a busy
machine slows both models alike. The spread is the quartiles over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from onnx_repfuse.records.outcome import Bench
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime

if TYPE_CHECKING:
    from onnx_repfuse.verifier.inputs import FeedSpec
    from onnx_repfuse.verifier.session import Model, Session

    _Timed: TypeAlias = tuple[Session, Mapping[str, Any]]

__all__ = ["measure"]

_MIN_BLOCK = 0.01  # seconds; a fast model is run several times, so that reading the clock does not count
_WARM_UP = 2  # runs; the first ones allocate memory
_MIN_ROUNDS, _MAX_ROUNDS = 7, 200


def measure(
    original: Model,
    fused: Model,
    spec: FeedSpec | None = None,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    seconds: float = 5.0,
) -> Bench:
    """Time two models that have the same inputs, under ORT_ENABLE_ALL.

    Args:
        original, fused: paths, or models in memory.
        spec: shapes or data of the inputs.
        runtime: how they are run, except for the optimization level.
        seconds: how long to measure; a slow model takes longer, for at least seven rounds.

    Raises:
        InputError: a model does not run.
    """
    from onnx_repfuse.verifier.input_hints import input_hints
    from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds
    from onnx_repfuse.verifier.session import open_session

    spec = spec or FeedSpec()
    single = FeedSpec(shapes=spec.shapes, data=spec.data[:1], seeds=(0,))
    with (
        open_session(original, runtime.optimized()) as first,
        open_session(fused, runtime.optimized()) as second,
    ):
        group = choose_feeds(first, single, input_hints(original, first.inputs))[0]
        feed = group.feeds[0]
        values = [feed[port.name] for port in first.inputs]  # the inputs of the two may have different names
        other = {port.name: value for port, value in zip(second.inputs, values, strict=True)}
        before, after = _rounds((first, feed), (second, other), seconds)
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return Bench(
        _quartiles([1000 * value for value in before]),
        _quartiles([1000 * value for value in after]),
        _quartiles(ratios),
        len(before),
        runtime.threads,
        dict(group.shapes),
    )


def _rounds(original: _Timed, fused: _Timed, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds per run of each model, one for each round."""
    _time(original, _WARM_UP)
    _time(fused, _WARM_UP)
    repeats = max(1, round(_MIN_BLOCK / max(_time(original, 1), 1e-6)))
    times: tuple[list[float], list[float]] = ([], [])
    models = (original, fused)
    end = time.perf_counter() + seconds
    for count in range(_MAX_ROUNDS):
        if count >= _MIN_ROUNDS and time.perf_counter() >= end:
            break
        # The order alternates, since the second of a round finds a warmer cache and a hotter processor.
        for index in (0, 1) if count % 2 == 0 else (1, 0):
            times[index].append(_time(models[index], repeats))
    return times


def _time(timed: _Timed, repeats: int) -> float:
    """Seconds of one run, averaged over a block."""
    session, feed = timed
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - start) / repeats


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """(median, low quartile, high quartile).

    >>> _quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    (3.0, 2.0, 4.0)
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last / 2)], ordered[round(last / 4)], ordered[round(3 * last / 4)]
