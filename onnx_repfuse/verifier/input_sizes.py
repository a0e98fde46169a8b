"""Sizes for symbolic dims: guesses by rank and axis, in the order they are tried."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from onnx_repfuse.verifier.session import Dim, ValueInfo

__all__ = [
    "ORDINARY",
    "SMALL",
    "Shapes",
    "SizeGuesses",
    "broadcast_shapes",
    "every_small_size",
    "has_free_dims",
    "shapes_to_try",
]

Shapes = dict[str, tuple[int, ...]]
_RGB = 3  # channels of an image input that does not say
_MAX_CHANNELS_LAST = 4  # a fixed last dim of up to RGBA marks (N, H, W, C)
# An image's size cubed, tried on (N, C, D, H, W), would be 6 GB at 640.
_MAX_GUESSED_POSITIONS = 1 << 20
# Number of open dims -> the largest size that all combinations are made of.
_LARGEST_OF = {1: 128, 2: 16, 3: 7}


class SizeGuesses(NamedTuple):
    """What to try: a batch size, and side by side (height, width) of images and lengths of sequences."""

    batch: int
    images: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]

    def with_more(self, sizes: Sequence[int]) -> SizeGuesses:
        """The same, and then these sizes of images and lengths."""
        images, lengths = list(self.images), list(self.lengths)
        # Side by side. The last axis of (N, C, T) is taken for an image's row, and may be a sound: it needs lengths.
        images += [(size, size) for size in (*lengths[len(images) :], *sizes)]
        lengths += lengths[-1:] * (len(self.images) - len(lengths)) + list(sizes)
        return SizeGuesses(self.batch, tuple(images), tuple(lengths))


# Height and width differ first, so that swapping them shows. Then come the sizes networks are trained at, those of OCR
# (48x192) and MNIST (28x28) among them. 77 is CLIP's text length; a second of speech is 16,000 samples.
ORDINARY = SizeGuesses(
    1,
    ((64, 96), *((side, side) for side in (64, 224, 256, 640, 32)), (48, 192), (320, 320), (28, 28), (8, 8)),
    (16, 32, 77, 128, 8, 1, 512, 1024, 2048, 4096, 16000, 48000, 160000),
)
# Small and odd: most positions are near the padding, and strides leave a remainder.
SMALL = SizeGuesses(2, ((17, 23), (33, 33), (7, 7), (32, 32), (64, 64)), (5, 3, 2, 1))


class _Guess(NamedTuple):
    batch: int
    image: tuple[int, int]
    length: int


def has_free_dims(value: ValueInfo, given: Mapping[str, Sequence[int]]) -> bool:
    """Whether the model and the user leave us a size of this input to choose."""
    return value.name not in given and any(not isinstance(dim, int) for dim in value.shape)


def shapes_to_try(
    inputs: Sequence[ValueInfo], given: Mapping[str, Sequence[int]], guesses: SizeGuesses
) -> Iterator[Shapes]:
    """Shapes of all inputs, one dict per attempt; a dim name has one size in all inputs.

    Args:
        inputs: the model's.
        given: input name -> shape, as the user said.
        guesses: for the dims that are left. After its batch size, the other of 1 and 2 is tried.
    """
    free = [value for value in inputs if has_free_dims(value, given)]
    if not free:
        yield _shapes(inputs, given, _Guess(guesses.batch, guesses.images[0], guesses.lengths[0]))
        return
    tried: set[str] = set()
    for batch in (guesses.batch, 3 - guesses.batch):
        for attempt in range(max(len(guesses.images), len(guesses.lengths))):
            image = guesses.images[min(attempt, len(guesses.images) - 1)]
            length = guesses.lengths[min(attempt, len(guesses.lengths) - 1)]
            shapes = _shapes(inputs, given, _Guess(batch, image, length))
            key = repr(shapes)
            if key in tried:
                continue
            tried.add(key)
            if all(_guessed_positions(value, shapes) <= _MAX_GUESSED_POSITIONS for value in free):
                yield shapes


def every_small_size(inputs: Sequence[ValueInfo], given: Mapping[str, Sequence[int]]) -> Iterator[Shapes]:
    """All combinations of small sizes, the largest first, at batch 1: for what constants inside a network ask for.

    Yields nothing where more than three dims besides the batch are open: there are too many combinations.
    """
    named = {value.name: _with_names(value, given) for value in inputs}
    open_dims = _open_dims(named.values())
    if not open_dims:
        return
    sizes = range(1, _LARGEST_OF.get(len(open_dims), 0) + 1)
    for chosen in sorted(product(sizes, repeat=len(open_dims)), key=min, reverse=True):
        size_of = dict(zip(open_dims, chosen, strict=True))
        yield {
            name: tuple(dim if isinstance(dim, int) else size_of.get(dim, 1) for dim in shape)
            for name, shape in named.items()
        }


def _open_dims(shapes: Collection[tuple[int | str, ...]]) -> list[str]:
    """The names among the dims of some shapes, each once; but those of batches."""
    batches = {shape[0] for shape in shapes if len(shape) > 1}
    names = dict.fromkeys(dim for shape in shapes for dim in shape if isinstance(dim, str))
    return [name for name in names if name not in batches]


def _with_names(value: ValueInfo, given: Mapping[str, Sequence[int]]) -> tuple[int | str, ...]:
    """The shape of an input as the user gave it, or with a name of its own for each dim that has none."""
    shape = given.get(value.name, value.shape)
    named = []
    for axis, dim in enumerate(shape):
        named.append(dim if isinstance(dim, int) else dim or f"{value.name}.{axis}")
    return tuple(named)


def broadcast_shapes(
    inputs: Sequence[ValueInfo], given: Mapping[str, Sequence[int]], shapes: Shapes
) -> Shapes | None:
    """`shapes` with 1 for every free dim that the first input does not have, which shows what broadcasts.

    An exporter names the dims of a second input apart, (N, 3, H, W) and (N, 3, H2, W2), though the model adds the two.

    Returns:
        None if no dim changes.
    """
    first_dims = set(inputs[0].shape) if inputs else set()
    result = dict(shapes)
    for value in inputs[1:]:
        if value.name not in given:
            sizes = zip(value.shape, shapes[value.name], strict=True)
            result[value.name] = tuple(size if _is_shared(dim, first_dims) else 1 for dim, size in sizes)
    return result if result != shapes else None


def _is_shared(dim: Dim, first_dims: set[Dim]) -> bool:
    """Whether a dim must keep its size; one without a name is an input's own."""
    return isinstance(dim, int) or (dim is not None and dim in first_dims)


