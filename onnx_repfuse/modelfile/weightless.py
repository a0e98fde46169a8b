"""From the bytes of a model to its weightless skeleton: everything but the payloads of large tensors.

The skeleton is a `Rope` over the same bytes. Where a tensor was relieved of its payload it says

    data_location: EXTERNAL    external_data { key: "repfuse" value: "<index>" }

and `payloads[index]` says where the bytes are. A submessage of at most `INLINE` bytes cannot hold a large
payload and is taken whole, which is why ten thousand small nodes cost little more than ten thousand steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnx_repfuse.errors import InputError
from onnx_repfuse.modelfile.byte_rope import Rope
from onnx_repfuse.modelfile.byte_source import Source
from onnx_repfuse.modelfile.protobuf_wire import (
    LENGTH,
    MAX_DEPTH,
    NUMBER,
    PAYLOADS,
    ROUTES,
    VARINT,
    fields,
    key,
    prefix,
    varint,
)

__all__ = ["INLINE", "MARK", "Payload", "strip"]

INLINE = 1024
MARK = "repfuse"
_RELEASE = 16 << 20

_RAW = NUMBER["TensorProto.raw_data"]
_LOCATION = NUMBER["TensorProto.data_location"]
_EXTERNAL = NUMBER["TensorProto.external_data"]


@dataclass(frozen=True)
class Payload:
    """Where the elements of a stripped tensor are."""

    source: Source
    begin: int
    end: int
    raw: bool = True  # False: the range is the whole TensorProto, and its typed fields hold them


def strip(source: Source) -> tuple[Rope, list[Payload]]:
    """The skeleton of the ModelProto in `source`, and what was left out."""
    payloads: list[Payload] = []
    rope = Rope()
    _strip(source, "ModelProto", 0, source.size, rope, payloads, 0)
    return rope, payloads


def _strip(
    source: Source, kind: str, begin: int, end: int, rope: Rope, payloads: list[Payload], depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"the model's messages are nested deeper than {MAX_DEPTH}")
    routes = ROUTES[kind]
    met = set()
    copied = begin
    for number, wire, tag, at, stop in fields(source.buffer, begin, end):
        route = routes.get(number) if wire == LENGTH else None
        if route is None:
            continue
        if not route.repeated:
            if number in met:  # protobuf would merge the two; no exporter writes this
                raise InputError(f"the model is damaged: a {route.message} is stored in two pieces")
            met.add(number)
        if stop - at <= INLINE:
            continue
        before = len(payloads)
        body = Rope()
        if route.message == "TensorProto":
            _strip_tensor(source, at, stop, body, payloads)
        else:
            _strip(source, route.message, at, stop, body, payloads, depth + 1)
        if len(payloads) > before:
            rope.copy(source, copied, tag)
            rope.message(number, body)
            copied = stop
    rope.copy(source, copied, end)


def _strip_tensor(source: Source, begin: int, end: int, rope: Rope, payloads: list[Payload]) -> None:
    buffer = source.buffer
    held = 0
    external = False
    raw: tuple[int, int] | None = None
    kept = []
    for number, wire, tag, at, stop in fields(buffer, begin, end):
        if number in PAYLOADS:
            held += stop - at
            if number == _RAW and wire == LENGTH:
                raw = at, stop  # of several, protobuf takes the last
        elif number == _LOCATION and wire == VARINT:
            external = varint(buffer, at, stop)[0] == onnx.TensorProto.EXTERNAL
        elif number != _EXTERNAL:
            kept.append((tag, stop))
    if held <= INLINE:
        return
    if external:
        raise InputError("the model is damaged: a tensor holds its data both in the file and outside")
    for tag, stop in kept:
        rope.copy(source, tag, stop)
    rope.add(_marker(len(payloads)))
    if raw is not None and raw[1] // _RELEASE != raw[0] // _RELEASE:
        source.release()  # one look maps megabytes around it
    payloads.append(Payload(source, begin, end, raw=False) if raw is None else Payload(source, *raw))


def _marker(index: int) -> bytes:
    """The two fields that mark a stripped tensor."""
    entry = onnx.StringStringEntryProto(key=MARK, value=str(index)).SerializeToString(deterministic=True)
    where = key(_LOCATION, VARINT) + bytes([onnx.TensorProto.EXTERNAL])
    return bytes(prefix(_EXTERNAL, len(entry)) + entry + where)
