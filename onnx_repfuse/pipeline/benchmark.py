"""`--bench`: the latency of the original and the fused model, interleaved in one process.

A round times a block of runs of each model, in alternating order. The ratio is taken within a round, so that a busy
machine slows both models alike. The spread is the quartiles over the rounds.

Processors are slow with subnormal numbers, which weights may be, and activations may become. ONNX Runtime's setting
`session.set_denormal_as_zero` takes them for zeros. `measure_as_zero` says what it would gain, in a process of its own:
the first session of a process decides for the thread that opens it, and for threads that this one starts later.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.outcome import Bench
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime

if TYPE_CHECKING:
    from onnx_repfuse.verifier.inputs import FeedSpec
    from onnx_repfuse.verifier.session import Model, Session

    _Timed: TypeAlias = tuple[Session, Mapping[str, Any]]

__all__ = ["measure", "measure_as_zero"]

_MIN_BLOCK = 0.01  # seconds; a fast model is run several times, so that reading the clock does not count
_WARM_UP = 3  # runs at least; the first ones allocate memory, and some providers compile then
_WARM_UP_SECONDS = 0.3  # that a processor takes to leave its idle clock
_MAX_WARM_UP = 100
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
    from onnx_repfuse.verifier.inputs import converted, renamed
    from onnx_repfuse.verifier.session import open_session

    with (
        open_session(original, runtime.optimized()) as first,
        open_session(fused, runtime.optimized()) as second,
    ):
        feed, shapes = _feed(original, first, spec)
        names = [port.name for port in first.inputs]
        others = [port.name for port in second.inputs]
        if set(names) != set(others):  # then their order tells which is which
            feed_of_other = renamed(feed, dict(zip(names, others, strict=True)))
        else:
            feed_of_other = dict(feed)
        other = converted(feed_of_other, second.inputs)
        timed = partial(_time, (first, feed)), partial(_time, (second, other))
        before, after, warm_up = _rounds(*timed, seconds)
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return Bench(
        _quartiles([1000 * value for value in before]),
        _quartiles([1000 * value for value in after]),
        _quartiles(ratios),
        len(before),
        runtime.threads,
        shapes,
        runtime.providers[0],
        warm_up,
    )


def measure_as_zero(
    model: Model, spec: FeedSpec | None = None, *, runtime: Runtime = DEFAULT_RUNTIME, seconds: float = 3.0
) -> tuple[float, float, float]:
    """How many times as fast a model is where subnormal numbers are zeros: (median, low quartile, high quartile).

    The arguments are those of `measure`.

    Raises:
        InputError: the model does not run.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_gain_as_zero, model, spec, runtime, seconds).result()
        except BrokenProcessPool as error:
            raise InputError("the process that takes subnormal numbers for zeros has ended") from error


def _gain_as_zero(
    model: Model, spec: FeedSpec | None, runtime: Runtime, seconds: float
) -> tuple[float, float, float]:
    """`measure_as_zero`, in a process that has opened no session yet."""
    from onnx_repfuse.verifier.session import open_session

    with ThreadPoolExecutor(1) as thread:
        thread.submit(int).result()  # started before the session: it does not get the setting
        with open_session(model, replace(runtime.optimized(), denormal_as_zero=True)) as session:
            timed = (session, _feed(model, session, spec)[0])

            def in_thread(repeats: int) -> float:
                return thread.submit(_time, timed, repeats).result()

            without, with_setting, _ = _rounds(in_thread, partial(_time, timed), seconds)
    return _quartiles([a / b for a, b in zip(without, with_setting, strict=True)])


def _feed(
    model: Model, session: Session, spec: FeedSpec | None
) -> tuple[Mapping[str, Any], dict[str, tuple[int, ...]]]:
    """The inputs that are timed, and their shapes."""
    from onnx_repfuse.verifier.input_hints import input_hints
    from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds

    spec = spec or FeedSpec()
    single = FeedSpec(shapes=spec.shapes, data=spec.data[:1], seeds=(0,))
    group = choose_feeds(session, single, input_hints(model, session.inputs))[0]
    return group.feeds[0], dict(group.shapes)


def _rounds(
    first: Callable[[int], float], second: Callable[[int], float], seconds: float
) -> tuple[list[float], list[float], int]:
    """(seconds per run of each, one for each round, runs to warm up); both take how often to run."""
    begin, warm_up = time.perf_counter(), 0
    while warm_up < _WARM_UP or (time.perf_counter() - begin < _WARM_UP_SECONDS and warm_up < _MAX_WARM_UP):
        first(1)
        second(1)
        warm_up += 1
    repeats = max(1, round(_MIN_BLOCK / max(first(1), 1e-6)))
    times: tuple[list[float], list[float]] = ([], [])
    measured = (first, second)
    end = time.perf_counter() + seconds
    for count in range(_MAX_ROUNDS):
        if count >= _MIN_ROUNDS and time.perf_counter() >= end:
            break
        # The order alternates, since the second of a round finds a warmer cache and a hotter processor.
        for index in (0, 1) if count % 2 == 0 else (1, 0):
            times[index].append(measured[index](repeats))
    return (*times, warm_up)


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
