"""The original's own tensors on a whole-model input, as many at a time as memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx

from onnx_repfuse.verify.feeds import Feed
from onnx_repfuse.verify.sessions import DoesNotRun, Model, Runner
from onnx_repfuse.verify.tapped import open_tapped, tensor_names

__all__ = ["MEMORY", "Seen", "activations"]

MEMORY = 1 << 30  # bytes of activations to hold at once
Seen = Mapping[str, Any] | str
"""Values by tensor name, or why they cannot be read."""


def activations(
    original: Model,
    wanted: Sequence[Sequence[str]],
    feed: Feed,
    *,
    threads: int = 1,
    memory: int = MEMORY,
    beside: Sequence[str] = (),
    otherwise: Feed | None = None,
    skeleton: onnx.ModelProto | None = None,
) -> Iterator[tuple[list[int], Seen]]:
    """Read tensors of the original's main graph in one run, or in several where memory is short.

    Args:
        original: the model, which runs on `feed`.
        wanted: per fold, the names of the tensors to read together.
        feed: the whole-model input.
        threads: of the session, which is closed before the last values are handed out.
        memory: bytes to hold at once.
        beside: graph outputs and inner tensors to read along with the first folds.
        otherwise: another input, for a model that does not run on `feed`.
        skeleton: the model without its weights, so that they need not be read for its names.

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
            runner = stack.enter_context(open_tapped(original, extra, threads))
            batches = list(_batches(runner, feed, live, wanted, memory))
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
                values = {**feed, **found}
                if number == len(batches) - 1:
                    stack.close()
                left = left[len(batch) :]
                yield batch, values
        except DoesNotRun as error:
            yield left, f"its tensors cannot be read: {error}"


def _batches(
    runner: Runner, feed: Feed, live: Sequence[int], wanted: Sequence[Sequence[str]], memory: int
) -> Iterator[list[int]]:
    """Folds whose tensors fit into memory together, by the shapes the runtime infers."""
    guess = max((int(np.size(value)) for value in feed.values() if not isinstance(value, list)), default=1)
    sizes: dict[str, int] = dict.fromkeys(feed, 0)
    for port in runner.outputs:
        known = [dim for dim in port.shape if isinstance(dim, int) and dim > 0]
        whole = len(known) == len(port.shape) and port.shape
        sizes[port.name] = 4 * (int(np.prod(known)) if whole else max(guess * 8, int(np.prod(known or [1]))))
    batch: list[int] = []
    held: set[str] = set()
    for index in live:
        more = held | set(wanted[index])
        if batch and sum(sizes.get(name, 4 * guess) for name in more) > memory:
            yield batch
            batch, more = [], set(wanted[index])
        batch.append(index)
        held = more
    if batch:
        yield batch
