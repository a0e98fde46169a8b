"""Names inside the bytes of a model: read, replaced, and collected, one message at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx_repfuse.modelfile.byte_rope import Rope
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.protobuf_wire import LENGTH, NUMBER, Field, fields, prefix

__all__ = ["TENSOR_NAME", "VALUE_NAME", "Names", "defined", "renamed", "text_of"]

Names = Mapping[bytes, bytes]  # old name -> new name, as UTF-8

TENSOR_NAME, VALUE_NAME = NUMBER["TensorProto.name"], NUMBER["ValueInfoProto.name"]
_NODE, _INPUT = NUMBER["GraphProto.node"], NUMBER["GraphProto.input"]
_INITIALIZER, _NODE_OUTPUT = NUMBER["GraphProto.initializer"], NUMBER["NodeProto.output"]


def text_of(source: Source, parts: Iterable[Field], number: int) -> bytes:
    """The string in the field `number`; of several, protobuf takes the last."""
    text = b""
    for inner, wire, _, at, stop in parts:
        if inner == number and wire == LENGTH:
            text = source.buffer[at:stop]
    return text


def renamed(source: Source, field: Field, number: int, names: Names, rope: Rope) -> None:
    """Append the message `field` with the string in its field `number` replaced, if `names` has it."""
    body = Rope()
    for inner, wire, tag, at, stop in fields(source.buffer, field[3], field[4]):
        new = names.get(source.buffer[at:stop]) if inner == number and wire == LENGTH else None
        if new is None:
            body.copy(source, tag, stop)
        else:
            body.add(prefix(inner, len(new)) + new)
    rope.message(field[0], body)


def defined(source: Source, parts: Iterable[Field]) -> set[bytes]:
    """The names that a subgraph defines itself, which hide those outside."""
    names: set[bytes] = set()
    for number, wire, _, at, stop in parts:
        if wire != LENGTH:
            continue
        inner = fields(source.buffer, at, stop)
        if number == _NODE:
            names |= {
                source.buffer[a:b] for kind, w, _, a, b in inner if kind == _NODE_OUTPUT and w == LENGTH
            }
        elif number == _INPUT:
            names.add(text_of(source, inner, VALUE_NAME))
        elif number == _INITIALIZER:
            names.add(text_of(source, inner, TENSOR_NAME))
    return names - {b""}