def _shapes(inputs: Sequence[ValueInfo], given: Mapping[str, Sequence[int]], guess: _Guess) -> Shapes:
    size_of_name: dict[Dim, int] = {}
    for value in inputs:  # names in shapes the user gave hold for the other inputs, too
        size_of_name.update(zip(value.shape, map(int, given.get(value.name, ())), strict=False))
    shapes: Shapes = {}
    for value in inputs:
        if value.name in given:
            shapes[value.name] = tuple(int(size) for size in given[value.name])
            continue
        sizes = []
        for axis, dim in enumerate(value.shape):
            size = dim if isinstance(dim, int) else _guessed_size(value.shape, axis, guess)
            sizes.append(size_of_name.setdefault(dim, size) if isinstance(dim, str) else size)
        shapes[value.name] = tuple(sizes)
    return shapes


def _guessed_size(shape: tuple[Dim, ...], axis: int, guess: _Guess) -> int:
    """The usual meaning of an axis at this rank."""
    if axis == 0:
        return guess.batch
    if len(shape) == 4:
        last = shape[-1]
        if isinstance(last, int) and 0 < last <= _MAX_CHANNELS_LAST:
            return guess.image[axis - 1]  # (N, H, W, C), TensorFlow's layout, as tf2onnx keeps it
        return (_RGB, *guess.image)[axis - 1]  # (N, C, H, W)
    if axis == 1:
        return guess.length  # (N, T), (N, T, C), (N, C, D, H, W)
    return guess.image[axis % 2]  # of a sequence H, of a volume H, W, H


def _guessed_positions(value: ValueInfo, shapes: Shapes) -> int:
    """The product of the sizes that are our own choice."""
    return prod(size for dim, size in zip(value.shape, shapes[value.name], strict=True) if dim != size)
