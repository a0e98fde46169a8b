"""What to run a scope on: the tensors it had in the model, then others of several magnitudes, sizes and ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.quiet_runtime import RUNTIME_VERSION
from onnx_repfuse.records.float_formats import FLOAT_FORMATS, is_float
from onnx_repfuse.verifier.inputs import Feed
from onnx_repfuse.verifier.scopes.extract import Outside

__all__ = ["MAX_TRIED", "element_type", "example_of", "feeds_seen", "feeds_to_try"]

MAX_TRIED = 120  # inputs on which a scope is run at most
_RANKS = (4, 3, 2, 5, 1)
# Before 1.27, a Conv of an input with fewer than two axes ends the process, where newer versions say what is wrong.
_CONV_ENDS_THE_PROCESS = RUNTIME_VERSION < (1, 27)
_SIZES = ((5, 6, 7, 4), (33, 17, 9, 3), (1, 1, 1, 1))  # then the number of channels in all places
_MAX_CHANNELS = 3  # numbers of channels tried where none is declared
_MAGNITUDES = (1.0, 255.0, 1e-3)  # of random values: ordinary ones, the pixels of an image, small ones
_WITH_MAGNITUDES = 3  # sizes that are tried at every magnitude
_SHUFFLED = 24  # attempts in which the tensors differ in rank
Shape = tuple[int, ...]


def feeds_to_try(
    outside: Sequence[Outside],
    weights: Sequence[onnx.TensorProto],
    seen: Sequence[Mapping[str, Any]],
    seed: int = 0,
    *,
    has_conv: bool = False,
) -> Iterator[Feed]:
    """Inputs for a scope, those nearest to the model's own first.

    Args:
        outside: what it takes from outside.
        weights: of the scope; their sizes are numbers of channels to try.
        seen: tensors of the main graph, from one run of the original each.
        seed: of the random values.
        has_conv: whether a Conv is among the nodes of the scope, or of what it calls.
    """
    rng = np.random.default_rng(seed)
    yield from feeds_seen(outside, seen)
    known = [_shapes_seen(item, seen) for item in outside]
    for attempt, shapes in enumerate(_shapes_to_try(outside, known, _channels(weights), rng)):
        if has_conv and _CONV_ENDS_THE_PROCESS and _guesses_a_vector(outside, known, shapes):
            continue
        for scale in _MAGNITUDES if attempt < _WITH_MAGNITUDES else _MAGNITUDES[:1]:
            feed = {}
            for number, item in enumerate(outside):
                example = example_of(item, seen)
                feed[item.name] = _value(item, shapes[number], weights, example, scale, rng)
            yield feed


def feeds_seen(outside: Sequence[Outside], seen: Sequence[Mapping[str, Any]]) -> Iterator[Feed]:
    """The tensors of the main graph, where all that a scope takes from outside is among them."""
    for values in seen:
        if all(item.seen_in(values) is not None for item in outside):
            yield {item.name: item.seen_in(values) for item in outside}


def _guesses_a_vector(
    outside: Sequence[Outside], known: Sequence[list[Shape]], shapes: Sequence[Shape]
) -> bool:
    return any(
        len(shape) < 2 and shape not in seen and item.declared.tensor_type.elem_type in (0, *FLOAT_FORMATS)
        for item, seen, shape in zip(outside, known, shapes, strict=True)
    )


def _shapes_seen(item: Outside, seen: Sequence[Mapping[str, Any]]) -> list[Shape]:
    found = [item.seen_in(values) for values in seen]
    return [np.shape(value) for value in found if value is not None]


def example_of(item: Outside, seen: Sequence[Mapping[str, Any]]) -> Any:
    """A value that a tensor has in the model; None if none was seen."""
    return next((value for values in seen if (value := item.seen_in(values)) is not None), None)


def _shapes_to_try(
    outside: Sequence[Outside], known: Sequence[list[Shape]], channels: list[int], rng: np.random.Generator
) -> Iterator[list[Shape]]:
    """Shapes of all tensors, one list per attempt."""
    candidates = [
        [*dict.fromkeys([*shapes, *(_guesses(item, channels) if item.is_free or not shapes else ())])]
        for item, shapes in zip(outside, known, strict=True)
    ]
    if not candidates:
        yield []
        return
    for row in range(max(map(len, candidates))):  # side by side: what has one shape goes on with it
        yield [shapes[row % len(shapes)] for shapes in candidates]
    if sum(len(shapes) > 1 for shapes in candidates) > 1:
        for _ in range(_SHUFFLED):
            yield [shapes[rng.integers(len(shapes))] for shapes in candidates]


def _guesses(item: Outside, channels: list[int]) -> list[Shape]:
    """Shapes for a tensor that is known from its declaration at most."""
    tensor = item.declared.tensor_type
    data_type = tensor.elem_type
    if data_type and data_type not in FLOAT_FORMATS:
        dims = [d.dim_value if d.HasField("dim_value") else 1 for d in tensor.shape.dim]
        return [tuple(dims)]
    found: list[Shape] = []
    if tensor.HasField("shape"):
        for sizes in _SIZES:
            free = itertools.cycle(sizes)
            dims = [d.dim_value if d.HasField("dim_value") else next(free) for d in tensor.shape.dim]
            found.append(tuple(dims))
    for style, count, rank in itertools.product(range(len(_SIZES) + 1), channels, _RANKS):
        sizes = [*_SIZES, (count,) * 4][style]
        if rank == 1:
            found.append((count,))
            continue
        found.append((2, count, *sizes[: rank - 2]))
        found.append((2, *sizes[: rank - 2], count))  # channels last
    return found


def _channels(weights: Sequence[onnx.TensorProto]) -> list[int]:
    """Likely numbers of channels, the most frequent size of the weights first."""
    sizes = [
        size for tensor in weights if tensor.data_type in FLOAT_FORMATS for size in tensor.dims if size > 1
    ]
    counted = sorted(set(sizes), key=lambda size: (-sizes.count(size), size))
    return counted[:_MAX_CHANNELS] or [4]


def element_type(item: Outside, weights: Sequence[onnx.TensorProto], example: Any) -> int:
    """The type a tensor has in the model, else the declared one, else that of the weights."""
    if example is not None:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.asarray(example).dtype))
    declared = item.declared.tensor_type.elem_type
    floats = [tensor.data_type for tensor in weights if tensor.data_type in FLOAT_FORMATS]
    return int(declared or (floats[0] if floats else onnx.TensorProto.FLOAT))


def _value(
    item: Outside,
    shape: Shape,
    weights: Sequence[onnx.TensorProto],
    example: Any,
    scale: float,
    rng: np.random.Generator,
) -> Any:
    data_type = element_type(item, weights, example)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    if is_float(dtype):
        return np.asarray(scale * rng.standard_normal(shape)).astype(dtype)
    if example is not None:
        return example  # an index, a size, a condition: others may not be allowed
    return np.ones(shape, dtype)  # a Loop goes on, in its second round
