"""What to feed a model: synthetic values, at sizes at which it runs.

Random floats have mixed signs, since a ReLU hides faults from inputs in [0, 1). Symbolic dims take an ordinary size at
batch 1, and a small odd one at batch 2, where the padding weighs more. Where a later input has dims of its own, it is
fed once more with 1 for these, which shows what broadcasts. Where the model does not run, other sizes are tried; then
the user is asked for `--input-shape`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_repfuse.errors import InputError, UsageError
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.distance import is_float_array
from onnx_repfuse.verifier.input_hints import InputHints
from onnx_repfuse.verifier.input_sizes import (
    ORDINARY,
    SMALL,
    Shapes,
    SizeGuesses,
    broadcast_shapes,
    every_small_size,
    has_free_dims,
    shapes_to_try,
)
from onnx_repfuse.verifier.session import Dim, DoesNotRun, Session, ValueInfo

__all__ = [
    "Feed",
    "FeedGroup",
    "FeedKey",
    "FeedSpec",
    "choose_feeds",
    "converted",
    "float_dtype",
    "make_feed",
    "renamed",
]

Feed = dict[str, Any]  # input name -> value, as a session takes it
_NO_HINTS = InputHints()
_BELOW_ONE = 0.9  # in half precision, 0.9999 is rounded to 1
_SECONDS = 5.0  # that every small size is tried for, where no usual one runs
_USER_DATA = -1  # in place of a seed
_FLOATS = {  # by the name ONNX Runtime gives the type, as "bfloat16"
    onnx.TensorProto.DataType.Name(data_type).lower(): limits.dtype
    for data_type, limits in FLOAT_FORMATS.items()
}
# Where a model runs on no random integers, these are tried (first element, others): sizes to expand to, indices,
# the target of a Reshape.
_STEADY = ((1, 1), (0, 0), (-1, 1))
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# Short, long, mixed case, a number, a blank: enough for ONNX's string operators.
_WORDS = np.array(["a", "bc", "Def", "0", "x y"], dtype=object)


@dataclass(frozen=True)
class FeedSpec:
    """What the user knows about the inputs.

    Attributes:
        shapes: input name -> shape, instead of chosen sizes.
        data: real inputs (one dict, name -> value, per run), used as they are; inputs that a dict does not name get
            synthetic values.
        seeds: seeds of the random inputs; the first also measures the noise.
        fixed: input name -> dims, numbers where another model that is to take the same inputs fixes a size.

    Raises:
        UsageError: a value cannot have been meant.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    data: tuple[Mapping[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    fixed: Mapping[str, Sequence[Dim]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise UsageError for slips."""
        if not isinstance(self.shapes, Mapping):
            raise UsageError("FeedSpec.shapes is a dict, input name -> shape")
        if isinstance(self.data, Mapping) or not all(isinstance(run, Mapping) for run in self.data):
            raise UsageError("FeedSpec.data has a dict for each run, ({'input': array},) for one")


class FeedKey(NamedTuple):
    """Which feed: the index of its group, and its index in the group."""

    group: int
    feed: int


@dataclass(frozen=True)
class FeedGroup:
    """Inputs of one shape, on which the model ran. The noise is measured on the first feed.

    Attributes:
        shapes: of each tensor input.
        feeds: the inputs, one dict each; never empty.
        seeds: the seed of each feed, or -1 for user data.
        outputs: the model's outputs on each feed, so that no run is wasted.
    """

    shapes: Shapes
    feeds: tuple[Feed, ...] = ()
    seeds: tuple[int, ...] = ()
    outputs: tuple[dict[str, Any], ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements of all tensor inputs."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def with_run(self, feed: Feed, seed: int, session: Session) -> FeedGroup:
        """The group with one more feed. Raises DoesNotRun."""
        return replace(
            self,
            feeds=(*self.feeds, feed),
            seeds=(*self.seeds, seed),
            outputs=(*self.outputs, session.run(feed)),
        )


def choose_feeds(session: Session, spec: FeedSpec, hints: InputHints = _NO_HINTS) -> list[FeedGroup]:
    """Choose sizes at which the model runs, and run it there.

    Args:
        session: the original, opened.
        spec: what the user said about the inputs.
        hints: what the graph demands of its inputs.

    Returns:
        The ordinary shape first.

    Raises:
        InputError: the model runs at no size we tried; the message ends with the runtime's reason.
    """
    try:
        return _choose_feeds(session, spec, hints)
    except InputError:
        if spec.data or not any(_is_open(value, hints) for value in session.inputs):
            raise
        for steady in _STEADY:
            with suppress(InputError):
                return _choose_feeds(session, spec, replace(hints, steady=steady))
        raise


def _choose_feeds(session: Session, spec: FeedSpec, hints: InputHints) -> list[FeedGroup]:
    session = replace(session, inputs=[_fixed(value, spec.fixed) for value in session.inputs])
    _check(spec, session)
    if spec.data:
        return _user_feeds(session, spec, hints)
    seeds = spec.seeds or (0,)
    attempt = partial(_first_that_runs, session, spec, hints)
    readings = list(hints.readings(session.inputs))
    tries = partial(_shapes_of_readings, [*readings, session.inputs], spec.shapes)
    small_ones = _for_some_seconds(every_small_size(readings[0], spec.shapes))
    ordinary = itertools.chain(tries(ORDINARY.with_more(hints.sizes)), small_ones)
    has_choice = any(has_free_dims(value, spec.shapes) for value in readings[0])
    if len(seeds) == 1 or not has_choice:  # one shape, (1, 3, 224, 224) in most exported files
        return [attempt(ordinary, seeds)]
    # With three seeds: two feeds of the ordinary shape, two of the small one. Only feeds of one shape can be compared
    # with each other, which shows that an output depends on its inputs.
    main = attempt(ordinary, seeds[:-1])
    small_guesses = SMALL.with_more((hints.extent + 1, 2 * hints.extent + 1) if hints.extent > 1 else ())
    try:
        small = attempt(tries(small_guesses), (seeds[-1], seeds[0]))
    except InputError:  # it runs at the ordinary size only
        feed = make_feed(session.inputs, main.shapes, seeds[-1], hints)
        return [main.with_run(feed, seeds[-1], session)]
    same_ranks = (read for read in readings if _have_ranks_of(read, small.shapes))
    narrow = broadcast_shapes(next(same_ranks, session.inputs), spec.shapes, small.shapes)
    if narrow is not None:
        with suppress(InputError):  # a model need not broadcast
            return [main, small, attempt([narrow], seeds[:1])]
    return [main, small]


def _for_some_seconds(shapes: Iterator[Shapes]) -> Iterator[Shapes]:
    """Shapes to try until time is up: of a large network, each takes long."""
    start: float | None = None
    for one in shapes:
        start = time.monotonic() if start is None else start
        if time.monotonic() - start > _SECONDS:
            return
        yield one


def float_dtype(type_name: str) -> np.dtype[Any] | None:
    """The dtype of a tensor type as ONNX Runtime writes it; None if it is no float type.

    >>> float_dtype("tensor(double)"), float_dtype("tensor(int64)")
    (dtype('float64'), None)
    """
    return _FLOATS.get(type_name.removeprefix("tensor(").removesuffix(")"))


def renamed(feed: Mapping[str, Any], names: Mapping[str, str]) -> Feed:
    """A feed under other names; inputs without another name keep theirs."""
    return {names.get(name, name): value for name, value in feed.items()}


def converted(feed: Mapping[str, Any], inputs: Sequence[ValueInfo]) -> Feed:
    """A feed whose float arrays have the float types that a model declares; other values are passed on."""
    types = {value.name: float_dtype(value.type) for value in inputs}

    def convert(name: str, value: Any) -> Any:
        wanted = types.get(name)
        if wanted is None or not is_float_array(value):
            return value
        return value.astype(wanted, copy=False)

    return {name: convert(name, value) for name, value in feed.items()}


def _shapes_of_readings(
    readings: Iterable[Sequence[ValueInfo]], given: Mapping[str, Sequence[int]], guesses: SizeGuesses
) -> Iterator[Shapes]:
    """The shapes to try for one reading of the inputs after the other, each once."""
    tried = set()
    for inputs in readings:
        for shapes in shapes_to_try(inputs, given, guesses):
            if repr(shapes) not in tried:
                tried.add(repr(shapes))
                yield shapes


def _have_ranks_of(inputs: Sequence[ValueInfo], shapes: Shapes) -> bool:
    return all(len(value.shape) == len(shapes[value.name]) for value in inputs)


def _fixed(value: ValueInfo, fixed: Mapping[str, Sequence[Dim]]) -> ValueInfo:
    dims = fixed.get(value.name, ())
    if len(dims) != len(value.shape):
        return value
    sizes = (dim if isinstance(dim, int) else own for dim, own in zip(dims, value.shape, strict=True))
    return value._replace(shape=tuple(sizes))


def make_feed(
    inputs: Sequence[ValueInfo], shapes: Mapping[str, Sequence[int]], seed: int, hints: InputHints
) -> Feed:
    """Random values for `inputs`: normal floats, integers below a bound or of a few values.

    Raises:
        InputError: we have no synthetic values for an input's type.
    """
    rng = np.random.default_rng(seed)
    return {value.name: _synthetic(value, tuple(shapes[value.name]), rng, hints) for value in inputs}


def _synthetic(value: ValueInfo, shape: tuple[int, ...], rng: np.random.Generator, hints: InputHints) -> Any:
    kind = value.type
    if kind.startswith("optional("):
        return _synthetic(value._replace(type=kind[len("optional(") : -1]), shape, rng, hints)
    if kind.startswith("seq("):
        element = value._replace(type=kind[len("seq(") : -1])
        return [_synthetic(element, shape, rng, hints) for _ in range(2)]
    element_type = kind.removeprefix("tensor(").removesuffix(")")
    if element_type in _FLOATS:
        return _synthetic_floats(value.name, shape, rng, hints).astype(_FLOATS[element_type])
    if element_type == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if element_type == "string":
        return np.asarray(_WORDS[rng.integers(0, len(_WORDS), shape)], dtype=object)
    if hints.steady is not None and _is_open(value, hints):
        first, others = hints.steady
        values = np.full(shape, others, element_type)
        values[:1] = first
        return values
    if element_type in _INTEGERS:
        low, high = _integer_range(np.dtype(element_type), shape, hints.bounds.get(value.name))
        return np.asarray(rng.integers(low, max(high, low + 1), shape)).astype(element_type)
    raise InputError(
        f"input '{value.name}' has type {kind}, for which there are no synthetic values: use --input-data"
    )


def _synthetic_floats(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, hints: InputHints
) -> np.ndarray[Any, Any]:
    """Normal random numbers, where nothing else is demanded of them."""
    if name in hints.scales:
        return np.ones(shape)
    if name in hints.fractions:
        return np.asarray(rng.random(shape) * _BELOW_ONE)
    return np.asarray(rng.standard_normal(shape))


def _is_open(value: ValueInfo, hints: InputHints) -> bool:
    """Whether it may be a list of sizes or indices: integers with an axis, which index no table."""
    if value.name in hints.bounds or not value.shape:
        return False
    return value.type in ("tensor(int32)", "tensor(int64)")


def _integer_range(dtype: np.dtype[Any], shape: tuple[int, ...], bound: int | None) -> tuple[int, int]:
    """(lowest, one above the highest) value of an integer input."""
    if bound is not None:
        return 0, bound
    if dtype.itemsize == 1:  # quantized values, or the pixels of an image
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max) + 1
    return (0, 4) if shape else (1, 4)  # a scalar is mostly a count or a size: not 0


def _check(spec: FeedSpec, session: Session) -> None:
    """Raise InputError where the user names an input the model does not have, or gives a shape of another rank."""
    names = {value.name for value in session.inputs}
    for given in (spec.shapes, *spec.data):
        for name in given:
            if name not in names:
                raise InputError(
                    f"the model has no input '{name}'; it has {', '.join(sorted(names)) or 'none'}"
                )
    for value in session.inputs:
        shape = spec.shapes.get(value.name, value.shape)
        if value.shape and len(shape) != len(value.shape):
            raise InputError(f"input '{value.name}' has {len(value.shape)} dims, but {len(shape)} were given")


def _first_that_runs(
    session: Session,
    spec: FeedSpec,
    hints: InputHints,
    attempts: Iterable[Shapes],
    seeds: Sequence[int],
) -> FeedGroup:
    reasons = []
    for shapes in attempts:
        group = FeedGroup(shapes)
        try:
            for seed in seeds:
                group = group.with_run(make_feed(session.inputs, shapes, seed, hints), seed, session)
        except DoesNotRun as error:
            reasons.append(str(error))
        else:
            return group
    raise InputError(
        _asks_for_sizes(session, spec, hints, reasons[0] if reasons else "no size within bounds")
    )


def _asks_for_sizes(session: Session, spec: FeedSpec, hints: InputHints, reason: str) -> str:
    free = [value for value in session.inputs if has_free_dims(value, spec.shapes)]
    free += [value for value in session.inputs if value.name in hints.unranked - spec.shapes.keys()]
    if not free:
        return f"the model does not run: {reason}"
    shape = ",".join("?" if dim is None else str(dim) for dim in free[0].shape) or "..."
    return f"the model runs at no size that was tried; give --input-shape {free[0].name}:{shape}: {reason}"


def _user_feeds(session: Session, spec: FeedSpec, hints: InputHints) -> list[FeedGroup]:
    """The user's data, grouped by shape. Inputs without data get synthetic values of the first size we would try."""
    synthetic_shapes = next(shapes_to_try(next(hints.readings(session.inputs)), spec.shapes, ORDINARY))
    groups: dict[str, FeedGroup] = {}
    for seed, data in enumerate(spec.data):  # another seed per run, for the inputs without data
        feed = make_feed(session.inputs, synthetic_shapes, seed, hints)
        for name, value in data.items():
            feed[name] = value if isinstance(value, list) else np.asarray(value)
        # A list is a sequence of tensors, whose shapes may differ.
        shapes = {name: np.shape(value) for name, value in feed.items() if not isinstance(value, list)}
        group = groups.get(repr(shapes), FeedGroup(shapes))
        try:
            groups[repr(shapes)] = group.with_run(feed, _USER_DATA, session)
        except DoesNotRun as error:
            raise InputError(f"the model does not run on the data given: {error}") from error
    return list(groups.values())
