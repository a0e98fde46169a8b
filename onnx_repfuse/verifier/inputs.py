"""Inputs for a model: what to feed, at which sizes.

Random floats have mixed signs (a ReLU hides faults from [0, 1) inputs), and symbolic dims take an ordinary
size at batch 1 and a small odd one at batch 2, where borders weigh more. Where a later input has dims of its own, it is
fed with 1 for these, too, which shows what broadcasts. A dim that keeps the model from running is tried at other sizes,
then the user is asked for `--input-shape`.

How many values an integer input may take: the rows of the tables it indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.records.float_formats import FLOAT_FORMATS
from onnx_repfuse.verifier.input_sizes import LENGTHS, ORDINARY, SHORT, TINY, assignments, is_free, narrowed
from onnx_repfuse.verifier.session import DoesNotRun, Model, Session, ValueInfo, load

__all__ = ["Feed", "FeedSpec", "Scene", "integer_bounds", "make_feed", "scenes", "table_rows"]

Feed = dict[str, Any]
_FLOATS = {  # by ONNX Runtime's name of the type, as `tensor(bfloat16)`
    f"tensor({onnx.TensorProto.DataType.Name(data_type).lower()})": limits.dtype
    for data_type, limits in FLOAT_FORMATS.items()
}
_INTEGERS = {
    f"tensor({name})": np.dtype(name)
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


@dataclass(frozen=True)
class FeedSpec:
    """What the user knows about the inputs.

    Attributes:
        shapes: input name -> shape, instead of chosen sizes.
        data: whole inputs, used as they are and instead of random ones (one dict, name -> value, per run;
            inputs a dict does not name are made up).
        seeds: seeds of the random inputs; the first also measures the noise.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    data: tuple[Mapping[str, Any], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Scene:
    """Inputs of one shape. The noise is measured on the first feed.

    Attributes:
        feeds: the inputs, one dict each; never empty.
        seeds: the seed of each, or -1 for user data.
        shapes: the shape of each tensor input.
        tiny: whether this shape costs next to nothing beside the ordinary one.
    """

    feeds: tuple[Feed, ...]
    seeds: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    tiny: bool

    @property
    def elements(self) -> int:
        """Number of elements of all tensor inputs."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())


def scenes(
    runner: Session, spec: FeedSpec, bounds: Mapping[str, int] | None = None
) -> list[tuple[Scene, list[dict[str, Any]]]]:
    """Choose sizes at which the model runs, and return its outputs there, so that no run is wasted.

    Args:
        runner: the original, opened.
        spec: the user's overrides.
        bounds: input name -> number of values an integer input may take (an embedding's rows).

    Returns:
        per scene, the outputs of each of its feeds. The first scene is the ordinary one.

    Raises:
        InputError: the model runs at no size we tried; the message ends with the runtime's reason.
    """
    bounds = bounds or {}
    _known(spec, runner)
    if spec.data:
        return _user_scenes(runner, spec, bounds)
    seeds = spec.seeds or (0,)
    ordinary = assignments(runner.inputs, spec.shapes, 1, ORDINARY, LENGTHS)
    if len(seeds) == 1 or not any(is_free(port, spec.shapes) for port in runner.inputs):
        return [_first_that_runs(runner, spec, bounds, ordinary, seeds, False)]
    found = _first_that_runs(runner, spec, bounds, ordinary, seeds[:-1], False)
    try:
        small = assignments(runner.inputs, spec.shapes, 2, TINY, SHORT)
        extra = _first_that_runs(runner, spec, bounds, small, (seeds[-1], seeds[0]), True)
    except InputError:
        feed = make_feed(runner.inputs, found[0].shapes, seeds[-1], bounds)
        return [_joined(found, [feed], [runner.run(feed)], seeds[-1])]
    narrow = narrowed(runner.inputs, spec.shapes, extra[0].shapes)
    if narrow is not None:
        with suppress(InputError):  # nothing need broadcast
            return [found, extra, _first_that_runs(runner, spec, bounds, iter([narrow]), seeds[:1], True)]
    return [found, extra]


def make_feed(
    inputs: Sequence[ValueInfo], shapes: Mapping[str, Sequence[int]], seed: int, bounds: Mapping[str, int]
) -> Feed:
    """Random values for `inputs`: floats of both signs, integers below `bounds` or of a few values.

    Raises:
        InputError: an input's type is not one we can make up.
    """
    rng = np.random.default_rng(seed)
    return {port.name: _value(port, tuple(shapes[port.name]), rng, bounds) for port in inputs}


def _value(
    port: ValueInfo, shape: tuple[int, ...], rng: np.random.Generator, bounds: Mapping[str, int]
) -> Any:
    kind = port.type
    if kind.startswith("optional("):
        return _value(port._replace(type=kind[len("optional(") : -1]), shape, rng, bounds)
    if kind.startswith("seq("):
        inner = port._replace(type=kind[len("seq(") : -1])
        return [_value(inner, shape, rng, bounds) for _ in range(2)]
    if kind in _FLOATS:
        return np.asarray(rng.standard_normal(shape)).astype(_FLOATS[kind])
    if kind == "tensor(bool)":
        return np.asarray(rng.random(shape) < 0.5)
    if kind == "tensor(string)":
        words = np.array(["a", "bc", "Def", "0", "x y"], dtype=object)
        return np.asarray(words[rng.integers(0, len(words), shape)], dtype=object)
    if kind in _INTEGERS:
        dtype = _INTEGERS[kind]
        if port.name in bounds:
            low, high = 0, bounds[port.name]
        elif dtype.itemsize == 1:
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
        else:
            low, high = (0, 4) if shape else (1, 4)
        return np.asarray(rng.integers(low, max(high, low + 1), shape)).astype(dtype)
    raise InputError(
        f"input '{port.name}' has type {kind}, for which no values can be made up: use --input-data"
    )


def _known(spec: FeedSpec, runner: Session) -> None:
    names = {port.name for port in runner.inputs}
    for given in (spec.shapes, *spec.data):
        for name in given:
            if name not in names:
                raise InputError(
                    f"the model has no input '{name}'; it has {', '.join(sorted(names)) or 'none'}"
                )
    for port in runner.inputs:
        shape = spec.shapes.get(port.name)
        if shape is not None and port.shape and len(shape) != len(port.shape):
            raise InputError(f"input '{port.name}' has {len(port.shape)} dims, but {len(shape)} were given")


def _first_that_runs(
    runner: Session,
    spec: FeedSpec,
    bounds: Mapping[str, int],
    attempts: Iterator[dict[str, tuple[int, ...]]],
    seeds: Sequence[int],
    tiny: bool,
) -> tuple[Scene, list[dict[str, Any]]]:
    reason = ""
    for shapes in attempts:
        feeds = [make_feed(runner.inputs, shapes, seed, bounds) for seed in seeds]
        try:
            outputs = [runner.run(feed) for feed in feeds]
        except DoesNotRun as error:
            reason = reason or str(error)
            continue
        return Scene(tuple(feeds), tuple(seeds), shapes, tiny), outputs
    raise InputError(_no_size(runner, spec, reason))


def _no_size(runner: Session, spec: FeedSpec, reason: str) -> str:
    free = [port for port in runner.inputs if is_free(port, spec.shapes)]
    if not free:
        return f"the model does not run: {reason}"
    shape = ",".join(str(dim) if dim is not None else "?" for dim in free[0].shape)
    return f"the model runs at no size that was tried; give --input-shape {free[0].name}:{shape}: {reason}"


def _user_scenes(
    runner: Session, spec: FeedSpec, bounds: Mapping[str, int]
) -> list[tuple[Scene, list[dict[str, Any]]]]:
    shapes = next(assignments(runner.inputs, spec.shapes, 1, ORDINARY, LENGTHS))
    found: dict[str, tuple[list[Feed], list[dict[str, Any]], dict[str, tuple[int, ...]]]] = {}
    for index, given in enumerate(spec.data):
        feed = {
            **make_feed(runner.inputs, shapes, index, bounds),
            **{k: _as_input(v) for k, v in given.items()},
        }
        actual = {name: np.shape(value) for name, value in feed.items() if not isinstance(value, list)}
        try:
            outputs = runner.run(feed)
        except DoesNotRun as error:
            raise InputError(f"the model does not run on the data given: {error}") from error
        feeds, results, _ = found.setdefault(repr(actual), ([], [], actual))
        feeds.append(feed)
        results.append(outputs)
    return [
        (Scene(tuple(feeds), (-1,) * len(feeds), actual, False), results)
        for feeds, results, actual in found.values()
    ]


def _as_input(value: Any) -> Any:
    return value if isinstance(value, list) else np.asarray(value)


def _joined(
    found: tuple[Scene, list[dict[str, Any]]], feeds: list[Feed], outputs: list[dict[str, Any]], seed: int
) -> tuple[Scene, list[dict[str, Any]]]:
    scene, before = found
    joined = Scene((*scene.feeds, *feeds), (*scene.seeds, seed), scene.shapes, scene.tiny)
    return joined, [*before, *outputs]


def integer_bounds(original: Model, inputs: Iterable[ValueInfo]) -> dict[str, int]:
    """Input name -> number of values, for the integer inputs that index a table. Raises DoesNotRun."""
    integers = {port.name for port in inputs if "int" in port.type}
    return table_rows(load(original, weights=False).graph, integers) if integers else {}


def table_rows(graph: onnx.GraphProto, names: Iterable[str]) -> dict[str, int]:
    """Rows of the smallest constant table that each of `names` indexes with Gather, also through Cast."""
    origin = {name: name for name in names}
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten") and node.input:
            if node.input[0] in origin:
                origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            shape = sizes.get(node.input[0], ())
            if axis < len(shape):
                name = origin[node.input[1]]
                bounds[name] = min(bounds.get(name, shape[axis]), shape[axis])
    return bounds
