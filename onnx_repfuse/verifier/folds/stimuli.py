"""What to feed a fold so that a fault shows.

* *Zeros* read the biases, and where padding meets them.
* *Sparse impulses* read the kernels' taps: a few channels at one position, so that each output sums few terms and its
  rounding is small beside one weight. Random amplitudes tell channels apart.
* *Noise* of both signs at sizes of 1 .. k + 2 per axis, where padding is everywhere, of all remainders by strides,
  and at one ordinary size. Where an operator is not linear, half of it is large, so that each channel meets what bends.

A position takes one product per weight, so the number of positions is bounded by the number of weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from onnx_repfuse.verifier.distance import Array
from onnx_repfuse.verifier.folds.fold_case import FoldCase, Source, reach
from onnx_repfuse.verifier.folds.packing import packed, spread
from onnx_repfuse.verifier.folds.probe_sizes import (
    MAX_PRODUCTS,
    border_sizes,
    budget_of,
    further_sizes,
    impulse_size,
    ordinary_size,
    sees_half,
    sizes_of_remainders,
)
from onnx_repfuse.verifier.folds.size_rules import Rules, apply
from onnx_repfuse.verifier.folds.sparse_signal import Sparse, hides_weights, sparse_rows

__all__ = ["Stimulus", "stimuli"]


# Products that the impulses of a fold in half precision take.
_MAX_HALF_PRODUCTS = 250_000_000
_MAX_IMPULSE_ELEMENTS = 1 << 24  # where each remainder of a stride gets a row
_MANY_POSITIONS = 64  # of an image whose size is fixed: one of noise shows as much as several
# of a source whose sizes are fixed: comparing its outputs takes longer than to compute them
_MANY_ELEMENTS = 1 << 18
_WIDE = 16.0  # times as large as the rest, of operators that bend
_WIDE_POSITIONS = 16  # of each channel at least, with such noise: each is above and below what bends there
_LEAST = 0.125  # magnitude of a value of noise
_SMALL = 128.0  # times as large as all small channels together is a block of channels


class Stimulus(NamedTuple):
    """One feed of the fold's sources, with a word for what it is: "border", "impulse", "sparse", "noise", "wide noise",
    "halves" or "stacked"."""

    kind: str
    feed: dict[str, Array]


@dataclass(frozen=True)
class _Probe:
    """Rows of one kind at one size of the first source, before they are cut into the batches the fold takes."""

    kind: str
    size: tuple[int, ...]
    rows: int
    fill: Callable[[Source, tuple[int, ...]], Array]  # (source, its shape) -> its values


def stimuli(
    case: FoldCase, rules: Rules, seed: int = 0, block: int = 0, *, of_weights: bool = False
) -> Iterator[Stimulus]:
    """All probes of a fold, smallest sizes first.

    Args:
        case: the fold.
        rules: how the size of each source follows from that of the first.
        seed: of the random values.
        block: what every size is a multiple of; 0 for that of the case.
        of_weights: only what depends on the weights, not those for which sizes and padding meet in all ways.
    """
    rng, block = np.random.default_rng(seed), block or case.block
    seen = set[tuple[int, ...]]()
    for probe in itertools.chain(_probes(case, rng, of_weights), _sparse(case, rules, block, rng)):
        size = _whole_blocks(probe.size, block)
        if probe.kind == "border" and size in seen:  # of whole blocks
            continue
        seen.add(size)
        yield from _feeds(case, rules, replace(probe, size=size))


def _probes(case: FoldCase, rng: np.random.Generator, of_weights: bool) -> Iterator[_Probe]:
    budget = budget_of(case)
    axes = max((len(source.space) for source in case.sources), default=0)
    if not axes:
        yield from _of_fixed_sizes(case, budget, rng)
        return
    extents, strides = _reach_of(case, axes)
    # A third of the positions for sizes where padding is everywhere, half for impulses, the rest for an ordinary size.
    size = impulse_size(extents, budget // 2)
    impulses = _impulses(case, size, strides, max(4, budget // 2 // math.prod(size)), rng)
    if of_weights:  # zeros, noise and impulses, at a size that has padding on all sides
        probes = [_noise("noise", size, 2, True, rng), *impulses]
        takes_any_rows = all(source.has_channels and source.batch is None for source in case.sources)
        yield from [_stacked(probes)] if takes_any_rows else probes
        for more in further_sizes(case, size, extents, strides, budget // 3):
            yield _noise("noise", more, 2, True, rng)
    else:
        yield from _of_all_sizes(case, impulses, extents, strides, budget, rng)
    if case.bends:
        inner = ordinary_size(case, extents, strides, budget // 3)
        yield _wide_noise(inner, _WIDE_POSITIONS // math.prod(inner) + 1, rng)


def _reach_of(case: FoldCase, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(extent, stride) of its windows along so many axes; (1, ...) without a kernel."""
    extents, strides = ((sizes + (sizes[-1:] or (1,)) * axes)[:axes] for sizes in reach(case))
    return extents, strides


