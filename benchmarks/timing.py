"""Interleaved timing: what is compared runs in turns, so that a busy machine is busy for all.

Ratios are taken within rounds, where numerator and denominator see the same weather; what is printed is their median
and the quartiles around it.

What runs on one thread is timed by the processor time of this process: other work on the machine then costs it no more
than a share of the caches. What runs on several is timed by the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

BLOCK = 0.005  # seconds; a quick function is repeated until one sample lasts this long
WARM = 3
SLOW = 0.5  # seconds; what takes longer needs no second warming up

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
    """`top` against `bottom`, round by round.

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
    clock: Clock = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of one call of each function, in rounds; each round starts with another one.

    Args:
        functions: by name.
        seconds: for all of them together; slow functions take longer, for `fewest` rounds.
        clock: what tells the time of a call; `time.perf_counter` for what uses several threads.
    """
    names = list(functions)
    repeats = {}
    for name, function in functions.items():
        for _ in range(WARM):
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
