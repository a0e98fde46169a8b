"""`--overwrite-input-shape`: the model with other shapes of its inputs, written beside the output and opened again.

What the file says of inner tensors is dropped, as it may be of the old shapes. Outputs get what is inferred from the
new ones. The nodes and weights stay, so the model that is written here is what the result is compared with.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnx_repfuse.errors import UsageError
from onnx_repfuse.graph.load import read_scopes
from onnx_repfuse.modelfile.document import Document
from onnx_repfuse.modelfile.node_order import inner_graphs
from onnx_repfuse.modelfile.save import save
from onnx_repfuse.pipeline.invalid_model import invalid_model_is_input_error

__all__ = ["reshaped", "shapes_note", "with_input_shapes"]


@contextmanager
def with_input_shapes(
    document: Document, shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> Iterator[Document]:
    """The model with these shapes of inputs, as a file in `folder`, where no other program looks.

    Raises:
        UsageError: it has no such input, or one of another rank.
    """
    place = folder / "reshaped.onnx"
    save(reshaped(document, shapes), {}, place)
    with Document.open(place) as result:
        result.given = document
        yield result


def reshaped(document: Document, shapes: Mapping[str, tuple[int, ...]]) -> Document:
    """The model with these shapes of inputs, and outputs of the shapes that follow, reading the same files.

    Raises:
        UsageError: it has no such input, or one of another rank.
    """
    result = copy.copy(document)
    result.model, result.converted = onnx.ModelProto(), {}
    result.model.CopyFrom(document.model)
    result.unconverted = result.original = result
    graph = result.model.graph
    for name, dims in shapes.items():
        _write(_input(graph, name), dims)
    _forget(graph)
    with invalid_model_is_input_error(result):
        types = read_scopes(result)[0].types
    for value in graph.output:
        _, known = types.get(value.name, (0, None))
        if known is not None and value.type.HasField("tensor_type"):
            _write(value, known)
    return result


def _input(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    initialized = {tensor.name for tensor in graph.initializer}
    inputs: dict[str, onnx.ValueInfoProto] = {
        value.name: value for value in graph.input if value.name not in initialized
    }
    if name not in inputs:
        near = difflib.get_close_matches(name, inputs, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(inputs) or 'none'}"
        raise UsageError(f"--overwrite-input-shape: the model has no input '{name}'; {hint}")
    return inputs[name]


def _write(value: onnx.ValueInfoProto, dims: tuple[int | None, ...]) -> None:
    """Let a tensor be of these sizes; what is not known keeps its name. Raises UsageError for another rank."""
    shape = value.type.tensor_type.shape
    if value.type.tensor_type.HasField("shape") and len(shape.dim) != len(dims):
        raise UsageError(
            f"--overwrite-input-shape: '{value.name}' has {len(shape.dim)} dims, but {len(dims)} were given"
        )
    while len(shape.dim) < len(dims):
        shape.dim.add()
    shape.SetInParent()  # a scalar has a shape, too
    for dim, size in zip(shape.dim, dims, strict=True):
        if size is not None:
            dim.Clear()
            dim.dim_value = size


def _forget(graph: onnx.GraphProto) -> None:
    """Drop what the file says of inner tensors, in subgraphs, too."""
    del graph.value_info[:]
    for node in graph.node:
        for _, inner in inner_graphs(node):
            _forget(inner)


def shapes_note(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the report says of it."""
    told = ", ".join(f"'{name}' to {','.join(map(str, dims)) or 'scalar'}" for name, dims in shapes.items())
    return (
        f"shapes of inputs were overwritten: {told}; the proof compares with the same nodes at these shapes"
    )
