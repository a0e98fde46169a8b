"""The original's own tensors on a whole-model input, as many at a time as memory holds.

A model whose inner tensors can be read: the same file, with more graph outputs.

Protobuf merges what is concatenated, so the extra outputs are a few bytes behind the file; its nodes and
weights are neither changed nor copied by us, except into a temporary file when it is large.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.records.runtime import DEFAULT_RUNTIME, Runtime
from onnx_repfuse.verifier.inputs import Feed
from onnx_repfuse.verifier.session import DoesNotRun, Model, Session, load, one_line, open_session

__all__ = ["MEMORY", "Seen", "activations", "count_name", "open_with_extra_outputs", "tensor_names"]

MEMORY = 1 << 30  # bytes of activations to hold at once
_WIDTH = 4  # bytes of an element, as a rule
Seen = Mapping[str, Any] | str
_IN_MEMORY = 128 << 20


def activations(
    original: Model,
    wanted: Sequence[Sequence[str]],
    feed: Feed,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    memory: int = MEMORY,
    beside: Sequence[str] = (),
    otherwise: Feed | None = None,
    skeleton: onnx.ModelProto | None = None,
    ran: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[int], Seen]]:
    """Read tensors of the original's main graph in one run, or in several where memory is short.

    Args:
        original: the model, which runs on `feed`.
        wanted: per fold, the names of the tensors to read together.
        feed: the whole-model input.
        runtime: how it is run, which is closed before the last values are handed out.
        memory: bytes to hold at once.
        beside: graph outputs and inner tensors to read along with the first folds.
        otherwise: another input, for a model that does not run on `feed`.
        skeleton: the model without its weights, so that they need not be read for its names.
        ran: is told of each run of the original.

    Yields:
        (indices into `wanted`, the values); every index once.
    """
    made, public = tensor_names(skeleton or original)
    hidden = [index for index, names in enumerate(wanted) if not set(names) <= made]
    if hidden:
        yield hidden, "its tensors are not in the main graph"
    live = [index for index, names in enumerate(wanted) if set(names) <= made]
    if not live:
        return
    named = {name for index in live for name in wanted[index]} | set(beside)
    extra = sorted(named - public - set(feed))
    left = list(live)
    with ExitStack() as stack:
        try:
            runner = stack.enter_context(open_with_extra_outputs(original, extra, runtime))
            sizes, unsure = _sizes(runner, feed)
            batches = list(_batches(sizes, live, wanted, memory))
            if len(batches) > 1 and unsure:
                stack.close()
                sizes.update(_counted(original, unsure, [feed, otherwise or feed], runtime, ran))
                batches = list(_batches(sizes, live, wanted, memory))
                runner = stack.enter_context(open_with_extra_outputs(original, extra, runtime))
            for number, batch in enumerate(batches):
                read = {name for index in batch for name in wanted[index]}
                read |= set(beside) if number == 0 else set()
                names = sorted(read - set(feed))
                try:
                    found = runner.run(feed, names)
                except DoesNotRun:
                    if otherwise is None:
                        raise
                    feed = otherwise
                    found = runner.run(feed, names)
                ran()
                values = {**feed, **found}
                if number == len(batches) - 1:
                    stack.close()
                left = left[len(batch) :]
                yield batch, values
        except DoesNotRun as error:
            yield left, f"its tensors cannot be read: {error}"


def _sizes(runner: Session, feed: Feed) -> tuple[dict[str, int], list[str]]:
    """Bytes of the outputs, as the runtime infers them, and those of which it does not know all dims: a bold guess."""
    guess = max((int(np.size(value)) for value in feed.values() if not isinstance(value, list)), default=1)
    sizes: dict[str, int] = dict.fromkeys(feed, 0)
    unsure = []
    for port in runner.outputs:
        known = [dim for dim in port.shape if isinstance(dim, int) and dim > 0]
        if len(known) == len(port.shape) and port.shape:
            sizes[port.name] = _WIDTH * int(np.prod(known))
        else:
            sizes[port.name] = _WIDTH * max(guess * 8, int(np.prod(known or [1])))
            if port.type.startswith("tensor("):
                unsure.append(port.name)
    return sizes, unsure


def _counted(
    original: Model, names: Sequence[str], feeds: Sequence[Feed], runtime: Runtime, ran: Callable[[], None]
) -> dict[str, int]:
    """Bytes of tensors that the runtime cannot infer, from a run that keeps none of them: one more, and many less.

    Nothing where it cannot be told; then the guess stands.
    """
    asked = [count_name(name) for name in names]
    for feed in feeds:
        try:
            with open_with_extra_outputs(original, [], runtime, names) as runner:
                found = runner.run(feed, asked)
        except DoesNotRun:
            continue
        ran()
        return {name: _WIDTH * int(found[count]) for name, count in zip(names, asked, strict=True)}
    return {}


def _batches(
    sizes: Mapping[str, int], live: Sequence[int], wanted: Sequence[Sequence[str]], memory: int
) -> Iterator[list[int]]:
    """Folds whose tensors fit into memory together."""
    most = max(sizes.values(), default=_WIDTH)
    batch: list[int] = []
    held: set[str] = set()
    for index in live:
        more = held | set(wanted[index])
        if batch and sum(sizes.get(name, most) for name in more) > memory:
            yield batch
            batch, more = [], set(wanted[index])
        batch.append(index)
        held = more
    if batch:
        yield batch


def tensor_names(model: Model) -> tuple[set[str], set[str]]:
    """(graph inputs and node outputs of the main graph, graph outputs)."""
    graph = load(model, weights=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    made = {value.name for value in graph.input if value.name not in constant}
    made.update(name for node in graph.node for name in node.output if name)
    return made, {value.name for value in graph.output}


def count_name(name: str) -> str:
    """The output that tells how many elements a tensor has."""
    return f"{name}/repfuse-count"


@contextmanager
def open_with_extra_outputs(
    model: Model, names: Sequence[str], runtime: Runtime = DEFAULT_RUNTIME, counted: Sequence[str] = ()
) -> Iterator[Session]:
    """The model, opened with `names` (node outputs that are not graph outputs yet) among its outputs, and the number
    of elements of those `counted`.

    Raises:
        DoesNotRun: the runtime refuses it, or the file cannot be read.
    """
    if not names and not counted:
        with open_session(model, runtime) as runner:
            yield runner
        return
    extra = onnx.ModelProto()
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    for name in counted:
        extra.graph.node.add(op_type="Size", input=[name], output=[count_name(name)])
        extra.graph.output.add(name=count_name(name))
    suffix = extra.SerializeToString()
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    try:
        if isinstance(model, bytes):
            with open_session(model + suffix, runtime) as runner:
                yield runner
            return
        path = Path(model)
        if path.stat().st_size <= _IN_MEMORY:
            with open_session(path.read_bytes() + suffix, runtime=runtime, folder=path.parent) as runner:
                yield runner
            return
        with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
            copy = Path(folder) / "tapped.onnx"
            shutil.copyfile(path, copy)
            with copy.open("ab") as file:
                file.write(suffix)
            with open_session(copy, runtime) as runner:
                yield runner
    except OSError as error:
        raise DoesNotRun(one_line(error)) from error
