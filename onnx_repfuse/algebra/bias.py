"""What a form adds to each channel: one value, of which a part may need a kernel to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np

from onnx_repfuse.algebra.choice import Picked
from onnx_repfuse.algebra.kernels import Array, Kernel, Vector, largest, push, repeated

__all__ = ["Bias"]

ULP_FLOAT32 = 2.0**-23  # at 1


@dataclass(eq=False)  # not frozen: a plan makes many, see `affine_form`
class Bias:
    """One value per channel: a part known while planning, and deferred parts that need a kernel.

    Attributes:
        known: float64, (channels,).
        deferred: functions that return more of the same shape, called when weights are folded.
        noise: how far rounding in the model's data type may have moved `known`, (channels,) or one for all. The bias
            that an exporter folded into a file and the one that we fold are equal only up to this.
        is_sum: it was added up from others, so a value within the noise may be what is left of two equal ones.
    """

    known: Array
    deferred: tuple[Callable[[], Array], ...] = ()
    noise: Array | float = 0.0
    is_sum: bool = False

    @classmethod
    def rounded(cls, known: Array, ulp: float, terms: Array | None = None) -> Bias:
        """A value summed in float32, or better, from terms of these magnitudes (default: from itself alone), and then
        stored in a data type with `ulp` at 1.

        Its noise is 2 ulps of the terms, in float32 where the type is shorter, and half an ulp of the value itself for
        storing it there. A half-precision ulp of the terms would be too much: where a large mean cancels they exceed
        the value, and what the layer puts out.
        """
        magnitude = np.abs(known)
        noise = 2 * min(ulp, ULP_FLOAT32) * (magnitude if terms is None else np.abs(terms))
        return cls(known, (), noise + ulp / 2 * magnitude if ulp > ULP_FLOAT32 else noise)

    @classmethod
    @lru_cache(maxsize=1 << 13)
    def zeros(cls, channels: int) -> Bias:
        """No bias."""
        zeros = cls(repeated(0.0, channels))
        zeros.is_zero = zeros.vanishes = True  # known without looking at every channel
        return zeros

    @cached_property
    def is_zero(self) -> bool:
        """Certainly zero."""
        return not self.deferred and not np.count_nonzero(self.known)

    @cached_property
    def largest(self) -> float:
        """The greatest magnitude of what is known; NaN where one is none."""
        return 0.0 if self.is_zero else largest(self.known)

    @cached_property
    def vanishes(self) -> bool:
        """Zero; or a sum no further from it than rounding may have moved it, as the difference of two equal biases is.

        A single bias is what its constants say, however small beside the terms it was summed from.
        """
        if self.is_zero or self.deferred or not self.is_sum:
            return self.is_zero
        return not np.count_nonzero(np.abs(self.known) > self.noise)

    def value(self) -> Array:
        """The whole bias; reads kernels."""
        result: Array = self.known.copy()
        for part in self.deferred:
            result += part()
        return result

    def __add__(self, other: Bias) -> Bias:
        # A zero with noise per channel is no zero to leave out: its noise counts when biases are compared.
        if isinstance(other.noise, float) and other.is_zero:
            return self
        if isinstance(self.noise, float) and self.is_zero:
            return other
        return Bias(self.known + other.known, self.deferred + other.deferred, self.noise + other.noise, True)

    def channels(self, lo: int, hi: int) -> Bias:
        """The bias of channels lo..hi."""
        if lo == 0 and hi == len(self.known):
            return self
        if isinstance(self.noise, float) and self.is_zero:
            return Bias.zeros(hi - lo)
        noise = self.noise if isinstance(self.noise, float) else self.noise[lo:hi]
        total = len(self.known)
        deferred = [part for part in self.deferred if _overlaps(_channels_of(part, total), lo, hi)]
        return Bias(
            self.known[lo:hi], tuple(_sliced(part, lo, hi, total) for part in deferred), noise, self.is_sum
        )

    def nonzero_in(self, starts: list[int]) -> list[bool]:
        """For each run of channels, from one start to the next: whether a value in it may be other than zero."""
        if self.is_zero:
            return [False] * len(starts)
        may_differ = self.known != 0
        for part in self.deferred:
            may_differ[_channels_of(part, len(self.known))] = True
        is_nonzero: list[bool] = np.logical_or.reduceat(may_differ, starts).tolist()
        return is_nonzero

    def placed(self, lo: int, total: int) -> Bias:
        """The same bias as channels lo.. of `total` channels, zero elsewhere."""
        if lo == 0 and total == len(self.known):
            return self
        hi = lo + len(self.known)
        noise = self.noise if isinstance(self.noise, float) else _padded(self.noise, lo, hi, total)
        deferred = tuple(_placed(part, lo, len(self.known), total) for part in self.deferred)
        return Bias(_padded(self.known, lo, hi, total), deferred, noise, self.is_sum)

    def without(self, lo: int, hi: int) -> Bias:
        """The bias with zeros in the channels lo..hi."""
        total = len(self.known)
        if lo == 0 and hi == total:
            return Bias.zeros(total)
        return self.channels(0, lo).placed(0, total) + self.channels(hi, total).placed(hi, total)

    def through(self, kernel: Kernel) -> Bias:
        """What `kernel` makes of it. One value per channel is multiplied now, anything else when folding."""
        if self.is_zero:
            return Bias.zeros(kernel.geometry.c_out)
        if isinstance(kernel, Vector):
            if kernel.is_one:
                return self
            scale = kernel.scale
            deferred = tuple(_scaled(part, scale, len(self.known)) for part in self.deferred)
            return Bias(self.known * scale, deferred, self.noise * np.abs(scale), self.is_sum)
        if isinstance(kernel, Picked):
            return self.mapped(lambda values: values[kernel.index]).through(kernel.taps)
        # Evaluated once, by whichever fold needs it first.
        return Bias(np.zeros(kernel.geometry.c_out), (cache(lambda: push(kernel, self.value())),))

    def mapped(self, move: Callable[[Array], Array]) -> Bias:
        """The bias of a tensor whose channels are some of these, each as `move` places a value per channel."""
        noise = self.noise if isinstance(self.noise, float) else move(self.noise)
        deferred = tuple(_moved(part, move) for part in self.deferred)
        return Bias(move(self.known), deferred, noise, self.is_sum)


def _moved(part: Callable[[], Array], move: Callable[[Array], Array]) -> Callable[[], Array]:
    return lambda: move(part())


@dataclass(frozen=True, eq=False)
class _Part:
    """A deferred part that is zero but for the channels lo..hi."""

    value: Callable[[], Array]
    lo: int
    hi: int

    def __call__(self) -> Array:
        return self.value()


def _channels_of(part: Callable[[], Array], total: int) -> slice:
    """The channels, of `total`, that a deferred part may add something to."""
    return slice(part.lo, part.hi) if isinstance(part, _Part) else slice(0, total)


def _overlaps(channels: slice, lo: int, hi: int) -> bool:
    return bool(channels.start < hi and lo < channels.stop)


def _sliced(part: Callable[[], Array], lo: int, hi: int, total: int) -> Callable[[], Array]:
    channels = _channels_of(part, total)
    return _Part(lambda: part()[lo:hi], max(channels.start, lo) - lo, min(channels.stop, hi) - lo)


def _scaled(part: Callable[[], Array], scale: Array, total: int) -> Callable[[], Array]:
    channels = _channels_of(part, total)
    return _Part(lambda: part() * scale, channels.start, channels.stop)


def _padded(value: Array, lo: int, hi: int, total: int) -> Array:
    result = np.zeros(total)
    result[lo:hi] = value
    return result


def _placed(part: Callable[[], Array], lo: int, count: int, total: int) -> Callable[[], Array]:
    """A part of `count` channels as channels lo.. of `total`."""
    channels = _channels_of(part, count)
    return _Part(lambda: _padded(part(), lo, lo + count, total), lo + channels.start, lo + channels.stop)