def _whole_blocks(size: tuple[int, ...], block: int) -> tuple[int, ...]:
    return tuple(-(-count // block) * block for count in size)


def _of_fixed_sizes(case: FoldCase, budget: int, rng: np.random.Generator) -> Iterator[_Probe]:
    """Of sources (N, C), or whose sizes are all fixed: there is one size only."""
    positions = max(map(_fixed_positions, case.sources), default=1)
    elements = max((math.prod(dim or 1 for dim in source.dims) for source in case.sources), default=1)
    is_large = case.weights * positions > MAX_PRODUCTS or elements >= _MANY_ELEMENTS
    if is_large and positions >= _MANY_POSITIONS:
        # Where positions have weights, those of positions that hold zeros would not show.
        weighs = (case.weighs_positions or sees_half(case)) and not case.bends
        # In half precision no value is small enough beside the impulses, and normal; others hide weights of their own.
        everywhere = weighs and not (case.float_format.is_half or case.weighs_elements or sees_half(case))
        yield _halves(case, rng, everywhere=everywhere)
        if case.bends:
            yield _wide_noise((), 1, rng)
        elif weighs and not everywhere:
            yield _noise("noise", (), 1, False, rng)
        return
    # Each position is a sample of its own, and many hold no impulse: there, those of large folds are zeros.
    rows = 4 if positions < _MANY_POSITIONS else 2
    yield _noise("noise", (), 1 if is_large else rows, not is_large, rng)
    yield from _impulses(case, (), (), max(4, budget // 4), rng, together=is_large)
    if case.bends:
        yield _wide_noise((), 1 if is_large else _WIDE_POSITIONS // positions + 1, rng)


def _of_all_sizes(
    case: FoldCase,
    impulses: Iterator[_Probe],
    extents: tuple[int, ...],
    strides: tuple[int, ...],
    budget: int,
    rng: np.random.Generator,
) -> Iterator[_Probe]:
    """Where sizes, strides and padding meet in all ways, with impulses among them."""
    border = list(border_sizes(extents, budget // 3))
    for size, rows in border:
        yield _noise("border", size, rows, rows > 1, rng)
    yield from impulses
    inner = ordinary_size(case, extents, strides, budget // 3)
    for size in sizes_of_remainders(case, [*(size for size, _ in border), inner]):
        yield _noise("border", size, 1, False, rng)
    yield _noise("noise", inner, 1, False, rng)


def _signal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal values, moved away from 0: what a weight makes of a smaller one would not show beside the rounding."""
    data = np.asarray(rng.standard_normal(shape))
    return data + np.copysign(_LEAST, data)


def _halves(case: FoldCase, rng: np.random.Generator, *, everywhere: bool) -> _Probe:
    """One row of which the first half of the positions and the last eighth hold noise, the others impulses.

    For sizes that are fixed and large, as evaluating one row takes long. Two sources that are multiplied meet in both.
    Noise meets the padding on all sides. With signal `everywhere`, there is a block of channels at each of the other
    positions, and all other channels are small beside it.
    """
    block, amplitude = _impulse(case)

    def fill(source: Source, shape: tuple[int, ...]) -> Array:
        data = _signal(shape, rng)
        if source.has_channels:
            by_position = np.moveaxis(data, source.channel, -1)  # a view, (N, *space, C)
            positions = math.prod(by_position.shape[1:-1])
            half, end = positions // 2, positions - positions // 8
            flat = by_position.reshape(len(data), positions, -1)  # a copy where the channels are not last
            blocks = _blocks_of_channels(case, source, flat.shape[-1])
            count = int(blocks.max()) + 1
            if everywhere:
                is_small = np.arange(end - half)[:, None] % count != blocks
                flat[:, half:end] *= np.where(is_small, block / (_SMALL * case.depth), 1.0)
            elif half:
                sparse = np.zeros_like(flat[:, half:end])
                at = blocks * max(1, (end - half) // count) % max(1, end - half)
                sparse[:, at, np.arange(len(at))] = amplitude * flat[:, 0]
                flat[:, half:end] = sparse
            by_position[...] = flat.reshape(by_position.shape)
        return data.astype(source.dtype)

    return _Probe("halves", (), 1, fill)


def _sparse(case: FoldCase, rules: Rules, block: int, rng: np.random.Generator) -> Iterator[_Probe]:
    """In half precision: signal at elements drawn at random, where one impulse for each channel does not show all."""
    if not hides_weights(case):
        return
    axes = max((len(source.space) for source in case.sources), default=0)
    size = _whole_blocks(ordinary_size(case, *_reach_of(case, axes), budget_of(case) // 3), block)
    amplitude = _impulse(case)[1]
    for chosen in case.sources:
        sparse = sparse_rows(case, rules, size, chosen)
        if sparse is None:
            continue

        def fill(
            source: Source, shape: tuple[int, ...], chosen: Source = chosen, sparse: Sparse = sparse
        ) -> Array:
            if source is not chosen:
                return np.full(shape, sparse.others, source.dtype)
            data = amplitude * rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 2.0, shape)
            return np.asarray(np.where(rng.random(shape) < sparse.share, data, 0.0)).astype(source.dtype)

        yield _Probe("sparse", size, sparse.rows, fill)


def _stacked(probes: Sequence[_Probe]) -> _Probe:
    """Probes of one size as one."""

    def fill(source: Source, shape: tuple[int, ...]) -> Array:
        return np.concatenate([probe.fill(source, (probe.rows, *shape[1:])) for probe in probes])

    return _Probe("stacked", probes[0].size, sum(probe.rows for probe in probes), fill)


def _noise(
    kind: str, size: tuple[int, ...], rows: int, zeros_first: bool, rng: np.random.Generator
) -> _Probe:
    def fill(source: Source, shape: tuple[int, ...]) -> Array:
        data = _signal(shape, rng)
        if zeros_first and len(shape) > 1:
            data[0] = 0
        return data.astype(source.dtype)

    return _Probe(kind, size, rows, fill)


def _wide_noise(size: tuple[int, ...], rows: int, rng: np.random.Generator) -> _Probe:
    """Noise of which half is large: on both sides of what bends a result, whether at 0 as a PRelu or at a Clip's 6."""

    def fill(source: Source, shape: tuple[int, ...]) -> Array:
        data = rng.standard_normal(shape) * rng.choice([1.0, _WIDE], shape)
        return np.asarray(data).astype(source.dtype)

    return _Probe("wide noise", size, rows, fill)


def _sampled_strides(case: FoldCase, size: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    """How many remainders are tried along each axis: all, or of large strides as many as memory allows.

    The probes of noise have values at every remainder.
    """
    tried = [min(stride, extent) for stride, extent in zip(strides, size, strict=True)]
    with_channels = [source for source in case.sources if source.has_channels]
    channels = max((source.dims[source.channel] or 1 for source in with_channels), default=1)
    while math.prod(tried) * math.prod(size) * channels > _MAX_IMPULSE_ELEMENTS and max(tried) > 1:
        axis = tried.index(max(tried))
        tried[axis] //= 2
    return tried


def _impulse(case: FoldCase) -> tuple[int, float]:
    """(how many channels are set at one position, how large): an output sums one block of channels.

    In a short format rounding hides more: one term, and a larger one beside the bias. So a weight that is off by a
    hundredth of itself shows, however small it is beside its neighbours.
    """
    return (1, 64.0) if case.float_format.is_half else (64, 8.0)


def _blocks_of_channels(case: FoldCase, source: Source, count: int) -> Array:
    """The number of the block that each of `count` channels belongs to, where every block gets a position, (count,).

    Of each group of a grouped convolution, the same block: groups do not meet in any output.
    """
    depth = max(1, min(case.depth, count))
    return np.arange(count) % depth // _impulse(case)[0]


def _impulses(
    case: FoldCase,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    rows: int,
    rng: np.random.Generator,
    *,
    together: bool = False,
) -> Iterator[_Probe]:
    """Rows in which a block of channels is set at one position near the middle.

    A row each for all blocks of channels and all phases of the stride, or as many as `rows` allows; for one source at a
    time, or for all of them `together`.
    """
    # Which taps of a strided kernel read a position depends on its remainder.
    phases = list(itertools.product(*map(range, _sampled_strides(case, size, strides))))
    is_short = case.float_format.is_half
    block, amplitude = _impulse(case)
    blocks = -(-case.depth // block)
    if is_short:
        rows = max(rows, _MAX_HALF_PRODUCTS // max(1, case.weights * math.prod(size)))
    rows = min(max(rows, len(phases)), blocks * len(phases))
    most = max(1, rows // len(phases))

    def blocks_of(source: Source, channels: int | None) -> int:
        """How many rows of each phase set a channel of a source: it may have fewer channels than a sum has terms."""
        if not source.has_channels:
            return 1
        return min(most, -(-min(case.depth, channels or case.depth) // block)) or 1

    def values(source: Source, shape: tuple[int, ...]) -> Array:
        data = np.zeros(shape)
        if not source.has_channels:
            return np.asarray(amplitude * rng.uniform(-2.0, 2.0, shape), source.dtype)
        channels = np.moveaxis(data, source.channel, 1)  # a view, (rows, C, *space)
        # Of each group of a grouped convolution, the same block: groups do not meet in any output.
        count = shape[source.channel]
        blocks, depth = blocks_of(source, count), min(case.depth, count)
        block_of = np.arange(count) % max(1, depth) * blocks // max(1, depth)
        for row in range(len(data)):
            live = np.flatnonzero(block_of == row // len(phases) % blocks)
            shifts = itertools.chain(phases[row % len(phases)], itertools.repeat(0))
            middle = ((n // 2 + shift) % n for n, shift in zip(channels.shape[2:], shifts, strict=False))
            where: Any = (row, live, *middle)
            sign = rng.choice([-1.0, 1.0], len(live))
            channels[where] = amplitude * sign * rng.uniform(0.5, 2.0, len(live))
        return data.astype(source.dtype)

    def rows_of(source: Source) -> int:
        return len(phases) * blocks_of(source, source.dims[source.channel] if source.has_channels else None)

    if together:
        yield _Probe("impulse", size, max(map(rows_of, case.sources), default=1), values)
        return
    for chosen in case.sources:

        def fill(source: Source, shape: tuple[int, ...], chosen: Source = chosen) -> Array:
            return values(source, shape) if source is chosen else np.zeros(shape, source.dtype)

        yield _Probe("impulse", size, rows_of(chosen), fill)


def _feeds(case: FoldCase, rules: Rules, probe: _Probe) -> Iterator[Stimulus]:
    """The feed of a probe, or several with fewer rows each where a source has a fixed batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for source, rule in zip(case.sources, rules, strict=True):
        sizes = apply(rule, probe.size) or (1,)
        shapes[source.name] = source.shape(probe.rows, sizes)
    if min(itertools.chain(*shapes.values()), default=1) < 1:  # too small a size for one of the rules
        return
    batches = [source.batch for source in case.sources if source.batch is not None]
    if batches:
        yield from _in_batches(case, probe, shapes, max(batches))
    else:
        feed = {source.name: _filled(case, probe, source, shapes[source.name]) for source in case.sources}
        yield Stimulus(probe.kind, feed)


def _filled(case: FoldCase, probe: _Probe, source: Source, shape: tuple[int, ...]) -> Array:
    """Values of a source; zeros, which take no memory before they are read, where nothing reads any."""
    return np.zeros(shape, source.dtype) if source.name in case.measured else probe.fill(source, shape)


def _in_batches(
    case: FoldCase, probe: _Probe, shapes: Mapping[str, tuple[int, ...]], batch: int
) -> Iterator[Stimulus]:
    """All rows of a probe, `batch` at a time; sources without a fixed batch get the first row of each."""
    data: dict[str, Array] = {}
    for source in case.sources:
        size, *others = shapes[source.name]
        data[source.name] = _filled(case, probe, source, (max(probe.rows, size), *others))
    rows = probe.rows
    if probe.kind == "impulse" and all(source.has_channels for source in case.sources):
        data = {name: array[:rows] for name, array in data.items()}  # a larger fixed batch repeats them
        data, rows = packed(case, data) if case.is_per_position else spread(case, data)
    for first in range(0, rows, batch):
        feed = {}
        for source in case.sources:
            taken = [(first + i) % rows for i in range(source.batch or 1)]  # again from the start, to fill up
            feed[source.name] = np.ascontiguousarray(data[source.name][taken])
        yield Stimulus(probe.kind, feed)


def _fixed_positions(source: Source) -> int:
    """Positions of one image of a source whose sizes are all fixed."""
    return math.prod(dim or 1 for axis, dim in enumerate(source.dims) if axis not in (0, source.channel))
