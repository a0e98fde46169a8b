"""What to feed a fold so that a fault shows.

* *Zeros* read the biases, and where padding meets them.
* *Sparse impulses* read the taps: a few channels at one position, so that each output sums few terms and its
  rounding is small beside one weight. Random amplitudes tell channels apart.
* *Noise* of both signs at sizes of 1 .. k + 2 per axis, where the border is everywhere, and at one ordinary
  size.

A position costs one product per weight, so the number of positions is bounded by the number of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_repfuse.verifier.folds.fold_case import FoldCase, Source, reach

__all__ = ["RULES", "Stimulus", "stimuli"]

Array = np.ndarray[Any, np.dtype[Any]]
_PRODUCTS = 60_000_000
_POSITIONS = (110, 2000)
_AMPLITUDE = 8.0, 64.0  # for float32 and better, and for coarser formats, where a bias hides more

RULES = (
    lambda s: s,
    lambda s: (s + 1) // 2,
    lambda s: s // 2,
    lambda s: 2 * s,
    lambda s: s - 2,
    lambda s: s + 2,
    lambda s: (s - 1) // 2,
    lambda s: s - 1,
    lambda s: s + 1,
    lambda s: (s + 3) // 4,
    lambda s: 4 * s,
    lambda s: s - 4,
    lambda s: s + 4,
    lambda s: 2 * s - 1,
    lambda s: 2 * s + 1,
    lambda s: (s + 2) // 3,
)
"""How the size of another source may follow from that of the first; found by trying."""


@dataclass(frozen=True)
class Stimulus:
    """One feed of the fold's sources, with a word for what it is."""

    kind: str
    feed: dict[str, Array]


