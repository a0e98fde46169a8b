"""A small walker over protobuf's wire format: where each field of a message begins and ends.

A message is a run of fields, each a tag (`number << 3 | wire type`) and a value: a varint (0), 8 bytes (1),
a length and so many bytes (2), a group up to its end tag (3, 4), or 4 bytes (5). Nothing is decoded or
copied here, so a 500 MB model is walked by touching a few bytes per tensor. Every position is checked
against the end of the enclosing message before it is used.

Field numbers of the ONNX messages, read from the installed protobuf descriptors.

`NUMBER["GraphProto.node"]` is a field's number. `ROUTES[message]` are the fields of a message that lead to
a `TensorProto` somewhere below: the only places where a file can hide megabytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from onnx_repfuse.errors import InputError

__all__ = [
    "LENGTH",
    "MAX_DEPTH",
    "NUMBER",
    "PAYLOADS",
    "ROUTES",
    "VARINT",
    "Buffer",
    "Field",
    "Route",
    "fields",
    "key",
    "prefix",
    "shown",
    "varint",
    "write_varint",
]

Buffer = bytes | mmap.mmap
Field = tuple[int, int, int, int, int]  # number, wire type, begin of the tag, begin of the value, end
VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
MAX_DEPTH = 100  # protobuf's own limit on nested messages
_BROKEN = "the file is not an ONNX model, or it is damaged"
_LEAF = "TensorProto"


def shown(text: object) -> str:
    """A name or a path in quotes, shortened for a message of one line."""
    words = str(text)
    return repr(words if len(words) <= 160 else f"{words[:80]}...{words[-60:]}")


def varint(buffer: Buffer, begin: int, end: int) -> tuple[int, int]:
    """The varint at `begin` and the position after it."""
    value = shift = 0
    while begin < end:
        byte = buffer[begin]
        begin += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, begin
        shift += 7
        if shift > 63:
            raise InputError(f"{_BROKEN}: a number of more than 10 bytes at byte {begin}")
    raise InputError(f"{_BROKEN}: it ends in the middle of a number, at byte {end}")


def fields(buffer: Buffer, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message in `buffer[begin:end]`, in order."""
    while begin < end:
        tag = buffer[begin]
        if tag < 0x80:
            at = begin + 1
        else:
            tag, at = varint(buffer, begin, end)
        wire = tag & 7
        number = tag >> 3
        if not 0 < number < 1 << 29:
            raise InputError(f"{_BROKEN}: no field has the number {number}, at byte {begin}")
        if wire == LENGTH:
            length = buffer[at] if at < end else 0x80
            if length < 0x80:
                at += 1
            else:
                length, at = varint(buffer, at, end)
            stop = at + length
        elif wire == VARINT:
            stop = varint(buffer, at, end)[1]
        elif wire == FIXED32:
            stop = at + 4
        elif wire == FIXED64:
            stop = at + 8
        elif wire == GROUP:
            stop = _after_group(buffer, number, at, end)
        else:
            raise InputError(f"{_BROKEN}: wire type {wire} at byte {begin}")
        if stop > end:
            raise InputError(
                f"{_BROKEN}: a field at byte {begin} claims {stop - end} bytes more than there are"
            )
        yield number, wire, begin, at, stop
        begin = stop


def _after_group(buffer: Buffer, number: int, begin: int, end: int) -> int:
    """The position after the group's end tag; groups are obsolete, but an unknown field may be one."""
    open_groups = [number]
    while open_groups:
        if len(open_groups) > MAX_DEPTH:
            raise InputError(f"{_BROKEN}: groups nested deeper than {MAX_DEPTH}")
        tag, at = varint(buffer, begin, end)
        wire = tag & 7
        if wire == GROUP:
            open_groups.append(tag >> 3)
        elif wire == END_GROUP:
            if open_groups.pop() != tag >> 3:
                raise InputError(f"{_BROKEN}: a group ends that was not begun, at byte {begin}")
        elif wire == LENGTH:
            length, at = varint(buffer, at, end)
            at += length
        elif wire == VARINT:
            at = varint(buffer, at, end)[1]
        else:
            at += {FIXED32: 4, FIXED64: 8}.get(wire, end)
        if at > end:
            raise InputError(f"{_BROKEN}: a group at byte {begin} overruns its message")
        begin = at
    return begin


def write_varint(value: int) -> bytes:
    """`value` as a varint, in the fewest bytes.

    >>> write_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def key(number: int, wire: int = LENGTH) -> bytes:
    """The tag of a field."""
    return write_varint(number << 3 | wire)


def prefix(number: int, length: int) -> bytes:
    """The tag and the length that stand before a submessage, a string or bytes."""
    return key(number) + write_varint(length)


class Route(NamedTuple):
    """One field that leads to tensors."""

    message: str  # the type of the submessage
    repeated: bool


def _repeated(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == 3)  # older protobuf


def _messages(root: Descriptor) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    waiting = [root]
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = message
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return found


def _reaching() -> set[str]:
    """The messages below which a tensor may lie: a least fixed point over the descriptors."""
    reaching = {_LEAF}
    while True:
        more = {
            name
            for name, message in _MESSAGES.items()
            if name != _LEAF
            and any(
                field.message_type is not None and field.message_type.name in reaching
                for field in message.fields
            )
        }
        if more <= reaching:
            return reaching
        reaching |= more


_MESSAGES = _messages(onnx.ModelProto.DESCRIPTOR)
_REACHING = _reaching()
NUMBER: dict[str, int] = {
    f"{message.name}.{field.name}": field.number for message in _MESSAGES.values() for field in message.fields
}
ROUTES: dict[str, dict[int, Route]] = {
    name: {
        field.number: Route(field.message_type.name, _repeated(field))
        for field in _MESSAGES[name].fields
        if field.message_type is not None and field.message_type.name in _REACHING
    }
    for name in sorted(_REACHING - {_LEAF})
}
# The fields of a TensorProto that hold its elements, but for `string_data`: strings stay in the skeleton.
PAYLOADS: dict[int, str] = {
    NUMBER[f"TensorProto.{name}"]: name
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
}
