"""Sizes for symbolic dims: guesses by rank and axis, in the order they are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from onnx_repfuse.verifier.session import ValueInfo

__all__ = ["LENGTHS", "ORDINARY", "SHORT", "TINY", "assignments", "is_free", "narrowed"]

ORDINARY = (
    (64, 96),
    (64, 64),
    (224, 224),
    (256, 256),
    (640, 640),
    (32, 32),
    (48, 192),
    (320, 320),
    (28, 28),
    (8, 8),
)
TINY = ((17, 23), (33, 33), (7, 7), (32, 32), (64, 64))
LENGTHS = (16, 32, 77, 128, 8, 1)
SHORT = (5, 3, 2, 1)
MOST = 1 << 20  # positions of an input that are guessed


def is_free(port: ValueInfo, given: Mapping[str, Sequence[int]]) -> bool:
    return port.name not in given and any(not isinstance(dim, int) or dim < 0 for dim in port.shape)


def assignments(
    inputs: Sequence[ValueInfo],
    given: Mapping[str, Sequence[int]],
    batch: int,
    sizes: Sequence[tuple[int, int]],
    lengths: Sequence[int],
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try, one dict per attempt, none of them vast; a dim that has a name gets one size everywhere."""
    free = any(is_free(port, given) for port in inputs)
    for rows in (batch, 3 - batch):
        for attempt in range(max(len(sizes), len(lengths)) if free else 1):
            size, length = sizes[min(attempt, len(sizes) - 1)], lengths[min(attempt, len(lengths) - 1)]
            named: dict[str, int] = {}
            for port in inputs:  # the names the user settled
                for dim, size_given in zip(port.shape, given.get(port.name, ()), strict=False):
                    if isinstance(dim, str):
                        named[dim] = int(size_given)
            shapes = {
                port.name: tuple(int(v) for v in given[port.name])
                if port.name in given
                else tuple(_size(port, axis, named, rows, size, length) for axis in range(len(port.shape)))
                for port in inputs
            }
            if not any(is_free(port, given) and _guessed(port, shapes[port.name]) > MOST for port in inputs):
                yield shapes
        if not free:
            return


def narrowed(
    inputs: Sequence[ValueInfo], given: Mapping[str, Sequence[int]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]] | None:
    """`shapes` with 1 for every free dim that the first input has not: what broadcasts shows. None if there is none."""
    first = set(inputs[0].shape) if inputs else set()
    result = dict(shapes)
    for port in inputs[1:]:
        if port.name not in given:
            dims = zip(port.shape, shapes[port.name], strict=True)
            free = [not isinstance(dim, int) and (not dim or dim not in first) for dim, _ in dims]
            result[port.name] = tuple(
                1 if one else size for one, size in zip(free, shapes[port.name], strict=True)
            )
    return result if result != shapes else None


def _guessed(port: ValueInfo, shape: tuple[int, ...]) -> int:
    """Positions that are our own choice: an image's size cubed may be more than memory holds."""
    return prod(size for dim, size in zip(port.shape, shape, strict=True) if dim != size)


def _size(
    port: ValueInfo, axis: int, named: dict[str, int], rows: int, size: tuple[int, int], length: int
) -> int:
    dim = port.shape[axis]
    if isinstance(dim, int) and dim >= 0:
        return dim
    rank = len(port.shape)
    if axis == 0 and rank > 1:
        guess = rows
    elif rank >= 4 and axis >= 2:
        guess = size[(axis - 2) % 2]
        last = port.shape[3] if rank == 4 else None
        if rank == 4 and isinstance(last, int) and 0 < last <= 4:  # channels last
            guess = size[1]
    elif rank == 4 and axis == 1:
        last = port.shape[3]
        guess = size[0] if isinstance(last, int) and 0 < last <= 4 else 3
    elif rank == 3 and axis == 2:
        guess = size[0]
    else:
        guess = rows if axis == 0 else length
    if isinstance(dim, str) and dim:
        return named.setdefault(dim, guess)
    return guess