def stimuli(case: FoldCase, rules: tuple[int, ...], seed: int = 0) -> Iterator[Stimulus]:
    """All probes of a fold, smallest sizes first.

    Args:
        case: the fold.
        rules: per source, the index into RULES that gives its size; 0 for the first.
        seed: of the random values.
    """
    rng = np.random.default_rng(seed)
    extents, stride = reach(case)
    axes = max((len(source.space) for source in case.sources), default=0)
    extents = (extents + (extents[-1:] or (1,)) * axes)[:axes]
    budget = int(np.clip(_PRODUCTS // max(case.weights, 1), *_POSITIONS))
    if not axes:
        yield from _rows(case, rules, (), rng, "noise", ["zeros", *["noise"] * 3])
        yield from _impulses(case, rules, (), rng, 1, max(4, budget // 4))
        return
    yield from _small(case, rules, extents, rng, budget // 3)
    around = tuple(2 * extent - 1 if extent < 8 else extent + 2 for extent in extents)
    inside = tuple(max(1, extent) for extent in extents)
    size = around if int(np.prod(around)) * 4 <= budget // 2 else inside
    rows = max(4, budget // 2 // int(np.prod(size)))
    yield from _impulses(case, rules, size, rng, stride, rows)
    ordinary = tuple(extent + 2 * stride + 4 + axis for axis, extent in enumerate(extents))
    if int(np.prod(ordinary)) > budget:
        ordinary = tuple(
            extent // (2 if extent > 7 else 1) + stride + axis for axis, extent in enumerate(extents)
        )
    yield from _rows(case, rules, ordinary, rng, "noise", ["noise"])


def _small(
    case: FoldCase, rules: tuple[int, ...], extents: tuple[int, ...], rng: np.random.Generator, budget: int
) -> Iterator[Stimulus]:
    """Sizes from 1 to k + 2 on every axis, out of step with each other, until the budget is spent."""
    choices = []
    for axis, extent in enumerate(extents):
        sizes = sorted({1, 2, 3, extent // 2 + 1, extent - 1, extent, extent + 1, extent + 2} - {0})
        if extent <= 5:
            sizes = list(range(1, extent + 3))
        choices.append(sizes[axis % len(sizes) :] + sizes[: axis % len(sizes)])
    longest = max(len(sizes) for sizes in choices)
    picked = [tuple(sizes[i % len(sizes)] for sizes in choices) for i in range(longest)]
    spent = 0
    for i, size in enumerate(dict.fromkeys(sorted(picked, key=np.prod))):
        kinds = ["zeros", "noise"] if i % 2 == 0 else ["noise"]
        cost = int(np.prod(size)) * len(kinds)
        if i > 1 and spent + cost > budget and (i != longest - 2 or max(extents) > 7):
            continue
        spent += cost
        yield from _rows(case, rules, size, rng, "border", kinds)


def _packed(case: FoldCase, made: dict[str, Array]) -> tuple[dict[str, Array], int]:
    """Rows of impulses as fewer rows with one impulse at each position."""
    flat = {s.name: np.moveaxis(made[s.name], s.channel, -1) for s in case.sources}
    places = min(int(np.prod(one.shape[1:-1])) for one in flat.values())
    if places < 2:
        return made, len(next(iter(made.values())))
    packed = {}
    for source in case.sources:
        data = flat[source.name]
        count = -(-len(data) // places)
        rows = data.reshape(len(data), -1, data.shape[-1])
        result = np.zeros((count, *rows.shape[1:]), data.dtype)
        for number, row in enumerate(rows):
            result[number // places] += np.roll(row, number % places, axis=0)
        whole = result.reshape(count, *data.shape[1:])
        packed[source.name] = np.ascontiguousarray(np.moveaxis(whole, -1, source.channel))
    return packed, count


def _rows(
    case: FoldCase,
    rules: tuple[int, ...],
    size: tuple[int, ...],
    rng: np.random.Generator,
    kind: str,
    kinds: list[str],
) -> Iterator[Stimulus]:
    def make(source: Source, shape: tuple[int, ...]) -> Array:
        data = rng.standard_normal(shape)
        for row, what in enumerate(kinds):
            if what == "zeros" and row < len(data):
                data[row] = 0
        return data.astype(source.dtype)

    yield from _split(case, rules, size, len(kinds), kind, make)


def _impulses(
    case: FoldCase,
    rules: tuple[int, ...],
    size: tuple[int, ...],
    rng: np.random.Generator,
    stride: int,
    rows: int,
) -> Iterator[Stimulus]:
    """Rows in which a block of channels is set at one position near the middle, for one source at a time."""
    positions = stride ** len(size)
    block, amplitude = (64, _AMPLITUDE[0]) if case.unit < 1e-6 else (8, _AMPLITUDE[1])
    blocks = -(-case.depth // block)
    rows = min(max(rows, positions), blocks * positions)
    blocks = max(1, rows // positions)
    for chosen in case.sources:

        def make(source: Source, shape: tuple[int, ...], chosen: Source = chosen) -> Array:
            data = np.zeros(shape)
            if source is not chosen:
                return data.astype(source.dtype)
            channels = shape[source.channel]
            owner = np.arange(channels) % case.depth * blocks // case.depth
            view = np.moveaxis(data, source.channel, 1)
            for row in range(len(data)):
                live = np.flatnonzero(owner == (row % rows) // positions % blocks)
                shift = np.unravel_index(row % positions, (stride,) * len(size)) if size else ()
                at = [
                    (n // 2 + int(shift[i]) if i < len(shift) else n // 2) % n
                    for i, n in enumerate(view.shape[2:])
                ]
                sign = rng.choice([-1.0, 1.0], len(live))
                where: Any = (row, live, *at)
                view[where] = amplitude * sign * rng.uniform(0.5, 2.0, len(live))
            return data.astype(source.dtype)

        yield from _split(case, rules, size, rows, "impulse", make)


def _split(
    case: FoldCase, rules: tuple[int, ...], size: tuple[int, ...], rows: int, kind: str, make: Any
) -> Iterator[Stimulus]:
    """The feed; several of them where the batch is not free."""
    sizes = [tuple(RULES[rule](s) for s in size) for rule in rules]
    shapes = [s.shape(rows, one or (1,)) for s, one in zip(case.sources, sizes, strict=True)]
    if any(0 in shape or min(shape, default=1) < 1 for shape in shapes):
        return
    fixed = [source.dims[0] for source in case.sources if source.dims and source.dims[0] is not None]
    if not fixed:
        yield Stimulus(kind, {s.name: make(s, shape) for s, shape in zip(case.sources, shapes, strict=True)})
        return
    wide = [(max(rows, shape[0]), *shape[1:]) for shape in shapes]
    made = {s.name: make(s, shape) for s, shape in zip(case.sources, wide, strict=True)}
    if kind == "impulse" and case.is_per_position:
        made, rows = _packed(case, made)
    for row in range(0, rows, max(fixed)):
        feed = {}
        for source, shape in zip(case.sources, shapes, strict=True):
            take = [(row + i) % rows for i in range(shape[0])] if source.dims[0] is not None else [row]
            feed[source.name] = np.ascontiguousarray(made[source.name][take])
        yield Stimulus(kind, feed)
