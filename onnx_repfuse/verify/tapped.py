"""A model whose inner tensors can be read: the same file, with more graph outputs.

Protobuf merges what is concatenated, so the extra outputs are a few bytes behind the file; its nodes and
weights are neither changed nor copied by us, except into a temporary file when it is large.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnx_repfuse.verify.sessions import DoesNotRun, Model, Runner, load, one_line, open_model

__all__ = ["count_name", "open_tapped", "tensor_names"]

_IN_MEMORY = 128 << 20


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
def open_tapped(
    model: Model, names: Sequence[str], threads: int = 1, counted: Sequence[str] = ()
) -> Iterator[Runner]:
    """The model, opened with `names` (node outputs that are not graph outputs yet) among its outputs, and the number
    of elements of those `counted`.

    Raises:
        DoesNotRun: the runtime refuses it, or the file cannot be read.
    """
    if not names and not counted:
        with open_model(model, threads=threads) as runner:
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
            with open_model(model + suffix, threads=threads) as runner:
                yield runner
            return
        path = Path(model)
        if path.stat().st_size <= _IN_MEMORY:
            with open_model(path.read_bytes() + suffix, threads=threads, folder=path.parent) as runner:
                yield runner
            return
        with tempfile.TemporaryDirectory(prefix="repfuse-") as folder:
            copy = Path(folder) / "tapped.onnx"
            shutil.copyfile(path, copy)
            with copy.open("ab") as file:
                file.write(suffix)
            with open_model(copy, threads=threads) as runner:
                yield runner
    except OSError as error:
        raise DoesNotRun(one_line(error)) from error
