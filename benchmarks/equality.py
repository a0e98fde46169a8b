"""Whether the outputs of a file are those of the input, up to rounding: judged by how far the input's own outputs move.

As in the tool's proof, a fixed tolerance is too narrow for some networks. Behind a steep sigmoid, as in text detectors,
one unit in the last place of an image moves some pixels by all they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtimes import RUNTIMES, onnxruntime

__all__ = ["RULE", "Expected"]

RULE = "own noise, or drowned in it"  # its name in results: what was judged by another one is judged again

FAR = 1e-3  # of the largest value of an output: what is nearer is rounding
NOISES = 4.0  # times its own noise is rounding, too, as in the tool's proof
NOTHING = 1e-6  # of a sigmoid: some units of float32 at 1
SEEDS = (77, 78)  # of inputs moved by one unit in the last place
Arrays = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class _Distance:
    """How far two arrays are apart: at most, and as the root of the mean square."""

    most: float
    rms: float

    @classmethod
    def between(cls, one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> _Distance:
        if not one.size or np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            return cls(0.0, 0.0)
        off = np.abs(one.astype(np.float64) - other.astype(np.float64))
        return cls(float(np.max(off)), float(np.sqrt(np.mean(off**2))))


class Expected:
    """The outputs of the input file, and their noise, which is measured once somebody needs it."""

    def __init__(self, path: Path, inputs: Arrays, runtime: str, threads: int) -> None:
        self._path, self._inputs, self._runtime, self._threads = path, inputs, runtime, threads
        self._run: Callable[[Arrays], object] = lambda given: RUNTIMES[runtime](path, given, threads)()
        self._outputs = _arrays(self._run(inputs))

    def unequal(self, result: object) -> str:
        """Why the outputs of another file are not those of the input; empty if they are, up to rounding."""
        theirs = _arrays(result)
        if [a.shape for a in theirs] != [b.shape for b in self._outputs]:
            return f"outputs of shapes {[a.shape for a in theirs]}"
        for index, (one, expected) in enumerate(zip(theirs, self._outputs, strict=True)):
            off = _Distance.between(one, expected)
            largest = float(np.max(np.abs(expected.astype(np.float64)), initial=0.0))
            if off.most <= FAR * largest or self._is_noise(index, off, largest):
                continue
            return f"output {index} differs by {off.most / max(largest, 1e-30):.2g} of its largest value"
        return ""

    def _is_noise(self, index: int, off: _Distance, largest: float) -> bool:
        """Not only the largest difference: a fault moves many elements where rounding moves a few.

        Unless all elements are noise, as those of a sigmoid that is zero everywhere.
        """
        noise = self._noise[index]
        is_drowned = largest <= min(NOISES * noise.most, NOTHING)
        return off.most <= NOISES * noise.most and (is_drowned or off.rms <= NOISES * noise.rms)

    @cached_property
    def _noise(self) -> list[_Distance]:
        """Of each output: how far it moves with the inputs, and without the runtime's optimizations."""
        from onnx_repfuse.verifier.noise import nudge_feed

        named = {str(place): value for place, value in enumerate(self._inputs)}
        moved = [_arrays(self._run(list(nudge_feed(named, seed).values()))) for seed in SEEDS]
        if self._runtime == "onnxruntime":
            plain = onnxruntime(self._path, self._inputs, self._threads, optimized=False)
            moved.append(_arrays(plain()))
        found = [
            [_Distance.between(a, b) for a, b in zip(outputs, self._outputs, strict=True)]
            for outputs in moved
        ]
        return [
            _Distance(max(one.most for one in of_one), max(one.rms for one in of_one))
            for of_one in zip(*found, strict=True)
        ]


def _arrays(result: Any) -> Arrays:
    values = result.values() if hasattr(result, "values") else result
    return [np.array(value) for value in values]
