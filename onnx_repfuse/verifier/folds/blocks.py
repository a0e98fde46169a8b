"""Large tensors block by block: what is computed of a block stays in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnx_repfuse.verifier.distance import Array

__all__ = ["Block", "blocks", "part_of"]

_BLOCK_ELEMENTS = 1 << 16
Block = tuple[slice, ...]  # one per axis


def blocks(shape: Sequence[int]) -> Iterator[Block]:
    """All of a tensor, in C order."""
    sizes = list(shape)
    steps = sizes.copy()
    for axis in range(len(sizes)):
        rest = math.prod(sizes[axis + 1 :])
        steps[axis] = min(sizes[axis], max(1, _BLOCK_ELEMENTS // max(1, rest)))
    yield from _blocks(sizes, steps)


def _blocks(sizes: Sequence[int], steps: Sequence[int]) -> Iterator[Block]:
    if not sizes:
        yield ()
        return
    for first in range(0, sizes[0], max(1, steps[0])):
        here = slice(first, min(first + max(1, steps[0]), sizes[0]))
        for rest in _blocks(sizes[1:], steps[1:]):
            yield (here, *rest)


def part_of(array: Array, block: Block) -> Array:
    """The part of an array that broadcasts to a block of what the array broadcasts to."""
    own = block[len(block) - array.ndim :]
    return array[
        tuple(slice(None) if size == 1 else span for size, span in zip(array.shape, own, strict=True))
    ]
