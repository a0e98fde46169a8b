"""A small walker over protobuf's wire format: where each field of a message begins and ends.

A message is a run of fields, each a tag (`number << 3 | wire type`) and a value: a varint (0), 8 bytes (1), a length
and so many bytes (2), a group up to its end tag (3, 4), or 4 bytes (5), see
https://protobuf.dev/programming-guides/encoding.
Nothing is decoded or copied here, so a 500 MB model is walked by touching a few bytes per tensor. Every position is
checked against the end of the enclosing message before it is used, as a file may come from a stranger.

The field numbers of the ONNX messages are read from the installed protobuf descriptors: `NUMBER["GraphProto.node"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from onnx_repfuse.errors import InputError

__all__ = ["ELEMENTS", "LENGTH", "MAX_DEPTH", "NUMBER", "SUBMESSAGES", "Buffer", "Submessage"]
__all__ += ["fields", "prefix", "varint", "write_varint"]

Field = tuple[int, int, int, int, int]  # number, wire type, begin of the tag, begin of the value, end
VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)
MAX_DEPTH = 100  # protobuf's own limit on nested messages
_BROKEN = "the file is not an ONNX model, or it is damaged"


class Buffer(Protocol):
    """Bytes that can be looked at one by one: `bytes`, or a file."""

    def __getitem__(self, at: int, /) -> int:
        """The byte at `at`."""


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
    """The fields of the message in `buffer[begin:end]`, in order.

    Tags and lengths below 128 are read without a call: they are nearly all there are.

    Raises:
        InputError: this is no message.
    """
    while begin < end:
        tag = buffer[begin]
        if tag < 0x80:
            at = begin + 1
        else:
            tag, at = varint(buffer, begin, end)
        wire = tag & 7
        number = tag >> 3
        # protobuf's own range; text and zeros, taken for a model, usually end here
        if not 0 < number < 1 << 29:
            raise InputError(f"{_BROKEN}: no field has the number {number}, at byte {begin}")
        if wire == LENGTH:
            length = buffer[at] if at < end else 0x80  # 0x80: `varint` will find that it ends
            if length < 0x80:
                at += 1
            else:
                length, at = varint(buffer, at, end)
            stop = at + length
        else:
            stop = _end_of_value(buffer, number, wire, at, end)
        if stop > end:
            raise InputError(
                f"{_BROKEN}: a field at byte {begin} claims {stop - end} bytes more than there are"
            )
        yield number, wire, begin, at, stop
        begin = stop


def _end_of_value(buffer: Buffer, number: int, wire: int, at: int, end: int) -> int:
    """The position after a value that has no length."""
    if wire == VARINT:
        return varint(buffer, at, end)[1]
    if wire == FIXED32:
        return at + 4
    if wire == FIXED64:
        return at + 8
    if wire == GROUP:
        return _after_group(buffer, number, at, end)
    raise InputError(f"{_BROKEN}: wire type {wire} before byte {at}")


def _after_group(buffer: Buffer, number: int, at: int, end: int) -> int:
    """The position after the group's end tag; groups are obsolete, but an unknown field may be one."""
    open_groups = [number]
    while open_groups:
        if len(open_groups) > MAX_DEPTH:
            raise InputError(f"{_BROKEN}: groups nested deeper than {MAX_DEPTH}")
        begin = at
        tag, at = varint(buffer, begin, end)
        inner, wire = tag >> 3, tag & 7
        if wire == GROUP:
            open_groups.append(inner)
        elif wire == END_GROUP:
            if open_groups.pop() != inner:
                raise InputError(f"{_BROKEN}: a group ends that was not begun, at byte {begin}")
        elif wire == LENGTH:
            length, at = varint(buffer, at, end)
            at += length
        else:
            at = _end_of_value(buffer, inner, wire, at, end)
        if at > end:
            raise InputError(f"{_BROKEN}: a group at byte {begin} overruns its message")
    return at


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


def prefix(number: int, length: int) -> bytes:
    """The tag and the length that stand before a submessage, a string or bytes."""
    return write_varint(number << 3 | LENGTH) + write_varint(length)


class Submessage(NamedTuple):
    """A field whose values are messages."""

    message: str  # the type of the message
    repeated: bool


def _all_messages(root: Descriptor) -> list[Descriptor]:
    """A message type, and the types of all messages in it."""
    found = {root.name: root}
    waiting = [root]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            # GraphProto holds NodeProto, and that GraphProto again: each once
            if inner is not None and inner.name not in found:
                found[inner.name] = inner
                waiting.append(inner)
    return list(found.values())


def _is_repeated(field: FieldDescriptor) -> bool:
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == 3)  # protobuf before 6


_MESSAGES = _all_messages(onnx.ModelProto.DESCRIPTOR)
NUMBER: dict[str, int] = {
    f"{message.name}.{field.name}": field.number for message in _MESSAGES for field in message.fields
}
SUBMESSAGES: dict[str, dict[int, Submessage]] = {  # message type -> field number -> what is there
    message.name: {
        field.number: Submessage(field.message_type.name, _is_repeated(field))
        for field in message.fields
        if field.message_type is not None
    }
    for message in _MESSAGES
}
# The fields of a TensorProto that hold its elements, except `string_data`: strings stay in the skeleton.
ELEMENTS = frozenset(
    NUMBER[f"TensorProto.{name}"]
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
)
