"""What a form adds to each channel.

Like the classes of `form`, not declared frozen for speed alone: nothing is changed once made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np

from onnx_repfuse.algebra.kernels import Array, Kernel, Vector, push, repeated

__all__ = ["Bias"]


@dataclass(eq=False)
class Bias:
    """One value per channel: a part known while planning, and parts that need a kernel.

    Attributes:
        known: float64, (channels,).
        deferred: functions that return more of the same shape, called when weights are folded.
        noise: what rounding in the model's data type may have done to `known`, (channels,) or one for all. Exporters
            and we fold the same bias in different orders and precisions.
    """

    known: Array
    deferred: tuple[Callable[[], Array], ...] = ()
    noise: Array | float = 0.0

    @classmethod
    def rounded(cls, known: Array, ulp: float, terms: Array | None = None) -> Bias:
        """A value that was summed from `terms` (their magnitudes; itself, if it was not) in a data type whose unit in
        the last place of 1 is `ulp`: two of those are its noise."""
        return cls(known, (), 2 * ulp * np.abs(known if terms is None else terms))

    @classmethod
    @lru_cache(maxsize=1 << 13)
    def zeros(cls, channels: int) -> Bias:
        """No bias."""
        made = cls(repeated(0.0, channels))
        made.is_zero = made.vanishes = True  # known without looking at every channel
        return made

    @cached_property
    def is_zero(self) -> bool:
        """Zero for certain."""
        return not self.deferred and not np.count_nonzero(self.known)

    @cached_property
    def vanishes(self) -> bool:
        """Zero, but for what rounding may have left."""
        return self.is_zero or (not self.deferred and not np.count_nonzero(np.abs(self.known) > self.noise))

    def value(self) -> Array:
        """The whole bias; reads kernels."""
        result: Array = self.known.copy()
        for part in self.deferred:
            result += part()
        return result

    def __add__(self, other: Bias) -> Bias:
        if isinstance(other.noise, float) and other.is_zero:
            return self
        if isinstance(self.noise, float) and self.is_zero:
            return other
        return Bias(self.known + other.known, self.deferred + other.deferred, self.noise + other.noise)

    def channels(self, lo: int, hi: int) -> Bias:
        """The bias of channels lo..hi."""
        if lo == 0 and hi == len(self.known):
            return self
        if isinstance(self.noise, float) and self.is_zero:
            return Bias.zeros(hi - lo)
        noise = self.noise if isinstance(self.noise, float) else self.noise[lo:hi]
        return Bias(self.known[lo:hi], tuple(_sliced(part, lo, hi) for part in self.deferred), noise)

    def nonzero_in(self, starts: list[int]) -> list[bool]:
        """For each run of channels that begins there and ends where the next one does: is it other than zero?"""
        if self.deferred or self.is_zero:
            return [bool(self.deferred)] * len(starts)
        found: list[bool] = np.logical_or.reduceat(self.known != 0, starts).tolist()
        return found

    def placed(self, lo: int, total: int) -> Bias:
        """The same bias as channels lo.. of `total`, zero elsewhere."""
        if lo == 0 and total == len(self.known):
            return self
        hi = lo + len(self.known)
        noise = self.noise if isinstance(self.noise, float) else _padded(self.noise, lo, hi, total)
        deferred = tuple(_placed(part, lo, hi, total) for part in self.deferred)
        return Bias(_padded(self.known, lo, hi, total), deferred, noise)

    def through(self, kernel: Kernel) -> Bias:
        """What `kernel` makes of it. One value per channel is multiplied now, anything else when folding."""
        if self.is_zero:
            return Bias.zeros(kernel.geometry.c_out)
        if isinstance(kernel, Vector):
            if kernel.is_one:
                return self
            scale = kernel.scale
            deferred = tuple(_scaled(part, scale) for part in self.deferred)
            return Bias(self.known * scale, deferred, self.noise * np.abs(scale))
        return Bias(np.zeros(kernel.geometry.c_out), (cache(lambda: push(kernel, self.value())),))


def _sliced(part: Callable[[], Array], lo: int, hi: int) -> Callable[[], Array]:
    return lambda: part()[lo:hi]


def _scaled(part: Callable[[], Array], scale: Array) -> Callable[[], Array]:
    return lambda: part() * scale


def _padded(value: Array, lo: int, hi: int, total: int) -> Array:
    result = np.zeros(total)
    result[lo:hi] = value
    return result


def _placed(part: Callable[[], Array], lo: int, hi: int, total: int) -> Callable[[], Array]:
    return lambda: _padded(part(), lo, hi, total)
