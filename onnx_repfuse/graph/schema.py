"""Field numbers of the ONNX messages, read from the installed protobuf descriptors.

`NUMBER["GraphProto.node"]` is a field's number. `ROUTES[message]` are the fields of a message that lead to
a `TensorProto` somewhere below: the only places where a file can hide megabytes.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["NUMBER", "PAYLOADS", "ROUTES", "Route"]

_LEAF = "TensorProto"
_INLINE = "SparseTensorProto"  # small by nature, and shape inference reads its indices: left as it is


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


_MESSAGES = _messages(onnx.ModelProto.DESCRIPTOR)


def _reaching() -> set[str]:
    """The messages below which a tensor may lie: a least fixed point over the descriptors."""
    reaching = {_LEAF}
    while True:
        more = {
            name
            for name, message in _MESSAGES.items()
            if name not in (_LEAF, _INLINE)
            and any(
                field.message_type is not None and field.message_type.name in reaching
                for field in message.fields
            )
        }
        if more <= reaching:
            return reaching
        reaching |= more


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
