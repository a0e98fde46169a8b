"""`--bench`: original and fused in turns, in one process, so that a busy machine is busy for both.

A round times a block of each, in alternating order; the ratio is taken within rounds, where the two see the
same weather, and its quartiles over the rounds are the spread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnx_repfuse.records.outcome import Bench
from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime

if TYPE_CHECKING:
    from onnx_repfuse.verifier.inputs import FeedSpec
    from onnx_repfuse.verifier.session import Model, Session

__all__ = ["measure"]

_BLOCK = 0.01  # seconds; a block repeats a quick model until it lasts this long
_FEWEST, _MOST = 7, 200


def measure(
    original: Model,
    fused: Model,
    spec: FeedSpec | None = None,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    seconds: float = 5.0,
) -> Bench:
    """Time two models with one interface under ORT_ENABLE_ALL.

    Args:
        original, fused: paths, or models in memory.
        spec: shapes or data of the inputs.
        runtime: how they are run, but for the optimization level.
        seconds: how long to measure; a slow model takes longer, for at least seven rounds.

    Raises:
        InputError: a model does not run.
    """
    from onnx_repfuse.verifier.inputs import FeedSpec, choose_feeds
    from onnx_repfuse.verifier.session import open_session

    spec = spec or FeedSpec()
    single = FeedSpec(shapes=spec.shapes, data=spec.data[:1], seeds=(0,))
    with (
        open_session(original, runtime.optimized()) as first,
        open_session(fused, runtime.optimized()) as second,
    ):
        group = choose_feeds(first, single)[0]
        feed = group.feeds[0]
        other = {info.name: value for info, value in zip(second.inputs, _ordered(first, feed), strict=True)}
        _run(first, feed, 2)
        _run(second, other, 2)
        repeats = max(1, round(_BLOCK / max(_run(first, feed, 1), 1e-6)))
        before: list[float] = []
        after: list[float] = []
        end = time.perf_counter() + seconds
        while len(before) < _FEWEST or (time.perf_counter() < end and len(before) < _MOST):
            if len(before) % 2:
                after.append(_run(second, other, repeats))
                before.append(_run(first, feed, repeats))
            else:
                before.append(_run(first, feed, repeats))
                after.append(_run(second, other, repeats))
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return Bench(
        _quartiles([1000 * value for value in before]),
        _quartiles([1000 * value for value in after]),
        _quartiles(ratios),
        len(before),
        runtime.threads,
        dict(group.shapes),
    )


def _ordered(session: Session, feed: Mapping[str, Any]) -> list[Any]:
    return [feed[value.name] for value in session.inputs]


def _run(session: Session, feed: Mapping[str, Any], repeats: int) -> float:
    """Seconds of one run, averaged over a block."""
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
