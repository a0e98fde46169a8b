"""Interleaved timing: the functions to compare run in alternation, so that other load affects all of them.

Ratios are taken within a round, where numerator and denominator run under the same load. We print their median and
quartiles.

One thread is timed by the processor time of this process, which other processes affect only through the caches. Several
threads are timed by wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

BLOCK = 0.005  # seconds; a fast function is repeated until one sample takes this long
WARM = 3
SLOW = 0.5  # seconds; a slower function needs no second warm-up

Clock = Callable[[], float]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """
    >>> spread([4.0, 1.0, 3.0, 2.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(ordered[round(last / 2)], ordered[round(last / 4)], ordered[round(3 * last / 4)])


def ratios(samples: Mapping[str, list[float]], top: str, bottom: str) -> Spread:
    """`top` / `bottom`, round by round.

    >>> ratios({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b").median
    2.0
    """
    return spread([a / b for a, b in zip(samples[top], samples[bottom], strict=True)])


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    fewest: int = 7,
    most: int = 200,
    warm: int = WARM,
    clock: Clock = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of one call of each function, in rounds. Each round starts with another function.

    Args:
        functions: by name.
        seconds: for all of them together; slow functions take longer, for `fewest` rounds.
        warm: calls of each before it is timed.
        clock: the clock; `time.perf_counter` for functions that use several threads.
    """
    names = list(functions)
    repeats = {}
    for name, function in functions.items():
        for _ in range(warm):
            first = _call(function, 1, clock)
            if first > SLOW:
                break
        repeats[name] = max(1, round(BLOCK / max(first, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for number in range(most):
        if number >= fewest and time.perf_counter() > end:
            break
        start = number % len(names)
        for name in (*names[start:], *names[:start]):
            samples[name].append(_call(functions[name], repeats[name], clock))
    return samples


def _call(function: Callable[[], object], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats
