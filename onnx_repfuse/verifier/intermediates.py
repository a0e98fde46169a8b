"""The original's inner tensors (intermediates) on a whole-model input, as many at a time as memory holds.

The model they are read from is the same file with more graph outputs. Protobuf merges messages that are concatenated,
so the extra outputs are a few bytes behind the file: nodes and weights are neither parsed nor copied by us, except
into a temporary file when it is large.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.inputs import Feed
from onnx_repfuse.verifier.session import (
    DoesNotRun,
    Model,
    Session,
    input_names,
    load,
    one_line,
    open_session,
    release_heap,
)

__all__ = [
    "MAX_INTERMEDIATE_BYTES",
    "Intermediates",
    "is_shape",
    "open_with_extra_outputs",
    "read_intermediates",
    "readable_tensors",
    "shape_name",
    "tensor_bytes",
    "tensor_names",
]

Intermediates = MutableMapping[str, Any] | str  # tensors by name, or why they cannot be read
MAX_INTERMEDIATE_BYTES = 1 << 30
_FEW_BYTES = 256 << 20  # held at once where that takes few runs
_FEW_RUNS = 8
_WORTH_GIVING_BACK = 16 << 20  # bytes
_ELEMENT_BYTES = 4  # float32, as a rule
_SHAPE = "/repfuse-shape"
_UNKNOWN_SIZE_FACTOR = 8  # a tensor of unknown size is taken for this many times the largest input
# bytes; a larger file is copied on the disk to get its extra outputs, as the bytes would be held twice in memory
_MAX_FILE_IN_MEMORY = 16 << 20


def read_intermediates(
    original: Model,
    wanted: Sequence[Sequence[str]],
    feed: Feed,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    max_bytes: int = MAX_INTERMEDIATE_BYTES,
    also: Sequence[str] = (),
    fallback_feed: Feed | None = None,
    skeleton: onnx.ModelProto | None = None,
    on_run: Callable[[], None] = lambda: None,
    known: dict[str, Any] | None = None,
    elements: Mapping[str, int] | None = None,
) -> Iterator[tuple[list[int], Intermediates]]:
    """Read tensors of the original's main graph in one run, or in several where memory is short.

    Args:
        original: the model, which runs on `feed`.
        wanted: per fold, the names of the tensors to read together; `shape_name` of one reads its sizes alone.
        feed: the whole-model input.
        runtime: how it is run. The session is closed before the last values are handed out.
        max_bytes: of tensors to hold at once.
        also: graph outputs and inner tensors to read along with the first folds.
        fallback_feed: another input, for a model that does not run on `feed`.
        skeleton: the model without its weights, so that they need not be read for its names.
        on_run: is called after each run of the original.
        known: values that were read before; if they are all that is wanted, nothing is run.
        elements: how many some tensors have, where the runtime may not infer it.

    Yields:
        (indices into `wanted`, the values), every index once. The values are gone when the next ones are asked for; who
        does not need one any more may remove it.
    """
    produced, outputs = tensor_names(skeleton or original)
    readable = {index: names for index, names in enumerate(wanted) if _are_in(produced, names)}
    unreadable = [index for index in range(len(wanted)) if index not in readable]
    if unreadable:
        yield unreadable, "its tensors are not in the main graph"
    if not readable:
        return
    names = set().union(*readable.values())
    if known is not None and known.keys() >= names:
        yield list(readable), known
        known.clear()
        return
    extra = sorted(names.union(also) - outputs - set(feed))
    feeds = [feed] if fallback_feed is None else [feed, fallback_feed]
    source = _Original(original, runtime, feeds, on_run, elements or {})
    left = list(readable)
    try:
        for batch, values in _read_batches(source, readable, extra, also, max_bytes):
            left = left[len(batch) :]
            yield batch, values
    except DoesNotRun as error:
        yield left, f"its tensors cannot be read: {error}"


def readable_tensors(model: Model, wanted: Sequence[Sequence[str]]) -> list[str]:
    """Of the tensors that `read_intermediates` would read, those that need to be made outputs."""
    graph = load(model, weights=False).graph
    produced, outputs = tensor_names(model)
    names = set().union(*(group for group in wanted if _are_in(produced, group)))
    return sorted(names - outputs - set(input_names(graph)))


def shape_name(name: str) -> str:
    """What stands for the sizes of a tensor, which take less memory than its values."""
    return f"{name}{_SHAPE}"


def is_shape(name: str) -> bool:
    """Whether `shape_name` made this."""
    return name.endswith(_SHAPE)


def _are_in(produced: set[str], names: Sequence[str]) -> bool:
    return produced.issuperset(name.removesuffix(_SHAPE) for name in names)


def tensor_names(model: Model) -> tuple[set[str], set[str]]:
    """(graph inputs and node outputs of the main graph, graph outputs)."""
    graph = load(model, weights=False).graph
    produced = set(input_names(graph))
    produced.update(name for node in graph.node for name in node.output if name)
    return produced, {value.name for value in graph.output}


def tensor_bytes(
    model: Model, feed: Feed, names: Sequence[str], runtime: Runtime = DEFAULT_RUNTIME
) -> dict[str, int]:
    """About how many bytes tensors take on a feed, without holding them; those that are no tensors are guessed.

    Args:
        model: a path, or a model in memory, which runs on `feed`.
        feed: the inputs.
        names: node outputs that are not graph outputs yet.
        runtime: how it is run.

    Raises:
        DoesNotRun: the runtime refuses the model.
    """
    source = _Original(model, runtime, [feed], lambda: None)
    with source.open(names) as session:
        sizes, unknown = _sizes_in_bytes(session, feed)
    if unknown:
        sizes.update(_count_bytes(source, unknown))
    return sizes


@contextmanager
def open_with_extra_outputs(
    model: Model, names: Sequence[str], runtime: Runtime = DEFAULT_RUNTIME, counted: Sequence[str] = ()
) -> Iterator[Session]:
    """The model, opened with more outputs.

    Args:
        model: a path, or a model in memory.
        names: node outputs that are not graph outputs yet.
        runtime: how it is run.
        counted: tensors whose number of elements is an output, too, called `_count_name` of them.

    Raises:
        DoesNotRun: the runtime refuses it, or the file cannot be read.
    """
    more = _extra_outputs(names, counted)
    try:
        with ExitStack() as stack:
            # The bytes get no name here: `open_session` drops them as soon as the runtime has its own copy.
            if not more:
                session = open_session(model, runtime)
            elif isinstance(model, onnx.ModelProto):
                session = open_session(model.SerializeToString() + more, runtime)
            elif isinstance(model, bytes):
                session = open_session(model + more, runtime)
            elif Path(model).stat().st_size <= _MAX_FILE_IN_MEMORY:
                path = Path(model)
                session = open_session(path.read_bytes() + more, runtime, folder=path.parent)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="repfuse-"))
                session = _open_copy(Path(model), more, Path(folder), runtime)
            yield stack.enter_context(session)
    except OSError as error:
        raise DoesNotRun(one_line(error)) from error


def _open_copy(path: Path, more: bytes, folder: Path, runtime: Runtime) -> Session:
    """A large file with more outputs, opened from a copy in `folder`. Raises DoesNotRun, OSError."""
    copy = folder / "with_outputs.onnx"
    shutil.copyfile(path, copy)
    with copy.open("ab") as file:
        file.write(more)
    try:
        return open_session(copy, runtime)
    except DoesNotRun:
        # The runtime looks for external data beside the file it opens, and takes another folder only for a model in
        # memory. Whether a file has any is known only when it is parsed.
        return open_session(path.read_bytes() + more, runtime, folder=path.parent)


def _extra_outputs(names: Sequence[str], counted: Sequence[str]) -> bytes:
    """What to append to a serialized model; empty if nothing is asked for."""
    if not names and not counted:
        return b""
    extra = onnx.ModelProto()
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for name in filter(is_shape, names):
        extra.graph.node.add(op_type="Shape", input=[name.removesuffix(_SHAPE)], output=[name])
    for name in counted:  # Size is cheap, and the tensor itself need not be kept
        extra.graph.node.add(op_type="Size", input=[name], output=[_count_name(name)])
        extra.graph.output.add(name=_count_name(name))
    return bytes(extra.SerializeToString())


def _count_name(name: str) -> str:
    """The output that says how many elements a tensor has."""
    return f"{name}/repfuse-count"


@dataclass
class _Original:
    """The original, and the feeds to run it on. A feed that it does not take is dropped for good, except the last."""

    model: Model
    runtime: Runtime
    feeds: list[Feed]
    on_run: Callable[[], None]
    elements: Mapping[str, int] = field(default_factory=dict)

    def open(self, names: Sequence[str], counted: Sequence[str] = ()) -> AbstractContextManager[Session]:
        return open_with_extra_outputs(self.model, names, self.runtime, counted)

    def run(self, session: Session, names: set[str]) -> dict[str, Any]:
        """The feed and the tensors `names`. Raises DoesNotRun."""
        feed = self.feeds[0]
        try:
            values = session.run(feed, sorted(names - set(feed)))
        except DoesNotRun:
            if len(self.feeds) == 1:
                raise
            del self.feeds[0]
            return self.run(session, names)
        self.on_run()
        return {**feed, **values}


def _read_batches(
    source: _Original,
    wanted: Mapping[int, Sequence[str]],
    extra: Sequence[str],
    also: Sequence[str],
    max_bytes: int,
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Raises DoesNotRun."""
    with ExitStack() as stack:
        first = stack.enter_context(source.open(extra))
        session: Session | None = first
        sizes, unknown = _sizes_in_bytes(first, source.feeds[0])
        sizes.update(
            {name: _ELEMENT_BYTES * source.elements[name] for name in unknown if name in source.elements}
        )
        unknown = [name for name in unknown if name not in source.elements]
        batches = _batches(sizes, wanted, max_bytes)
        if len(batches) > 1:
            # The runtime keeps every graph output until a run ends, asked for or not. So each batch has a session in
            # which only its tensors are outputs, and never are two sessions, and their weights, open at once.
            stack.close()
            session = None
            if unknown:
                sizes.update(_count_bytes(source, unknown))
                batches = _batches(sizes, wanted, max_bytes)
        for batch in batches:
            names = {name for index in batch for name in wanted[index]}
            if batch is batches[0]:
                names.update(also)
            session = session or stack.enter_context(source.open([name for name in extra if name in names]))
            values = source.run(session, names)
            stack.close()
            session = None
            yield batch, values
            values.clear()  # else they, and whoever got them, would hold two batches during the next run
            if sum(sizes.get(name, 0) for name in names) > _WORTH_GIVING_BACK:
                release_heap()


def _sizes_in_bytes(session: Session, feed: Feed) -> tuple[dict[str, int], list[str]]:
    """(bytes of every output as the runtime infers its shape, the tensors of which it does not know all dims)."""
    tensors = [value for value in feed.values() if not isinstance(value, list)]
    largest_input = max((int(np.size(value)) for value in tensors), default=1)
    sizes: dict[str, int] = dict.fromkeys(feed, 0)
    unknown = []
    for value in session.outputs:
        # The runtime names the dims it cannot infer, or has no shape at all: () also stands for a scalar.
        dims = [dim for dim in value.shape if isinstance(dim, int) and dim > 0]
        elements = int(np.prod(dims or [1]))
        if not dims or len(dims) < len(value.shape):
            if not is_shape(value.name):
                elements = max(largest_input * _UNKNOWN_SIZE_FACTOR, elements)
            if value.type.startswith("tensor(") and not is_shape(value.name):
                unknown.append(value.name)
        sizes[value.name] = _ELEMENT_BYTES * elements
    return sizes, unknown


def _count_bytes(source: _Original, names: Sequence[str]) -> dict[str, int]:
    """Bytes of tensors whose shape the runtime cannot infer, from a run that keeps none of them.

    That run saves many: without it, the guess puts few tensors into a batch. Empty where it fails; the guess stands.
    """
    try:
        with source.open([], names) as session:
            counts = source.run(session, {_count_name(name) for name in names})
    except DoesNotRun:
        return {}
    return {name: _ELEMENT_BYTES * int(counts[_count_name(name)]) for name in names}


def _batches(
    sizes: Mapping[str, int], wanted: Mapping[int, Sequence[str]], max_bytes: int
) -> list[list[int]]:
    """Indices of folds whose tensors fit into memory together; a fold too large for it is alone."""
    # A name without a size is taken for the largest, to be safe.
    largest = max(sizes.values(), default=_ELEMENT_BYTES)
    total = sum(sizes.get(name, largest) for name in set().union(*wanted.values()))
    max_bytes = min(max_bytes, max(_FEW_BYTES, total // _FEW_RUNS))
    batches: list[list[int]] = []
    held: set[str] = set()
    for index, names in wanted.items():
        held |= set(names)
        if not batches or sum(sizes.get(name, largest) for name in held) > max_bytes:
            batches.append([])
            held = set(names)
        batches[-1].append(index)
    return batches
